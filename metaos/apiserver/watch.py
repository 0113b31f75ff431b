"""Watches over HTTP: one JSON line per event, for as long as both sides like.

Nothing is kept for a watcher: its events come from the registry's window one by one, and the next is taken when the
last has been handed to the transport, so a slow reader costs no memory and is told 410 where it has fallen behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

import orjson
from aiohttp import web

from metaos.apiserver.registry import EncodedEvent
from metaos.resources.errors import ApiError, unauthorized
from metaos.resources.meta import Obj

#: A watch without ``timeoutSeconds`` ends after this long, spread by up to as much again (as in Kubernetes).
DEFAULT_SECONDS = 1800


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
    async with aclosing(events):
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    async for event in events:
                        if not valid():
                            raise unauthorized("the credentials of this watch are no longer valid")
                        await response.write(line(event))
        except ApiError as error:
            await response.write(line_of("ERROR", error.status()))
    await response.write_eof()
    return response
