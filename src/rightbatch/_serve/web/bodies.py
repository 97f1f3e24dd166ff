"""The body of a request, read as it comes and never beyond what is allowed.

What a sender says of its length is believed only where it is too much already. All bodies and the
images that they became share one allowance, since a thousand that are each within their limit are
more than a machine has.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING

from rightbatch._serve.web.images import BadImageError, Limits, too_long_message

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.requests import Request

_FRAMING = 16_384  # bytes of a form around its file
_FIELDS = 20  # of a form, besides the file
_DRAIN = 4  # times the limit is read and thrown away, so that the sender hears the answer,
_DRAIN_SECONDS = 5.0  # for as long as this


class OverloadedError(Exception):
    """All that the server may hold at once is held."""


class MemoryBudget:
    """Bytes that the server holds for its requests; used on the event loop only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._now = 0

    @property
    def bytes(self) -> int:
        """Held now."""
        return self._now

    @contextlib.contextmanager
    def share(self) -> Iterator[Reservation]:
        """What one request holds, which ends with it."""
        share = Reservation(self)
        try:
            yield share
        finally:
            self.change(-share.bytes)

    def change(self, count: int) -> None:
        """Hold `count` more, or less.

        Raises:
            Overloaded: if that is more than there may be.
        """
        if count > 0 and self._now + count > self._most:
            raise OverloadedError
        self._now += count


class Reservation:
    """One request's part of what is held."""

    def __init__(self, held: MemoryBudget) -> None:
        self._held = held
        self.bytes = 0

    def set(self, count: int) -> None:
        """Hold so much from now on.

        Raises:
            Overloaded: if that is more than there may be.
        """
        self._held.change(count - self.bytes)
        self.bytes = count


async def read_body(request: Request, limits: Limits, share: Reservation, most: int) -> bytes:
    """The body, of `most` bytes.

    Raises:
        BadImage: if it is longer, or takes too long to come (408).
        Overloaded: if the server holds too much already.
        starlette.requests.ClientDisconnect: if the sender has gone.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise BadImageError(415, f"send the body as it is, not as {encoding}")
    try:
        async with asyncio.timeout(limits.upload_seconds):
            return await _read(request, limits, share, most)
    except TimeoutError:
        raise BadImageError(408, f"the body took more than {limits.upload_seconds:g} s") from None


async def read_image(request: Request, limits: Limits, share: Reservation) -> bytes:
    """The image file of a request: its body, or the field `file` of a form.

    Raises:
        BadImage: if there is none, or more than is taken.
        Overloaded: if the server holds too much already.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        return await read_body(request, limits, share, limits.body_bytes)
    body = await read_body(request, limits, share, limits.body_bytes + _FRAMING)
    share.set(2 * len(body))  # the form, and the file that is taken out of it
    file = await _file_of_form(request.headers, body)
    if len(file) > limits.body_bytes:
        raise BadImageError(413, too_long_message(limits))
    share.set(len(file))
    return file


async def _read(request: Request, limits: Limits, share: Reservation, most: int) -> bytes:
    said = request.headers.get("content-length", "")
    stream = request.stream()
    body = bytearray()
    if not (said.isdecimal() and int(said) > most):
        async for part in stream:
            share.set(len(body) + len(part))
            body += part
            if len(body) > most:
                break
        else:
            return bytes(body)
    if "expect" not in request.headers:  # who waits to be told to go on has sent nothing
        await _drain(stream, _DRAIN * most)
    raise BadImageError(413, too_long_message(limits))


async def _drain(stream: AsyncGenerator[bytes, None], most: int) -> None:
    """A connection that is closed while its sender still writes loses the answer."""
    seen = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for part in stream:
                seen += len(part)
                if seen > most:
                    return


async def _file_of_form(headers: Headers, body: bytes) -> bytes:
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    class InMemory(MultiPartParser):
        spool_max_size = len(body) + 1  # it is in memory already: nothing goes to the disk

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await InMemory(headers, whole(), max_files=1, max_fields=_FIELDS).parse()
    except MultiPartException as error:
        raise BadImageError(422, f"the form is broken: {error.message}") from None
    except Exception as error:
        raise BadImageError(422, f"the form is broken: {error}") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise BadImageError(422, "a form has the image as a file in the field `file`")
        return await file.read()
    finally:
        await form.close()
