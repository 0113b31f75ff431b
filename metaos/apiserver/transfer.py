"""Large bodies on their way: how large a request's will be, and how an answer's goes out."""

from __future__ import annotations

import asyncio
import zlib

from aiohttp import hdrs, web

from metaos.apiserver.bodies import MAX_BODY

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


async def in_parts(request: web.Request, answer: web.StreamResponse, body: bytes) -> web.StreamResponse:
    """Sends what ``answer`` says, with ``body``. Ends the connection where the reader is too slow."""
    headers = answer.headers.copy()
    headers.popall(hdrs.CONTENT_LENGTH, None)
    if _compress(request, answer, body):
        # In a thread: the other requests go on meanwhile.
        body = await asyncio.to_thread(_gzipped, body)
        headers[hdrs.CONTENT_ENCODING] = "gzip"
        headers[hdrs.VARY] = "Accept-Encoding, Accept"
    sent = web.StreamResponse(status=answer.status, headers=headers)
    sent.content_length = len(body)
    try:
        async with asyncio.timeout(FIRST_SECONDS + len(body) / SLOWEST_BYTES):
            await sent.prepare(request)
            view = memoryview(body)
            if request.method != hdrs.METH_HEAD:
                for start in range(0, len(body), PART_BYTES):
                    await sent.write(view[start : start + PART_BYTES])
            await sent.write_eof()
    except TimeoutError:
        # Half an answer: the reader must see that it is not whole.
        if request.transport is not None:
            request.transport.abort()
    return sent


def _compress(request: web.Request, answer: web.StreamResponse, body: bytes) -> bool:
    if len(body) < GZIP_BYTES or answer.status != 200 or hdrs.CONTENT_ENCODING in answer.headers:
        return False
    return "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, "")


def _gzipped(body: bytes) -> bytes:
    packing = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packing.compress(body) + packing.flush()
