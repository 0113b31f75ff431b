"""Many at the same time, or one alone."""

from __future__ import annotations

import asyncio

from metaos.controllers.among import Among


async def test_one_alone_waits_for_those_before_and_is_waited_for_by_those_after() -> None:
    among, order = Among(), list[str]()
    leave = {who: asyncio.Event() for who in ("first", "second", "alone", "later")}

    async def enter(who: str) -> None:
        async with among.nobody() if who == "alone" else among.others():
            order.append(who)
            await leave[who].wait()

    tasks = []
    for who in leave:
        tasks.append(asyncio.create_task(enter(who)))
        await asyncio.sleep(0)
    assert order == ["first", "second"]
    leave["first"].set()
    await asyncio.wait(tasks[:1])
    assert order == ["first", "second"]
    leave["second"].set()
    await asyncio.wait(tasks[:2])
    await asyncio.sleep(0)
    assert order == ["first", "second", "alone"]
    tasks[2].cancel()  # However it ends.
    await asyncio.wait(tasks[:3])
    await asyncio.sleep(0)
    assert order[3:] == ["later"]
    leave["later"].set()
    await asyncio.wait(tasks)
