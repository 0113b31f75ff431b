"""Objects made from the schema, by the hundred, to both servers."""

from __future__ import annotations

import pytest

from tests.differential.cases import Case, Step
from tests.differential.compare import unknown
from tests.differential.conftest import Pair
from tests.differential.generated import requests

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
PER_KIND = 40


@pytest.mark.parametrize(("plural", "steps"), list(requests(PER_KIND)), ids=[plural for plural, _ in requests(1)])
async def test_answers_are_the_same(pair: Pair, plural: str, steps: list[Step]) -> None:
    found = unknown(await pair.compare(Case("generated", plural, tuple(steps))), pair.kubernetes.minor)
    assert not found, "\n" + "\n".join(map(str, found))
