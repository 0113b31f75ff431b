"""Deployments for devices: a runtime class, labels, replicas and a ConfigMap; and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.devices.workload import on_devices, status, wanted
from metaos.resources import scheme
from metaos.resources.meta import Obj
from tests.fleet.site import ADMIN, Station, Thing, station
from tests.fleet.test_sets import fleet

DEPLOYMENT: Obj = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "blink", "namespace": "shop", "generation": 3},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "blink"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
        "template": {
            "metadata": {"labels": {"app": "blink"}},
            "spec": {
                "runtimeClassName": "micropython",
                "nodeSelector": {"floor": "2"},
                "containers": [
                    {
                        "name": "main",
                        "image": "micropython",
                        "command": ["/app/blink.py"],
                        "volumeMounts": [{"name": "code", "mountPath": "/app"}],
                    }
                ],
                "volumes": [{"name": "code", "configMap": {"name": "blink"}}],
            },
        },
    },
}


def changed(**pod: Any) -> Obj:
    found = copy.deepcopy(DEPLOYMENT)
    found["spec"]["template"]["spec"] |= pod
    return found


def test_what_a_deployment_means_on_devices() -> None:
    assert on_devices(DEPLOYMENT) and not on_devices(changed(runtimeClassName="wasm"))
    found = wanted(DEPLOYMENT)
    assert found["selector"] == {"matchLabels": {"floor": "2"}} and found["count"] == 2 and found["maxUnavailable"] == 1
    app = found["template"]["app"]
    assert app["configMap"] == "blink" and app["key"] == "blink.py" and len(app["version"]) == 10
    other = changed(nodeSelector={"floor": "3"})
    assert wanted(other)["template"]["app"]["version"] != app["version"]


def test_code_may_be_an_artifact() -> None:
    image = "registry.example/team/blink@sha256:" + "5" * 64
    found = wanted(changed(volumes=[], containers=[{"name": "main", "image": image}], imagePullSecrets=[{"name": "team"}]))
    app = found["template"]["app"]
    assert app == {"image": image, "imagePullSecrets": ["team"], "key": "main.py", "version": app["version"]}
    mounts = [{"name": "other", "mountPath": "/x"}]
    with pytest.raises(ValueError, match=r"volumeMounts: none of them is of a ConfigMap"):
        wanted(changed(volumes=[], containers=[{"name": "main", "image": image, "volumeMounts": mounts}]))


MOUNTS = [{"name": n, "mountPath": f"/{n}"} for n in ("code", "more")]
TWICE = {"containers": [{"name": "main", "image": "micropython", "volumeMounts": MOUNTS}]}


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        (
            {"volumes": []},
            r"spec\.template\.spec\.containers\[0\]\.image: 'micropython': must name an OCI artifact by its digest",
        ),
        ({"volumes": [{"name": n, "configMap": {"name": n}} for n in ("code", "more")]} | TWICE, "2 ConfigMaps are mounted"),
        ({"containers": DEPLOYMENT["spec"]["template"]["spec"]["containers"] * 2}, "containers: 2 of them"),
        ({"hostNetwork": True}, r"spec\.template\.spec\.hostNetwork: a device has nothing of the kind"),
        ({"initContainers": [{"name": "x"}]}, "initContainers"),
        ({"containers": [{"name": "main", "env": [{"name": "A", "value": "b"}]}]}, r"containers\[0\]\.env"),
    ],
)
def test_what_means_nothing_on_devices_is_refused_by_field(pod: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wanted(changed(**pod))


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.booleans())
def test_a_status_counts_as_kubectl_reads_it(replicas: int, devices: int, updated: int, ready: int, seen: bool) -> None:
    devices = min(devices, replicas)
    updated = min(updated, devices)
    ready = min(ready, updated)
    deployment = copy.deepcopy(DEPLOYMENT)
    deployment["spec"]["replicas"] = replicas
    held = {"observedGeneration": 2 if seen else 1, "devices": devices, "updated": updated, "ready": ready}
    deviceset: Obj = {"metadata": {"generation": 2}, "spec": {"maxUnavailable": 1}, "status": held}
    found = status(deployment, deviceset, 1000.0)
    assert found.get("availableReplicas", 0) + found.get("unavailableReplicas", 0) == replicas
    assert found["observedGeneration"] == (3 if seen else 0)
    said = {c["type"]: c for c in found["conditions"]}
    assert (said["Available"]["status"] == "True") == (ready >= replicas - 1)
    done = said["Progressing"]["reason"] == "NewReplicaSetAvailable"
    assert done == (seen and ready == devices == replicas)


async def run(hub: Station, thing: Thing, sha: str, version: int, **more: Any) -> None:
    """The device runs it and says so."""
    await thing.connect(f"s{version}", heartbeat=3600)
    thing.sequence += 1
    app = {"sha256": sha, "state": "Running"} | more
    said = {"epoch": thing.epoch, "sequence": thing.sequence, "version": version, "reported": {}, "app": app}
    await thing.say("twin.reported", said)
    await hub.settle(9)


async def deployment(hub: Station) -> Obj:
    return await hub.registry.get(ADMIN, scheme.DEPLOYMENT, "blink", "shop")


async def test_a_deployment_runs_on_devices_is_scaled_and_goes() -> None:
    async with station() as hub:
        things = await fleet(hub, 3)
        await hub.registry.create(ADMIN, {**scheme.CONFIG_MAP.empty("blink", "shop"), "data": {"blink.py": "pass"}})
        body = copy.deepcopy(DEPLOYMENT)
        body["metadata"].pop("generation")
        await hub.registry.create(ADMIN, body)
        await hub.settle(3)
        assert [bool((await hub.device(f"d{n}"))["spec"].get("app")) for n in range(3)] == [True, False, False]
        told = dict(await things[0].connect("b", heartbeat=3600))
        sha = told["app.desired"]["sha256"]
        await run(hub, things[0], sha, 2)
        await run(hub, things[1], sha, 2)
        found = (await deployment(hub))["status"]
        assert found["availableReplicas"] == found["updatedReplicas"] == found["replicas"] == 2
        assert {c["type"]: c["reason"] for c in found["conditions"]} == {
            "Available": "MinimumReplicasAvailable",
            "Progressing": "NewReplicaSetAvailable",
        }
        # Nothing is placed at sites.
        assert (await hub.registry.list(ADMIN, scheme.PLACEMENT, "shop")).items == []
        await hub.registry.patch(ADMIN, scheme.DEPLOYMENT, "blink", "shop", {"spec": {"replicas": 1}})
        await hub.settle(5)
        assert [bool((await hub.device(f"d{n}"))["spec"].get("app")) for n in range(3)] == [True, False, False]
        # It is told to end what it runs.
        assert ("app.desired", {"sha256": ""}) in await things[1].told()
        await run(hub, things[1], "", 3, state="None")
        deviceset = await hub.registry.get(ADMIN, scheme.DEVICE_SET, "deployment-blink", "shop")
        assert deviceset["spec"]["count"] == 1 and deviceset["metadata"]["ownerReferences"][0]["name"] == "blink"
        await hub.registry.delete(ADMIN, scheme.DEVICE_SET, "deployment-blink", "shop")
        await hub.registry.delete(ADMIN, scheme.DEPLOYMENT, "blink", "shop")
        await hub.settle(5)
        assert "app" not in (await hub.device("d0"))["spec"]


async def test_one_that_means_nothing_on_devices_says_why() -> None:
    async with station() as hub:
        body = changed(volumes=[])
        body["metadata"].pop("generation")
        body["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = []
        await hub.registry.create(ADMIN, body)
        await hub.settle(3)
        (said,) = (await deployment(hub))["status"]["conditions"]
        assert said["type"] == "ReplicaFailure" and "or mount a ConfigMap that holds the code" in said["message"]
