"""Limits of what pods may use of the disk, and what happens where the disk itself is full."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.agent import storage
from metaos.agent.storage import Storage, Used, exceeded, limited
from metaos.clock import SystemClock
from metaos.resources import meta
from metaos.resources.meta import Obj
from tests.agent.fakes import FakeRuntime
from tests.agent.machine import workload
from tests.agent.test_real_pods import RealSite, folder, running, shell

__all__ = ["folder"]  # a fixture

MI = 1 << 20


def pod(uid: str = "u", limits: dict[str, str] | None = None, **volumes: dict[str, Any]) -> Obj:
    containers = [
        {"name": name, "image": "x", "resources": {"limits": {"ephemeral-storage": limit} if limit else {}}}
        for name, limit in (limits or {"main": ""}).items()
    ]
    found = [{"name": name, "emptyDir": value} for name, value in volumes.items()]
    return {"metadata": {"uid": uid, "name": uid}, "spec": {"containers": containers, "volumes": found}}


def test_a_volume() -> None:
    wanted = pod(cache={"sizeLimit": "10Mi"}, other={})
    assert limited(wanted)
    assert exceeded(wanted, Used({"cache": 10 * MI, "other": 99 * MI}, {"main": 99 * MI})) == ""
    assert exceeded(wanted, Used({"cache": 10 * MI + 1}, {})) == 'Usage of EmptyDir volume "cache" exceeds the limit "10Mi". '


def test_a_container_and_the_whole_pod() -> None:
    wanted = pod(limits={"a": "10Mi", "b": "20Mi"}, cache={})
    assert exceeded(wanted, Used({}, {"a": 10 * MI, "b": 20 * MI})) == ""
    assert exceeded(wanted, Used({}, {"a": 11 * MI})) == 'Container a exceeded its local ephemeral storage limit "10Mi". '
    text = "Pod ephemeral local storage usage exceeds the total limit of containers 30Mi. "
    assert exceeded(wanted, Used({"cache": 31 * MI}, {"a": 0})) == text


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_without_limits_everything_is_borne(volume: int, one: int, other: int) -> None:
    wanted = pod(limits={"a": "", "b": ""}, cache={})
    assert not limited(wanted)
    assert exceeded(wanted, Used({"cache": volume << 30}, {"a": one << 30, "b": other << 30})) == ""


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    found = SimpleNamespace(f_blocks=1000 * MI // 4096, f_frsize=4096, f_bavail=500 * MI // 4096)
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    yield found


async def test_of_a_full_disk_the_pod_that_uses_most_goes(full: SimpleNamespace, tmp_path: Path) -> None:
    pods = [pod("small", cache={}), pod("big", cache={})]
    for found, size in zip(pods, (1, 3), strict=True):
        volume = tmp_path / "pods" / meta.uid(found) / "volumes/cache"
        volume.mkdir(parents=True)
        (volume / "file").write_bytes(b"x" * size * MI)
    evicted: list[tuple[str, str]] = []
    runtime = FakeRuntime()
    asked: list[tuple[set[str], int]] = []
    removed = [["docker.io/library/old:1"]]

    async def collect(keep: set[str], wanted: int) -> list[str]:
        asked.append((keep, wanted))
        return removed.pop() if removed else []

    runtime.collect_images = collect  # type: ignore[method-assign]
    looking = Storage(runtime, SystemClock(), tmp_path, lambda: pods, lambda: {"x"}, lambda *told: evicted.append(told))  # type: ignore[arg-type]
    assert not await looking._relieve()
    assert (tmp_path / "reserve").stat().st_size == storage.RESERVE_BYTES and not evicted
    full.f_bavail = 49 * MI // 4096
    assert await looking._relieve() and not evicted  # first images that nothing needs
    assert asked == [({"x"}, 151 * MI)]
    assert await looking._relieve()
    assert not (tmp_path / "reserve").exists()  # the agent can write on
    ((who, why),) = evicted
    assert who == "big" and why.startswith("The node was low on resource: ephemeral-storage. Threshold quantity: 52428800")


@pytest.fixture
async def site(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RealSite]:
    monkeypatch.setattr(storage, "PRESSURE_SECONDS", 0.1)
    monkeypatch.setattr(storage, "LOOK_SECONDS", 0.1)
    async with running(folder) as found:
        yield found


@pytest.mark.system
async def test_real_pods_are_evicted_and_neighbours_are_not(site: RealSite, folder: Path) -> None:
    mounts = [{"name": "cache", "mountPath": "/cache"}]
    limit = {"limits": {"ephemeral-storage": "3Mi"}}
    fill = "echo full; head -c 5000000 /dev/zero >/cache/x; sleep 1000"

    def of(name: str, script: str, size: str = "", **more: Any) -> Obj:
        volumes = [{"name": "cache", "emptyDir": {"sizeLimit": size} if size else {}}]
        return workload("Pod", name, template={"volumes": volumes, "containers": [shell(script, volumeMounts=mounts, **more)]})

    site.supervisor.set_desired(
        [
            of("volume", fill, "2Mi"),
            of("whole", fill, resources=limit),
            of("logs", "head -c 5000000 /dev/zero; sleep 1000", resources=limit),
            of("deep", "cd /cache; i=0; while [ $i -lt 300 ]; do mkdir d; cd d; i=$((i+1)); done; sleep 1000", "2Mi"),
            of("sparse", "truncate -s 1T /cache/x; sleep 1000", "2Mi"),
            of("linked", "ln -s / /cache/root; sleep 1000", "2Mi"),
        ]
    )
    bad = {"volume", "whole", "logs", "deep"}
    await site.until(lambda: {n for n, p in site.pods().items() if p["status"]["phase"] == "Failed"} == bad)
    said = {name: site.pods()[name]["status"] for name in bad}
    assert {status["reason"] for status in said.values()} == {"Evicted"}
    assert said["volume"]["message"] == 'Usage of EmptyDir volume "cache" exceeds the limit "2Mi". '
    assert said["whole"]["message"] == "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. "
    assert said["logs"]["message"] == 'Container c exceeded its local ephemeral storage limit "3Mi". '
    assert "nested deeper" in said["deep"]["message"]
    assert {name for name, reason in site.events if reason == "Evicted"} == bad
    # What they used is free again, and others have what is theirs.
    others = {meta.uid(site.pods()[name]) for name in ("sparse", "linked")}
    await site.until(lambda: {p.parent.parent.name for p in folder.glob("runtime/pods/*/volumes/cache")} == others)
    assert all(site.pods()[name]["status"]["phase"] == "Running" for name in ("sparse", "linked"))
