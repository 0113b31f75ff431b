"""Volumes that move with their work between real sites: a writer numbers its records and syncs each; none is lost, none doubled.

In the middle agents and the hub are killed: the old copy goes on, or the new one has everything.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.demo.continuum import Continuum
from metaos.cli.doctor import isolation
from metaos.twin.processes import HERE, namespaces_work, wait_for
from tests.e2e.test_backup import nemo
from tests.e2e.test_lost_sites import apply, placed, pods, ready

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(
        isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces: see 'nemo doctor'"
    ),
]

SITES = ("east", "west")
#: Goes on after the last whole record; each says its number, when, and by which start.
PROGRAM = """
import os, time, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
path = "/data/records"
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
size = os.fstat(fd).st_size // 64 * 64
last = int(os.pread(fd, 64, size - 64).split()[0]) if size else 0
if not os.path.exists("/data/ballast"):
    with open("/data/ballast", "wb") as file:
        file.write(os.urandom(BALLAST))
name = os.urandom(4).hex()
while True:
    last += 1
    line = f"{last} {time.clock_gettime(time.CLOCK_BOOTTIME):.4f} {name}".ljust(63) + "\\n"
    os.pwrite(fd, line.encode(), size)
    os.fsync(fd)
    size += 64
    time.sleep(0.02)
"""


class Sites(Continuum):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory, isolated=True, lease_seconds=3.0, heartbeat_seconds=0.5, drain_seconds=0.5)

    def bring_sites(self) -> None:
        self.directory.mkdir(parents=True)
        self.start_hub()
        for site in SITES:
            spec: dict[str, Any] = {"runtime": "sandbox", "tier": "edge", "jurisdictions": ["EU"]}
            spec["capacity"] = {"cpu": "4", "memory": "8Gi", "pods": "10"}
            file = self.directory / f"{site}-file.yaml"
            file.write_text(
                yaml.safe_dump({"apiVersion": "meta-os.eu/v1alpha1", "kind": "Cluster", "metadata": {"name": site}, "spec": spec})
            )
            self.add_site(file)
        wait_for("all sites", lambda: ready(self) == set(SITES), 60)

    def begin(self, ballast: int) -> None:
        self.bring_sites()
        container = {"name": "c", "image": "python:3", "command": ["python3", "-c", PROGRAM.replace("BALLAST", str(ballast))]}
        container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        template = {
            "metadata": {"labels": {"app": "db"}},
            "spec": {"terminationGracePeriodSeconds": 2, "containers": [container]},
        }
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        spec = {"replicas": 1, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "template": template}
        spec["volumeClaimTemplates"] = [{"metadata": {"name": "data"}, "spec": claim}]
        apply(self, {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": spec})
        wait_for("its pod", lambda: len(pods(self, "db")) == 1, 30)
        wait_for("its records", lambda: self.last(self.home()) > 10, 30)

    def home(self) -> str:
        (site,) = placed(self, "statefulset-db")
        return str(site)

    def records(self, site: str) -> Path:
        return self.sites[site].data / "runtime" / "claims" / "default" / "data-db-0" / "records"

    def numbers(self, site: str) -> list[int]:
        path = self.records(site)
        data = path.read_bytes() if path.exists() else b""
        return [int(data[start : start + 64].split()[0]) for start in range(0, len(data) // 64 * 64, 64)]

    def last(self, site: str) -> int:
        return (self.numbers(site) or [0])[-1]

    def notes(self, site: str) -> int:
        path = self.records(site).parents[1] / "data-notes-0" / "notes"
        return path.read_text().count("note") if path.exists() else 0

    def volumes(self) -> dict[str, Any]:
        found = json.loads(self.kubectl("get", "placement", "statefulset-db", "-o", "json"))
        return (found.get("status") or {}).get("volumes") or {}

    def drain(self, site: str) -> None:
        self.kubectl("taint", "node", site, "maintenance=yes:NoExecute")

    def check(self, site: str) -> list[int]:
        """Every number once and in order, and no two starts at the same time."""
        found = self.numbers(site)
        assert found == list(range(1, len(found) + 1))
        lines = [line.split() for line in self.records(site).read_text().splitlines()]
        spans: dict[str, list[float]] = {}
        for _, when, who in lines:
            spans.setdefault(who, []).append(float(when))
        ordered = sorted((min(times), max(times)) for times in spans.values())
        assert all(before[1] < after[0] for before, after in pairwise(ordered))
        return found


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    found = Sites(tmp_path / "continuum")
    try:
        yield found
    finally:
        found.stop()


def _others(site: str) -> str:
    return next(each for each in SITES if each != site)


def test_a_database_moves_with_its_volume(sites: Sites) -> None:
    sites.begin(20 << 20)
    home = sites.home()
    target = _others(home)
    # The page's example beside it, and its commands.
    page = (HERE / "docs" / "how-to" / "move-state.md").read_text()
    (example,) = yaml.safe_load_all(re.findall(r"```yaml\n(.*?)```", page, re.S)[0])
    example["spec"]["template"]["spec"]["nodeSelector"] = {"kubernetes.io/hostname": home}
    apply(sites, example)
    wait_for("the notes", lambda: sites.notes(home) > 5, 30)
    del example["spec"]["template"]["spec"]["nodeSelector"]
    planned = sites.nemo("plan", "--drain", home)
    assert "its volumes go along: up to 1 GiB" in planned and "without a writer" in planned
    sites.drain(home)
    wait_for("its records to go on elsewhere", lambda: sites.volumes().get("phase") == "Done", 60)
    before = len(sites.numbers(target))
    wait_for("further records", lambda: len(sites.numbers(target)) > before + 20, 20)
    sites.check(target)
    apply(sites, example)
    wait_for("the notes to go on", lambda: sites.notes(target) > 50, 60)
    wait_for("the old copy to go", lambda: not sites.records(home).exists(), 20)
    done = sites.volumes()
    assert done["bytes"] >= 20 << 20
    assert 0 < done["downtimeSeconds"] < 20


@pytest.mark.parametrize("victim", ["source", "target", "hub"])
def test_whoever_is_killed_in_the_middle(sites: Sites, victim: str) -> None:
    sites.begin(60 << 20)
    home = sites.home()
    target = _others(home)
    sites.drain(home)
    wait_for("the volume to be on its way", lambda: sites.volumes().get("phase") == "Copying", 30, 0.02)
    time.sleep(0.3)
    if victim == "hub":
        assert sites.hub is not None
        os.kill(sites.hub.pid, signal.SIGKILL)
        sites.hub.wait()
        before = sites.last(home)
        time.sleep(1.0)
        assert sites.last(home) > before or sites.records(target).exists()
        sites.start_hub()
    else:
        os.kill(sites.agent_pid(sites.sites[home if victim == "source" else target]), signal.SIGKILL)
    wait_for("its records to go on elsewhere", lambda: sites.volumes().get("phase") == "Done", 90)
    before = len(sites.numbers(target))
    wait_for("further records", lambda: len(sites.numbers(target)) > before + 20, 20)
    sites.check(target)


@pytest.mark.timeout(400)
def test_a_hub_that_is_restored_from_before_a_move(sites: Sites, tmp_path: Path) -> None:
    """It knows the old site alone, which has nothing any more and says so: the work goes on where its data is."""
    sites.begin(1 << 20)
    home = sites.home()
    target = _others(home)
    phrase, backup = tmp_path / "phrase", tmp_path / "backup"
    phrase.write_text("correct horse battery staple\n")
    sites.nemo("backup", str(backup), "--passphrase-file", str(phrase))
    sites.drain(home)
    wait_for("its records to go on elsewhere", lambda: sites.volumes().get("phase") == "Done", 180)
    wait_for("the old copy to go", lambda: not sites.records(home).exists(), 180)
    wait_for("its place to be told", lambda: sites.home() == target, 180)
    sites.kill_hub()
    before = sites.last(target)
    time.sleep(1.0)
    assert sites.last(target) > before
    sites.data.rename(tmp_path / "lost")
    code, text = asyncio.run(nemo("restore", str(backup), "--data", str(sites.data), "--passphrase-file", str(phrase)))
    assert code == 0, text
    sites.start_hub()

    def reasons() -> str:
        return sites.kubectl("get", "events", "-o", "jsonpath={.items[*].reason}", check=False)

    wait_for("the hub to learn of it", lambda: "VolumesFound" in reasons(), 180)
    known = sites.last(target)

    def settled() -> str:
        """The site at which alone records are, with more than there were, and where the hub has it."""
        there = [site for site in SITES if sites.last(site) > known + 50]
        return there[0] if len(there) == 1 and placed(sites, "statefulset-db") == set(there) else ""

    where = wait_for("the work to go on", settled, 180)
    sites.check(where)
    wait_for("nothing to be at the other site", lambda: not sites.records(_others(where)).exists(), 180)
    sites.check(where)
