"""Agents that stay dead, or stand still, on machines that go on running: what must not run twice does not (docs/adr/0009).

With real hub, agents, pods and watchdogs. Each copy of the workload itself writes down when it runs, on the clock that all of
this machine share, into one file; a site's init is stopped, so that nobody starts its agent again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from examples.demo.continuum import Continuum
from metaos.cli.doctor import isolation
from metaos.twin.processes import ProcessesFailed, Site, namespaces_work, wait_for
from tests.e2e.test_lost_sites import apply, placed, pods, policy, ready

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(
        isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces: see 'nemo doctor'"
    ),
]

SITES = ("east", "west")
FENCE_SECONDS, GRACE_SECONDS = 2, 1
#: Of the hub, on top of both; and of the watchdog.
MARGIN_SECONDS, REACTION_SECONDS = 5.0, 1.0
PROGRAM = """
import os, time
log = os.open("/shared/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
name = os.urandom(4).hex()
while True:
    os.write(log, f"{name} {time.clock_gettime(time.CLOCK_BOOTTIME):.4f}\\n".encode())
    time.sleep(0.01)
"""


class Sites(Continuum):
    """Two sites whose pods may write into one directory."""

    def __init__(self, directory: Path, shared: Path) -> None:
        super().__init__(directory, isolated=True, lease_seconds=2.0, heartbeat_seconds=0.5)
        self.shared = shared

    def begin(self) -> None:
        self.directory.mkdir()
        self.shared.mkdir()
        self.start_hub()
        for site in SITES:
            spec: dict[str, Any] = {
                "runtime": "sandbox",
                "tier": "edge",
                "jurisdictions": ["EU"],
                "hostPaths": [str(self.shared)],
            }
            spec["capacity"] = {"cpu": "4", "memory": "8Gi", "pods": "10"}
            file = self.directory / f"{site}-file.yaml"
            file.write_text(
                yaml.safe_dump({"apiVersion": "meta-os.eu/v1alpha1", "kind": "Cluster", "metadata": {"name": site}, "spec": spec})
            )
            self.add_site(file)
        wait_for("all sites", lambda: ready(self) == set(SITES), 60)

    def run_once(self) -> str:
        """A StatefulSet that must not run twice runs; its site."""
        rule = policy("once", failback="Never", fencing={"afterSeconds": FENCE_SECONDS})
        container = {"name": "c", "image": "python:3", "command": ["python3", "-c", PROGRAM]}
        container["volumeMounts"] = [{"name": "shared", "mountPath": "/shared"}]
        spec = {"terminationGracePeriodSeconds": GRACE_SECONDS, "containers": [container]}
        spec["volumes"] = [{"name": "shared", "hostPath": {"path": str(self.shared)}}]
        template = {"metadata": {"labels": {"app": "once"}}, "spec": spec}
        wanted = {"replicas": 1, "selector": {"matchLabels": {"app": "once"}}, "template": template}
        metadata = {"name": "once", "labels": {"app": "once"}}
        apply(self, rule, {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": wanted})
        wait_for("its pod", lambda: len(pods(self, "once")) == 1, 30)
        wait_for("its word", lambda: self.runs(), 10, 0.05)
        (site,) = placed(self, "statefulset-once")
        return site

    def runs(self) -> dict[str, tuple[float, float]]:
        """Copy → the first and the last moment at which it ran, in the order of their beginnings."""
        found: dict[str, tuple[float, float]] = {}
        log = self.shared / "log"
        for line in log.read_text().splitlines() if log.exists() else ():
            name, moment = line.split()
            found[name] = found.get(name, (float(moment), 0.0))[0], float(moment)
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def never_twice(self) -> None:
        runs = list(self.runs().values())
        for (_, end), (begin, _) in pairwise(runs):
            assert end < begin, f"a copy ran until {end}, and another one from {begin}: {runs}"

    def init_of(self, site: Site) -> int:
        """Who starts the agent again."""
        status = Path(f"/proc/{self.agent_pid(site)}/status").read_text()
        return int(status.partition("PPid:")[2].split()[0])


@pytest.fixture
def continuum(tmp_path: Path) -> Iterator[Sites]:
    found = Sites(tmp_path / "c", tmp_path / "shared")
    try:
        found.begin()
        yield found
    finally:
        found.stop()


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_work_of_an_agent_that_stays_away_ends_in_time_and_is_replaced(continuum: Sites, how: signal.Signals) -> None:
    lost = continuum.run_once()
    site = continuum.sites[lost]
    init, agent = continuum.init_of(site), continuum.agent_pid(site)
    os.kill(init, signal.SIGSTOP)
    died = now()
    os.kill(agent, how)
    (first,) = continuum.runs()
    wait_for("its replacement", lambda: len(continuum.runs()) == 2, 60, 0.1)
    (_, ended), (began, _) = continuum.runs().values()
    silent = FENCE_SECONDS + GRACE_SECONDS
    assert silent - 1.0 < ended - died < silent + REACTION_SECONDS, "the watchdog has ended it in time"
    assert began - ended > MARGIN_SECONDS - REACTION_SECONDS - 1.0
    # Back again, after all: it finds what was done, and that it shall run none of it.
    if how is signal.SIGSTOP:
        os.kill(agent, signal.SIGCONT)
    os.kill(init, signal.SIGCONT)
    wait_for("the site to be back", lambda: lost in ready(continuum), 60)
    wait_for("its Work to go", lambda: not continuum.get("work", "statefulset.default.once", "-n", f"nemo-cluster-{lost}"), 30)
    assert next(iter(continuum.runs())) == first and len(continuum.runs()) == 2
    continuum.never_twice()


@pytest.mark.timeout(600)
def test_agents_and_watchdogs_that_come_and_go_at_random(continuum: Sites) -> None:
    """An agent is killed or stopped, and back after a while that is shorter or longer than what was agreed; or the watchdog
    alone is killed, which costs nothing."""
    random = Random(4)
    continuum.run_once()
    deeds = [*[(how, away) for how in ("kill", "stop") for away in (0.0, 1.5, 2.5, 4.0, 12.0)], *[("watchdog", 0.0)] * 3]
    random.shuffle(deeds)
    for how, away in deeds:
        wait_for("both sites", lambda: ready(continuum) == set(SITES), 60)
        wait_for("one pod", lambda: len(pods(continuum, "once")) == 1, 60)
        (where,) = placed(continuum, "statefulset-once")
        site = continuum.sites[where]
        if how == "watchdog":
            living = wait_for("a watchdog", lambda site=site: watchdog(site), 20)
            before = continuum.runs()
            os.kill(living, signal.SIGKILL)
            wait_for("another watchdog", lambda site=site: watchdog(site), 20)
            assert continuum.runs().keys() == before.keys()
            continue
        # One that was killed last is only just started again.
        agent = wait_for("its agent", lambda site=site: agent_of(continuum, site), 20)
        init = continuum.init_of(site)
        os.kill(init, signal.SIGSTOP)
        os.kill(agent, signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        time.sleep(away + random.random())
        if how == "stop":
            os.kill(agent, signal.SIGCONT)
        os.kill(init, signal.SIGCONT)
        continuum.never_twice()
    wait_for("one pod in the end", lambda: len(pods(continuum, "once")) == 1, 60)
    assert len(continuum.runs()) >= 3, "some were away for long enough to be replaced"
    continuum.never_twice()


def agent_of(continuum: Sites, site: Site) -> int:
    """Its process; 0 while there is none."""
    try:
        return continuum.agent_pid(site)
    except ProcessesFailed:
        return 0


def watchdog(site: Site) -> int:
    """Its pid; 0: there is none."""
    wanted = f"watchdog.py\0{os.path.realpath(site.data / 'runtime')}\0".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if wanted in (entry / "cmdline").read_bytes() and "(zombie)" not in (entry / "status").read_text():
                    return int(entry.name)
            except OSError:
                continue
    return 0
