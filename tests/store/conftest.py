"""What several suites of stores run against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.postgres import Postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    try:
        found = Postgres()
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    found.start()
    yield found
    found.stop()
