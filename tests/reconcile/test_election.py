"""One hub leads at a time; a lease is taken only when it was seen unchanged for so long; a term that was taken does not begin."""

from __future__ import annotations

import asyncio
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver.registry import Registry
from metaos.client import Client
from metaos.reconcile.election import DEADLINE_SECONDS, LEASE_SECONDS, RETRY_SECONDS, Election, Taken, may_hold, record
from metaos.resources.errors import unavailable
from metaos.security.authz import MASTERS, UserInfo
from metaos.store.memory import MemoryStore
from tests.clock import FakeClock

names = st.sampled_from(["", "a", "b", "c"])


@given(names, names, st.floats(0, 100), st.integers(1, 30), st.booleans())
def test_who_may_hold(holder: str, identity: str, unchanged: float, seconds: int, gone: bool) -> None:
    may = may_hold({"holderIdentity": holder, "leaseDurationSeconds": seconds}, identity, unchanged, gone)
    assert may == (holder in ("", identity) or gone or unchanged >= seconds)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20))
def test_a_record_counts_its_holders(holders: list[str]) -> None:
    spec: dict[str, object] = {}
    changes = 0
    for moment, holder in enumerate(holders):
        changes += spec.get("holderIdentity") != holder
        before, spec = spec, record(spec, holder, 1000.0 + moment)
        assert spec["leaseTransitions"] == changes
        assert (spec["acquireTime"] == before.get("acquireTime")) == (before.get("holderIdentity") == holder)


class Shared:
    """What several hubs see: a registry, and the token."""

    def __init__(self) -> None:
        self.clock, self.token = FakeClock(), 0
        self.gone: set[str] = set()

    async def start(self) -> Client:
        self.registry = Registry(MemoryStore(), self.clock, Random(1))
        await self.registry.start()
        return self.registry.client(UserInfo("hub", (MASTERS,)))

    async def look(self) -> int:
        return self.token

    async def take(self, seen: int) -> None:
        if seen != self.token:
            raise Taken
        self.token += 1

    async def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / (RETRY_SECONDS / 5))):
            await self.clock.settle()
            await self.clock.advance(RETRY_SECONDS / 5)
            await self.clock.settle()


class Candidate:
    def __init__(self, shared: Shared, client: Client, name: str) -> None:
        self.election = Election(client, shared.clock, name, shared, shared.gone.__contains__)
        self.terms, self.working = 0, False
        self.task = asyncio.create_task(self.election.run(self.term))

    async def term(self) -> None:
        self.terms += 1
        self.working = True
        try:
            await asyncio.Event().wait()
        finally:
            self.working = False

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Breaking:
    """A client whose way to the store is cut."""

    def __init__(self, client: Client) -> None:
        self._client, self.cut = client, False

    def __getattr__(self, name: str) -> object:
        if self.cut:
            raise unavailable("cut off")
        return getattr(self._client, name)


async def test_one_leads_and_another_follows_it_at_once_where_it_ends_well() -> None:
    shared = Shared()
    client = await shared.start()
    hubs = [Candidate(shared, client, name) for name in "ab"]
    await shared.pass_time(2)
    assert [hub.working for hub in hubs].count(True) == 1
    first = next(hub for hub in hubs if hub.working)
    other = next(hub for hub in hubs if hub is not first)
    await shared.pass_time(4 * LEASE_SECONDS)
    assert first.working and not other.working and other.election.leader == first.election.identity
    await first.end()
    assert not first.working
    await shared.pass_time(3 * RETRY_SECONDS)
    assert other.working and shared.token == 2
    await other.end()
    await shared.registry.stop()


async def test_one_that_is_cut_off_stops_before_another_begins() -> None:
    shared = Shared()
    client = await shared.start()
    way = Breaking(client)
    first = Candidate(shared, way, "a")  # type: ignore[arg-type]
    await shared.pass_time(1)
    other = Candidate(shared, client, "b")
    await shared.pass_time(2)
    assert first.working and not other.working
    way.cut = True
    for _ in range(60):
        await shared.pass_time(RETRY_SECONDS / 5)
        assert not (first.working and other.working), "two work at a time"
    assert other.working and not first.working and DEADLINE_SECONDS < LEASE_SECONDS
    way.cut = False
    await shared.pass_time(2)
    assert other.working and not first.working
    await first.end()
    await other.end()
    await shared.registry.stop()


async def test_nobody_waits_for_one_whose_process_has_ended() -> None:
    shared = Shared()
    client = await shared.start()
    way = Breaking(client)
    first = Candidate(shared, way, "a")  # type: ignore[arg-type]
    await shared.pass_time(1)
    other = Candidate(shared, client, "b")
    await shared.pass_time(1)
    assert first.working and not other.working
    way.cut = True
    await first.end()
    shared.gone.add("a")
    await shared.pass_time(2 * RETRY_SECONDS)
    assert other.working and shared.token == 2
    await other.end()
    await shared.registry.stop()


async def test_a_term_that_was_taken_meanwhile_does_not_begin() -> None:
    shared = Shared()
    client = await shared.start()
    looked = shared.look

    async def late() -> int:
        return await looked() - 1

    shared.look = late  # type: ignore[method-assign]
    hub = Candidate(shared, client, "a")
    await shared.pass_time(2)
    assert not hub.working and hub.terms == 0
    await hub.end()
    await shared.registry.stop()
