"""The twin's hub, which can be killed at any write, on the real store on a file; time is virtual all the same.

A killed hub loses everything that it held in memory; the next one is started from the file.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.resources import errors
from metaos.security.authz import CLUSTER_USER_PREFIX, CLUSTERS, UserInfo
from metaos.store.sqlite import SqliteStore
from metaos.twin.disk import Mounted
from metaos.twin.hub import ADMIN, unsigned
from metaos.twin.hub import Hub as TwinHub
from tests.clock import FakeClock

#: Rounds of the event loop in which nothing happens before the hub counts as settled.
QUIET_ROUNDS = 25


SETTINGS = Settings(sign=unsigned, lease_duration=4.0, drain=2.0, fencing_after=6.0, fencing_margin=2.0)


class WorldClock(FakeClock):
    """Virtual time over real I/O: whoever advances it waits until no call to the store is under way. ``jump`` moves the wall
    clock alone, as a wrong time server does."""

    def __init__(self) -> None:
        super().__init__()
        self.busy: Callable[[], bool] = lambda: False
        self.offset = 0.0

    def now(self) -> float:
        return super().now() + self.offset

    async def settle(self, rounds: int = QUIET_ROUNDS) -> None:
        quiet = 0
        while quiet < rounds:
            await asyncio.sleep(0)
            quiet += 1
            if self.busy():
                quiet = 0
                await asyncio.sleep(0.00005)

    def view(self, offset: float) -> Skewed:
        """This clock as a machine sees it whose wall clock is wrong by ``offset`` seconds."""
        return Skewed(self, offset)


class Skewed:
    """Another machine's clock: the same passing of time, another time of day."""

    def __init__(self, clock: WorldClock, offset: float) -> None:
        self._clock, self.offset = clock, offset

    def now(self) -> float:
        # What the hub's own clock is wrong by is no business of this machine.
        return self._clock.now() - self._clock.offset + self.offset

    def monotonic(self) -> float:
        return self._clock.monotonic()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)


class Counted(SqliteStore):
    """``under_way``: calls that are not answered yet."""

    under_way = 0

    def _call(self, queue: Any, work: Any) -> asyncio.Future[Any]:
        self.under_way += 1
        answer = super()._call(queue, work)
        answer.add_done_callback(self._answered)
        return answer

    def _answered(self, _: object) -> None:
        self.under_way -= 1


@dataclass
class FileDisk:
    """What the twin's hub mounts, with the real store on a real file."""

    clock: Clock
    store: Any = None
    ledger: Any = None
    write_seconds: float = 0.0
    writes: int = 0


class Hub(TwinHub):
    """The twin's, on a file. Its history is kept, as the tests read it."""

    def __init__(self, file: Path, clock: WorldClock, settings: Settings = SETTINGS) -> None:
        super().__init__(clock, Random(1), settings, 0)
        self._file = file
        self.disk: Any = FileDisk(clock)
        clock.busy = self._busy

    async def mount(self) -> Mounted:
        self.disk.store = await Counted.open(self._file)
        self.disk.ledger = self.disk.store.ledger
        return Mounted(self.disk)

    def _busy(self) -> bool:
        store, registry = self.disk.store, self.registry
        if self.store is None or registry is None or self.dead:
            return False
        return bool(store.under_way > 0 or registry.cache.revision < store._revision)

    def arm(self, kill_after: int) -> None:
        """Dies after so many more writes."""
        assert self.store is not None
        self.store.kill_after = kill_after
        if kill_after == 0:
            self.store.dead.set()

    @property
    def dead(self) -> bool:
        """Whether it has died and nobody has noticed yet."""
        return self.store is not None and self.store.dead.is_set()


class Line:
    """How a site's agent reaches the hub: not at all while the hub is down or the line is cut. Calls that a dying hub never
    answers fail when it is gone, as broken connections do."""

    def __init__(self, hub: Hub, site: str = "") -> None:
        """Without a site: the administrator's."""
        self._hub, self._user = hub, UserInfo(CLUSTER_USER_PREFIX + site, (CLUSTERS,)) if site else ADMIN
        self.cut = False

    async def call(self, verb: str, *arguments: Any, **more: Any) -> Any:
        hub = self._hub
        if self.cut or not hub.up or hub.registry is None:
            raise errors.unavailable("the hub cannot be reached")
        down = asyncio.ensure_future(hub.downed.wait())
        asked = asyncio.ensure_future(getattr(hub.registry.client(self._user), verb)(*arguments, **more))
        try:
            await asyncio.wait({asked, down}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
            raise errors.unavailable("the hub went away")
        finally:
            down.cancel()
            asked.cancel()
            with contextlib.suppress(BaseException):
                await asked
