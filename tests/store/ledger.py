"""What every ``Ledger`` must do. A test module imports all of this and provides the fixture ``ledger`` (empty)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from metaos.accounting.ledger import GENESIS, Checkpoint, make_checkpoint, verify_chain, verify_checkpoints
from metaos.store.ledger import PAGE, PAGE_LINES, Booked, Booking, Ledger, Overlaps
from tests.accounting.test_ledger import KEY, PUBLIC

HOUR = 3600


def booking(site: str, sequence: int, *, pods: int = 2, seconds: int = 300, start: int | None = None) -> Booking:
    begin = HOUR + sequence * seconds if start is None else start
    header = {"site": site, "sequence": sequence, "start": begin, "end": begin + seconds, "meter": {"name": "model"}}
    return Booking.of(header, [{"namespace": "shop", "name": f"web-{n}", "energyMillijoules": n} for n in range(pods)])


async def all_of(ledger: Ledger) -> list[Any]:
    found: list[Any] = []
    while page := await ledger.read(found[-1].position if found else 0):
        found += page
    return found


async def checkpoint(ledger: Ledger, last: int = 0) -> Checkpoint:
    extent = await ledger.extent()
    first = extent.signed + 1
    hashes = await ledger.hashes(first, last or extent.last)
    made = make_checkpoint(hashes, first, extent.checkpoint, now=1000.0, key=PUBLIC, sign=KEY.sign)
    assert await ledger.sign(made)
    return made


async def test_an_empty_ledger(ledger: Ledger) -> None:
    extent = await ledger.extent()
    assert (extent.first, extent.last, extent.head, extent.signed) == (1, 0, GENESIS, 0)
    assert await ledger.last("paris") == Booked(False, 0, 0)
    assert not await ledger.read() and not await ledger.between(0, 2**40) and not await ledger.checkpoints()
    with pytest.raises(ValueError, match="no checkpoint 1"):
        await ledger.cut(1)


async def test_entries_of_all_sites_are_one_chain(ledger: Ledger) -> None:
    bookings = [booking(site, n, pods=n) for n in range(1, 6) for site in ("paris", "lyon")]
    booked = await asyncio.gather(*(ledger.append(each) for each in bookings))
    assert all(each.fresh for each in booked)
    rows = await all_of(ledger)
    assert [row.position for row in rows] == list(range(1, 11))
    last, head = verify_chain((row.entry(), row.hash) for row in rows)
    extent = await ledger.extent()
    assert (last, head) == (extent.last, extent.head) == (10, rows[-1].hash)
    assert sorted(len(row.entry().lines) for row in rows) == sorted([1, 2, 3, 4, 5] * 2)
    assert await ledger.hashes(3, 5) == [row.hash for row in rows[2:5]]


async def test_a_period_is_booked_once(ledger: Ledger) -> None:
    one = booking("paris", 3)
    found = await asyncio.gather(*(ledger.append(one) for _ in range(5)))
    assert [each.fresh for each in found] == [True, False, False, False, False]
    assert not (await ledger.append(booking("paris", 2))).fresh, "an older number of the site"
    assert await ledger.last("paris") == Booked(False, 3, HOUR + 1200)
    assert (await ledger.append(booking("lyon", 1))).fresh
    assert (await ledger.extent()).last == 2


async def test_no_time_of_a_site_is_booked_twice(ledger: Ledger) -> None:
    await ledger.append(booking("paris", 1))
    with pytest.raises(Overlaps, match="start: 4100 lies in what is booked already"):
        await ledger.append(booking("paris", 2, start=4100))
    await ledger.append(booking("lyon", 2, start=4100))
    assert (await ledger.last("paris")).sequence == 1 and (await ledger.extent()).last == 2


async def test_it_is_read_in_pages_that_are_bounded(ledger: Ledger) -> None:
    for n in range(1, PAGE + 50):
        await ledger.append(booking("paris", n, pods=1))
    for n in range(1, 4):
        await ledger.append(booking("lyon", n, pods=PAGE_LINES * 2 // 3))
    assert len(await ledger.read()) == PAGE and len(await ledger.read(0, 7)) == 7
    assert [row.position for row in await ledger.read(PAGE + 49)] == [PAGE + 50], "large ones come one by one"
    assert [row.position for row in await all_of(ledger)] == list(range(1, PAGE + 53))


async def test_it_is_read_by_time_whatever_the_order_of_booking(ledger: Ledger) -> None:
    for n in range(1, 7):
        await ledger.append(booking("paris", n))
    await ledger.append(booking("lyon", 1))
    await ledger.append(booking("lyon", 3))
    since, until = HOUR + 600, HOUR + 1500
    found: list[Any] = []
    while page := await ledger.between(since, until, (found[-1].end, found[-1].position) if found else (0, 0)):
        found += page[:1]
    assert [(row.end - HOUR, row.position) for row in found] == [(600, 1), (600, 7), (900, 2), (1200, 3), (1200, 8)]


async def test_checkpoints_follow_one_another(ledger: Ledger) -> None:
    for n in range(1, 8):
        await ledger.append(booking("paris", n))
    first = await checkpoint(ledger, 3)
    assert not await ledger.sign(first), "the same once more"
    second = await checkpoint(ledger)
    beyond = make_checkpoint([bytes(32)], 8, second, now=1.0, key=PUBLIC, sign=KEY.sign)
    assert not await ledger.sign(beyond), "there is no entry 8 yet"
    assert await ledger.checkpoints() == [first, second] and await ledger.checkpoints(1) == [second]
    assert await ledger.covering(3) == first and await ledger.covering(4) == second and await ledger.covering(8) is None
    hashes = {row.position: row.hash for row in await all_of(ledger)}
    assert verify_checkpoints(await ledger.checkpoints(), lambda a, b: [hashes[n] for n in range(a, b + 1)], PUBLIC) == 2
    assert (await ledger.extent()).signed == 7


async def test_a_cut_takes_what_a_checkpoint_signs_and_the_chain_goes_on(ledger: Ledger) -> None:
    for n in range(1, 6):
        await ledger.append(booking("paris", n))
    await checkpoint(ledger, 3)
    assert await ledger.cut(1) == 3 and await ledger.cut(1) == 0
    assert [row.position for row in await all_of(ledger)] == [4, 5]
    extent = await ledger.extent()
    assert (extent.first, extent.last, extent.signed) == (4, 5, 3)
    last = await checkpoint(ledger)
    assert await ledger.cut(2) == 2 and not await all_of(ledger)
    assert (await ledger.extent()).first == 6 and (await ledger.extent()).checkpoint == last
    assert not (await ledger.append(booking("paris", 5))).fresh, "what was cut stays booked"
    assert (await ledger.append(booking("paris", 6))).fresh
    (row,) = await all_of(ledger)
    assert row.position == 6 and row.previous.hex() == last.body["head"]
