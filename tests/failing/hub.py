"""A hub that can be killed at any write: the real store on a file, the real registry and all controllers, in virtual time.

Writes go through one at a time, so that "after write N" is one definite state of the file. A killed hub loses everything
that it held in memory; the next one is started from the file.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

from metaos.apiserver.addressing import key_of
from metaos.apiserver.registry import Registry
from metaos.client import Client
from metaos.controllers import all_setups
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.resources import errors
from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind
from metaos.security.authz import CLUSTER_USER_PREFIX, CLUSTERS, MASTERS, UserInfo
from metaos.store.log import Entry, Listing, LogEvent
from metaos.store.sqlite import SqliteStore
from tests.clock import FakeClock

CONTROLLERS = UserInfo("system:controller-manager", (MASTERS,))
ADMIN = UserInfo("admin", (MASTERS,))
#: Rounds of the event loop in which nothing happens before the hub counts as settled.
QUIET_ROUNDS = 25


def _unsigned(*arguments: Any, **more: Any) -> bytes:
    raise AssertionError("nothing is signed here")


SETTINGS = Settings(sign=_unsigned, lease_duration=4.0, drain=2.0, fencing_after=6.0, fencing_margin=2.0)


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


class KilledStore:
    """The store as one life of a hub sees it. After ``kill_after`` writes (-1: never) the next answers never come."""

    def __init__(self, store: SqliteStore, kill_after: int) -> None:
        self._store, self.kill_after = store, kill_after
        self.writes = 0
        self.pending = 0
        self.dead = asyncio.Event()
        self._turn = asyncio.Lock()
        if kill_after == 0:
            self.dead.set()

    async def _write(self, write: Callable[[], Any]) -> int:
        async with self._turn:
            if not self.dead.is_set():
                self.pending += 1
                try:
                    revision: int = await write()
                finally:
                    self.pending -= 1
                self.writes += 1
                if self.writes != self.kill_after:
                    return revision
                self.dead.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError("the dead do not answer")

    async def create(self, key: str, value: bytes) -> int:
        return await self._write(lambda: self._store.create(key, value))

    async def update(self, key: str, value: bytes, *, expected: int) -> int:
        return await self._write(lambda: self._store.update(key, value, expected=expected))

    async def delete(self, key: str, *, expected: int) -> int:
        return await self._write(lambda: self._store.delete(key, expected=expected))

    async def revision(self) -> int:
        return await self._store.revision()

    async def get(self, key: str) -> Entry | None:
        return await self._store.get(key)

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, after: str = "") -> Listing:
        self.pending += 1
        try:
            return await self._store.list(prefix, revision=revision, limit=limit, after=after)
        finally:
            self.pending -= 1

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[LogEvent]:
        return self._store.watch(prefix, after=after)

    async def compact(self, revision: int) -> None:
        raise AssertionError("history is kept: the tests read it")

    async def close(self) -> None:
        await self._store.close()


class Hub:
    """``start``, then ``kill`` or ``stop``; any number of times."""

    def __init__(self, file: Path, clock: WorldClock, settings: Settings = SETTINGS) -> None:
        self._file, self._clock, self._settings = file, clock, settings
        self.store: KilledStore | None = None
        self.registry: Registry | None = None
        self.manager: Manager | None = None
        self.down = asyncio.Event()
        self.down.set()
        clock.busy = self._busy

    def _busy(self) -> bool:
        store, registry = self.store, self.registry
        if store is None or registry is None or store.dead.is_set():
            return False
        return store.pending > 0 or registry.cache.revision < store._store._revision

    async def start(self, kill_after: int = -1) -> None:
        self.store = KilledStore(await SqliteStore.open(self._file), -1)
        self.registry = Registry(self.store, self._clock, Random(1))
        await self.registry.start()
        self.manager = Manager(self.registry.client(CONTROLLERS), self._clock, Random(1))
        for setup in all_setups():
            setup(self.manager, self.manager.client, self._clock, self._settings)
        self.arm(kill_after)
        await self.manager.start()
        self.down = asyncio.Event()

    def arm(self, kill_after: int) -> None:
        """Dies after so many more writes."""
        assert self.store is not None
        self.store.kill_after = self.store.writes + kill_after if kill_after >= 0 else -1
        if kill_after == 0:
            self.store.dead.set()

    @property
    def up(self) -> bool:
        return not self.down.is_set()

    @property
    def dead(self) -> bool:
        """Whether it has died and nobody has noticed yet."""
        return self.store is not None and self.store.dead.is_set()

    async def kill(self) -> None:
        """Nothing in memory survives; nothing more is written."""
        self.down.set()
        assert self.store is not None and self.registry is not None and self.manager is not None
        self.store.dead.set()
        await self.manager.stop()
        await self.registry.stop()
        await self.store.close()
        self.store = self.registry = self.manager = None

    @property
    def client(self) -> Client:
        """As its administrator."""
        assert self.registry is not None
        return self.registry.client(ADMIN)

    def objects(self, kind: Kind, namespace: str = "") -> list[Obj]:
        """What the API shows now."""
        assert self.registry is not None
        return [version.object() for version in self.registry.cache.range(kind.resource, namespace)]

    def find(self, kind: Kind, name: str, namespace: str = "") -> Obj | None:
        assert self.registry is not None
        version = self.registry.cache.get(key_of(kind, namespace, name))
        return None if version is None else version.object()


class Line:
    """How a site's agent reaches the hub: not at all while the hub is down or the line is cut. Calls that a dying hub never
    answers fail when it is gone, as broken connections do."""

    def __init__(self, hub: Hub, site: str = "") -> None:
        """Without a site: the administrator's."""
        self._hub, self._user = hub, UserInfo(CLUSTER_USER_PREFIX + site, (CLUSTERS,)) if site else ADMIN
        self.cut = False

    async def call(self, verb: str, *arguments: Any, **more: Any) -> Any:
        hub = self._hub
        if self.cut or not hub.up or hub.dead or hub.registry is None:
            raise errors.unavailable("the hub cannot be reached")
        down = asyncio.ensure_future(hub.down.wait())
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
