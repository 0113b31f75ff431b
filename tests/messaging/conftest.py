"""A real server for the tests of the bus, in a folder of its own, and a way to kill it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from metaos.clock import SystemClock
from metaos.config import Address
from metaos.messaging.embedded import program
from metaos.messaging.exchange import Exchange, ExchangeConfig

ROOT = bytes(range(32))


async def root() -> bytes:
    return ROOT


@pytest.fixture(scope="session")
def server_program() -> str:
    """Raises where there is none: it is one of the project's own dependencies."""
    return program()


@pytest.fixture
async def exchange(tmp_path: Path, server_program: str) -> AsyncIterator[Exchange]:
    """Of a hub that listens for devices."""
    found = Exchange(ExchangeConfig(tmp_path / "bus", mqtt=Address("127.0.0.1", 0)), SystemClock(), root)
    try:
        yield found
    finally:
        await found.stop()


@pytest.fixture
def kill(exchange: Exchange) -> Callable[[], None]:
    def now() -> None:
        assert exchange.server is not None
        os.kill(exchange.server.pid, signal.SIGKILL)

    return now
