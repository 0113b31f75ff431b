"""Both servers, once per module. Without a real one, named by ``KUBECONFIG``, the tests that need it are skipped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom

import pytest
import pytest_asyncio

from tests.differential.cases import Case
from tests.differential.compare import Difference, differences
from tests.differential.peers import Peer, kubeconfig, kubernetes, nemo

NAMESPACE = {"apiVersion": "v1", "kind": "Namespace"}
ACCOUNT = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}, "automountServiceAccountToken": False}


@dataclass
class Pair:
    """``requests`` counts what was sent to both."""

    nemo: Peer
    kubernetes: Peer
    run: str
    requests: int = 0
    made: list[str] = field(default_factory=list)

    async def namespace(self) -> str:
        """A new one, under the same name on both, in which Pods can be made at once."""
        name = f"differential-{self.run}-{len(self.made)}"
        self.made.append(name)
        for peer in (self.nemo, self.kubernetes):
            peer.saved = {"ns": name}
            answer = await peer.request("POST", "/api/v1/namespaces", NAMESPACE | {"metadata": {"name": name}})
            assert answer.code == 201, answer.body
            accounts = f"/api/v1/namespaces/{name}/serviceaccounts"
            if (await peer.request("POST", accounts, ACCOUNT)).code == 409:
                no_token = {"automountServiceAccountToken": False}
                await peer.request("PATCH", f"{accounts}/default", no_token, "application/merge-patch+json")
        return name

    async def compare(self, case: Case) -> list[Difference]:
        namespace = await self.namespace()
        found: list[Difference] = []
        for step in case.steps:
            ours, theirs = await step.run(self.nemo), await step.run(self.kubernetes)
            found += differences(step, ours, theirs, namespace)
            self.requests += 1
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    config: Path | None = kubeconfig()
    if config is None:
        pytest.skip("NO COMPARISON WITH KUBERNETES: KUBECONFIG names no cluster; see CONTRIBUTING.md")
    run = f"{SystemRandom().getrandbits(24):06x}"
    async with nemo(tmp_path_factory.mktemp("nemo")) as ours, kubernetes(config) as theirs:
        both = Pair(ours, theirs, run)
        yield both
        for name in both.made:
            await theirs.request("DELETE", f"/api/v1/namespaces/{name}")
        print(f"\n{both.requests} requests were sent to both servers")
