"""What garbage collection does about kinds that come and go."""

from __future__ import annotations

from random import Random

from metaos.apiserver.registry import Registry
from metaos.controllers.garbage import GarbageReconciler
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE
from metaos.resources.meta import ObjectRef
from metaos.security.authz import MASTERS, UserInfo
from metaos.store.memory import MemoryStore
from tests.clock import FakeClock


async def test_an_object_whose_kind_is_served_no_more_is_not_looked_at_again() -> None:
    """It still waited in the queue when the definition went."""
    clock = FakeClock()
    client = Registry(MemoryStore(), clock, Random(1)).client(UserInfo("system:controller-manager", (MASTERS,)))
    reconciler = GarbageReconciler(Manager(client, clock, Random(1)), client)
    assert await reconciler.reconcile(ObjectRef("example.com", "CronTab", "default", "a")) == DONE
