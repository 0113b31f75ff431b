"""A store with very many objects, on SQLite and on PostgreSQL: lists, writes, a watch that goes on, a backup.

Run by ``bench.scale``.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from bench.results import Figure, figure
from metaos.store.backup import snapshot
from metaos.store.log import Store

AT_ONCE, PAGE, SOME, CREATES = 512, 500, 50, 5_000


def config_map(number: int) -> tuple[str, bytes]:
    """Of half a kilobyte, as users have them."""
    where, word = f"team-{number // 1000:04}", f"c{number:07}"
    metadata = f'"name":"{word}","namespace":"{where}","uid":"00000000-0000-4000-8000-{number:012}"'
    text = f'{{"kind":"ConfigMap","apiVersion":"v1","metadata":{{{metadata},"creationTimestamp":"2026-01-01T00:00:00Z"}}'
    return f"configmaps/{where}/{word}", f'{text},"data":{{"value":"{"x" * 330}"}}}}'.encode()


def rows(count: int, revision: int) -> Iterator[tuple[int, str, bytes]]:
    """``count`` objects with their revisions, above a revision: ConfigMaps, and of each thousand the Namespace."""
    objects = (each for number in range(count) for each in _with_namespace(number))
    for number, (key, value) in enumerate(itertools.islice(objects, count), revision + 1):
        yield number, key, value


def _with_namespace(number: int) -> Iterator[tuple[str, bytes]]:
    if number % 1000 == 0:
        yield _namespace(f"team-{number // 1000:04}")
    yield config_map(number)


def fill(state: Path, objects: int) -> int:
    """Until there are so many in a store's file, which nobody has open; how many were added. Beside the store's own interface, at
    which a million writes take minutes."""
    with closing(sqlite3.connect(state)) as db:
        (present,), (revision,) = (db.execute(f"SELECT {what}").fetchone() for what in (_COUNT, _LATEST))
        added = max(0, objects - present)
        db.executemany(
            "INSERT INTO log VALUES (?1, ?2, 'CREATE', ?1, NULL, ?3)",
            rows(added, revision),
        )
        db.execute("INSERT INTO current SELECT key, revision, revision FROM log WHERE revision > ?", (revision,))
        db.commit()
    return int(added)


async def fill_database(url: str, objects: int) -> int:
    """The same of a database, in which a store was opened once."""
    import asyncpg

    db = await asyncpg.connect(url)
    try:
        for first in range(0, objects, 50_000):
            page = list(itertools.islice(rows(objects, 0), first, first + 50_000))
            log = [(revision, key, "CREATE", revision, None, value) for revision, key, value in page]
            await db.copy_records_to_table("log", schema_name="nemo", records=log)
            current = [(key, revision, revision) for revision, key, _ in page]
            await db.copy_records_to_table("current", schema_name="nemo", records=current)
        await db.execute("UPDATE nemo.state SET revision = $1", objects)
        await db.execute("ANALYZE nemo.log; ANALYZE nemo.current")
    finally:
        await db.close()
    return objects


_COUNT, _LATEST = "COUNT(*) FROM current", "COALESCE(MAX(revision), 0) FROM log"


def _namespace(space: str) -> tuple[str, bytes]:
    labels = f'"labels":{{"kubernetes.io/metadata.name":"{space}"}}'
    metadata = f'"name":"{space}","uid":"{space}","creationTimestamp":"2026-01-01T00:00:00Z",{labels}'
    text = f'{{"kind":"Namespace","apiVersion":"v1","metadata":{{{metadata}}},"spec":{{"finalizers":["kubernetes"]}}'
    return f"namespaces//{space}", f'{text},"status":{{"phase":"Active"}}}}'.encode()


async def measure(label: str, store: Store, added: int, state: Path | None = None) -> list[Figure]:
    """Closes the store. ``added``: how many ConfigMaps and Namespaces were put into it. ``state``: its file, where it is one; it
    is backed up."""
    found: list[Figure] = []
    began, cpu = time.monotonic(), time.process_time()
    count = len((await store.list("")).entries)

    def say(what: str, values: float | list[float], unit: str) -> None:
        found.append(figure(f"{label}, {count:,} objects: {what}", values if isinstance(values, list) else [values], unit))

    say("all at once", time.monotonic() - began, "s")
    say("all at once, processor time of the reader", time.process_time() - cpu, "s")
    some = [config_map(number)[0] for number in range(0, added - added // 1000 - 1, max(1, added // SOME))]

    async def timed(calls: Iterable[Callable[[], Awaitable[object]]]) -> list[float]:
        times = []
        for call in calls:
            start = time.monotonic()
            await call()
            times.append(1000 * (time.monotonic() - start))
        return times

    async def rewrite(key: str) -> None:
        entry = await store.get(key)
        assert entry is not None
        await store.update(key, entry.value + b" ", expected=entry.revision)

    pages = [partial(store.list, "configmaps/", limit=PAGE, after=key) for key in some]
    say(f"a page of {PAGE}, anywhere", await timed(pages), "ms")
    say("one is read and written, one after another", await timed(partial(rewrite, key) for key in some), "ms")
    began = time.monotonic()
    fresh = [config_map(9_000_000 + number) for number in range(CREATES)]
    for first in range(0, CREATES, AT_ONCE):
        await asyncio.gather(*(store.create(*each) for each in fresh[first : first + AT_ONCE]))
    say(f"creates, {AT_ONCE} at a time", CREATES / (time.monotonic() - began), "1/s")
    latest, began = await store.revision(), time.monotonic()
    async for event in store.watch("", after=latest - CREATES):
        if event.revision >= latest:
            break
    say(f"a watch goes on {CREATES:,} events behind", time.monotonic() - began, "s")
    if state is not None:
        say("size of the file", state.stat().st_size / 1e6, "MB")
        target = state.with_name("backup.db")
        began = time.monotonic()
        await asyncio.to_thread(snapshot, state, target)
        say("a backup", time.monotonic() - began, "s")
        say("size of the backup", target.stat().st_size / 1e6, "MB")
        target.unlink()
    began = time.monotonic()
    await store.compact(await store.revision())
    say("compaction looks through the history", time.monotonic() - began, "s")
    say("processes that wanted to run, 15 minutes' mean", os.getloadavg()[2], "")
    await store.close()
    return found
