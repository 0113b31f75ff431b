"""What lasts ends with its caller's right to it: watches, logs, commands, forwarded ports, proxied connections and tunnels.

A caller is looked at again whenever certificates are withdrawn, and every few seconds for those that expire. A connection
whose caller counts no more is cut off as it stands: no goodbye could be trusted to be read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import NoReturn

from aiohttp import web

from metaos.apiserver.authn import Identity
from metaos.clock import Clock

log = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0


class Sessions:
    """Bounded by ``app.MAX_LONG_RUNNING``, which is asked before one is held."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[str, Callable[[], bool], web.BaseRequest]] = {}
        self._numbers = count()

    @property
    def count(self) -> int:
        return len(self._held)

    @contextmanager
    def hold(self, request: web.BaseRequest, identity: Identity) -> Iterator[None]:
        """For as long as the call lasts."""
        number = next(self._numbers)
        self._held[number] = identity.user.name, identity.valid, request
        try:
            yield
        finally:
            del self._held[number]

    def sweep(self) -> int:
        """Cuts off those whose callers count no more. How many."""
        ended = 0
        for name, valid, request in list(self._held.values()):
            transport = request.transport
            if transport is not None and not transport.is_closing() and not valid():
                log.info("a connection of %s is cut off: its certificate has ended, or was withdrawn", name)
                # aiohttp cancels what serves a connection that is gone.
                transport.abort()
                ended += 1
        return ended

    async def run(self, clock: Clock) -> NoReturn:
        """Looks at all of them from time to time."""
        while True:
            await clock.sleep(SWEEP_SECONDS)
            self.sweep()
