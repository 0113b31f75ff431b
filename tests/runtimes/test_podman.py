"""The podman runtime against a real podman, with storage of its own: what every runtime must do, and what is particular to it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metaos.clock import SystemClock
from metaos.runtimes.podman import PodmanRuntime
from tests.runtimes.conformance import RuntimeConformance

pytestmark = [pytest.mark.system, pytest.mark.slow]
Make = Callable[[], PodmanRuntime]


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """A podman's socket."""
    if shutil.which("podman") is None or os.geteuid() != 0:
        pytest.skip("podman is not installed, or we are not root: 'apt-get install podman runc catatonit'")
    place = Path(tempfile.mkdtemp(prefix="nemo-podman-"))
    # crun does not run where cgroups of both versions are mounted.
    (place / "containers.conf").write_text(f'[engine]\nruntime = "{"runc" if shutil.which("runc") else "crun"}"\n')
    argv = ["podman", "--root", str(place / "root"), "--runroot", str(place / "run"), "--cgroup-manager", "cgroupfs"]
    env = {**os.environ, "CONTAINERS_CONF": str(place / "containers.conf")}
    path = str(place / "api.sock")
    with (place / "log").open("wb") as log:
        process = subprocess.Popen([*argv, "system", "service", "--time", "0", f"unix://{path}"], stdout=log, stderr=log, env=env)
    try:
        deadline = time.monotonic() + 30
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, (place / "log").read_text()
                    time.sleep(0.05)
        yield path
    finally:
        process.terminate()
        process.wait(20)
        subprocess.run([*argv, "rm", "--all", "--force", "--time", "0"], env=env, check=False, capture_output=True, timeout=60)
        with open("/proc/self/mountinfo") as mounts:
            below = [line.split(" ")[4] for line in mounts if str(place) in line]
        for each in reversed(below):
            subprocess.run(["umount", "-l", each], check=False, capture_output=True)
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def make(service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("CONTAINER_HOST", f"unix://{service}")
    return lambda: PodmanRuntime(str(tmp_path / "runtime"), clock=SystemClock(suspended=True))


class TestPodman(RuntimeConformance):
    # Podman reads both outputs through pipes of their own, and ends the input with whoever leaves.
    one_order = False
    lasting_input = False

    @pytest.fixture
    def make(self, service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
        monkeypatch.setenv("CONTAINER_HOST", f"unix://{service}")
        return lambda: PodmanRuntime(str(tmp_path / "runtime"), clock=SystemClock(suspended=True))
