"""Large bodies on their way: how large a request's will be, and how an answer's goes out."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterable

from aiohttp import hdrs, web
from aiohttp.typedefs import LooseHeaders

from metaos.apiserver.bodies import MAX_BODY
from metaos.apiserver.gates import SMALL_BYTES

#: An answer goes out in parts of this size, each when the reader has taken most of what came before.
PART_BYTES = 128 * 1024
#: A reader must take so much in a second on average, after the first minute.
SLOWEST_BYTES = 16 * 1024
FIRST_SECONDS = 60.0
#: Larger answers are compressed for those who accept it, as by Kubernetes.
GZIP_BYTES = 128 * 1024


def announced(request: web.Request) -> int:
    """Bytes that the body may have."""
    if not request.can_read_body:
        return 0
    length = request.content_length
    return MAX_BODY if length is None else min(length, MAX_BODY)


class Large(web.Response):
    """An answer that is never in one piece. ``size``: of all its parts together."""

    def __init__(self, parts: Iterable[bytes], size: int, headers: LooseHeaders) -> None:
        super().__init__(headers=headers)
        self.parts, self.size = parts, size


def large(answer: web.StreamResponse) -> Large | None:
    """An answer that is to go out in parts."""
    if isinstance(answer, Large):
        return answer
    body = answer.body if isinstance(answer, web.Response) else None
    return Large((body,), len(body), answer.headers) if isinstance(body, bytes) and len(body) > SMALL_BYTES else None


async def in_parts(request: web.Request, answer: web.StreamResponse, body: Large) -> web.StreamResponse:
    """Sends what ``answer`` says, with ``body``. Ends the connection where the reader is too slow."""
    headers = answer.headers.copy()
    headers.popall(hdrs.CONTENT_LENGTH, None)
    parts, size = body.parts, body.size
    if _compress(request, answer, size):
        # In a thread: the other requests go on meanwhile.
        packed = await asyncio.to_thread(_gzipped, parts)
        parts, size = (packed,), len(packed)
        headers[hdrs.CONTENT_ENCODING] = "gzip"
        headers[hdrs.VARY] = "Accept-Encoding, Accept"
    sent = web.StreamResponse(status=answer.status, headers=headers)
    sent.content_length = size
    try:
        async with asyncio.timeout(FIRST_SECONDS + size / SLOWEST_BYTES):
            await sent.prepare(request)
            for part in parts if request.method != hdrs.METH_HEAD else ():
                view = memoryview(part)
                for start in range(0, len(part), PART_BYTES):
                    await sent.write(view[start : start + PART_BYTES])
            await sent.write_eof()
    except TimeoutError:
        # Half an answer: the reader must see that it is not whole.
        if request.transport is not None:
            request.transport.abort()
    return sent


def _compress(request: web.Request, answer: web.StreamResponse, size: int) -> bool:
    if size < GZIP_BYTES or answer.status != 200 or hdrs.CONTENT_ENCODING in answer.headers:
        return False
    return "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, "")


def _gzipped(parts: Iterable[bytes]) -> bytes:
    packing = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join([*map(packing.compress, parts), packing.flush()])
