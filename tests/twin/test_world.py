"""Small worlds with the real hub, with real agents and with light sites: work runs, moves and comes back, always alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from metaos.resources import scheme
from metaos.resources.meta import Obj
from metaos.twin.clock import VirtualLoop, run
from metaos.twin.network import Quality
from metaos.twin.timing import Timing
from metaos.twin.world import World


def cluster(name: str, **spec: Any) -> Obj:
    usual: dict[str, Any] = {"tier": "edge", "jurisdictions": ["EU"], "capacity": {"cpu": "4", "memory": "8Gi", "pods": "40"}}
    return {**scheme.CLUSTER.empty(name), "spec": usual | {"electricity": {"carbonIntensity": 100.0}} | spec}


def workload(name: str, replicas: int = 2, kind: scheme.Kind = scheme.DEPLOYMENT, **container: Any) -> Obj:
    one = {"name": "c", "image": "python:3", "resources": {"requests": {"cpu": "100m", "memory": "32Mi"}}} | container
    template: Obj = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [one], "terminationGracePeriodSeconds": 1}}
    spec: dict[str, Any] = {"template": template}
    if kind is scheme.JOB:
        template["spec"]["restartPolicy"] = "Never"
    else:
        spec |= {"replicas": replicas, "selector": {"matchLabels": {"app": name}}}
    return {**kind.empty(name, "shop"), "spec": spec}


def play(folder: Path, fidelity: str, seed: int = 1, quality: Quality | None = None) -> tuple[str, list[str]]:
    """Three sites, four workloads, a lost site, a dead hub and a power cut: the log's digest, and what was told."""
    told: list[str] = []

    async def main(loop: VirtualLoop) -> str:
        world = World(loop, seed, Timing(), folder=folder)
        await world.open()
        for number in range(3):
            await world.join(cluster(f"s{number}"), fidelity, quality)
        assert await world.until(lambda: all(world.is_ready(s) for s in world.sites), 60)
        job = workload("once", kind=scheme.JOB, command=["sleep", "50"])
        await world.apply(scheme.NAMESPACE.empty("shop"), *[workload(f"web{n}") for n in range(4)], job)

        def ready() -> dict[str, int]:
            found: dict[str, int] = {}
            for copy in world.copies():
                if copy.ready and world.is_ready(copy.site) and copy.owner.kind == "Deployment":
                    found[copy.owner.name] = found.get(copy.owner.name, 0) + 1
            return found

        complete = {f"web{n}": 2 for n in range(4)}
        assert await world.until(lambda: ready() == complete, 120), ready()
        first = world.sites["s0"]
        first.line.set(up=True, down=True)
        assert await world.until(lambda: not world.is_ready("s0"), 120)
        told.append("lost")
        assert await world.until(lambda: ready() == complete, 600), ready()
        told.append("replaced")
        first.line.set(up=False, down=False)
        assert await world.until(lambda: ready() == complete and len(world.copies()) == 8, 600), world.copies()
        await world.hub.kill()
        await world.run(20)
        await world.hub.start()
        told.append("hub back")

        def done() -> bool:
            return ((world.hub.find(scheme.JOB, "once", "shop") or {}).get("status") or {}).get("succeeded") == 1

        assert await world.until(done, 300)
        await first.stop()
        first.power_off()
        await world.run(5)
        first.start()
        assert await world.until(lambda: ready() == complete and len(world.copies()) == 8, 600), world.copies()
        for name, wanted in complete.items():
            status = (world.hub.find(scheme.DEPLOYMENT, name, "shop") or {}).get("status") or {}
            assert status.get("availableReplicas") == wanted, status
        told.append("power back")
        await world.close()
        return world.digest

    return run(main), told


@pytest.mark.parametrize("fidelity", ["agent", "light"])
def test_work_runs_moves_and_comes_back_and_always_alike(fidelity: str, tmp_path: Path) -> None:
    first, told = play(tmp_path / "1", fidelity)
    assert told == ["lost", "replaced", "hub back", "power back"]
    assert play(tmp_path / "2", fidelity)[0] == first
    assert play(tmp_path / "3", fidelity, seed=2)[0] != first


@pytest.mark.parametrize("fidelity", ["agent", "light"])
def test_a_bad_network(fidelity: str, tmp_path: Path) -> None:
    bad = Quality(delay=0.2, jitter=0.5, loss=0.05, duplicates=0.05)
    first, told = play(tmp_path / "1", fidelity, quality=bad)
    assert told[-1] == "power back"
    assert play(tmp_path / "2", fidelity, quality=bad)[0] == first


def test_a_light_site_shows_the_pods_of_claim_templates() -> None:
    """Their volumes come from the templates: the hub takes no pod that mounts what it does not have."""

    async def main(loop: VirtualLoop) -> list[str]:
        world = World(loop, 1, Timing())
        await world.open()
        await world.join(cluster("eu"))
        mounts = [{"name": "data", "mountPath": "/data"}]
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        container = {"name": "main", "image": "python:3", "volumeMounts": mounts}
        obj: Obj = {**scheme.STATEFUL_SET.empty("store", "default")}
        obj["spec"] = {
            "serviceName": "store",
            "selector": {"matchLabels": {"app": "store"}},
            "template": {"metadata": {"labels": {"app": "store"}}, "spec": {"containers": [container]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
        }
        await world.apply(obj)

        def mirrored() -> list[str]:
            pods = world.hub.objects(scheme.POD, "default")
            return [v["persistentVolumeClaim"]["claimName"] for pod in pods for v in pod["spec"].get("volumes") or ()]

        await world.until(lambda: bool(mirrored()), 120)
        found = mirrored()
        await world.close()
        return found

    assert run(main) == ["data-store-0"]
