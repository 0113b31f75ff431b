"""Images that a pod waits for, and the credentials that it has for them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from metaos.agent.podimages import pull_of
from metaos.resources.meta import Obj, ObjectRef
from tests.agent.machine import Site, container, workload


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    made.start()
    yield made
    await made.stop()


def secret(data: dict[str, bytes], name: str = "pull") -> Obj:
    entries = {key: base64.b64encode(value).decode() for key, value in data.items()}
    metadata = {"name": name, "namespace": "shop"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": entries}


def docker(entries: dict[str, Any], name: str = "pull") -> Obj:
    return secret({".dockerconfigjson": json.dumps({"auths": entries}).encode()}, name)


def only(site: Site) -> dict[str, Any]:
    (pod,) = site.pods().values()
    found: dict[str, Any] = pod["status"]["containerStatuses"][0]
    return found


async def test_a_pod_waits_for_its_image_and_says_so(site: Site) -> None:
    arrived = site.machine.coming["r.example/app:1"] = asyncio.Event()
    template = {"containers": [container(image="r.example/app:1")], "imagePullSecrets": [{"name": "pull"}]}
    await site.apply(
        workload("Deployment", template=template, replicas=1), docker({"r.example": {"username": "u", "password": "p"}})
    )
    assert only(site)["state"]["waiting"]["reason"] == "ContainerCreating" and not site.machine.running()
    ((image, pull),) = site.machine.asked
    assert (image, pull.policy, pull.credentials) == ("r.example/app:1", "IfNotPresent", (("r.example", "u", "p"),))
    assert "p'" not in repr(pull)
    arrived.set()
    await site.settle()
    assert only(site)["ready"] and site.reasons()[-3:] == ["Pulling", "Pulled", "Started"]


async def test_a_pod_that_ends_does_not_wait_for_its_image(site: Site) -> None:
    site.machine.coming["r.example/app:1"] = asyncio.Event()
    await site.apply(workload("Deployment", template={"containers": [container(image="r.example/app:1")]}, replicas=1))
    await site.apply()
    assert not site.pods() and not site.machine.found


async def test_an_agent_that_was_killed_asks_again(site: Site) -> None:
    arrived = site.machine.coming["r.example/app:1"] = asyncio.Event()
    await site.apply(workload("Deployment", template={"containers": [container(image="r.example/app:1")]}, replicas=1))
    await site.stop()
    site.start()
    await site.settle()
    assert len(site.machine.asked) == 2
    arrived.set()
    await site.settle()
    assert only(site)["ready"] and len(site.machine.running()) == 1


async def test_a_missing_secret_is_told_and_the_image_asked_for_without(site: Site) -> None:
    site.machine.missing_images.add("r.example/app:1")
    template = {"containers": [container(image="r.example/app:1")], "imagePullSecrets": [{"name": "none"}]}
    await site.apply(workload("Deployment", template=template, replicas=1))
    assert site.reasons().count("FailedToRetrieveImagePullSecret") == 1
    assert any('secret "none" not found' in message for _, _, _, message in site.events)
    waits = []
    for _ in range(7):
        before = len(site.machine.asked)
        while len(site.machine.asked) == before:
            await site.clock.advance(1)
            waits.append(1)
        waits.append(0)
    gaps = [len(part) for part in "".join(map(str, waits)).split("0") if part]
    assert [round(gap / 10) * 10 for gap in gaps] == [10, 20, 40, 80, 160, 300, 300], "doubling, at most five minutes"
    assert site.reasons().count("FailedToRetrieveImagePullSecret") == 1


@pytest.mark.parametrize(
    ("image", "said", "policy"),
    [
        ("app", None, "Always"),
        ("r.example:5000/app", None, "Always"),
        ("app:latest", None, "Always"),
        ("app:1", None, "IfNotPresent"),
        ("app@sha256:" + "a" * 64, None, "IfNotPresent"),
        ("app:1", "Always", "Always"),
        ("app", "Never", "Never"),
    ],
)
def test_the_policy_is_kubernetes_own(image: str, said: str | None, policy: str) -> None:
    spec = container(image=image, **({"imagePullPolicy": said} if said else {}))
    found, problems = pull_of({"metadata": {"namespace": "shop"}, "spec": {}}, spec, lambda _: None)
    assert (found.policy, problems) == (policy, [])


AUTH = base64.b64encode(b"u:p:q").decode()


@pytest.mark.parametrize(
    ("data", "credentials", "problem"),
    [
        ({".dockerconfigjson": json.dumps({"auths": {"r": {"auth": AUTH}}}).encode()}, (("r", "u", "p:q"),), ""),
        ({".dockercfg": json.dumps({"r": {"username": "u", "password": "p"}}).encode()}, (("r", "u", "p"),), ""),
        ({".dockerconfigjson": b'{"auths": {"r": {}}}'}, (), ""),
        ({".dockerconfigjson": b"no json"}, (), "no docker configuration"),
        ({".dockerconfigjson": b"[]"}, (), "no docker configuration"),
        ({".dockerconfigjson": b'{"auths": {"r": {"auth": "!"}}}'}, (), "no docker configuration"),
        ({".dockerconfigjson": b'{"auths": {"r": {"identitytoken": "t"}}}'}, (), "identitytoken is not supported"),
        ({"token": b"x"}, (), "kubectl create secret docker-registry"),
    ],
)
def test_secrets_are_read_as_docker_writes_them(data: dict[str, bytes], credentials: tuple[Any, ...], problem: str) -> None:
    about = ObjectRef("", "Secret", "shop", "pull")
    pod = {"metadata": {"namespace": "shop"}, "spec": {"imagePullSecrets": [{"name": "pull"}]}}
    found, problems = pull_of(pod, container(), {about: secret(data)}.get)
    assert found.credentials == credentials and problem in "".join(problems) and bool(problem) == bool(problems)
