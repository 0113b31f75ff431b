"""A site dies with its disk; its database goes on at another one, from a backup in a real S3 server."""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.demo.continuum import Continuum
from metaos.cli.doctor import isolation
from metaos.twin.processes import namespaces_work, wait_for
from tests.backups import seaweed
from tests.backups.seaweed import KEY_ID, SECRET, Seaweed
from tests.e2e.test_lost_sites import apply, placed, pods, ready

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(
        isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces: see 'nemo doctor'"
    ),
]

API = "meta-os.eu/v1alpha1"
SITES = ("east", "west")
#: Writes a numbered line ten times a second, and says at each start what was there.
WRITER = """
import os, time
path = "/data/log"
lines = open(path).read().splitlines() if os.path.exists(path) else []
print("found", len(lines), lines[-1:] , flush=True)
assert lines == [str(n) for n in range(len(lines))]
with open(path, "a") as log:
    number = len(lines)
    while True:
        log.write(f"{number}\\n")
        log.flush()
        os.fsync(log.fileno())
        number += 1
        time.sleep(0.1)
"""


class Sites(Continuum):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory, isolated=True, lease_seconds=2.0, heartbeat_seconds=0.5)

    def begin(self) -> None:
        self.directory.mkdir()
        self.start_hub()
        for site in SITES:
            spec: dict[str, Any] = {"runtime": "sandbox", "tier": "edge", "jurisdictions": ["EU"]}
            spec["capacity"] = {"cpu": "4", "memory": "8Gi", "pods": "10"}
            file = self.directory / f"{site}-file.yaml"
            file.write_text(yaml.safe_dump({"apiVersion": API, "kind": "Cluster", "metadata": {"name": site}, "spec": spec}))
            self.add_site(file)
        wait_for("all sites", lambda: ready(self) == set(SITES), 60)

    def volume(self, site: str) -> Path:
        return self.sites[site].data / "runtime" / "claims" / "default" / "data-db-0"

    def schedule(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", "backupschedule", "db", "-o", "json"))
        return found.get("status") or {}

    def point(self) -> str:
        return str(self.schedule().get("recoveryPointTime") or "")


def database() -> dict[str, Any]:
    container = {"name": "db", "image": "python:3", "command": ["python3", "-c", WRITER]}
    container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    template = {"metadata": {"labels": {"app": "db"}}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}}
    claim = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    spec = {"replicas": 1, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "template": template}
    metadata = {"name": "db", "labels": {"app": "db"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata,
        "spec": spec | {"volumeClaimTemplates": [claim]},
    }


def backed_up(endpoint: str, rpo: float, key: bytes, jurisdictions: tuple[str, ...] = ("EU",)) -> list[dict[str, Any]]:
    secret = {"accessKeyId": KEY_ID, "secretAccessKey": SECRET, "encryptionKey": base64.b64encode(key).decode()}
    store = {"endpoint": endpoint, "bucket": seaweed.BUCKET, "secretRef": {"name": "store"}, "jurisdictions": list(jurisdictions)}
    schedule = {"workload": {"kind": "StatefulSet", "name": "db"}, "storeRef": {"name": "eu"}, "retention": {"count": 3}}
    target = {"name": "rpo", "condition": "IsLessThan", "value": rpo, "unit": "s"}
    late = {"name": "rto", "condition": "IsLessThan", "value": 5, "unit": "min"}
    fence = {"workloads": {"refs": [{"kind": "StatefulSet", "name": "db"}]}, "fencing": {"afterSeconds": 2}, "failback": "Never"}
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "store"}, "stringData": secret},
        {"apiVersion": API, "kind": "BackupStore", "metadata": {"name": "eu"}, "spec": store},
        {"apiVersion": API, "kind": "BackupSchedule", "metadata": {"name": "db"}, "spec": schedule},
        {
            "apiVersion": API,
            "kind": "Intent",
            "metadata": {"name": "safe"},
            "spec": {"expectations": [{"targets": [target, late]}]},
        },
        {"apiVersion": API, "kind": "PlacementPolicy", "metadata": {"name": "db"}, "spec": fence},
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with seaweed.running(tmp_path_factory.mktemp("seaweed")) as found:
        yield found


@pytest.fixture
def continuum(tmp_path: Path) -> Iterator[Sites]:
    found = Sites(tmp_path / "c")
    try:
        found.begin()
        yield found
    finally:
        found.stop()


def test_a_database_survives_its_site(continuum: Sites, server: Seaweed) -> None:
    apply(continuum, *backed_up(server.endpoint, 25, b"k" * 32), database())
    wait_for("its pod", lambda: len(pods(continuum, "db")) == 1, 30)
    (home,) = placed(continuum, "statefulset-db")
    first = wait_for("a backup", continuum.point, 30)
    wait_for("a later one", lambda: continuum.point() > first, 40)
    assert continuum.schedule()["site"] == home
    intent = json.loads(continuum.kubectl("get", "intent", "safe", "-o", "json"))["status"]
    assert intent["fulfilment"] == "Fulfilled", intent
    # The plug is pulled, and the disk is gone.
    died = time.time()
    continuum.kill_site(home)
    log = (continuum.volume(home) / "log").read_text().splitlines()
    shutil.rmtree(continuum.sites[home].data)
    (other,) = set(SITES) - {home}
    wait_for("another place", lambda: placed(continuum, "statefulset-db") == {other}, 60)
    restored = wait_for("a restore", lambda: [r for r in continuum.schedule().get("restores") or () if r.get("backup")], 60)
    wait_for("its new pod", lambda: len(pods(continuum, "db")) == 1, 60)
    took = time.time() - died
    (row,) = restored
    text = wait_for("its word", lambda: continuum.kubectl("logs", "db-0"), 20)
    found = int(text.split()[1])
    assert 0 < found <= len(log), "what it found was there before"
    assert row["lostSeconds"] < 35 and (len(log) - found) / 10 <= row["lostSeconds"] + 3
    print(f"{len(log)} lines, {found} brought back, {row['lostSeconds']} s lost at most, {took:.1f} s until it ran")
    events = continuum.kubectl("get", "events", "-o", "jsonpath={.items[*].message}")
    assert "was brought back" in events and "are lost" in events
    wait_for("a backup of the new site", lambda: continuum.schedule().get("site") == other, 40)


def test_a_mistake_is_undone_by_hand(continuum: Sites, server: Seaweed) -> None:
    store, *others = backed_up(server.endpoint, 25, b"h" * 32)
    apply(continuum, store, *others, database())
    wait_for("its pod", lambda: len(pods(continuum, "db")) == 1, 30)
    (home,) = placed(continuum, "statefulset-db")
    wait_for("a backup", continuum.point, 40)
    continuum.kubectl("scale", "statefulset", "db", "--replicas", "0")
    wait_for("nobody to write", lambda: not (continuum.get("pods", "-l", "app=db") or {}).get("items"), 30)
    (continuum.volume(home) / "log").write_text("overwritten by mistake")
    said = continuum.nemo("volume", "restore", "data-db-0", "-o", "json", "--wait", "50")
    assert json.loads(said)["restore"]["backup"].endswith(f"-{home}"), said
    lines = (continuum.volume(home) / "log").read_text().splitlines()
    assert lines == [str(number) for number in range(len(lines))] and lines
    assert (continuum.volume(home).with_name(".data-db-0.before") / "log").read_text() == "overwritten by mistake"
    assert "data-db-0" in continuum.nemo("volume", "list")
    continuum.kubectl("scale", "statefulset", "db", "--replicas", "1")
    wait_for("its pod again", lambda: len(pods(continuum, "db")) == 1, 30)
    assert f"found {len(lines)} " in wait_for("its word", lambda: continuum.kubectl("logs", "db-0"), 20)
