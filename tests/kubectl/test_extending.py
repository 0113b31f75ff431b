"""The page that says how the API is extended, command by command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.apiserver.definitions import controllers
from tests.apiserver.serving import ServedHub
from tests.kubectl.conftest import Kubectl
from tests.kubectl.pages import follow

pytestmark = [pytest.mark.system, pytest.mark.slow]


async def test_what_the_page_says_happens(hub: ServedHub, kubectl: Kubectl, tmp_path: Path) -> None:
    files = ["definition.yaml", "sensor.json", "policy.yaml", "limits.yaml"]
    async with controllers(hub.registry, hub.clock):
        assert await follow("extend-the-api.md", files, kubectl, tmp_path) > 20
