"""Tokens of ServiceAccounts: which pods have one, where they find it, how it is renewed, and what happens where there is none."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metaos.agent.accounts import DIRECTORY, LOOK_SECONDS, PodTokens, calls_api, with_token
from metaos.agent.containers import MountError, Pending, environment
from metaos.agent.volumes import Volumes
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, format_time
from tests.clock import FakeClock


def pod(**spec: Any) -> Obj:
    container = {"name": "c", "volumeMounts": [{"name": "d", "mountPath": "/d"}]}
    metadata = {"name": "p", "namespace": "shop", "uid": "0123456789"}
    return {"metadata": metadata, "spec": {"containers": [container], **spec}}


def nothing(about: ObjectRef) -> Obj | None:
    return None


@pytest.mark.parametrize(
    ("spec", "account", "has"),
    [
        ({}, {}, False),
        ({"serviceAccountName": "robot"}, {}, True),
        ({"serviceAccountName": "robot"}, {"automountServiceAccountToken": False}, False),
        ({"serviceAccountName": "robot", "automountServiceAccountToken": True}, {"automountServiceAccountToken": False}, True),
        ({"serviceAccountName": "robot", "automountServiceAccountToken": False}, {}, False),
        ({"automountServiceAccountToken": True}, {}, True),
    ],
)
def test_which_pods_have_one(spec: dict[str, Any], account: dict[str, Any], has: bool) -> None:
    made = with_token(pod(**spec), lambda about: account)
    assert calls_api(made) is has
    assert ("KUBERNETES_SERVICE_HOST" in environment(made, made["spec"]["containers"][0], nothing)) is has
    mounts = made["spec"]["containers"][0]["volumeMounts"]
    assert any(mount["mountPath"] == DIRECTORY for mount in mounts) is has
    assert "volumes" not in pod()["spec"], "the template is not touched"


def test_a_container_that_has_something_there_keeps_it() -> None:
    own = {"name": "c", "volumeMounts": [{"name": "mine", "mountPath": DIRECTORY}]}
    asked = pod(serviceAccountName="robot", containers=[own], initContainers=[{"name": "i"}])
    made = with_token(asked, nothing)
    assert made["spec"]["containers"] == [own]
    assert [mount["mountPath"] for mount in made["spec"]["initContainers"][0]["volumeMounts"]] == [DIRECTORY]
    alone = pod(serviceAccountName="robot", containers=[own])
    assert with_token(alone, nothing) is alone


class Hub:
    """Gives tokens that are numbered, for an hour."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.asked = clock, list[tuple[str, str, Mapping[str, Any]]]()
        self.mirror = "there-1"
        self.refused = ""
        self.ca = "AUTHORITY"

    async def token(self, namespace: str, account: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append((namespace, account, spec))
        if self.refused:
            raise ApiError(403, "Forbidden", self.refused)
        ends = format_time(self.clock.now() + spec["expirationSeconds"])
        return {"token": f"token-{len(self.asked)}", "expirationTimestamp": ends}

    async def shown(self, pod: Obj) -> str:
        return self.mirror

    def authorities(self) -> str:
        return self.ca


class Scene:
    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.hub = Hub(self.clock)
        self.pod = with_token(pod(serviceAccountName="robot", containers=[{"name": "c"}]), nothing)
        self.woken: list[str] = []
        self.volumes = Volumes(folder, (), nothing)
        self.restart()

    def restart(self) -> None:
        """Another agent begins: it has nothing in memory."""
        self.tokens = PodTokens(self.hub, self.hub.shown, lambda where, name: self.hub.mirror, self.clock)
        self.tokens.on_change(self.woken.append)
        self.volumes.tokens = self.tokens

    def mounted(self) -> Path:
        ((path, target, read_only),) = self.volumes.mounts(self.pod, self.pod["spec"]["containers"][0], {})
        assert (target, read_only) == (DIRECTORY, True)
        return Path(path)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


async def test_it_is_asked_for_once_and_stands_where_clients_look(scene: Scene) -> None:
    for _ in range(3):
        with pytest.raises(Pending):
            scene.mounted()
    await scene.clock.settle()
    assert scene.woken == ["0123456789"]
    place = scene.mounted()
    assert {each: (place / each).read_text() for each in os.listdir(place) if not each.startswith("..")} == {
        "token": "token-1",
        "ca.crt": "AUTHORITY",
        "namespace": "shop",
    }
    assert (place / "token").stat().st_mode & 0o777 == 0o644
    bound = {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "there-1"}
    assert scene.hub.asked == [("shop", "robot", {"expirationSeconds": 3607, "boundObjectRef": bound})]


async def test_it_is_renewed_before_it_ends_and_when_its_pod_is_another_at_the_hub(scene: Scene) -> None:
    task = asyncio.create_task(scene.tokens.run())
    with pytest.raises(Pending):
        scene.mounted()
    await scene.clock.settle()
    place = scene.mounted()
    await scene.clock.advance(3607 * 0.8 - LOOK_SECONDS)
    assert len(scene.hub.asked) == 1
    await scene.clock.advance(2 * LOOK_SECONDS)
    scene.volumes.refresh(scene.pod)
    assert (place / "token").read_text() == "token-2"
    scene.hub.mirror = "there-2"
    await scene.clock.advance(LOOK_SECONDS)
    scene.volumes.refresh(scene.pod)
    assert (place / "token").read_text() == "token-3" and scene.hub.asked[-1][2]["boundObjectRef"]["uid"] == "there-2"
    scene.hub.ca = "ANOTHER"
    scene.woken.clear()
    await scene.clock.advance(LOOK_SECONDS)
    assert scene.woken
    scene.volumes.refresh(scene.pod)
    assert (place / "ca.crt").read_text() == "ANOTHER"
    scene.volumes.remove("0123456789")
    await scene.clock.advance(7200)
    assert len(scene.hub.asked) == 3 and not place.exists(), "with its pod it is gone"
    task.cancel()


async def test_what_an_earlier_agent_has_left_counts_until_there_is_another(scene: Scene) -> None:
    with pytest.raises(Pending):
        scene.mounted()
    await scene.clock.settle()
    scene.mounted()
    scene.restart()
    scene.hub.refused = "the hub is away"
    assert (scene.mounted() / "token").read_text() == "token-1", "the site heals alone"
    await scene.clock.settle()
    scene.hub.refused = ""
    scene.tokens.retry()
    await scene.clock.settle()
    scene.volumes.refresh(scene.pod)
    assert (scene.mounted() / "token").read_text() == "token-3"


async def test_why_there_is_none_is_said_and_it_is_asked_for_less_and_less(scene: Scene) -> None:
    scene.hub.refused = "serviceaccounts robot not found"
    with pytest.raises(Pending):
        scene.mounted()
    await scene.clock.settle()
    with pytest.raises(MountError, match="no token of ServiceAccount robot: serviceaccounts robot not found"):
        scene.mounted()
    for _ in range(600):
        with pytest.raises(MountError):
            scene.mounted()
        await scene.clock.advance(1)
    assert len(scene.hub.asked) < 20
    scene.hub.mirror = ""
    scene.tokens.retry()
    await scene.clock.settle()
    with pytest.raises(MountError, match="the hub does not know the pod yet"):
        scene.mounted()


async def test_a_hub_that_gives_no_tokens_is_told_from_one_that_gives_this_pod_none(scene: Scene) -> None:
    scene.hub.refused = (
        'serviceaccounts/token "robot" is forbidden: the agent of edge may touch only what belongs to its own site'
    )
    with pytest.raises(Pending):
        scene.mounted()
    await scene.clock.settle()
    with pytest.raises(MountError, match="is the hub of an older release, which gives pods no tokens"):
        scene.mounted()
    scene.hub.refused = 'serviceaccounts/token "robot" is forbidden: the pod is another site\'s'
    scene.tokens.retry()
    await scene.clock.settle()
    with pytest.raises(MountError) as refused:
        scene.mounted()
    assert "older release" not in str(refused.value)


async def test_a_token_stays_in_its_volume(scene: Scene) -> None:
    source = {"serviceAccountToken": {"path": "../../out", "audience": "vault"}}
    scene.pod["spec"]["volumes"][0] = {"name": scene.pod["spec"]["volumes"][0]["name"], "projected": {"sources": [source]}}
    for _ in range(2):
        with pytest.raises(MountError, match="leads out of its volume"):
            scene.mounted()
        await scene.clock.settle()
