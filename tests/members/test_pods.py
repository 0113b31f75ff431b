"""Pods of a cluster as the hub is shown them, and how commands in them end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from metaos.agent.contact import Contact
from metaos.members.access import MemberAccess
from metaos.members.applier import Applier
from metaos.members.callers import Identities
from metaos.members.pods import MemberPods, shown
from metaos.members.spdy import exit_code
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, labels, name, owner_reference
from tests.agent.hub import until
from tests.clock import FakeClock
from tests.members.conftest import Applying


def test_a_pod_is_shown_with_the_hubs_owner_template_and_labels_alone() -> None:
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "main"}]}}
    manifest: Obj = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "uid": "hub"}}
    manifest["spec"] = {"template": template}
    pod: Obj = {
        "metadata": {"name": "web-1", "uid": "here", "labels": {"app": "web", "pod-template-hash": "x", "istio.io/rev": "y"}},
        "spec": {"containers": [{"name": "main"}, {"name": "proxy"}], "nodeName": "worker-1"},
        "status": {"phase": "Running"},
    }
    found = shown(pod, manifest)
    assert labels(found) == {"app": "web", "pod-template-hash": "x"}
    assert [o["uid"] for o in found["metadata"]["ownerReferences"]] == ["hub"] and found["metadata"]["uid"] == "here"
    assert found["spec"] == template["spec"] and found["status"] == {"phase": "Running"}


async def test_a_pod_is_ours_by_its_chain_of_controllers_and_others_are_not_shown(applying: Applying) -> None:
    if applying.real:
        pytest.skip("a real cluster's controllers have their own mind about such pods: tests/members/test_whole.py shows theirs")
    changed = asyncio.Event()
    pods = MemberPods(applying.member, applying.applier, applying.member._clock, changed.set)
    applying.give(applying.work("a", applying.deployment("web", replicas=0)))
    await applying.applied("a")
    pods.refresh()
    running = asyncio.create_task(pods.run())
    try:
        web = await applying.client.get(scheme.DEPLOYMENT, "web", applying.namespace)

        async def make(kind: Any, called: str, owner: Obj | None, **spec: Any) -> Obj:
            obj: Obj = kind.empty(called, applying.namespace)
            obj["metadata"]["labels"] = {"app": "web"}
            if owner is not None:
                obj["metadata"]["ownerReferences"] = [owner_reference(owner)]
            return await applying.client.create(obj | {"spec": spec})

        template: Any = web["spec"]["template"]
        chosen = {"replicas": 0, "selector": {"matchLabels": {"app": "none"}}}
        none = {"metadata": {"labels": {"app": "none"}}, "spec": template["spec"]}
        ours = await make(scheme.REPLICA_SET, "web-1", web, template=none, **chosen)
        theirs = await make(scheme.REPLICA_SET, "other-1", None, template=none, **chosen)
        containers = [{"name": "main", "image": "busybox"}]
        for called, owner in (("web-1-a", ours), ("other-1-a", theirs), ("alone", None)):
            await make(scheme.POD, called, owner, containers=containers, automountServiceAccountToken=False)
        await until(lambda: [name(p) for p in pods.pods()] == ["web-1-a"])
        assert pods.pods()[0]["metadata"]["ownerReferences"][0]["uid"] == "u-web", "the hub's uid"
        assert pods.ours(applying.namespace, "alone") is None and pods.ours(applying.namespace, "web-1-a") is not None
        await pods.delete_pod(applying.namespace, "web-1-a", 0)
        await until(lambda: pods.pods() == [])
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class OneKind:
    """A cluster whose ReplicaSets may not be read, and whose Jobs may."""

    async def get(self, kind: Any, called: str, where: str = "") -> Obj:
        if kind is scheme.REPLICA_SET:
            raise ApiError(403, "Forbidden", "replicasets are not for you")
        owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": "cron", "controller": True}
        return {"metadata": {"name": called, "ownerReferences": [owner]}}

    def chunks(self, method: str, path: str, *, query: dict[str, str], headers: Any) -> AsyncGenerator[bytes, None]:
        async def found() -> AsyncGenerator[bytes, None]:
            yield b"line"

        return found()


def owned(called: str, kind: str, owner: str) -> Obj:
    above = {"apiVersion": "v1", "kind": kind, "name": owner, "uid": owner, "controller": True}
    return {"metadata": {"name": called, "namespace": "shop", "uid": called, "ownerReferences": [above]}}


def one_kind(clock: FakeClock) -> tuple[Any, MemberPods]:
    member: Any = SimpleNamespace(client=OneKind(), contact=Contact(clock, Random(1)))

    class Wanted:
        def ours(self, each: ObjectRef, live_uid: str) -> Obj | None:
            hub = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly", "uid": "hub"}, "spec": {}}
            return hub if live_uid == "cron" else None

    return member, MemberPods(member, cast(Applier, Wanted()), clock, lambda: None)


async def test_pods_of_a_kind_that_may_not_be_read_hold_up_no_others_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    _, pods = one_kind(FakeClock())
    pods._keep(owned("a", "ReplicaSet", "rs-1"))
    pods._keep(owned("b", "Job", "job-1"))
    assert pods.pods() == []
    running = asyncio.create_task(pods.run())
    try:
        await until(lambda: [name(p) for p in pods.pods()] == ["b"])
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert caplog.text.count("replicasets are not for you") == 1


@pytest.mark.parametrize(
    ("minor", "status", "wanted"), [(26, 201, ["POST"]), (26, 429, ["POST", "DELETE"]), (25, 201, ["DELETE"])]
)
async def test_an_evicted_pod_is_evicted_by_its_cluster_where_that_says_so(minor: int, status: int, wanted: list[str]) -> None:
    member, pods = one_kind(FakeClock())
    asked: list[str] = []
    options: dict[str, Any] = {}

    async def request(method: str, path: str, body: bytes) -> SimpleNamespace:
        assert path == "/api/v1/namespaces/shop/pods/a/eviction"
        asked.append(method)
        options.update(json.loads(body)["deleteOptions"])
        return SimpleNamespace(status=status)

    async def delete(kind: Any, called: str, where: str, *, uid: str, grace_period_seconds: int | None) -> None:
        assert (kind, called, where, uid, grace_period_seconds) == (scheme.POD, "a", "shop", "a", 5)
        asked.append("DELETE")

    member.minor, member.client = minor, SimpleNamespace(request=request, delete=delete)
    pods._keep(owned("a", "Job", "job-1"))
    await pods.delete_pod("shop", "a", 5.0, evicted=True)
    assert asked == wanted
    assert options == ({"preconditions": {"uid": "a"}, "gracePeriodSeconds": 5} if "POST" in wanted else {})
    asked.clear()
    await pods.delete_pod("shop", "a", 5.0)
    assert asked == ["DELETE"], "deleted by hand"


def test_controllers_are_remembered_as_long_as_a_pod_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaos.members.pods.MAX_CHAINS", 4)
    _, pods = one_kind(FakeClock())
    for number in range(20):
        pods._keep(owned(f"p-{number}", "Job", f"job-{number}"))
        pods._remember(f"job-{number}", None)
        pods._remember(f"gone-{number}", None)
    assert {f"job-{number}" for number in range(20)} <= pods._chains.keys()
    assert len(pods._chains) <= 2 * 20 + 1


async def test_so_many_logs_at_a_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaos.members.access.MAX_LOGS", 1)
    member, _ = one_kind(FakeClock())
    site = MemberAccess(member, lambda: None, lambda where, pod: {}, identities=Identities.AGENT)
    access = await site.acting_for({"type": "log"})
    first, second = access.logs("shop", "a", "main"), access.logs("shop", "a", "main")
    assert await anext(first) == b"line"
    with pytest.raises(ApiError, match="read at this site already"):
        await anext(second)
    assert [chunk async for chunk in first] == []
    assert [chunk async for chunk in access.logs("shop", "a", "main")] == [b"line"]


def test_the_end_of_a_command_is_read_off_the_status() -> None:
    assert exit_code({"status": "Success"}) == 0
    failed = {"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "7"}]}}
    assert exit_code(failed) == 7
    with pytest.raises(ApiError, match="not found"):
        exit_code({"status": "Failure", "message": "container not found", "code": 404})
    with pytest.raises(ApiError, match="without saying"):
        exit_code(None)
