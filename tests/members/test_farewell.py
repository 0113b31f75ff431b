"""A member that its hub has removed takes away what it had applied, also where it learns of that at its next start."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from metaos.agent.connection import Connect
from metaos.agent.entry import AgentConfig
from metaos.agent.presence import Removed
from metaos.clock import SystemClock
from metaos.members.agent import KubernetesAgent, MemberConfig
from metaos.members.claim import Membership
from metaos.members.kubeconfig import Access
from metaos.members.member import Member
from metaos.resources import errors, scheme
from tests.fake_client import FakeClient
from tests.members.conftest import start


class Revoking:
    """A connection to a hub that takes this site for a member no more, from the beginning."""

    def __init__(self) -> None:
        self.client = FakeClient(SystemClock())
        for verb in ("patch", "get", "list", "create"):
            self.client.fail(verb, errors.unauthorized("the certificate of this member has been revoked"), times=1000)

    def parts(self) -> list[Any]:
        return []

    def certificate(self) -> dict[str, Any]:
        return {}

    attestation = certificate

    def renew(self) -> None: ...

    async def close(self) -> None: ...


@pytest.mark.parametrize("access", ["nemo"], indirect=True)
async def test_what_agents_before_it_applied_goes_too(access: Access, tmp_path: Path) -> None:
    first, task = await start(access, tmp_path, "shop", "m-1", real=False)
    policy = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "other", "namespace": "shop"}}
    policy["spec"] = {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}  # type: ignore[assignment]
    first.give(first.work("a", first.config("one", k="v")), first.work("b", policy))
    await first.applied("a", "b")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (tmp_path / "works" / "b.json").unlink()  # no Work names this kind any more

    clock, random = SystemClock(), Random(5)
    member = Member(access, None, "", tmp_path, clock, random)
    config = MemberConfig(AgentConfig("https://hub", tmp_path, tmp_path / "site.yaml", heartbeat_seconds=0.05))
    membership = Membership("m-1", "kube", "https://hub")
    connect = cast(Connect, lambda contact, access: Revoking())
    agent = KubernetesAgent(config, scheme.CLUSTER.empty("kube"), membership, member, connect, clock, random)
    with pytest.raises(Removed, match="revoked"):
        await asyncio.wait_for(agent.run(), 20)
    assert await first.get(scheme.CONFIG_MAP, "one") is None
    assert await first.get(scheme.POD_DISRUPTION_BUDGET, "other") is None
    assert await first.get(scheme.CONFIG_MAP, "nemo-member", "nemo-system") is None, "another hub may have it now"
    await first.client.close()
