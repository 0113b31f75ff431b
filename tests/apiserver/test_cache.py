"""The watch cache by itself: who is woken when, and who is told that the window has gone on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver.cache import Change, Version, WatchCache, field_values
from metaos.resources.errors import ApiError
from metaos.store.log import Compacted, Listing, LogEvent, StoreUnreachable
from metaos.store.memory import MemoryStore
from metaos.store.sqlite import SqliteStore

WINDOW = 20
VALUE = b'{"metadata":{"name":"x"}}'


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[WatchCache]:
    store = await SqliteStore.open(tmp_path / "state.db")
    made = WatchCache(store, window_events=WINDOW)
    await made.start()
    yield made
    await made.close()
    await store.close()


async def put(cache: WatchCache, key: str) -> int:
    revision = await cache._store.create(key, b'{"metadata":{"name":"x"}}')
    cache.written(revision)
    await cache.fresh()
    return revision


async def take(changes: Any) -> Any:
    async with asyncio.timeout(5):
        return await anext(changes)


async def test_a_namespace_is_not_bothered_by_others_and_misses_nothing(cache: WatchCache) -> None:
    await put(cache, "pods/a/0")
    changes = cache.changes("pods", cache.revision, "a")
    waiting = asyncio.ensure_future(take(changes))
    await asyncio.sleep(0)
    for number in range(WINDOW * 3):
        await put(cache, f"pods/b/{number}")
    assert not waiting.done() and list(cache.resource("pods").waiters) == ["a"]
    wanted = await put(cache, "pods/a/1")
    assert (await waiting).revision == wanted, "though the window has left behind where it began to wait"
    cache.tick()
    await changes.aclose()
    assert cache.resource("pods").waiters == {}


async def test_a_node_is_not_bothered_by_others_and_sees_what_comes_and_goes(cache: WatchCache) -> None:
    async def pod(name: str, node: str, expected: int = 0) -> int:
        value = b'{"metadata":{"name":"x"},"spec":{"nodeName":"%b"}}' % node.encode()
        if expected:
            revision = await cache._store.update(f"pods/a/{name}", value, expected=expected)
        else:
            revision = await cache._store.create(f"pods/a/{name}", value)
        cache.written(revision)
        await cache.fresh()
        return revision

    unbound = await pod("0", "")
    changes = cache.changes("pods", cache.revision, "", "here")
    waiting = asyncio.ensure_future(take(changes))
    await asyncio.sleep(0)
    for number in range(WINDOW * 3):
        await pod(f"x{number}", "elsewhere")
    assert not waiting.done() and list(cache.resource("pods").waiters) == ["@here"]
    bound = await pod("0", "here", unbound)
    assert (await waiting).revision == bound, "it was bound to the node"
    waiting = asyncio.ensure_future(take(changes))
    await asyncio.sleep(0)
    gone = await cache._store.delete("pods/a/0", expected=bound)
    assert (await waiting).revision == gone
    await changes.aclose()


async def test_bookmarks_come_to_those_who_wait(cache: WatchCache) -> None:
    changes = cache.changes("pods", cache.revision, "a")
    waiting = asyncio.ensure_future(take(changes))
    await asyncio.sleep(0)
    for number in range(WINDOW * 2):
        await put(cache, f"pods/b/{number}")
    cache.tick()
    assert await waiting == cache.revision
    await changes.aclose()


async def test_names_that_begin_alike_are_found_among_all(cache: WatchCache) -> None:
    names = ["web", "web-1", "web-2", "web.x", "wea", "we", "wf", "web-\U0010fffe", "x"]
    for name in names:
        await put(cache, f"pods/a/{name}")
        await put(cache, f"pods/b/{name}")
    for stem in ("web", "web-", "w", "x", "y", ""):
        found = [version.name for version in cache.range("pods", "a", stem=stem)]
        assert found == sorted(name for name in names if name.startswith(stem)), stem


async def test_who_asked_for_no_bookmarks_is_not_bothered(cache: WatchCache) -> None:
    quiet = cache.changes("pods", cache.revision, "a", bookmarks=False)
    told = cache.changes("pods", cache.revision, "a")
    waiting, other = (asyncio.ensure_future(take(changes)) for changes in (quiet, told))
    await asyncio.sleep(0)
    for _ in range(3):
        await put(cache, "pods/b/0") if cache.get("pods/b/0") is None else None
        cache.tick()
        assert await other == cache.revision
        other = asyncio.ensure_future(take(told))
        await asyncio.sleep(0)
    held = cache.resource("pods")
    assert not waiting.done() and len(held.waiters["a"]) == 2 and len(held.ticked) == 1
    wanted = await put(cache, "pods/a/0")
    assert (await waiting).revision == (await other).revision == wanted
    await quiet.aclose()
    await told.aclose()
    assert not held.waiters and not held.ticked


async def test_who_takes_too_slowly_is_told(cache: WatchCache) -> None:
    changes = cache.changes("pods", cache.revision, "a")
    first = await put(cache, "pods/a/first")
    assert (await take(changes)).revision == first
    for number in range(WINDOW * 2):
        await put(cache, f"pods/a/{number}")
    with pytest.raises(ApiError) as told:
        await take(changes)
    assert told.value.code == 410


async def test_everybody_sees_all_in_order(cache: WatchCache) -> None:
    changes = cache.changes("pods", cache.revision)
    for number in range(WINDOW // 2):
        await put(cache, f"pods/{'ab'[number % 2]}/{number}")
        await put(cache, f"nodes//{number}")
    assert [(await take(changes)).revision for _ in range(WINDOW // 2)] == list(range(1, WINDOW, 2))
    await changes.aclose()


#: (Kind, namespace, name, node); a node of ``None`` deletes.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["pods", "works", "leases"]),
        st.sampled_from("abc"),
        st.sampled_from("xy"),
        st.sampled_from(["", "n1", "n2", None]),
    ),
    max_size=60,
)


@given(steps=STEPS, reloaded=st.booleans())
def test_each_part_of_the_window_is_the_window_without_all_others(
    steps: list[tuple[str, str, str, str | None]], reloaded: bool
) -> None:
    async def hold() -> None:
        store = MemoryStore()
        cache = WatchCache(store, window_events=12)
        await cache.start()
        happened: list[tuple[int, str, str, set[str]]] = []
        held: dict[str, tuple[int, str]] = {}
        for number, (kind, where, name, node) in enumerate(steps):
            key = f"{kind}/{where}/{name}"
            value = b'{"metadata":{"name":"x"},"spec":{"nodeName":"%b"}}' % (node or "").encode()
            revision, at = held.get(key, (0, ""))
            if node is None and not revision:
                continue
            if node is None:
                new = await store.delete(key, expected=revision)
                del held[key]
            else:
                new = await (store.update(key, value, expected=revision) if revision else store.create(key, value))
                held[key] = new, node
            happened.append((new, kind, where, {at, node or ""} - {""} if kind == "pods" else set()))
            cache.written(new)
            await cache.fresh()
            if reloaded and number == len(steps) // 2:
                await cache._load(cache.revision)
        assert sum(len(cache.resource(kind).changes) for kind in ("pods", "works", "leases")) <= 12
        for node in ("n1", "n2"):
            wanted = sorted(key for key, (_, at) in held.items() if at == node and key.startswith("pods/"))
            assert [version.key for version in cache.at_node("pods", node)] == wanted
            assert cache.count_at_node("pods", node) == len(wanted)
        for kind, where, node in [
            ("pods", "", "n1"),
            ("pods", "", "n2"),
            ("pods", "a", ""),
            ("works", "b", ""),
            ("leases", "", ""),
        ]:
            for after in range(cache.revision + 1):
                wanted_now = [
                    revision
                    for revision, what, place, nodes in happened
                    if revision > after and what == kind and place in (where or place) and (not node or node in nodes)
                ]
                found = await _all_after(cache, kind, after, where, node)
                assert found == (None if after < cache.resource(kind).floor else wanted_now), (kind, where, node, after)
        for _ in range(20):
            cache.written(await store.create(f"pods/z/{_}", VALUE))
        await cache.fresh()
        assert set(cache.resource("pods").parts) == {"z"}, "what has left the window has left all of its parts"
        await cache.close()

    asyncio.run(hold())


async def _all_after(cache: WatchCache, kind: str, after: int, where: str, node: str) -> list[int] | None:
    """Revisions of what a watch that goes on is told until it waits; ``None`` where it is told 410."""
    changes, found = cache.changes(kind, after, where, node), list[int]()
    try:
        while True:
            taking = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0)
            if not taking.done():
                taking.cancel()
                await asyncio.wait([taking])
                return found
            change = taking.result()
            assert isinstance(change, Change)
            found.append(change.revision)
    except ApiError as gone:
        assert gone.code == 410 and not found
        return None


KEYS = st.builds(lambda where, name: f"pods/{where}/{name}", st.sampled_from("abc"), st.sampled_from("stuvwxyz"))


@given(
    before=st.sets(KEYS),
    writes=st.lists(st.lists(st.tuples(KEYS, st.booleans()), max_size=6), max_size=8),
    where=st.sampled_from(["", "b"]),
    after=st.one_of(st.just(""), KEYS),
    count=st.integers(1, 5),
    reloaded=st.integers(0, 8),
)
def test_what_is_gone_through_in_turns_is_as_of_the_first(
    before: set[str], writes: list[list[tuple[str, bool]]], where: str, after: str, count: int, reloaded: int
) -> None:
    cache = WatchCache(MemoryStore())
    held = cache.resource("pods")
    held.load({key: Version(key, VALUE, 1) for key in before}, 1)
    wanted = list(cache.range("pods", where, after=after))
    turns = cache.in_turns("pods", where, after=after, count=count)
    found, revision = next(turns), 1
    for number, turn in enumerate(writes):
        if number == reloaded:
            held.load({"pods/b/t": Version("pods/b/t", VALUE, revision)}, revision)
        for key, there in turn:
            revision += 1
            held.put(key, Version(key, VALUE, revision) if there else None)
        found += next(turns, [])
    for some in turns:
        found += some
    assert found == wanted, "the very same versions, in order"
    assert not held.lent


async def test_heartbeats_push_out_nothing_but_heartbeats(cache: WatchCache) -> None:
    began = cache.revision
    wanted = await put(cache, "works/a/0")
    for number in range(WINDOW * 10):
        await put(cache, f"leases/a/{number}")
    assert (await take(cache.changes("works", began, "a"))).revision == wanted
    assert len(cache.resource("leases").changes) + len(cache.resource("works").changes) <= WINDOW
    with pytest.raises(ApiError):
        await take(cache.changes("leases", began, "a"))


def test_counts_that_are_absent_are_zero_to_field_selectors() -> None:
    assert field_values("jobs.batch", {})["status.successful"] == "0"
    assert field_values("jobs.batch", {"status": {"succeeded": 1}})["status.successful"] == "1"
    assert field_values("replicationcontrollers", {"status": {"replicas": 2}})["status.replicas"] == "2"


class Replaced(MemoryStore):
    """A store that another takes the place of, as after a restore, or whose watch falls behind."""

    def __init__(self) -> None:
        super().__init__()
        self.away = 0
        self._fall: asyncio.Event = asyncio.Event()
        self.instead: MemoryStore | None = None

    def _now(self) -> MemoryStore:
        return self.instead or super()  # type: ignore[return-value]

    def fall_behind(self) -> None:
        self._fall.set()

    async def revision(self) -> int:
        return await self._now().revision()

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, after: str = "") -> Listing:
        return await self._now().list(prefix, revision=revision, limit=limit, after=after)

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[LogEvent]:
        if self.away:
            self.away -= 1
            raise StoreUnreachable("the database is away")
        behind = asyncio.ensure_future(self._fall.wait())
        events = self._now().watch(prefix, after=after)
        try:
            while True:
                event = asyncio.ensure_future(anext(events))
                await asyncio.wait((event, behind), return_when="FIRST_COMPLETED")
                if behind.done():
                    event.cancel()
                    await asyncio.wait([event])
                    self._fall.clear()
                    raise Compacted(after, after)
                yield event.result()
        finally:
            behind.cancel()


async def settled(cache: WatchCache) -> None:
    """Until what is under way has been done."""
    loads = cache._loads
    async with asyncio.timeout(5):
        while cache._loads == loads:
            await asyncio.sleep(0)


async def test_a_delete_that_was_missed_is_a_change_to_who_remembers_what_was_there() -> None:
    store = Replaced()
    revision = await store.create("rolebindings/a/b", VALUE)
    cache = WatchCache(store)
    await cache.start()
    seen = cache.resource("rolebindings").revision
    changes = cache.changes("rolebindings", cache.revision, "a")
    waiting = asyncio.ensure_future(take(changes))
    await asyncio.sleep(0)
    store.fall_behind()
    await store.delete("rolebindings/a/b", expected=revision)
    await settled(cache)
    assert cache.get("rolebindings/a/b") is None and cache.resource("rolebindings").revision > seen
    with pytest.raises(ApiError) as gone:
        await waiting
    assert gone.value.code == 410
    await cache.close()


async def test_nobody_waits_for_what_an_older_copy_of_the_store_has_lost() -> None:
    store, older = Replaced(), MemoryStore()
    cache = WatchCache(store)
    await cache.start()
    for number in range(5):
        cache.written(await store.create(f"pods/a/{number}", VALUE))
    await cache.fresh()
    await older.create("pods/a/0", VALUE)
    changes = cache.changes("pods", cache.revision, "a")
    waiting = asyncio.ensure_future(take(changes))
    await asyncio.sleep(0)
    store.instead = older
    store.fall_behind()
    await settled(cache)
    with pytest.raises(ApiError) as gone:
        await waiting
    assert gone.value.code == 410, "and does not wait for revisions that come a second time"
    async with asyncio.timeout(5):
        await cache.fresh()
        cache.written(await older.create("pods/a/new", VALUE))
        await cache.fresh()
    assert [version.name for version in cache.range("pods", "a")] == ["0", "new"]
    await cache.close()


async def test_a_database_that_is_away_when_a_watch_begins_ends_nothing() -> None:
    store = Replaced()
    cache = WatchCache(store)
    await cache.start()
    store.away = 2
    store.fall_behind()
    await settled(cache)
    async with asyncio.timeout(5):
        cache.written(await store.create("pods/a/0", VALUE))
        await cache.fresh()
    assert cache.get("pods/a/0") is not None and cache.failure is None
    await cache.close()
