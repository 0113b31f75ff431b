"""What a Kubernetes member learns of itself before it begins."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

from metaos.agent.entry import AgentConfig
from metaos.members.agent import membership_of
from metaos.resources import scheme
from tests.agent.hub import Hub
from tests.agent.test_join import membership, token_file


async def test_whose_the_cluster_is_any_hub_says(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    await hub.start()
    try:
        identity = await membership(hub, tmp_path).join(token_file(hub, tmp_path))
        made = await hub.client.create({**scheme.CLUSTER.empty("edge-a"), "spec": {}})
        config = AgentConfig("https://127.0.0.1:9", tmp_path, tmp_path / "site.yaml", more_hubs=(hub.url,))
        async with asyncio.timeout(20):
            found = await membership_of(config, identity, hub.clock, Random(1))
        assert found.id == made["metadata"]["uid"] and found.hub == config.hub
    finally:
        await hub.stop()
