"""Say what a file is that is no supported picture, by its first bytes, and the way round."""

from __future__ import annotations

import re

SIGNATURE_BYTES = 512

_SIGNATURES = (
    (rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "HEIC"),
    (rb"....ftypavi[fs]", "AVIF"),
    (rb"(II\*\0|MM\0\*|II\+\0|MM\0\+)", "TIFF"),
    (rb"GIF8", "GIF"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"v/1\x01", "OpenEXR"),
    (rb"#\?RADIANCE", "Radiance HDR"),
    (rb"8BPS", "Photoshop"),
    (rb"\0\0[\1\2]\0[^\0]\0", "icon"),
    (rb"%PDF", "PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "EPS"),
    (rb"\s*(<\?xml.*)?<svg", "SVG"),
    (rb".{128}DICM", "DICOM"),
    (rb"SIMPLE  =", "FITS"),
)
_HEIC_WAY_ROUND = "pip install pillow-heif, or save it as JPEG"
_RAW = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")
_NO_FILM = ("HEIC", "Photoshop", "icon", "PDF", "EPS", "SVG", "DICOM", "FITS")


def kind_of(start: bytes) -> str | None:
    """Return the name of the format, if it is one of those that are known here."""
    for pattern, name in _SIGNATURES:
        if re.match(pattern, start, re.DOTALL):
            return name
    return None


def refusal(start: bytes, formats: tuple[str, ...]) -> str:
    """Return why a file that begins with `start` is not decoded, and what to do."""
    kind = kind_of(start)
    if kind == "HEIC":
        return f"it is a HEIC picture: {_HEIC_WAY_ROUND}"
    if kind == "TIFF" and kind in formats:
        return (
            "it is a TIFF file that Pillow does not read (more than 4 channels, or colours or "
            "numbers of another depth); save it as RGB with 8 bits, or yield its arrays in Python"
        )
    known = f"{', '.join(formats[:-1])} or {formats[-1]}"
    if kind is None:
        return f"it is not a {known} file"
    return f"{_named(kind)}, not {known}"


def refusal_as_film(start: bytes, suffix: str) -> str | None:
    """Return why a file is neither a picture nor a film, if its first bytes or name tell.

    FFmpeg opens some of these, and finds a tile or a preview in them.
    """
    if suffix.lower() in _RAW:
        return f"it is a raw photo ({suffix}); save it as JPEG, PNG or TIFF"
    kind = kind_of(start)
    if kind not in _NO_FILM:
        return None
    way_round = _HEIC_WAY_ROUND if kind == "HEIC" else "save its pictures as PNG or JPEG"
    return f"{_named(kind)}; {way_round}"


def _named(kind: str) -> str:
    return f"it is {'an' if kind[0] in 'AEOi' else 'a'} {kind} file"
