"""A cluster's API and an applier on it: NEMO's own API server always, a real kube-apiserver where KUBECONFIG names one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import pytest

from metaos.agent.contact import Contact
from metaos.agent.sync import WorkFiles, Works
from metaos.clock import SystemClock
from metaos.http import HttpClient
from metaos.members.applier import Applier
from metaos.members.kubeconfig import Access
from metaos.members.member import Member, read_access
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, cluster_namespace, name
from metaos.resources.scheme import Kind
from tests.agent.hub import until
from tests.apiserver.serving import served
from tests.differential.peers import kubeconfig
from tests.fake_client import FakeClient


@dataclass
class Applying:
    """An applier that runs. ``client`` is somebody else at the cluster; ``told`` what was recorded as events."""

    access: Access
    member: Member
    client: HttpClient
    applier: Applier
    works: Works
    namespace: str
    real: bool
    told: list[tuple[str, str, str]] = field(default_factory=list)

    def give(self, *works: Obj) -> None:
        """What the hub says now."""
        self.works.replace_all(list(works))

    def status(self, work: str) -> dict[str, Any]:
        found = self.works.get(work)
        assert found is not None
        return self.applier.judge(found, {}, False, 0.0)

    def condition(self, work: str, kind: str = "Applied") -> dict[str, str]:
        return next(c for c in self.status(work)["conditions"] if c["type"] == kind)

    async def applied(self, *works: str) -> None:
        for work in works:
            await until(lambda work=work: self.condition(work)["status"] == "True")

    async def refused(self, work: str, reason: str) -> str:
        """The message of the condition, once it has this reason."""
        await until(lambda: self.condition(work)["reason"] == reason)
        return self.condition(work)["message"]

    async def get(self, kind: Kind, called: str, where: str | None = None) -> Obj | None:
        try:
            return await self.client.get(kind, called, (self.namespace if where is None else where) if kind.namespaced else "")
        except ApiError as error:
            assert error.code == 404, error.message
            return None

    async def gone(self, kind: Kind, called: str) -> None:
        async with asyncio.timeout(10):
            while await self.get(kind, called) is not None:
                await asyncio.sleep(0.02)

    async def shows(self, kind: Kind, called: str, *path: str, value: Any) -> None:
        """Waits until a field of an object has a value."""
        found: Any = None
        try:
            async with asyncio.timeout(10):
                while found != value:
                    found = await self.get(kind, called)
                    for key in path:
                        found = (found or {}).get(key)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{called}: {'.'.join(path)} is {found!r}, not {value!r}") from None

    def work(self, called: str, *manifests: Obj, uid: str = "", generation: int = 1) -> Obj:
        found: Any = scheme.WORK.empty(called, cluster_namespace("kube"))
        found["metadata"] |= {"uid": uid or f"work-{called}", "generation": generation}
        return {**found, "spec": {"manifests": list(manifests)}}

    def config(self, called: str, uid: str = "u", **data: str) -> Obj:
        found: Any = scheme.CONFIG_MAP.empty(called, self.namespace)
        found["metadata"] |= {"uid": uid}
        return {**found, "data": data}

    def deployment(self, called: str, replicas: int = 1, **metadata: Any) -> Obj:
        found: Any = scheme.DEPLOYMENT.empty(called, self.namespace)
        found["metadata"] |= {"uid": f"u-{called}", "generation": 3} | metadata
        pod = {"containers": [{"name": "main", "image": "busybox"}], "terminationGracePeriodSeconds": 1}
        template = {"metadata": {"labels": {"app": called}}, "spec": pod}
        return {**found, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": called}}, "template": template}}


async def start(
    access: Access, folder: Path, namespace: str, membership: str, *, real: bool
) -> tuple[Applying, asyncio.Task[None]]:
    clock, random = SystemClock(), Random(3)
    member = Member(access, None, "", folder, clock, random)
    works = Works(FakeClient(clock), Contact(clock, random), clock, WorkFiles(folder / "works"), "kube")
    told: list[tuple[str, str, str]] = []
    applier = Applier(
        member,
        works,
        membership,
        clock,
        random,
        lambda work: None,
        lambda obj, kind, why, text: told.append((name(obj), kind, why)),
    )
    applying = Applying(access, member, member.client, applier, works, namespace, real, told)
    await member.look()
    assert member.problem == ""
    applier.begin()
    return applying, asyncio.create_task(applier.run())


@pytest.fixture(params=["nemo", pytest.param("kubernetes", marks=pytest.mark.slow)])
async def access(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Access]:
    if request.param == "kubernetes":
        config = kubeconfig()
        if config is None:
            pytest.skip("NOT RUN ON KUBERNETES: KUBECONFIG names no cluster; see CONTRIBUTING.md")
        yield await read_access(config, "")
        return
    async with served(tmp_path, SystemClock()) as hub:
        yield await read_access(hub.kubeconfig(tmp_path), "")


@pytest.fixture
async def applying(access: Access, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Applying]:
    run = f"{SystemRandom().getrandbits(32):08x}"
    real = request.node.callspec.params["access"] == "kubernetes"
    found, task = await start(access, tmp_path, f"members-{run}", f"m-{run}", real=real)
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if real:
            for where in (found.namespace, f"{found.namespace}-b"):
                try:
                    await found.client.delete(scheme.NAMESPACE, where)
                except ApiError as error:
                    assert error.code == 404
        await found.client.close()
