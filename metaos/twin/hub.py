"""The twin's hub: the real registry, admission and controllers, on a simulated disk. It may die, and start again."""

from __future__ import annotations

import asyncio
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.apiserver.accounts import Statements
from metaos.apiserver.addressing import key_of
from metaos.apiserver.books import Books
from metaos.apiserver.registry import Registry
from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers import all_setups
from metaos.controllers.restored import hold
from metaos.controllers.settings import Settings
from metaos.plugins.registry import names, provision
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import Obj
from metaos.resources.scheme import Kind
from metaos.security.authz import CONTROLLER_MANAGER, MASTERS, UserInfo
from metaos.twin.disk import Disk, Mounted

CONTROLLERS = UserInfo(CONTROLLER_MANAGER, (MASTERS,))
ADMIN = UserInfo("admin", (MASTERS,))


def unsigned(*request: Any, **subject: Any) -> bytes:
    """There are no certificates in the twin: sites are known by their lines."""
    raise LookupError("the twin signs no certificates")


class Hub:
    """``start``, then ``kill``; any number of times. ``downed`` is set while it is not there."""

    def __init__(self, clock: Clock, random: Random, settings: Settings, history: int) -> None:
        self.clock, self.settings, self._random = clock, settings, random
        self.disk = Disk(clock, history)
        self.store: Mounted | None = None
        self.registry: Registry | None = None
        self.manager: Manager | None = None
        self.downed = asyncio.Event()
        self.downed.set()
        self.lives = 0
        #: What sites have asked and is not answered yet; a hub that dies breaks it off.
        self.asked: dict[asyncio.Task[Any], None] = {}

    @property
    def up(self) -> bool:
        """Whether it answers."""
        return self.store is not None and self.manager is not None and not self.store.dead.is_set()

    async def mount(self) -> Mounted:
        """The disk, for the next life."""
        return self.disk.mount()

    async def start(self, kill_after: int = -1) -> None:
        """``kill_after``: after so many writes of its controllers and clients it dies; -1: it lives."""
        self.lives += 1
        # Another life has other ids, whatever the life before has used up.
        random = Random(f"{self._random.random()} {self.lives}")  # noqa: S311
        self.store = await self.mount()
        admission = [provision("metaos.admission", name) for name in names("metaos.admission")]
        self.registry = Registry(self.store, self.clock, Random(random.getrandbits(64)), admission=admission)  # noqa: S311
        books = Books(self.store.ledger, self.clock, CONTROLLERS.name)
        self.registry.reviews |= {scheme.BOOKING: books.book, scheme.STATEMENT: Statements(books, self.registry.authorize).answer}
        await self.registry.start()
        await hold(self.registry.client(CONTROLLERS))
        self.manager = Manager(self.registry.client(CONTROLLERS), self.clock, Random(random.getrandbits(64)))  # noqa: S311
        for setup in all_setups():
            setup(self.manager, self.manager.client, self.clock, self.settings)
        self.downed = asyncio.Event()
        self.store.kill_after = kill_after
        await self.manager.start()

    async def kill(self) -> None:
        """Nothing in memory survives; nothing more is written."""
        assert self.store is not None and self.registry is not None and self.manager is not None
        self.store.dead.set()
        self.downed.set()
        for asked in list(self.asked):
            asked.cancel()
        await self.manager.stop()
        await self.registry.stop()
        await self.store.close()
        self.store = self.registry = self.manager = None

    @property
    def client(self) -> Client:
        """As its administrator. Raises ``AssertionError`` while it is away."""
        assert self.registry is not None
        return self.registry.client(ADMIN)

    def objects(self, kind: Kind, namespace: str = "") -> list[Obj]:
        """What the API shows now."""
        assert self.registry is not None
        return [version.object() for version in self.registry.cache.range(kind.resource, namespace)]

    def seen(self, kind: Kind, name: str, namespace: str = "") -> Obj | None:
        """What its controllers know now, which may be a moment old. Not to be changed."""
        assert self.manager is not None
        return self.manager.informer(kind).get(name, namespace)

    def find(self, kind: Kind, name: str, namespace: str = "") -> Obj | None:
        assert self.registry is not None
        version = self.registry.cache.get(key_of(kind, namespace, name))
        return None if version is None else version.object()
