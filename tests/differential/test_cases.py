"""The same requests to a real kube-apiserver and to NEMO: what differs is known, and has a reason (``known.yaml``)."""

from __future__ import annotations

import pytest

from tests.differential.cases import Case, cases
from tests.differential.compare import unknown
from tests.differential.conftest import Pair

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.id)
async def test_answers_are_the_same(pair: Pair, case: Case) -> None:
    found = unknown(await pair.compare(case), pair.kubernetes.minor)
    assert not found, "\n" + "\n".join(map(str, found))
