"""The hub is killed under load: no acknowledged write is lost, and watches go on without gap, duplicate or going back."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.continuum import Continuum
from examples.demo.load import StableUrl

PATH = "/api/v1/namespaces/default/configmaps"
WRITERS, KILLS, SECONDS = 6, 3, 1.2


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Continuum]:
    continuum = Continuum(tmp_path / "continuum", isolated=True)
    continuum.directory.mkdir()
    try:
        continuum.start_hub()
        yield continuum
    finally:
        continuum.stop()


class Writer(threading.Thread):
    """Creates ConfigMaps; keeps the names of those that the hub acknowledged."""

    def __init__(self, url: StableUrl, mark: str) -> None:
        super().__init__(daemon=True)
        self.url, self.mark, self.stopping = url, mark, threading.Event()
        self.acknowledged: list[str] = []

    def run(self) -> None:
        number = 0
        while not self.stopping.is_set():
            number += 1
            name = f"{self.mark}-{number}"
            body = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
            if self.url.call(PATH, method="POST", body=body.encode(), timeout=5).status == 201:
                self.acknowledged.append(name)
        self.url.close()


def watch(url: StableUrl, version: str) -> list[tuple[int, str]]:
    """(revision, name) of every event after ``version`` that has happened by now."""
    answer = url.call(f"{PATH}?watch=1&timeoutSeconds=1&resourceVersion={version}", timeout=30)
    assert answer.status == 200, answer
    events = [json.loads(line) for line in answer.body.splitlines()]
    assert all(e["type"] == "ADDED" for e in events), [e for e in events if e["type"] != "ADDED"][:2]
    return [(int(e["object"]["metadata"]["resourceVersion"]), e["object"]["metadata"]["name"]) for e in events]


@pytest.mark.system
def test_acknowledged_writes_and_watches_survive_sigkill(hub: Continuum) -> None:
    url = StableUrl(hub.kubeconfig)
    version = json.loads(url.call(PATH).body)["metadata"]["resourceVersion"]
    acknowledged: set[str] = set()
    seen: list[tuple[int, str]] = []
    for number in range(KILLS):
        writers = [Writer(StableUrl(hub.kubeconfig), f"r{number}w{w}") for w in range(WRITERS)]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline or any(len(w.acknowledged) < 5 for w in writers):
            assert time.monotonic() < deadline + 30
            seen += watch(url, version)
            version = str(seen[-1][0]) if seen else version
        assert hub.hub is not None
        os.kill(hub.hub.pid, signal.SIGKILL)
        hub.hub.wait()
        for writer in writers:
            writer.stopping.set()
        for writer in writers:
            writer.join(10)
            acknowledged |= set(writer.acknowledged)
        hub.start_hub()
        url.close()
        seen += watch(url, version)
        version = str(seen[-1][0])
    stored = {o["metadata"]["name"] for o in json.loads(url.call(PATH).body)["items"]}
    assert acknowledged <= stored
    revisions = [r for r, _ in seen]
    assert revisions == sorted(set(revisions)), "a watch went back or repeated"
    assert {n for _, n in seen} == {n for n in stored if n.startswith("r")}, "a watch had a gap"
    url.close()
