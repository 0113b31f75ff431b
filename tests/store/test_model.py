"""The store against a dictionary: any history of calls, with restarts and compactions between, looks the same in both."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from metaos.store.log import Compacted, Conflict, Entry, EventType, LogEvent
from metaos.store.sqlite import SqliteStore

KEYS = st.sampled_from(["a", "a/1", "a/2", "a/\U0010ffff", "b/1", "b/é", "b/\ud7ff"])
PREFIXES = st.sampled_from(["", "a", "a/", "b/", "b/\ud7ff", "c"])
VALUES = st.binary(max_size=20)


class StoreModel(RuleBasedStateMachine):
    """``states[r]`` is everything as of revision ``r``; ``events[r - 1]`` is what made it."""

    revisions = Bundle("revisions")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = Path(tempfile.mkdtemp(prefix="store-model-"))
        self.store: SqliteStore = self.run(SqliteStore.open(self.directory / "state.db"))
        self.states: list[dict[str, Entry]] = [{}]
        self.events: list[LogEvent] = []
        self.oldest = 0
        #: Watches that stay open: prefix, the revision they have come to, and the events themselves.
        self.live: list[tuple[str, int, Any]] = []

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def teardown(self) -> None:
        self.end_watches()
        self.run(self.store.close())
        self.runner.close()
        shutil.rmtree(self.directory)

    @property
    def latest(self) -> int:
        return len(self.events)

    def apply(self, type: EventType, key: str, value: bytes, expected: int) -> tuple[Any, Any]:
        """What the model says, as (revision or current entry, the coroutine to run on the store)."""
        present = self.states[-1].get(key)
        call = {
            EventType.CREATE: lambda: self.store.create(key, value),
            EventType.UPDATE: lambda: self.store.update(key, value, expected=expected),
            EventType.DELETE: lambda: self.store.delete(key, expected=expected),
        }[type]()
        fits = present is None if type is EventType.CREATE else present is not None and present.revision == expected
        if not fits:
            return present, call
        state, revision = dict(self.states[-1]), self.latest + 1
        previous = present.value if present else None
        if type is EventType.DELETE:
            del state[key]
            value = previous or b""
        else:
            state[key] = Entry(key, value, revision, present.create_revision if present else revision)
        self.states.append(state)
        self.events.append(LogEvent(type, revision, key, value, previous))
        return revision, call

    def expected(self, key: str, stale: int) -> int:
        present = self.states[-1].get(key)
        return stale if stale < 3 or present is None else present.revision

    @rule(
        target=revisions,
        writes=st.lists(st.tuples(st.sampled_from(EventType), KEYS, VALUES, st.integers(0, 9)), min_size=1, max_size=12),
    )
    def write_together(self, writes: list[tuple[EventType, str, bytes, int]]) -> int:
        """Several writes that wait at once, as one group commit sees them."""
        planned = [self.apply(t, k, v, self.expected(k, stale)) for t, k, v, stale in writes]

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(call for _, call in planned), return_exceptions=True)

        for (wanted, _), found in zip(planned, self.run(all_of_them()), strict=True):
            if isinstance(wanted, int):
                assert found == wanted
            else:
                assert isinstance(found, Conflict) and found.current == wanted
        return self.latest

    @rule(prefix=PREFIXES, at=revisions, back=st.integers(0, 5), limit=st.integers(0, 3))
    def list_all_pages(self, prefix: str, at: int, back: int, limit: int) -> None:
        revision = max(at - back, 1)

        async def pages() -> list[Entry]:
            page = await self.store.list(prefix, revision=revision, limit=limit)
            entries = list(page.entries)
            while page.more:
                page = await self.store.list(prefix, revision=page.revision, limit=limit, after=entries[-1].key)
                assert page.entries and (len(page.entries) <= limit or not limit)
                entries += page.entries
            assert page.revision == revision
            return entries

        if revision < self.oldest or revision > self.latest:
            with pytest.raises(Compacted):
                self.run(pages())
        else:
            state = self.states[revision]
            assert self.run(pages()) == [state[k] for k in sorted(state) if k.startswith(prefix)]

    @rule(prefix=PREFIXES, at=revisions, back=st.integers(0, 5))
    def watch(self, prefix: str, at: int, back: int) -> None:
        after = max(at - back, 0)
        wanted = [e for e in self.events[after:] if e.key.startswith(prefix)]

        async def follow() -> list[LogEvent]:
            events = self.store.watch(prefix, after=after)
            try:
                if not wanted and after >= self.oldest:
                    return []
                return [await anext(events) for _ in range(len(wanted) or 1)]
            finally:
                await events.aclose()  # type: ignore[attr-defined]

        if after < self.oldest:
            with pytest.raises(Compacted):
                self.run(follow())
        else:
            assert self.run(follow()) == wanted

    @rule(at=revisions)
    def compact(self, at: int) -> None:
        self.run(self.store.compact(at))
        self.oldest = max(self.oldest, at)

    @rule(prefix=PREFIXES, at=revisions)
    def keep_watching(self, prefix: str, at: int) -> None:
        if at >= self.oldest and len(self.live) < 4:
            self.live.append((prefix, at, self.store.watch(prefix, after=at)))
            self.catch_up()

    @rule()
    def catch_up(self) -> None:
        """Open watches have everything since they were last looked at, whatever was compacted meanwhile."""
        for _, _, events in [each for each in self.live if each[1] < self.oldest]:
            self.run(events.aclose())  # Perhaps never begun, and what it would begin with is gone.
        self.live = [each for each in self.live if each[1] >= self.oldest]
        for number, (prefix, at, events) in enumerate(self.live):
            wanted = [e for e in self.events[at:] if e.key.startswith(prefix)]

            async def take(events: Any = events, count: int = len(wanted)) -> list[LogEvent]:
                async with asyncio.timeout(5):
                    return [await anext(events) for _ in range(count)]

            assert self.run(take()) == wanted
            # One that has seen nothing yet has not begun: it would begin from where it was told to.
            self.live[number] = (prefix, self.latest if wanted else at, events)

    def end_watches(self) -> None:
        self.catch_up()
        self.run(self.store.close())
        for _, _, events in self.live:
            assert self.run(anext(events, None)) is None, "a watch went on after its store was closed"
        self.live = []

    @rule()
    def restart(self) -> None:
        self.end_watches()
        self.store = self.run(SqliteStore.open(self.directory / "state.db"))

    @rule()
    def heads(self) -> None:
        """The beginnings of all values that a list at a kept revision, or a watch from one, can still show."""
        kept = {e.value[:2] for state in self.states[self.oldest :] for e in state.values()}
        kept |= {e.value[:2] for e in self.events[self.oldest :] if e.type is not EventType.DELETE}
        assert {h for h in self.run(self.store.heads(b"", 2)) if h} == {h for h in kept if h}

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        assert self.run(self.store.get(key)) == self.states[-1].get(key)

    @invariant()
    def same_revision(self) -> None:
        assert self.run(self.store.revision()) == self.latest


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
