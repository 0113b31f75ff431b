"""The page on Services, command by command."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from metaos.controllers import serviceexport
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from tests.apiserver.definitions import CONTROLLERS
from tests.apiserver.serving import ServedHub
from tests.kubectl.conftest import Kubectl
from tests.kubectl.pages import follow

pytestmark = [pytest.mark.system, pytest.mark.slow]


async def test_what_the_page_says_happens(hub: ServedHub, kubectl: Kubectl, tmp_path: Path) -> None:
    client = hub.registry.client(CONTROLLERS)
    manager = Manager(client, hub.clock, Random(1))
    serviceexport.setup(manager, client, hub.clock, Settings(sign=lambda *_: b""))
    await manager.start()
    try:
        assert await follow("services.md", ["service.yaml", "export.yaml"], kubectl, tmp_path) == 9
    finally:
        await manager.stop()
