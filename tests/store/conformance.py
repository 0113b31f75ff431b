"""What every ``Store`` must do. A test module imports all of this and provides the fixture ``store`` (empty, open)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from metaos.store.log import Compacted, Conflict, Entry, EventType, LogEvent, Store, StoreClosed

DEADLINE = 10.0


async def take(events: AsyncIterator[LogEvent], count: int) -> list[LogEvent]:
    async with asyncio.timeout(DEADLINE):
        return [await anext(events) for _ in range(count)]


async def close(events: AsyncIterator[LogEvent]) -> None:
    await events.aclose()  # type: ignore[attr-defined]


async def test_one_counter_for_all_keys(store: Store) -> None:
    assert await store.revision() == 0
    assert await store.create("pods/shop/a", b"1") == 1
    assert await store.create("pods/shop/b", b"2") == 2
    assert await store.update("pods/shop/a", b"3", expected=1) == 3
    assert await store.get("pods/shop/a") == Entry("pods/shop/a", b"3", 3, 1)
    assert await store.delete("pods/shop/a", expected=3) == 4
    assert await store.get("pods/shop/a") is None
    assert await store.revision() == 4
    assert await store.create("pods/shop/a", b"5") == 5
    assert await store.get("pods/shop/a") == Entry("pods/shop/a", b"5", 5, 5)


async def test_compare_and_swap(store: Store) -> None:
    await store.create("k", b"1")
    with pytest.raises(Conflict) as found:
        await store.create("k", b"2")
    assert found.value.current == Entry("k", b"1", 1, 1)
    for attempt in (store.update("k", b"2", expected=7), store.delete("k", expected=7)):
        with pytest.raises(Conflict) as found:
            await attempt
        assert found.value.current == Entry("k", b"1", 1, 1)
    for expected in (0, 1):
        for attempt in (store.update("other", b"2", expected=expected), store.delete("other", expected=expected)):
            with pytest.raises(Conflict) as found:
                await attempt
            assert found.value.current is None
    assert await store.revision() == 1


async def test_conflicts_fail_alone_among_concurrent_writes(store: Store) -> None:
    await store.create("shared", b"0")
    swaps = [store.update("shared", b"%d" % n, expected=1) for n in range(20)]
    creates = [store.create(f"own/{n:02d}", b"x") for n in range(20)]
    results = await asyncio.gather(*swaps, *creates, return_exceptions=True)
    won = [r for r in results[:20] if isinstance(r, int)]
    assert len(won) == 1
    assert sum(isinstance(r, Conflict) for r in results[:20]) == 19
    revisions = sorted([*won, *(r for r in results[20:] if isinstance(r, int))])
    assert revisions == list(range(2, 23))


async def test_list_by_prefix_in_key_order(store: Store) -> None:
    for key in ("b/2", "a/1", "b/1", "b", "c/1", "b\U0010ffff", "b/\U0010ffff", "b/\ud7ff", "b/\ue000"):
        await store.create(key, key.encode())
    found = await store.list("b/")
    assert [e.key for e in found.entries] == ["b/1", "b/2", "b/\ud7ff", "b/\ue000", "b/\U0010ffff"]
    assert [e.key for e in (await store.list("b/\ud7ff")).entries] == ["b/\ud7ff"]
    assert [e.key for e in (await store.list("b\U0010ffff")).entries] == ["b\U0010ffff"]
    assert (found.revision, found.more) == (9, False)
    assert [e.value for e in found.entries][:2] == [b"b/1", b"b/2"]
    assert len((await store.list("")).entries) == 9
    assert (await store.list("z/")).entries == ()


async def test_pages_are_of_one_revision(store: Store) -> None:
    for n in range(10):
        await store.create(f"k/{n}", b"old")
    page = await store.list("k/", limit=4)
    seen = list(page.entries)
    await store.delete("k/5", expected=6)
    await store.update("k/6", b"new", expected=7)
    await store.create("k/55", b"new")
    while page.more:
        page = await store.list("k/", revision=page.revision, limit=4, after=seen[-1].key)
        seen += page.entries
    assert [e.key for e in seen] == [f"k/{n}" for n in range(10)]
    assert {e.value for e in seen} == {b"old"} and page.revision == 10
    now = await store.list("k/", limit=100)
    assert [e.key for e in now.entries] == [f"k/{n}" for n in (0, 1, 2, 3, 4)] + ["k/55", "k/6", "k/7", "k/8", "k/9"]
    assert (await store.list("k/", limit=10)).more is False


async def test_watch_from_history_into_live(store: Store) -> None:
    await store.create("a/1", b"1")
    await store.create("b/1", b"2")
    await store.update("a/1", b"3", expected=1)
    events = store.watch("a/", after=1)
    assert await take(events, 1) == [LogEvent(EventType.UPDATE, 3, "a/1", b"3", b"1")]
    await store.delete("a/1", expected=3)
    await store.create("b/2", b"5")
    await store.create("a/2", b"6")
    assert await take(events, 2) == [
        LogEvent(EventType.DELETE, 4, "a/1", b"3", b"3"),
        LogEvent(EventType.CREATE, 6, "a/2", b"6", None),
    ]
    await close(events)
    again = store.watch("", after=0)
    assert [(e.revision, e.type.value, e.value, e.previous) for e in await take(again, 6)] == [
        (1, "CREATE", b"1", None),
        (2, "CREATE", b"2", None),
        (3, "UPDATE", b"3", b"1"),
        (4, "DELETE", b"3", b"3"),
        (5, "CREATE", b"5", None),
        (6, "CREATE", b"6", None),
    ]
    await close(again)


async def test_watches_that_begin_under_load_have_no_gap(store: Store) -> None:
    total = 1500

    async def write() -> None:
        for start in range(0, total, 50):
            await asyncio.gather(*(store.create(f"k/{n:05d}", b"x") for n in range(start, start + 50)))

    async def follow(after: int) -> list[int]:
        while await store.revision() < after:
            await asyncio.sleep(0)
        events = store.watch("k/", after=after)
        try:
            return [e.revision for e in await take(events, total - after)]
        finally:
            await close(events)

    starts = (0, 1, 100, 777, 1400)
    _, *followed = await asyncio.gather(write(), *(follow(after) for after in starts))
    assert followed == [list(range(after + 1, total + 1)) for after in starts]


async def test_compaction_forgets_history_and_keeps_what_is_current(store: Store) -> None:
    await store.create("a", b"1")
    await store.create("b", b"2")
    await store.update("a", b"3", expected=1)
    await store.delete("b", expected=2)
    await store.update("a", b"5", expected=3)
    await store.compact(4)
    assert await store.get("a") == Entry("a", b"5", 5, 1)
    assert (await store.list("", revision=4)).entries == (Entry("a", b"3", 3, 1),)
    with pytest.raises(Compacted) as found:
        await store.list("", revision=3)
    assert (found.value.revision, found.value.oldest) == (3, 4)
    with pytest.raises(Compacted):
        await anext(store.watch("", after=3))
    events = store.watch("", after=4)
    assert await take(events, 1) == [LogEvent(EventType.UPDATE, 5, "a", b"5", b"3")]
    await close(events)
    await store.compact(2)
    with pytest.raises(ValueError, match="latest is 5"):
        await store.compact(6)
    await store.delete("a", expected=5)
    await store.compact(6)
    assert await store.revision() == 6 and (await store.list("")).revision == 6
    assert await store.create("a", b"7") == 7


async def test_writes_go_on_during_compaction(store: Store) -> None:
    revision = await store.create("k", b"0")
    for n in range(1, 1200, 40):
        await asyncio.gather(*(store.create(f"gone/{n + i}", b"x") for i in range(40)))
    last = await store.revision()
    running = asyncio.ensure_future(store.compact(last))
    while not running.done():
        revision = await store.update("k", b"1", expected=revision)
    await running
    assert revision > last
    assert len((await store.list("gone/", revision=last)).entries) == 1200


async def test_a_revision_yet_to_come_is_refused(store: Store) -> None:
    await store.create("a", b"1")
    with pytest.raises(Compacted):
        await store.list("", revision=9)
    with pytest.raises(Compacted):
        await anext(store.watch("", after=9))


async def test_a_slow_watcher_is_told_so(store: Store) -> None:
    slow, other = store.watch("k/", after=0), store.watch("other", after=0)
    await store.create("k/first", b"x")
    await take(slow, 1)
    live = asyncio.ensure_future(take(slow, 1))
    await store.create("k/second", b"x")
    await live
    waiting = asyncio.ensure_future(take(other, 1))
    for start in range(0, 3000, 100):
        await asyncio.gather(*(store.create(f"k/{n}", b"x") for n in range(start, start + 100)))
    with pytest.raises(Compacted):
        async with asyncio.timeout(DEADLINE):
            while True:
                await anext(slow)
    await store.create("other", b"x")
    assert [e.key for e in await waiting] == ["other"]
    await close(other)


async def test_close_ends_watches_and_refuses_calls(store: Store) -> None:
    await store.create("a", b"1")
    events = store.watch("", after=0)
    await take(events, 1)
    rest = asyncio.ensure_future(anext(events, None))
    await asyncio.sleep(0)
    await store.close()
    assert await rest is None
    with pytest.raises(StoreClosed):
        await store.get("a")
    with pytest.raises(StoreClosed):
        await store.create("b", b"1")
    await store.close()
