"""Steps in turns: what is on its way to a cluster goes before what is told of it."""

from __future__ import annotations

import asyncio
from random import Random

from metaos.agent.contact import Contact
from metaos.agent.turns import Turns
from metaos.reconcile.precedence import PATIENCE_SECONDS, QUIET_SECONDS, Precedence, Turn
from tests.clock import FakeClock


async def test_who_tells_waits_for_who_carries_and_not_for_ever() -> None:
    clock, order = FakeClock(), list[str]()
    contact, precedence, arrived = Contact(clock, Random(1)), Precedence(clock), asyncio.Event()

    async def carry(key: str) -> None:
        order.append(f"carry {key}")
        await arrived.wait()

    async def tell(key: str) -> None:
        order.append(f"tell {key}")

    first = Turns(contact, clock, Random(1), carry, "object", 2, precedence, Turn.FIRST)
    last = Turns(contact, clock, Random(1), tell, "Work", 1, precedence)
    running = [asyncio.create_task(each.run()) for each in (first, last)]
    last.add("alone", 0.0)
    await clock.advance(0.0)
    assert order == ["tell alone"], "with nothing on its way it is told at once"
    first.add("a", 0.0)
    await clock.advance(0.0)
    last.add("b", 0.0)
    await clock.advance(PATIENCE_SECONDS / 2)
    assert order == ["tell alone", "carry a"]
    arrived.set()
    await clock.advance(2 * QUIET_SECONDS)
    assert order == ["tell alone", "carry a", "tell b"]
    arrived.clear()
    first.add("c", 0.0)
    await clock.advance(0.0)
    last.add("d", 0.0)
    await clock.advance(PATIENCE_SECONDS + 2 * QUIET_SECONDS)
    assert order[3:] == ["carry c", "tell d"], "however long that takes"
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
