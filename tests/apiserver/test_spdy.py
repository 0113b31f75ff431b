"""Port-forward over SPDY: what its streams hold."""

import asyncio

import pytest

from metaos.apiserver import spdy
from metaos.apiserver.spdy import Inbox


async def test_a_stream_that_is_stuck_holds_nobody_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spdy, "STALL_SECONDS", 0.01)
    inbox = Inbox()
    assert await inbox.put(bytes(spdy.INBOX_BYTES + 1))
    assert not await inbox.put(b"x")
    monkeypatch.setattr(spdy, "STALL_SECONDS", 10)
    waiting = asyncio.create_task(inbox.put(b"y"))
    await asyncio.sleep(0)
    inbox.close()
    assert await asyncio.wait_for(waiting, 1)
    assert await inbox.get() == b""


async def test_what_was_put_comes_out_before_the_end() -> None:
    inbox = Inbox()
    await inbox.put(b"a")
    await inbox.put(b"b")
    inbox.end()
    assert [await inbox.get() for _ in range(3)] == [b"a", b"b", b""]
