"""Faults of the network between a real hub and real agents: what each notices, within which time, and that all converges.

Every fault lasts longer than the lease. Bounds that are checked: the hub misses a silent site within the lease and 5 s; an
agent notices within 10 s (a heartbeat of 3 s at most, and a retry); a stream over a dead way ends with an error within 35 s
(25 s until the kernel or the ping gives up, and a retry); after the mend the site is ready within 15 s.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from metaos.cli.doctor import isolation
from tests.e2e.faults import LEASE_SECONDS, Network, missing, until

WHY = missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY), reason=WHY),
    pytest.mark.skipif(isolation().level != "ok", reason="this kernel refuses user namespaces: see 'nemo doctor'"),
]

SITES = ("loss", "reset", "silent", "up", "down", "hole")
MISSED_SECONDS, NOTICED_SECONDS, STREAM_SECONDS, MENDED_SECONDS = LEASE_SECONDS + 5, 10.0, 35.0, 15.0

#: Counts how often it ran, beyond its own life, and writes without end.
PROGRAM = """
import os, pathlib, sys, time
place = pathlib.Path("/data/starts"); place.write_text((place.read_text() if place.exists() else "") + "x")
n = 0
while True:
    n += 1; print(n, flush=True); time.sleep(0.2)
"""


def manifests() -> str:
    container = {
        "name": "c",
        "image": "python:3",
        "command": ["python3", "-c", PROGRAM],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    pod = {"containers": [container], "volumes": [{"name": "data", "emptyDir": {}}], "terminationGracePeriodSeconds": 1}
    spec = {"selector": {"matchLabels": {"app": "d"}}, "template": {"metadata": {"labels": {"app": "d"}}, "spec": pod}}
    return yaml.safe_dump({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d"}, "spec": spec})


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    found = Network(tmp_path_factory.mktemp("faults"))
    try:
        found.start()
        for name in SITES:
            found.add(name)
        place = found.folder / "d.yaml"
        place.write_text(manifests())
        found.kubectl("apply", "-f", str(place))
        until("a pod on every site", lambda: sorted(s for s, pod in pods(found).items() if ready(pod)) == sorted(SITES), 60)
        yield found
    finally:
        found.stop()


def pods(network: Network) -> dict[str, Any]:
    """Site → its one pod."""
    found: dict[str, Any] = {}
    for pod in network.get("pods", "-l", "app=d")["items"]:
        assert pod["spec"]["nodeName"] not in found, "two pods of one site"
        found[pod["spec"]["nodeName"]] = pod
    return found


def ready(pod: Any) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", ()))


def pod_of(network: Network, site: str) -> str:
    return str(pods(network)[site]["metadata"]["name"])


def starts(network: Network, site: str) -> int:
    """How often the container ran, as its volume tells."""
    (place,) = network.sites[site].data.glob("runtime/**/starts")
    return len(place.read_text())


def says(network: Network, site: str, text: str) -> bool:
    return text in network.sites[site].log.read_text(errors="replace")


def answers(network: Network, site: str) -> bool:
    return network.kubectl("exec", pod_of(network, site), "--", "echo", "here", check=False, seconds=30) == "here\n"


class Streams:
    """A log that is followed and a command that runs, on one site."""

    def __init__(self, network: Network, site: str) -> None:
        pod = pod_of(network, site)
        self.both = {
            "logs": network.stream("logs", "-f", "--tail=1", pod),
            "exec": network.stream("exec", pod, "--", "sh", "-c", "while echo x; do sleep 0.2; done"),
        }
        for stream in self.both.values():
            assert stream.stdout is not None and stream.stdout.readline()

    def ended(self) -> bool:
        return all(stream.poll() is not None for stream in self.both.values())

    def check(self) -> None:
        for name, stream in self.both.items():
            _, said = stream.communicate(timeout=5)
            assert stream.returncode != 0, f"{name} ended as if all were well: {said}"

    def kill(self) -> None:
        for stream in self.both.values():
            if stream.poll() is None:
                stream.kill()
            stream.communicate()


def converged(network: Network, site: str, number: int = 1) -> None:
    """Nothing was lost, nothing ran twice, and the hub's picture is the site's."""
    until(f"{site} to be ready again", lambda: network.condition(site) == "True", MENDED_SECONDS)
    until(f"the tunnel of {site}", lambda: answers(network, site), MENDED_SECONDS)
    until(f"the pod of {site}", lambda: ready(pods(network)[site]), MENDED_SECONDS)
    assert starts(network, site) == number

    def reported() -> bool:
        pod = pods(network)[site]
        events = network.get("events", "--field-selector", f"involvedObject.name={pod['metadata']['name']},reason=Started")[
            "items"
        ]
        return pod["status"]["containerStatuses"][0]["restartCount"] == number - 1 and sum(e["count"] for e in events) == number

    until(f"every start of {site} to be reported once", reported, MENDED_SECONDS)


def test_loss_and_delay_slow_everything_and_break_nothing(network: Network) -> None:
    site = "loss"
    network.delay(site, 0.15)
    network.break_(site, "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")  # what is open: new ones are delayed
    until("another tunnel", lambda: (network.folder / "hub.log").read_text().count(f"site {site} is connected") == 2, 20)
    network.lose(site, 0.1)
    pod = pod_of(network, site)
    script = "import sys; sys.stdout.write('0123456789' * 30000)"
    assert network.kubectl("exec", pod, "--", "python3", "-c", script, seconds=60) == "0123456789" * 30000
    with Streaming(network, site) as streams:
        deadline = time.monotonic() + 2 * LEASE_SECONDS
        seen = 0
        while time.monotonic() < deadline:
            line = streams.both["logs"].stdout.readline()  # type: ignore[union-attr]
            assert int(line) == seen + 1 or not seen, "a line is missing or comes twice"
            seen = int(line)
        assert not streams.ended()
    network.mend(site)
    converged(network, site)


class Streaming(Streams):
    def __enter__(self) -> Streaming:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def test_after_a_reset_streams_end_and_all_is_back_in_seconds(network: Network) -> None:
    with Streaming(network, "reset") as streams:
        network.break_("reset", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")
        until("the agent to notice", lambda: says(network, "reset", "this site goes on with what it has"), NOTICED_SECONDS)
        network.mend("reset")
        until("both streams to end", streams.ended, NOTICED_SECONDS)
        streams.check()
    converged(network, "reset")


#: Site → what its link does.
DEAD: dict[str, dict[str, Any]] = {
    "silent": {},
    "up": {"down": False},
    "down": {"up": False},
}


def test_silence_in_one_direction_or_both_is_noticed_by_both_ends(network: Network) -> None:
    """At the same time on three sites; a container of each ends meanwhile, and is started again there."""
    open_ = {site: Streaming(network, site) for site in DEAD}
    hole = Streaming(network, "hole")
    try:
        began = time.monotonic()
        for site, which in DEAD.items():
            network.break_(site, "-j", "DROP", **which)
        # Packets above 1000 bytes vanish, and nobody says so: the tunnel's next large message never arrives.
        network.break_("hole", "-m", "length", "--length", "1001:", "-j", "DROP")
        large = network.stream("exec", pod_of(network, "hole"), "--", "head", "-c", "1000000", "/dev/zero")
        for site in DEAD:
            until(f"the hub to miss {site}", lambda s=site: network.condition(s) == "Unknown", MISSED_SECONDS)
            until(f"{site} to notice", lambda s=site: says(network, s, "this site goes on with what it has"), NOTICED_SECONDS)
        assert time.monotonic() - began < MISSED_SECONDS + NOTICED_SECONDS
        for site in DEAD:
            kill_container(network, site)
            until(f"{site} to start it again, alone", lambda s=site: starts(network, s) == 2, 20)
        until("the large output to fail", lambda: large.poll() is not None, STREAM_SECONDS)
        assert large.communicate()[1] and large.returncode != 0
        left = began + STREAM_SECONDS - time.monotonic()
        until("every stream to end", lambda: all(s.ended() for s in open_.values()), max(left, 1))
        for streams in open_.values():
            streams.check()
    finally:
        for streams in (*open_.values(), hole):
            streams.kill()
        for site in (*DEAD, "hole"):
            network.mend(site)
    for site in DEAD:
        converged(network, site, 2)
    converged(network, "hole")


def kill_container(network: Network, site: str) -> None:
    """The container's own command, found by what it runs and whose file it holds."""
    (place,) = network.sites[site].data.glob("runtime/**/starts")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[:2] == [b"python3", b"-c"] and (entry / "root/data/starts").samefile(place):
                    subprocess.run(["kill", "-9", entry.name], check=True)
                    return
            except OSError:
                continue
    raise AssertionError(f"no container runs on {site}")
