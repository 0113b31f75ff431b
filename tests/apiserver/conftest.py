from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from metaos.apiserver.registry import Registry
from metaos.security.authz import UserInfo
from metaos.store.sqlite import SqliteStore
from tests.clock import FakeClock

ADMIN = UserInfo("admin", ("system:masters",))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "state.db")
    yield opened
    await opened.close()


@pytest.fixture
async def registry(store: SqliteStore, clock: FakeClock) -> AsyncIterator[Registry]:
    started = Registry(store, clock, Random(1))
    await started.start()
    yield started
    await started.stop()
