"""Pods of a cluster as the hub is shown them, and how commands in them end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from metaos.members.execution import exit_code
from metaos.members.pods import MemberPods, shown
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, labels, name, owner_reference
from tests.agent.hub import until
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


def test_the_end_of_a_command_is_read_off_the_status() -> None:
    assert exit_code({"status": "Success"}) == 0
    failed = {"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "7"}]}}
    assert exit_code(failed) == 7
    with pytest.raises(ApiError, match="not found"):
        exit_code({"status": "Failure", "message": "container not found", "code": 404})
    with pytest.raises(ApiError, match="without saying"):
        exit_code(None)
