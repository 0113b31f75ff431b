"""The watch cache by itself: who is woken when, and who is told that the window has gone on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from metaos.apiserver.cache import WatchCache, field_values
from metaos.resources.errors import ApiError
from metaos.store.sqlite import SqliteStore

WINDOW = 20


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


def test_counts_that_are_absent_are_zero_to_field_selectors() -> None:
    assert field_values("jobs.batch", {})["status.successful"] == "0"
    assert field_values("jobs.batch", {"status": {"succeeded": 1}})["status.successful"] == "1"
    assert field_values("replicationcontrollers", {"status": {"replicas": 2}})["status.replicas"] == "2"
