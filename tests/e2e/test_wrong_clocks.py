"""Clocks wrong by an hour, and jumping by one: a real hub, real agents and pods, whose time of day a preloaded library shifts.

What is checked in virtual time for every step of a failover (``tests/failing/test_clocks.py``) holds for real processes, their
certificates included.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from examples.demo.continuum import Continuum
from metaos.cli.doctor import isolation
from metaos.twin.processes import namespaces_work, wait_for
from tests.e2e.test_lost_sites import FENCE_SECONDS, Copies, apply, mark, pods, policy, ready, workload

COMPILER = shutil.which("cc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc): the library that shifts clocks cannot be built"),
    pytest.mark.skipif(
        isolation().level != "ok" or not namespaces_work(), reason="this kernel refuses user namespaces: see 'nemo doctor'"
    ),
]

HOUR = 3600
EARLY, LATE = "edge-paris", "edge-london"


class Shifted(Continuum):
    """The hub and each site have a time of day of their own, which ``shift`` changes while they run."""

    def __init__(self, directory: Path, library: Path) -> None:
        super().__init__(directory, isolated=True)
        self._library = library

    def shift(self, who: str, seconds: int) -> None:
        """``who``: ``hub``, or a site's name."""
        with self._shift(who).open("r+b") as file:
            file.write(struct.pack("q", seconds))

    def _shift(self, who: str) -> Path:
        place = self.directory / f"{who}.shift"
        if not place.exists():
            place.write_bytes(struct.pack("q", 0))
        return place

    def _spawn(self, log: Path, command: list[str]) -> subprocess.Popen[bytes]:
        wrong = [f"LD_PRELOAD={self._library}", f"SHIFT={self._shift(log.stem)}"]
        return super()._spawn(log, ["env", *wrong, *command])

    def says(self, who: str) -> float:
        """By how many seconds the last line of a log is off."""
        words = self.tail(self.directory / f"{who}.log", 1).split(",")[0]
        return datetime.strptime(words, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp() - time.time()


@pytest.fixture(scope="module")
def continuum(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shifted]:
    folder = tmp_path_factory.mktemp("clocks")
    library = folder / "shifted.so"
    source = Path(__file__).with_name("shifted.c")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    (folder / "c").mkdir()
    found = Shifted(folder / "c", library)
    try:
        found.start_hub()
        found.shift(EARLY, HOUR)
        found.shift(LATE, -HOUR)
        found.add_sites(EARLY, LATE)
        yield found
    finally:
        found.stop()


def lost(continuum: Continuum) -> list[str]:
    events = (continuum.get("events", "-A", "--field-selector", "reason=SiteLost") or {}).get("items") or ()
    return [e["involvedObject"]["name"] for e in events]


def during(seconds: float, check: Callable[[], None]) -> None:
    """Checks again and again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        check()
        time.sleep(0.2)


def test_sites_join_with_wrong_clocks_and_nothing_happens_when_clocks_jump(continuum: Shifted) -> None:
    assert abs(continuum.says(EARLY) - HOUR) < 120 and abs(continuum.says(LATE) + HOUR) < 120
    rule = policy("both", spread=[{"by": "site", "minGroups": 2}])
    apply(continuum, rule, workload("Deployment", "both", 2, mark(1)))
    wait_for("a pod on each", lambda: set(pods(continuum, "both").values()) == {EARLY, LATE})
    before = pods(continuum, "both")

    def undisturbed() -> None:
        assert ready(continuum) == {EARLY, LATE} and pods(continuum, "both") == before

    def serves() -> None:
        found = json.loads(continuum.kubectl("get", "pods", "-l", "app=both", "-o", "json"))["items"]
        for pod in found:
            name = pod["metadata"]["name"]
            assert continuum.kubectl("exec", name, "--", "echo", "here") == "here\n"
        apply(continuum, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"at": str(time.time())}})

    # Each jump stays for longer than the lease.
    for jumps in ({EARLY: -HOUR, LATE: HOUR}, {"hub": HOUR}, {"hub": -HOUR}):
        for who, seconds in jumps.items():
            continuum.shift(who, seconds)
        during(continuum.lease_seconds + 2, undisturbed)
        serves()
    # With the hub an hour behind, it starts again, and a site joins.
    assert continuum.hub is not None
    os.kill(continuum.hub.pid, 9)
    continuum.hub.wait()
    continuum.start_hub()
    wait_for("both sites", lambda: ready(continuum) == {EARLY, LATE}, 30)
    continuum.shift("cloud-hamina", HOUR)
    continuum.add_sites("cloud-hamina")
    assert pods(continuum, "both") == before and not lost(continuum)
    serves()
    continuum.kubectl("delete", "deployment/both", "placementpolicy/both")
    continuum.kubectl("delete", "cluster/cloud-hamina")


def test_what_must_not_run_twice_does_not_with_wrong_clocks(continuum: Shifted) -> None:
    wait_for("two sites", lambda: ready(continuum) == {EARLY, LATE}, 30)
    for who, seconds in (("hub", 0), (EARLY, HOUR), (LATE, -HOUR)):
        continuum.shift(who, seconds)
    rule = policy("solo", failback="Never", fencing={"afterSeconds": FENCE_SECONDS})
    apply(continuum, rule, workload("StatefulSet", "solo", 1, mark(2)))
    wait_for("its pod", lambda: len(pods(continuum, "solo")) == 1)
    (site,) = pods(continuum, "solo").values()
    copies = Copies(mark(2))
    copies.start()
    cut = time.monotonic()
    continuum.sites[site].link.cut()
    # The clock of who counts the seconds to the fence jumps, there and back.
    wrong = HOUR if site == EARLY else -HOUR
    continuum.shift(site, -wrong)
    during(2, lambda: None)
    continuum.shift(site, wrong)
    wait_for("the site to stop it by itself", lambda: copies.now() == 0, 30, 0.05)
    assert time.monotonic() - cut > FENCE_SECONDS - 2.5, "earlier than agreed"
    continuum.shift("hub", HOUR)
    wait_for("its replacement", lambda: [s for s in pods(continuum, "solo").values() if s != site], 60)
    continuum.sites[site].link.mend()
    wait_for("the site to be back", lambda: site in ready(continuum), 60)
    assert len(pods(continuum, "solo")) == 1
    seen = copies.end()
    assert [n for _, n in seen] == [1, 0, 1], seen
    assert seen[2][0] - cut > FENCE_SECONDS, "it was started before the old site had stopped it"
    assert lost(continuum) == [site]
