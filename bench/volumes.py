"""A volume of 2 GB moves between two sites while its writer writes 10 MB/s: how long nobody can write, and what it takes.

Beside it, in the same run and on the same disk, the way without rounds before: the writer is stopped, ``cp -a`` copies the
directory and syncs it, and the writer is started again (which is not counted).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from bench.results import Figure, figure, write
from metaos.twin.processes import wait_for
from tests.e2e.test_lost_sites import apply, pods
from tests.e2e.test_volumes import Sites

MEGABYTES = int(os.environ.get("NEMO_BENCH_VOLUME_MB", "2048"))
FILES, RATE = 8, 10 << 20
#: In every second 160 blocks of 64 KiB, each with new content, over the files in turn, synced; and one line with the time.
PROGRAM = """
import os, time, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
FILES, SIZE, RATE, BLOCK = %d, %d, %d, 65536
for number in range(FILES):
    if not os.path.exists(f"/data/{number}") or os.path.getsize(f"/data/{number}") < SIZE:
        with open(f"/data/{number}", "wb") as file:
            for _ in range(SIZE >> 20):
                file.write(os.urandom(1 << 20))
open("/data/whole", "w").close()
files = [os.open(f"/data/{number}", os.O_WRONLY) for number in range(FILES)]
log = os.open("/data/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
turn = os.path.getsize("/data/log") // 32
due = time.monotonic()
while True:
    turn += 1
    for part in range(RATE // BLOCK // 10):
        where = (turn * 16 + part) * BLOCK %% (SIZE - BLOCK)
        os.pwrite(files[turn // 10 %% FILES], os.urandom(BLOCK), where)
    os.fdatasync(files[turn // 10 %% FILES])
    os.write(log, f"{turn} {time.clock_gettime(time.CLOCK_BOOTTIME):.4f}".ljust(31).encode() + b"\\n")
    os.fsync(log)
    due = max(due + 0.1, time.monotonic() - 1.0)
    time.sleep(max(0.0, due - time.monotonic()))
"""


class Bench(Sites):
    def start(self) -> None:
        self.bring_sites()
        program = PROGRAM % (FILES, (MEGABYTES // FILES) << 20, RATE)
        container = {"name": "c", "image": "python:3", "command": ["python3", "-c", program]}
        container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        template = {
            "metadata": {"labels": {"app": "db"}},
            "spec": {"terminationGracePeriodSeconds": 2, "containers": [container]},
        }
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": f"{MEGABYTES * 2}Mi"}}}
        spec = {"replicas": 1, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "template": template}
        spec["volumeClaimTemplates"] = [{"metadata": {"name": "data"}, "spec": claim}]
        apply(self, {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": spec})
        wait_for("its pod", lambda: len(pods(self, "db")) == 1, 60)

    def times(self, site: str) -> list[float]:
        path = self.records(site).with_name("log")
        return [float(line.split()[1]) for line in path.read_text().splitlines()] if path.exists() else []


def moved(place: Path) -> tuple[list[Figure], Path, Bench]:
    sites = Bench(place / "continuum")
    sites.start()
    home = sites.home()
    data = sites.records(home).parent
    wait_for("its files", lambda: (data / "whole").exists(), 300)
    wait_for("its writes", lambda: len(sites.times(home)) > 30, 60)
    target = "west" if home == "east" else "east"
    copied = _stopped_copy(data, place / "copied")
    began = time.perf_counter()
    sites.drain(home)
    wait_for("the move", lambda: sites.volumes().get("phase") == "Done", 600, 0.5)
    took = time.perf_counter() - began
    wait_for("writes at the new site", lambda: len(sites.times(target)) > 30, 60)
    times = sites.times(target)
    gap = max(after - before for before, after in pairwise(times))
    done = sites.volumes()
    figures = [
        figure(f"{MEGABYTES} MB, writer at 10 MB/s: nobody writes", [gap], "s", aim=3.0, baseline=[copied]),
        figure("the same as the hub saw it, to the new copy's readiness", [float(done["downtimeSeconds"])], "s"),
        figure("the whole move", [took], "s"),
        figure("blocks that came", [done["bytes"] / 1e6], "MB"),
        figure("rounds", [float(done["rounds"])], ""),
    ]
    return figures, data, sites


def _stopped_copy(data: Path, to: Path) -> float:
    """How long the writer would be stopped for ``cp -a`` and a sync, its start not counted."""
    began = time.perf_counter()
    subprocess.run(["cp", "-a", str(data), str(to)], check=True)
    subprocess.run(["sync", "-f", str(to)], check=True)
    took = time.perf_counter() - began
    shutil.rmtree(to)
    return took


def main() -> None:
    place = Path(tempfile.mkdtemp(prefix="nemo-bench-volumes-"))
    sites = None
    try:
        figures, _, sites = moved(place)
        write("volumes", figures)
    finally:
        if sites is not None:
            sites.stop()
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
