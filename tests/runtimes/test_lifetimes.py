"""What a container that does not end costs: a bounded time, and a word."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from metaos.runtimes.lifetimes import KILL_SECONDS, Lifetimes
from metaos.runtimes.pods import Container, Pod
from metaos.runtimes.process import Identity
from tests.clock import FakeClock


async def test_what_hangs_in_the_kernel_is_not_waited_for_without_end() -> None:
    clock = FakeClock()
    nothing: Any = SimpleNamespace(members=lambda *of: [])
    lifetimes = Lifetimes(nothing, nothing, nothing, clock, lambda: None)
    watch: Any = SimpleNamespace(ended=asyncio.Event())
    hangs = Container("main", "/nowhere", 0.0, 0, "main-0", monitor=Identity(2**22 + 1, 1), watch=watch)
    ending = asyncio.create_task(lifetimes.destroy(Pod("uid", "/nowhere", "web-0"), hangs))
    await clock.advance(2 * KILL_SECONDS - 0.1)
    assert not ending.done()
    await clock.advance(0.2)
    with pytest.raises(OSError, match="main was killed and does not end"):
        await ending
