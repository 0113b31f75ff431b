"""Volumes at sites that run podman, with a real podman: they move there, from there and between two of them, and their backups
are brought back. A site that dies leaves its containers to podman: the watchdog ends them before they are begun elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaos.twin.processes import Site, wait_for
from tests.backups import seaweed, test_lost_site
from tests.backups.seaweed import Seaweed
from tests.backups.test_lost_site import backed_up, database
from tests.e2e import test_volumes
from tests.e2e.test_lost_sites import apply, placed, pods, ready
from tests.runtimes.test_podman import service

__all__ = ["service"]  # a fixture

pytestmark = [*test_volumes.pytestmark, pytest.mark.timeout(400)]


class Mixed(test_volumes.Sites):
    """``runtimes``: of east and west. Podman's containers are in the machine's namespace of processes, so its agents are too."""

    def __init__(self, directory: Path, *runtimes: str) -> None:
        super().__init__(directory)
        self.runtimes = dict(zip(test_volumes.SITES, runtimes, strict=True))

    def bring_sites(self) -> None:
        self.directory.mkdir(parents=True)
        self.start_hub()
        for site, runtime in self.runtimes.items():
            spec: dict[str, Any] = {"runtime": runtime, "tier": "edge", "jurisdictions": ["EU"]}
            spec["capacity"] = {"cpu": "4", "memory": "8Gi", "pods": "10"}
            file = self.directory / f"{site}-file.yaml"
            file.write_text(
                yaml.safe_dump({"apiVersion": "meta-os.eu/v1alpha1", "kind": "Cluster", "metadata": {"name": site}, "spec": spec})
            )
            self.add_site(file)
        wait_for("all sites", lambda: ready(self) == set(self.runtimes), 90)

    def start_site(self, site: Site) -> None:
        machines, self.machines = self.machines, self.machines and self.runtimes[site.name] != "podman"
        super().start_site(site)
        self.machines = machines

    def kill_site(self, name: str) -> None:
        process = self.sites[name].process
        if self.runtimes[name] != "podman":
            super().kill_site(name)
        elif process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self.sites[name].process = None

    volume = test_lost_site.Sites.volume
    schedule = test_lost_site.Sites.schedule
    point = test_lost_site.Sites.point


@pytest.fixture
def podman(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{service}")


@pytest.fixture(params=[("sandbox", "podman"), ("podman", "podman")], ids="-".join)
def sites(request: pytest.FixtureRequest, podman: None, tmp_path: Path) -> Iterator[Mixed]:
    found = Mixed(tmp_path / "continuum", *request.param)
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with seaweed.running(tmp_path_factory.mktemp("seaweed")) as found:
        yield found


def move(sites: Mixed) -> str:
    """From where it is to the other site; that."""
    home = sites.home()
    (target,) = set(sites.runtimes) - {home}
    sites.drain(home)
    wait_for("its records to go on elsewhere", lambda: sites.home() == target and sites.volumes().get("phase") == "Done", 240)
    before = len(sites.numbers(target))
    wait_for("further records", lambda: len(sites.numbers(target)) > before + 20, 180)
    sites.check(target)
    wait_for("the old copy to go", lambda: not sites.records(home).exists(), 180)
    sites.kubectl("taint", "node", home, "maintenance-")
    return target


def test_a_database_moves_there_and_back(sites: Mixed) -> None:
    sites.begin(20 << 20)
    for _ in range(2):
        where = move(sites)
        assert (sites.records(where).parent / "ballast").stat().st_size == 20 << 20
        assert 0 < sites.volumes()["downtimeSeconds"] < 60


def test_who_owns_what_comes_along(sites: Mixed) -> None:
    """The container's user is another one than the agent's."""
    sites.begin(1 << 20)
    owned = sites.records(sites.home()).parent / "owned"
    owned.write_text("by another user")
    os.chown(owned, 1234, 2345)
    owned.chmod(0o640)
    target = move(sites)
    about = (sites.records(target).parent / "owned").stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o7777) == (1234, 2345, 0o640)


@pytest.mark.parametrize("sites", [("podman", "sandbox")], ids=["podman"], indirect=True)
def test_backups_of_a_podman_site(sites: Mixed, server: Seaweed) -> None:
    sites.bring_sites()
    stay = database()
    stay["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": "east"}
    apply(sites, *backed_up(server.endpoint, 25, b"p" * 32), stay)
    wait_for("its pod", lambda: len(pods(sites, "db")) == 1, 180)
    assert placed(sites, "statefulset-db") == {"east"}
    first = wait_for("a backup", sites.point, 180)
    wait_for("a later one", lambda: sites.point() > first, 180)
    # By hand, after a mistake.
    sites.kubectl("scale", "statefulset", "db", "--replicas", "0")
    wait_for("nobody to write", lambda: not (sites.get("pods", "-l", "app=db") or {}).get("items"), 180)
    (sites.volume("east") / "log").write_text("overwritten by mistake")
    said = json.loads(sites.nemo("volume", "restore", "data-db-0", "-o", "json", "--wait", "120"))
    assert said["restore"]["backup"].endswith("-east"), said
    lines = (sites.volume("east") / "log").read_text().splitlines()
    assert lines == [str(number) for number in range(len(lines))] and lines
    apply(sites, database())
    wait_for("its pod again", lambda: len(pods(sites, "db")) == 1, 180)
    assert placed(sites, "statefulset-db") == {"east"}
    again = sites.point()
    wait_for("a backup since", lambda: sites.point() > again, 180)
    # Its agent is gone, and podman goes on with what it runs: nobody but the watchdog ends that.
    log = sites.volume("east") / "log"
    died = time.monotonic()
    sites.kill_site("east")
    before = log.stat().st_size
    time.sleep(0.5)
    assert log.stat().st_size > before, "podman's containers outlive the agent"

    def quiet() -> bool:
        size = log.stat().st_size
        time.sleep(1.0)
        return log.stat().st_size == size

    wait_for("the watchdog to end it", quiet, 120)
    print(f"ended {time.monotonic() - died:.1f} s after its agent")
    written = len(log.read_text().splitlines())
    wait_for("another place", lambda: placed(sites, "statefulset-db") == {"west"}, 180)
    wait_for("its new pod", lambda: len(pods(sites, "db")) == 1, 90)
    text = wait_for("its word", lambda: sites.kubectl("logs", "db-0"), 120)
    assert 0 < int(text.split()[1]) <= written
    assert len(log.read_text().splitlines()) == written, "nobody writes at the old site"
    shutil.rmtree(sites.sites["east"].data, ignore_errors=True)
