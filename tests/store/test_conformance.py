"""Every implementation against the conformance suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from metaos.store.log import Store
from metaos.store.memory import MemoryStore
from metaos.store.seal import Keyring, SealedStore
from metaos.store.sqlite import SqliteStore
from tests.store.conformance import *  # noqa: F403


@pytest.fixture(params=["sqlite", "sealed", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store = MemoryStore() if request.param == "memory" else await SqliteStore.open(tmp_path / "state.db")
    if request.param == "sealed":
        opened = SealedStore(opened, Keyring.open(tmp_path / "keys.json"), lambda key: not key.endswith("/1"))
    yield opened
    await opened.close()
