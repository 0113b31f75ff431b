"""Watches over HTTP: one JSON line per event, for as long as both sides like.

Nothing is kept for a watcher: its events come from the registry's window one by one, and the next is taken when the
last has been handed to the transport, so a slow reader costs no memory and is told 410 where it has fallen behind. One
that takes nothing at all for ``STALLED_SECONDS`` is cut off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any

import orjson
from aiohttp import web

from metaos.apiserver.registry import EncodedEvent
from metaos.resources.errors import ApiError, unauthorized
from metaos.resources.meta import Obj

#: A watch without ``timeoutSeconds`` ends after this long, spread by up to as much again (as in Kubernetes).
DEFAULT_SECONDS = 1800
#: A reader that takes nothing for so long counts as dead.
STALLED_SECONDS = 60.0
#: What may wait for a reader in this process before the next event has to (asyncio's own limit for TLS is 512 KiB).
WAITING_BYTES = 32 * 1024


class _Stalled(Exception):
    """The reader is there and does not read."""


def line_of(type: str, obj: Obj) -> bytes:
    return orjson.dumps({"type": type, "object": obj}, option=orjson.OPT_APPEND_NEWLINE)


async def stream(
    request: web.Request,
    response: web.StreamResponse,
    events: AsyncGenerator[EncodedEvent, None],
    *,
    seconds: float,
    valid: Callable[[], bool],
    line: Callable[[EncodedEvent], bytes],
) -> web.StreamResponse:
    """Sends ``events`` until they end, the time is over or the caller is no longer ``valid``. An error after the first
    byte becomes an ``ERROR`` event."""
    await response.prepare(request)
    if request.transport is not None:
        request.transport.set_write_buffer_limits(WAITING_BYTES)
    try:
        async with aclosing(events):
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        async for event in events:
                            if not valid():
                                raise unauthorized("the credentials of this watch are no longer valid")
                            await _taken(request, response.write(line(event)))
            except ApiError as error:
                await _taken(request, response.write(line_of("ERROR", error.status())))
        await _taken(request, response.write_eof())
    except _Stalled:
        if request.transport is not None:
            request.transport.abort()
    return response


async def _taken(request: web.Request, writing: Coroutine[Any, Any, None]) -> None:
    """Waits for ``writing``, for a while where the reader has not yet taken what came before. Raises ``_Stalled``."""
    transport = request.transport
    if transport is None or not transport.get_write_buffer_size():
        return await writing
    limit = asyncio.timeout(STALLED_SECONDS)
    try:
        async with limit:
            return await writing
    except TimeoutError:
        if limit.expired():
            raise _Stalled from None
        raise
