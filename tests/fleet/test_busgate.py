"""The gate of the bus: whose credentials count no more, where nothing of one namespace is in the way of another's."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from metaos.apiserver.registry import Registry
from metaos.cli.bus import leaf_of
from metaos.config import Address as Host
from metaos.fleet.busgate import MOST_REVOKED, BusGate
from metaos.messaging.accounts import Accounts, Tenant
from metaos.messaging.bus import BusError
from metaos.messaging.keys import read_token
from metaos.resources import scheme
from metaos.store.memory import MemoryStore
from tests.clock import FakeClock
from tests.fleet.site import ADMIN, CONTROLLERS


class Told:
    """What servers are told, in the place of an exchange."""

    def __init__(self) -> None:
        self.accounts, self.revoked = Accounts(bytes(32)), dict[str, frozenset[str]]()

    async def known(self) -> Accounts:
        return self.accounts

    async def hold(self, tenants: Sequence[Tenant]) -> None:
        self.revoked = {tenant.namespace: tenant.revoked for tenant in tenants}


async def app_key() -> str:
    return ""


async def test_a_stolen_server_is_shut_out_wherever_else_there_is_no_room() -> None:
    clock, told = FakeClock(), Told()
    registry = Registry(MemoryStore(), clock, Random(1))
    await registry.start()
    exchange: Any = told
    gate = BusGate(registry.client(CONTROLLERS), exchange, tuple, str, app_key)
    uids = {}
    for each in ("full", "overfull", "shop"):
        made = await registry.create(ADMIN, scheme.NAMESPACE.empty(each))
        uids[each] = made["metadata"]["uid"]
        await gate.open(each)
    # A tenant has made and removed as many devices as it may; another namespace has no place for sites' servers either.
    gate._spaces["full"].revoked |= {f"U{n:055}" for n in range(MOST_REVOKED)}
    gate._spaces["overfull"].revoked |= {f"U{n:055}" for n in range(MOST_REVOKED + 1000)}
    with pytest.raises(BusError, match="namespace overfull has 10600 revoked"):
        await gate.sites({"edge": "2 full overfull shop"})
    for each in ("full", "shop"):
        tenant = Tenant(each, uids[each])
        leaf = leaf_of(told.accounts, "edge", [tenant], Host("hub.example", 7422), "PEM", 0, 9)
        assert read_token(leaf.tenants[0].opener)["sub"] in told.revoked[each], "it opens no connections, too"
        assert told.accounts.site_key("edge", tenant, 1).public in told.revoked[each]
        again = leaf_of(told.accounts, "edge", [tenant], Host("hub.example", 7422), "PEM", 0, 9, 2)
        assert read_token(again.tenants[0].opener)["sub"] not in told.revoked[each], "what it is given anew counts"
        assert read_token(told.accounts.opener(tenant, 0))["sub"] not in told.revoked[each], "and the hub's own"
    with pytest.raises(BusError, match="namespace full has 10000 revoked"):
        gate._revoke("full", gate._spaces["full"], "UMORE")
    await registry.stop()
