"""Sites that are cut off, with real hub, agents and pods: storms, failover under a hub that is killed, fencing, fail-back.

Copies are counted as processes of this machine, whatever the hub believes.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from examples.demo.continuum import ROOT, Continuum
from metaos.cli.doctor import isolation
from metaos.twin.processes import namespaces_work, wait_for

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(
        isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces: see 'nemo doctor'"
    ),
]

SITES = ("cloud-frankfurt", "cloud-hamina", "edge-london", "edge-paris", "gateway-brussels")
FENCE_SECONDS = 6


@pytest.fixture(scope="module")
def continuum(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Continuum]:
    found = Continuum(tmp_path_factory.mktemp("continuum") / "c", isolated=True)
    found.directory.mkdir()
    try:
        found.start_hub()
        for site in SITES:
            found.add_site(ROOT / "examples/sites" / f"{site}.yaml")
        wait_for("all sites", lambda: ready(found) == set(SITES), 90)
        yield found
    finally:
        found.stop()


def ready(continuum: Continuum) -> set[str]:
    found = (continuum.get("clusters") or {}).get("items") or ()
    return {c["metadata"]["name"] for c in found if _is_ready(c)}


def _is_ready(obj: dict) -> bool:  # type: ignore[type-arg]
    conditions = (obj.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def pods(continuum: Continuum, app: str) -> dict[str, str]:
    """uid → site of the ready pods."""
    found = (continuum.get("pods", "-l", f"app={app}") or {}).get("items") or ()
    return {p["metadata"]["uid"]: p["spec"]["nodeName"] for p in found if _is_ready(p)}


def placed(continuum: Continuum, placement: str) -> set[str]:
    found = (continuum.get("placement", placement) or {}).get("spec") or {}
    return {c["name"] for c in found.get("clusters") or ()}


def apply(continuum: Continuum, *objects: dict) -> None:  # type: ignore[type-arg]
    file = continuum.directory / "manifest.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    continuum.kubectl("apply", "-f", str(file))


def workload(kind: str, name: str, replicas: int, sleep: str) -> dict:  # type: ignore[type-arg]
    container = {"name": "c", "image": "python:3", "command": ["sleep", sleep]}
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
    }
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def mark(number: int) -> str:
    """How long a pod sleeps: a figure by which its process is known, and that no other run of these tests has."""
    return f"{10_000_000 + os.getpid()}{number}"


def policy(name: str, **spec: object) -> dict:  # type: ignore[type-arg]
    chosen = {"workloads": {"selector": {"matchLabels": {"app": name}}}}
    return {"apiVersion": "meta-os.eu/v1alpha1", "kind": "PlacementPolicy", "metadata": {"name": name}, "spec": chosen | spec}


class Copies(threading.Thread):
    """How many processes sleep for these seconds, looked at all the time: (moment, number) whenever it changes."""

    def __init__(self, sleep: str) -> None:
        super().__init__(daemon=True)
        self._wanted = b"sleep\0" + sleep.encode() + b"\0"
        self._ended = threading.Event()
        self.seen: list[tuple[float, int]] = []

    def run(self) -> None:
        while not self._ended.wait(0.05):
            number = self.now()
            if not self.seen or self.seen[-1][1] != number:
                self.seen.append((time.monotonic(), number))

    def now(self) -> int:
        number = 0
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    number += (entry / "cmdline").read_bytes() == self._wanted
                except OSError:
                    continue
        return number

    def end(self) -> list[tuple[float, int]]:
        self._ended.set()
        self.join()
        return self.seen


def kill_hub(continuum: Continuum) -> None:
    assert continuum.hub is not None
    os.kill(continuum.hub.pid, signal.SIGKILL)
    continuum.hub.wait()
    continuum.start_hub()


def test_most_sites_are_cut_off_and_nothing_moves(continuum: Continuum) -> None:
    apply(continuum, policy("crowd", spread=[{"by": "site", "minGroups": 3}]), workload("Deployment", "crowd", 3, mark(1)))
    wait_for("three pods on three sites", lambda: len(set(pods(continuum, "crowd").values())) == 3)
    before, where = pods(continuum, "crowd"), placed(continuum, "deployment-crowd")
    cut = [s for s in SITES if s != "cloud-hamina"]
    for site in cut:
        continuum.sites[site].link.cut()
    wait_for("four sites to be missed", lambda: ready(continuum) == {"cloud-hamina"}, 30)
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        assert placed(continuum, "deployment-crowd") == where
    assert "most sites vanished together" in continuum.kubectl("describe", "cluster", cut[0])
    for site in cut:
        continuum.sites[site].link.mend()
    wait_for("all sites to be back", lambda: ready(continuum) == set(SITES), 60)
    wait_for("the very same pods", lambda: pods(continuum, "crowd") == before, 30)
    assert placed(continuum, "deployment-crowd") == where
    continuum.kubectl("delete", "deployment/crowd", "placementpolicy/crowd")


@pytest.mark.parametrize("moment", ["cut off", "missed", "decided"])
def test_the_hub_is_killed_in_a_failover(continuum: Continuum, moment: str) -> None:
    name = f"web-{moment.replace(' ', '-')}"
    apply(continuum, policy(name, failback="Never"), workload("Deployment", name, 2, mark(2)))
    wait_for("two pods", lambda: len(pods(continuum, name)) == 2)
    lost = sorted(pods(continuum, name).values())[0]
    kept = {u: s for u, s in pods(continuum, name).items() if s != lost}
    continuum.sites[lost].link.cut()
    if moment == "missed":
        wait_for("the site to be missed", lambda: lost not in ready(continuum), 30, 0.05)
    elif moment == "decided":
        wait_for("the decision", lambda: lost not in placed(continuum, f"deployment-{name}"), 30, 0.05)
    kill_hub(continuum)
    wait_for("two pods elsewhere", lambda: len([s for s in pods(continuum, name).values() if s != lost]) == 2, 60)
    assert kept.items() <= pods(continuum, name).items(), "a pod on a good site was touched"
    replaced = {u for u, s in pods(continuum, name).items() if s != lost}
    continuum.sites[lost].link.mend()
    wait_for("the site to be back", lambda: lost in ready(continuum), 60)
    wait_for("its leftovers to go", lambda: pods(continuum, name).keys() == replaced, 60)
    moves = continuum.get("placement", f"deployment-{name}")["spec"]["moves"]
    assert [m["from"] for m in moves] == [[lost]], moves
    continuum.kubectl("delete", f"deployment/{name}", f"placementpolicy/{name}")


def test_what_must_not_run_twice_is_fenced_replaced_and_never_twice(continuum: Continuum) -> None:
    rule = policy("solo", failback="Never", fencing={"afterSeconds": FENCE_SECONDS})
    apply(continuum, rule, workload("StatefulSet", "solo", 1, mark(3)))
    wait_for("its pod", lambda: len(pods(continuum, "solo")) == 1)
    (lost,) = pods(continuum, "solo").values()
    copies = Copies(mark(3))
    copies.start()
    cut = time.monotonic()
    continuum.sites[lost].link.cut()
    wait_for("the site to stop it by itself", lambda: copies.now() == 0, 30, 0.05)
    assert time.monotonic() - cut > FENCE_SECONDS - 2.5, "earlier than agreed"
    wait_for("its replacement", lambda: [s for s in pods(continuum, "solo").values() if s != lost], 60)
    continuum.sites[lost].link.mend()
    wait_for("the site to be back", lambda: lost in ready(continuum), 60)
    wait_for("one Work", lambda: len(works(continuum, "statefulset.default.solo")) == 1, 30)
    assert len(pods(continuum, "solo")) == 1
    seen = copies.end()
    assert [n for _, n in seen] == [1, 0, 1], seen
    assert seen[2][0] - cut > FENCE_SECONDS, "it was started before the old site had stopped it"
    continuum.kubectl("delete", "statefulset/solo", "placementpolicy/solo")


def works(continuum: Continuum, name: str) -> list[str]:
    found = (continuum.get("works", "-A") or {}).get("items") or ()
    return [w["metadata"]["namespace"] for w in found if w["metadata"]["name"] == name]


def test_fail_back_goes_by_the_policy(continuum: Continuum) -> None:
    home = "edge-paris"
    preferred = {"preferred": [home]}
    apply(
        continuum,
        policy("back", clusters=preferred, migration={"coolDownSeconds": 0}),
        policy("away", clusters=preferred, migration={"coolDownSeconds": 0}, failback="Never"),
        workload("Deployment", "back", 1, mark(4)),
        workload("Deployment", "away", 1, mark(5)),
    )
    both = ("back", "away")
    wait_for("both at home", lambda: all(list(pods(continuum, n).values()) == [home] for n in both))
    continuum.sites[home].link.cut()
    wait_for("both elsewhere", lambda: all({*pods(continuum, n).values()} - {home} for n in both), 60)
    continuum.sites[home].link.mend()
    wait_for("one back home, and one only", lambda: list(pods(continuum, "back").values()) == [home], 60)
    wait_for("the other's leftovers to go", lambda: len(pods(continuum, "away")) == 1, 30)
    assert home not in pods(continuum, "away").values()
    assert "the policy says never to move back" in continuum.nemo("why", "deployment/away")
