"""A child process that writes under load until it is killed. Each line is one thing that it was told: an acknowledged
write (``ACK revision type key value``), a watched event (``SEE revision``) or a booked period (``BOOK sequence``)."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from random import Random

from metaos.store.ledger import Booking
from metaos.store.log import Compacted, Store
from metaos.store.sqlite import SqliteStore


def say(line: str) -> None:
    # One unbuffered write per line: what was printed before the kill is what was acknowledged before it.
    os.write(1, line.encode() + b"\n")


async def write(store: Store, worker: int, random: Random) -> None:
    known = {e.key: e.revision for e in (await store.list(f"k/{worker}/")).entries}
    while True:
        key, value = f"k/{worker}/{random.randrange(8)}", random.randbytes(random.randrange(1, 3000))
        if key not in known:
            known[key] = await store.create(key, value)
            say(f"ACK {known[key]} CREATE {key} {value.hex()}")
        elif random.random() < 0.2:
            revision = await store.delete(key, expected=known.pop(key))
            say(f"ACK {revision} DELETE {key} -")
        else:
            known[key] = await store.update(key, value, expected=known[key])
            say(f"ACK {known[key]} UPDATE {key} {value.hex()}")


async def watch(store: Store) -> None:
    async for event in store.watch("k/", after=await store.revision()):
        say(f"SEE {event.revision}")


async def book(store: SqliteStore) -> None:
    sequence = (await store.ledger.last("paris")).sequence
    while True:
        sequence += 1
        header = {"site": "paris", "sequence": sequence, "start": sequence * 10, "end": sequence * 10 + 10}
        booking = Booking.of(header, [{"name": f"web-{n}", "energyMillijoules": sequence} for n in range(sequence % 5)])
        # Again, as after an answer that was lost.
        for fresh in (True, False):
            assert (await store.ledger.append(booking)).fresh is fresh
        say(f"BOOK {sequence}")


async def compact(store: Store) -> None:
    while True:
        await store.compact(max(await store.revision() - 2000, 0))
        await asyncio.sleep(0.05)


async def load(path: Path, seed: int) -> None:
    store = await SqliteStore.open(path)
    try:
        async with asyncio.TaskGroup() as group:
            for worker in range(16):
                group.create_task(write(store, worker, Random(f"{seed}/{worker}")))
            group.create_task(watch(store))
            group.create_task(book(store))
            group.create_task(compact(store))
    except* Compacted:
        sys.exit("the watcher fell behind")


def main(path: Path, seed: int) -> None:
    asyncio.run(load(path, seed))
