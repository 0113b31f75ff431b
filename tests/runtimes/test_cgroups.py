"""Where cgroups are, and what is written into them; version 2 on plain files, version 1 for real in ``test_sandbox``."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from metaos.runtimes import cgroups
from metaos.runtimes.cgroups import Cgroups, Measured, locate

V1 = """25 20 0:22 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
26 20 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
27 20 0:24 /docker/abc /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
28 20 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_version_1_wins_where_it_has_the_controllers() -> None:
    version, roots = locate(V1, "4:memory:/box\n3:cpu,cpuacct:/\n2:pids:/docker/abc/x\n0::/\n")
    cpu = "/sys/fs/cgroup/cpu,cpuacct"
    assert (version, roots) == (
        1,
        {"memory": "/sys/fs/cgroup/memory/box", "cpu": cpu, "cpuacct": cpu, "pids": "/sys/fs/cgroup/pids/x"},
    )


def test_version_2() -> None:
    assert locate(V2, "0::/user.slice/agent.service\n") == (2, {"": "/sys/fs/cgroup/user.slice/agent.service"})
    assert locate("", "0::/\n") == (0, {})


def test_limits_of_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    groups = Cgroups("key", 2, {"": str(tmp_path)}, (1900, 1 << 30))
    assert groups.problem == groups.uncapped == ""
    (place,) = groups.create("pod", "main-0", cpu=250, memory=64 << 20)
    assert (tmp_path / "nemo/key/memory.max").read_text() == str(1 << 30)
    assert (tmp_path / "nemo/key/cpu.max").read_text() == "190000 100000"
    assert place == str(tmp_path / "nemo/key/pod/main-0")
    written = {name: Path(place, name).read_text() for name in os.listdir(place)}
    assert written == {"memory.max": str(64 << 20), "memory.oom.group": "1", "cpu.max": "25000 100000"}
    assert (tmp_path / "nemo/key/pod/pids.max").read_text() == "4096"
    assert 0 < int((tmp_path / "nemo/key/pids.max").read_text()) < cgroups.pids_of_the_machine()
    assert (tmp_path / "nemo/key/pod/cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    for name, text in {
        "cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
        "memory.current": "3000\n",
        "memory.stat": "anon 1\ninactive_file 1000\n",
        "memory.events": "oom 2\noom_kill 1\n",
    }.items():
        Path(place, name).write_text(text)
    assert groups.measure("pod", "main-0") == Measured(1.5, 2000, 1)
    assert groups.measure("pod", "other") is None


def test_what_a_site_left_goes_unless_something_runs_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_roots", lambda: (2, {"": str(tmp_path)}))
    place = tmp_path / "nemo" / cgroups.key_of("/site/runtime")
    (place / "pod/main-0").mkdir(parents=True)
    other = tmp_path / "nemo" / cgroups.key_of("/another")
    other.mkdir()
    (place / "pod/main-0/busy").touch()  # as a process does, it keeps the directory
    assert not cgroups.forget("/site/runtime") and (place / "pod/main-0").is_dir()
    (place / "pod/main-0/busy").unlink()
    assert cgroups.forget("/site/runtime") and not place.exists() and other.is_dir()


def test_a_bound_that_cannot_be_set_is_said_and_pods_run(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "nemo/key/memory.max").mkdir(parents=True)  # a write to it fails
    groups = Cgroups("key", 2, {"": str(tmp_path)}, (1900, 1 << 30))
    assert groups.uncapped.startswith("all pods together are not held to the site's allocatable memory: ")
    assert f"{tmp_path}/nemo/key/memory.max cannot be set to {1 << 30} (Is a directory)" in groups.uncapped
    assert not groups.problem and groups.create("pod", "main-0", cpu=250, memory=64 << 20)


def test_with_some_controllers_only_the_rest_is_said(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    groups = Cgroups("key", 2, {"": str(tmp_path)}, (1900, 1 << 30))
    assert groups.problem.startswith(
        f"CPU cannot be limited: the cgroup {tmp_path} has no cpu controller (it has: memory, pids)."
    )
    assert "Delegate=cpu memory pids" in groups.problem and not groups.uncapped
    (place,) = groups.create("pod", "main-0", cpu=250, memory=64 << 20)
    assert sorted(os.listdir(place)) == ["memory.max", "memory.oom.group"]
    assert sorted(os.listdir(tmp_path / "nemo/key")) == ["cgroup.subtree_control", "memory.max", "pids.max", "pod"]


@pytest.fixture
def second() -> Iterator[str]:
    """A cgroup of version 2 on this machine, whatever controllers it has."""
    mounted = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]
    place = os.path.join(mounted[0][4], f"nemo-test-{os.getpid()}") if mounted else ""
    try:
        os.mkdir(place)
    except OSError as error:
        pytest.skip(f"no cgroup of version 2 can be made here: {error}")
    yield place
    for folder, _, _ in os.walk(place, topdown=False):
        os.rmdir(folder)


@pytest.mark.system
def test_version_2_for_real(second: str) -> None:
    groups = Cgroups("key", 2, {"": second}, (1900, 1 << 30))
    available = set(Path(second, "cgroup.controllers").read_text().split())
    missing = {"memory", "cpu", "pids"} - available
    assert bool(groups.problem) == bool(missing) and all(word in groups.problem for word in missing), groups.problem
    assert "None" not in groups.problem
    (place,) = groups.create("pod", "main-0", cpu=250, memory=64 << 20)
    # It joins as a container does, and forks on and on.
    joins = "echo 0 >$0/cgroup.procs; for n in 1 2 3 4 5; do sleep 60 & done; echo up; wait"
    with subprocess.Popen(["/bin/sh", "-c", joins, place], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        assert len(groups.members("pod", "main-0")) == 6 and not groups.remove("pod", "main-0")
        assert Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()[-1].endswith("/nemo/key/pod/main-0")
        if "memory" not in missing:
            assert groups.measure("pod", "main-0") is not None and Path(place, "memory.max").read_text() == f"{64 << 20}\n"
        else:
            assert groups.measure("pod", "main-0") is None
        assert len(groups.kill("pod", "main-0")) == 6
        assert process.wait(10) == -9
    deadline = 100
    while not groups.remove("pod", "main-0"):  # the killed ones vanish a moment later
        deadline -= 1
        assert deadline
        select.select([], [], [], 0.05)
    assert not os.path.exists(os.path.join(second, "nemo"))


def test_without_permission_nothing_is_done_and_the_reason_is_said() -> None:
    groups = Cgroups("key", 2, {"": "/proc"})
    assert "Delegate=yes" in groups.problem


def test_where_there_are_none_nothing_is_done_and_the_reason_is_said() -> None:
    groups = Cgroups("key", 0, {})
    assert "mounts no cgroups that can limit" in groups.problem
    assert groups.create("pod", "main-0", cpu=1, memory=1) == [] and groups.measure("pod", "main-0") is None
    assert groups.kill("pod", "main-0") == [] and groups.remove("pod", "main-0")
