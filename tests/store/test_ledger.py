"""Every ledger against its conformance suite; what only a file has: it survives, is migrated, is in backups, and its size."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from metaos.store.backup import describe, restore, snapshot
from metaos.store.file import APPLICATION_ID, MIGRATIONS
from metaos.store.ledger import Booking, Ledger
from metaos.store.log import StoreFull
from metaos.store.memoryledger import MemoryLedger
from metaos.store.sqlite import SqliteStore
from tests.store.disk import mark
from tests.store.ledger import *  # noqa: F403
from tests.store.ledger import all_of, booking, checkpoint


@pytest.fixture(params=["sqlite", "memory"])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    if request.param == "memory":
        yield MemoryLedger()
        return
    store = await SqliteStore.open(tmp_path / "state.db")
    yield store.ledger
    await store.close()


async def test_a_file_without_a_ledger_gets_one_and_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"{MIGRATIONS[0]}; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=1;")
        db.execute("INSERT INTO log VALUES (1, 'k', 'CREATE', 1, NULL, x'31')")
        db.execute("INSERT INTO current VALUES ('k', 1, 1)")
        db.commit()
    for sequence in (1, 2):
        store = await SqliteStore.open(path)
        found = await store.get("k")
        assert found is not None and found.value == b"1"
        assert (await store.ledger.append(booking("paris", sequence))).fresh
        await store.close()


async def test_it_goes_on_where_it_was_and_is_in_backups(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = await SqliteStore.open(path)
    for n in range(1, 4):
        await store.ledger.append(booking("paris", n))
    await checkpoint(store.ledger, 2)
    before = await store.ledger.extent()
    snapshot(path, tmp_path / "backup")
    await store.ledger.append(booking("paris", 4))
    await store.close()
    describe(tmp_path / "backup", {}, {}, None)
    restore(tmp_path / "backup", tmp_path / "again", {}, 0.0, mark)
    store = await SqliteStore.open(tmp_path / "again" / "state.db")
    assert await store.ledger.extent() == before
    assert (await store.ledger.append(booking("paris", 4))).fresh
    assert [row.position for row in await all_of(store.ledger)] == [1, 2, 3, 4]
    await store.close()


async def test_a_full_disk_books_nothing_and_forgets_nothing(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "state.db", max_bytes=100_000)
    booked = 0
    with pytest.raises(StoreFull, match="limit of 100000 bytes"):
        for n in range(1, 1000):
            await store.ledger.append(booking("paris", n))
            booked = n
    assert booked > 10 and (await store.ledger.extent()).last == booked
    await store.close()


def realistic(site: str, sequence: int, pods: int, random: Random) -> Booking:
    """As ``accounting.booking`` makes them."""
    start = sequence * 300

    def about() -> dict[str, Any]:
        grams = {"location": random.randrange(10**6), "market": None, "marginal": random.randrange(10**6)}
        embodied = random.randrange(10**5)
        return {"energyMillijoules": random.randrange(10**7), "operationalMicrograms": grams, "embodiedMicrograms": embodied}

    header = {
        "site": site,
        "provider": "telco-a",
        "sequence": sequence,
        "start": start,
        "end": start + 300,
        "pue": "1.4",
        "meter": {"name": "rapl", "source": "intel-rapl:0, processors and memory", "basis": "measured", "uncertainty": "0.05"},
        "factors": {"location": {"gramsPerKWh": "231.5", "source": "electricity-maps"}, "market": None},
        "estimatedSeconds": 0,
        "lostSeconds": 0,
        "cpuMillis": 64_000,
        "watts": {"idle": "120", "max": "400"},
        "idleRule": "reserved",
        "system": about(),
        "energyMillijoules": 10**7,
    }
    price = {"currency": "EUR", "cpuHour": "0.04", "memoryGiBHour": "0.005", "egressGiB": "0.01", "energyKWh": "0"}
    price |= {"basis": "greater", "source": "Tariff acme-at-telco-a"}
    lines = [
        {
            **about(),
            "namespace": f"team-{n % 7}",
            "name": f"web-{random.randbytes(5).hex()}-{n}",
            "consumer": "telco-b",
            "workload": {"kind": "Deployment", "name": f"web-{n % 9}"},
            "intents": ["green"],
            "networkBytes": None,
            "cpuMicroseconds": random.randrange(10**9),
            "memoryMiBSeconds": random.randrange(10**6),
            "requestedMillis": 250,
            "requestedMiB": 128,
            "presentMilliseconds": 300_000,
            "cost": {"amount": f"0.00{random.randrange(10**7)}", "price": price, "currency": "EUR"},
        }
        for n in range(pods)
    ]
    return Booking.of(header, lines)


@pytest.mark.parametrize(
    ("pods", "least", "most"), [(1, 400, 800), (10, 100, 200), pytest.param(100, 60, 150, marks=pytest.mark.slow)]
)
async def test_it_grows_by_so_many_bytes_for_a_pod_and_period(tmp_path: Path, pods: int, least: int, most: int) -> None:
    path, random, count = tmp_path / "state.db", Random(1), 200
    store = await SqliteStore.open(path)
    await asyncio.gather(*(store.ledger.append(realistic("paris", n, pods, random)) for n in range(1, count + 1)))
    await store.close()
    size = path.stat().st_size / count / pods
    assert least < size < most, f"{size:.0f} bytes for a pod in a period"


async def test_a_cut_that_was_interrupted_leaves_a_ledger_that_begins_at_a_checkpoint(tmp_path: Path) -> None:
    """A cut goes in steps: killed between two of them, some of a checkpoint's entries are still there."""
    store = await SqliteStore.open(tmp_path / "state.db")
    for n in range(1, 9):
        await store.ledger.append(booking("paris", n))
        if n in (3, 6):
            await checkpoint(store.ledger, n)
    await store.close()
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        db.execute("DELETE FROM ledger WHERE position < 5")
        db.commit()
    store = await SqliteStore.open(tmp_path / "state.db")
    extent = await store.ledger.extent()
    assert (extent.first, extent.last, extent.signed) == (7, 8, 6)
    assert await store.ledger.cut(2) == 2 and (await store.ledger.extent()).first == 7
    await store.close()
