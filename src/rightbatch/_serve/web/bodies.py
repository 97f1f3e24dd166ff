"""Read request bodies within limits.

The Content-Length header is trusted only if it exceeds the limit. All bodies and the images decoded
from them share one memory budget, since many requests within their limits could exhaust the memory.
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

_FORM_OVERHEAD = 16_384  # bytes of a form besides its file
_FORM_FIELDS = 20  # of a form, besides the file
_DRAIN_FACTOR = 4  # limits' worth of excess data read and discarded before the answer
_DRAIN_SECONDS = 5.0


class OverloadedError(Exception):
    """The memory budget of the server is exhausted."""


class MemoryBudget:
    """Bytes held for all requests, with an upper limit; used on the event loop only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._now = 0

    @property
    def bytes(self) -> int:
        """The bytes that are held now."""
        return self._now

    @contextlib.contextmanager
    def reserve(self) -> Iterator[Reservation]:
        """Yield the reservation of one request; it is released at the end."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.change(-reservation.bytes)

    def change(self, count: int) -> None:
        """Add `count` bytes, which may be negative.

        Raises:
            OverloadedError: if the budget would be exceeded.
        """
        if count > 0 and self._now + count > self._most:
            raise OverloadedError
        self._now += count


class Reservation:
    """The bytes held for one request."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.bytes = 0

    def set(self, count: int) -> None:
        """Set the number of bytes.

        Raises:
            OverloadedError: if the budget is exceeded.
        """
        self._budget.change(count - self.bytes)
        self.bytes = count


async def read_body(request: Request, limits: Limits, reservation: Reservation, most: int) -> bytes:
    """Read a body of at most `most` bytes.

    Raises:
        BadImageError: if it is longer, or the upload takes too long (408).
        OverloadedError: if the memory budget is exhausted.
        starlette.requests.ClientDisconnect: if the client has disconnected.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise BadImageError(415, f"send the body without Content-Encoding, got {encoding}")
    try:
        async with asyncio.timeout(limits.upload_seconds):
            return await _read(request, limits, reservation, most)
    except TimeoutError:
        raise BadImageError(408, f"the upload took more than {limits.upload_seconds:g} s") from None


async def read_image(request: Request, limits: Limits, reservation: Reservation) -> bytes:
    """Read the image file of a request: its body, or the field `file` of a form.

    Raises:
        BadImageError: if there is none, or it is too large.
        OverloadedError: if the memory budget is exhausted.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        return await read_body(request, limits, reservation, limits.body_bytes)
    body = await read_body(request, limits, reservation, limits.body_bytes + _FORM_OVERHEAD)
    reservation.set(2 * len(body))  # the form, and the copy of its file
    file = await _file_of_form(request.headers, body)
    if len(file) > limits.body_bytes:
        raise BadImageError(413, too_long_message(limits))
    reservation.set(len(file))
    return file


async def _read(request: Request, limits: Limits, reservation: Reservation, most: int) -> bytes:
    length = request.headers.get("content-length", "")
    stream = request.stream()
    body = bytearray()
    if not (length.isdecimal() and int(length) > most):
        async for part in stream:
            reservation.set(len(body) + len(part))
            body += part
            if len(body) > most:
                break
        else:
            return bytes(body)
    if "expect" not in request.headers:  # with `Expect: 100-continue` no body was sent
        await _drain(stream, _DRAIN_FACTOR * most)
    raise BadImageError(413, too_long_message(limits))


async def _drain(stream: AsyncGenerator[bytes, None], most: int) -> None:
    """Read and discard excess data: a client that still writes would not read the answer."""
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
        spool_max_size = len(body) + 1  # keep the file in memory, not on disk

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await InMemory(headers, whole(), max_files=1, max_fields=_FORM_FIELDS).parse()
    except MultiPartException as error:
        raise BadImageError(422, f"invalid form: {error.message}") from None
    except Exception as error:
        raise BadImageError(422, f"invalid form: {error}") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise BadImageError(422, "send the image as a file in the form field `file`")
        return await file.read()
    finally:
        await form.close()
