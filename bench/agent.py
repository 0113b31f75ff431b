"""What an agent costs: memory, CPU and traffic with ten pods at the default settings, before and after a day's churn.

The day is accelerated: the rollouts that one every ten minutes would make in 24 hours come one after another, each of ten
pods with a changed ConfigMap. What a rollout leaks shows as it would after a day; what time alone leaks does not.

What pods have used is kept until their metering period ends, and a period of 300 s would hold most of an accelerated day: 1.2 MB
of 1,440 pods, and 5 MB at the moment at which they are told, where ten take 0.03. So the agent is started anew for the churn,
with periods that are accelerated too, and what it costs after the churn stands beside what the same one costs before it.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.results import Figure, figure, write
from bench.servers import resident_mb
from examples.demo.continuum import Continuum
from metaos.twin.processes import Site, wait_for

PODS, IDLE_SECONDS = 10, 30.0
#: Idle times that are measured one after another.
ROUNDS = 3
#: The agent's own defaults, as ``nemo up`` and ``nemo agent`` have them.
LEASE_SECONDS, HEARTBEAT_SECONDS = 40.0, 10.0
ROLLOUTS = 24 * 6
#: Of the churn: as near to 300 s by the acceleration, which is some 400, as leaves the link quiet enough to measure.
METERING_SECONDS = 10.0
#: The first rollouts, two hours of them, fill caches and pools once; growth is counted after them.
WARM = 14

MANIFEST = """
apiVersion: v1
kind: ConfigMap
metadata: {{name: crowd, namespace: default}}
data: {{turn: "{turn}"}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: crowd, namespace: default}}
spec:
  replicas: {pods}
  selector: {{matchLabels: {{app: crowd}}}}
  strategy: {{rollingUpdate: {{maxSurge: 100%, maxUnavailable: 100%}}}}
  template:
    metadata: {{labels: {{app: crowd}}, annotations: {{turn: "{turn}"}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: python:3
        command: [sleep, "86400"]
        envFrom: [{{configMapRef: {{name: crowd}}}}]
"""


def roll(continuum: Continuum, turn: int) -> None:
    """One rollout of all ten pods, waited for."""
    file = continuum.directory / "crowd.yaml"
    file.write_text(MANIFEST.format(turn=turn, pods=PODS))
    continuum.kubectl("apply", "-f", str(file))
    continuum.kubectl("rollout", "status", "deployment/crowd", "--timeout=60s")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@dataclass
class Idle:
    """What an agent costs with nothing to do but look after its pods, in each round."""

    memory: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    traffic: list[float] = field(default_factory=list)


def idle(site: Site, pid: int) -> Idle:
    # What the last rollout still has to tell is not idle traffic.
    wait_for("the link to fall silent", lambda: _silent(site, 5.0), 60)
    found = Idle()
    for _ in range(ROUNDS):
        cpu, carried = cpu_seconds(pid), site.link.carried
        time.sleep(IDLE_SECONDS)
        found.memory.append(resident_mb(pid))
        found.cpu.append((cpu_seconds(pid) - cpu) / IDLE_SECONDS * 100)
        found.traffic.append((site.link.carried - carried) / IDLE_SECONDS * 3600 / 1e6)
    return found


def figures(now: Idle, bare: Idle, when: str) -> list[Figure]:
    """Beside the same agent before it."""
    return [
        figure(f"agent: CPU with 10 idle pods, {when}", now.cpu, "% core", baseline=bare.cpu, aim=1),
        figure(f"agent: over the link with 10 idle pods, {when}", now.traffic, "MB/h", baseline=bare.traffic),
    ]


def _silent(site: Site, seconds: float) -> bool:
    carried = site.link.carried
    time.sleep(seconds)
    return site.link.carried == carried


def main() -> None:
    directory = Path(tempfile.mkdtemp(prefix="nemo-bench-"))
    continuum = Continuum(directory, isolated=True, lease_seconds=LEASE_SECONDS, heartbeat_seconds=HEARTBEAT_SECONDS)
    try:
        continuum.start_hub()
        continuum.add_sites("edge-paris")
        site = continuum.sites["edge-paris"]
        pid = continuum.agent_pid(site)
        bare = idle(site, pid)
        roll(continuum, 0)
        fresh = idle(site, pid)
        found = [figure("agent: memory with 10 pods", fresh.memory, "MB", baseline=bare.memory, aim=43)]
        found += figures(fresh, bare, "fresh")
        continuum.kill_site(site.name)
        continuum.metering_seconds = METERING_SECONDS
        continuum.start_site(site)
        wait_for("the agent to be back", lambda: continuum.get("deployment", "crowd")["status"].get("readyReplicas") == PODS, 60)
        pid = continuum.agent_pid(site)
        before = idle(site, pid)
        for turn in range(1, WARM + 1):
            roll(continuum, turn)
        warm, files, middle = resident_mb(pid), open_files(pid), 0.0
        for turn in range(WARM + 1, ROLLOUTS + 1):
            roll(continuum, turn)
            if turn == ROLLOUTS // 2:
                middle = resident_mb(pid)
            if turn % 26 == 0:
                print(f"    {turn} of {ROLLOUTS} rollouts, {resident_mb(pid):.1f} MB", flush=True)
        wait_for("the old pods to go", lambda: len((continuum.get("pods") or {}).get("items") or ()) == PODS, 60)
        after = idle(site, pid)
        found += [
            figure("agent: memory after 24 h of churn, accelerated", after.memory, "MB", baseline=[warm], aim=43),
            figure("agent: open files after 24 h of churn, accelerated", [float(open_files(pid))], "", baseline=[float(files)]),
            figure(
                "agent: memory by which the second half of the churn grows", [m - middle for m in after.memory], "MB", aim=0.5
            ),
            *figures(after, before, "after the churn"),
        ]
        write("agent", found)
    finally:
        continuum.stop()


if __name__ == "__main__":
    main()
