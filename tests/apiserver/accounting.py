"""A registry with the hub's books and the accounting controller, over any store and ledger, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from metaos.accounting.carbon import StaticCarbonSource
from metaos.apiserver.accounts import Statements
from metaos.apiserver.books import Books
from metaos.apiserver.ledgerkeys import LedgerKeys
from metaos.apiserver.registry import Registry
from metaos.controllers import accounting, budget, carbon
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import Obj
from metaos.security.authz import MASTERS, UserInfo
from metaos.store.ledger import Ledger
from metaos.store.log import Store
from metaos.store.memory import MemoryStore
from metaos.store.memoryledger import MemoryLedger
from tests.accounting.test_booking import pod
from tests.apiserver.conftest import ADMIN
from tests.apiserver.objects import cluster, deployment
from tests.clock import FakeClock

WRITER = UserInfo("system:controller-manager", (MASTERS,))


class Hub:
    def __init__(self, registry: Registry, books: Books, clock: FakeClock, manager: Manager) -> None:
        self.registry, self.books, self.clock, self.manager = registry, books, clock, manager
        self.ledger = books.ledger

    async def site(self, name: str, **spec: Any) -> None:
        usual = {
            "owner": f"{name}-inc",
            "electricity": {"carbonIntensity": 300, "pue": 1.2},
            "power": {"idleWatts": 20, "maxWatts": 100, "embodiedGramsPerHour": 6},
            "price": {"cpuHour": 0.04, "currency": "EUR"},
        }
        await self.registry.create(ADMIN, {**cluster(name), "spec": usual | spec})
        await self.registry.create(ADMIN, scheme.USAGE.empty(name))
        await self.registry.create(ADMIN, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"nemo-cluster-{name}"}})

    async def gives(self, site: str, named: str = "web", where: str = "shop") -> None:
        work = {
            **scheme.WORK.empty(f"deployment.{where}.{named}", f"nemo-cluster-{site}"),
            "spec": {"manifests": [{**deployment(named, where)}]},
        }
        await self.registry.create(ADMIN, work)

    async def reports(self, site: str, *periods: Obj) -> None:
        await self.registry.patch(ADMIN, scheme.USAGE, site, "", {"spec": {"periods": list(periods)}})

    async def settle(self, seconds: float = 3.0) -> None:
        for _ in range(int(seconds * 2)):
            await self.clock.advance(0.5)
            await self.clock.settle()

    async def usage(self, site: str) -> Obj:
        found = await self.registry.get(ADMIN, scheme.USAGE, site)
        return dict(found.get("status") or {})

    async def entries(self) -> list[Any]:
        found: list[Any] = []
        while page := await self.ledger.read(len(found)):
            found += [row.entry() for row in page]
        return found

    async def statement(self, user: UserInfo = ADMIN, **spec: Any) -> Obj:
        made = await self.registry.create(user, {**scheme.STATEMENT.empty(""), "spec": spec})
        return dict(made["status"])


def reported(clock: FakeClock, sequence: int, *pods: Obj, **more: Any) -> Obj:
    """A period of five minutes, the first of which ended when the clock began."""
    start = int(clock.now()) // 3600 * 3600 + (sequence - 1) * 300
    total = 6_000 + sum(each["energyMillijoules"] for each in pods)
    return {
        "sequence": sequence,
        "start": start,
        "end": start + 300,
        "meter": {"name": "model", "source": "spec.power", "basis": "stated", "uncertainty": "0.2"},
        "idleRule": "reserved",
        "cpuMillis": 4000,
        "energy": {"millijoules": total, "systemMillijoules": 6_000},
        "pods": list(pods),
        **more,
    }


@asynccontextmanager
async def running(
    store: Store | None = None, ledger: Ledger | None = None, clock: FakeClock | None = None, keys: LedgerKeys | None = None
) -> AsyncIterator[Hub]:
    clock = clock or FakeClock(1_700_000_400.0)
    registry = Registry(store or MemoryStore(), clock, Random(1))
    books = Books(ledger or MemoryLedger(), clock, WRITER.name, keys)
    registry.reviews |= {scheme.BOOKING: books.book, scheme.STATEMENT: Statements(books, registry.authorize).answer}
    await registry.start()
    manager = Manager(registry.client(WRITER), clock, Random(2))
    settings = Settings(sign=lambda *_: b"", carbon=StaticCarbonSource())
    for setup in (carbon.setup, accounting.setup, budget.setup):
        setup(manager, manager.client, clock, settings)
    await manager.start()
    hub = Hub(registry, books, clock, manager)
    try:
        await clock.settle()
        yield hub
    finally:
        await manager.stop()
        await registry.stop()


__all__ = ["Hub", "pod", "reported", "running"]
