"""What a machine has is measured, and bounded by its cgroups and its owner."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.agent import inventory
from metaos.agent.inventory import Limits, capacity, cgroup_limits, measure, usage, worth_telling
from metaos.resources import quantity


def machine(root: Path, files: dict[str, str]) -> Path:
    for path, text in ({"proc/meminfo": "MemTotal:  8388608 kB\nMemFree: 1 kB\n"} | files).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_without_cgroups_the_hardware_counts(tmp_path: Path) -> None:
    assert measure(machine(tmp_path, {}), 4) == (4000, 8 * 1024**3)
    cpu, memory = measure()
    assert cpu >= 1000 and memory > 2**20, "this machine"


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({"proc/self/cgroup": "0::/\n"}, Limits(None, None)),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/b/memory.max": "1073741824\n",
                "sys/fs/cgroup/a/memory.max": "max\n",
            },
            Limits(1500, 1024**3),
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n0::/\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "536870912\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            },
            Limits(500, 512 * 1024**2),
        ),
    ],
)
def test_the_tightest_cgroup_counts(tmp_path: Path, files: dict[str, str], limits: Limits) -> None:
    root = machine(tmp_path, files)
    assert cgroup_limits(root) == limits
    assert measure(root, 4) == (limits.cpu or 4000, limits.memory or 8 * 1024**3)


@given(
    st.integers(100, 512_000),
    st.integers(2**26, 2**42),
    st.none() | st.integers(1, 1_000_000),
    st.none() | st.integers(1, 2**43),
    st.none() | st.integers(0, 500),
)
def test_capacity_is_never_more_than_measured_or_allowed(
    cpu: int, memory: int, wanted_cpu: int | None, wanted_memory: int | None, pods: int | None
) -> None:
    given = {"cpu": f"{wanted_cpu}m", "memory": wanted_memory, "pods": pods}
    site: Any = {"spec": {"capacity": {k: str(v) for k, v in given.items() if v is not None and v != "Nonem"}}}
    has, free = capacity(site, (cpu, memory))
    assert 0 <= free.cpu <= has.cpu <= min(cpu, wanted_cpu or cpu)
    assert 0 <= free.memory <= has.memory <= min(memory, wanted_memory or memory)
    assert free.pods == has.pods == (pods if pods is not None else inventory.DEFAULT_PODS)
    assert quantity.milli(free.quantities()["cpu"]) == free.cpu
    assert free.memory - 1024 < quantity.whole(free.quantities()["memory"]) <= free.memory


def test_devices_are_what_the_owner_states() -> None:
    site: Any = {"spec": {"capacity": {"nvidia.com/gpu": "2", "example.com/device": "1"}}}
    has, free = capacity(site, (4000, 2**33))
    assert has.devices == free.devices == {"nvidia.com/gpu": 2, "example.com/device": 1}
    assert free.quantities()["nvidia.com/gpu"] == "2"


def test_a_little_usage_is_no_news() -> None:
    old = {"capacity": {"cpu": "4"}, "usage": usage({"a": {"c": {"cpu": 0.5, "memory": 300e6}}, "b": {"c": {"cpu": 0.1}}})}
    assert old["usage"] == {"cpu": "600m", "memory": "286Mi", "pods": "2"}
    assert not worth_telling(old, old | {"usage": {"cpu": "620m", "memory": "290Mi", "pods": "2"}})
    assert worth_telling(old, old | {"usage": {"cpu": "700m", "memory": "286Mi", "pods": "2"}})
    assert worth_telling(old, old | {"usage": {"cpu": "600m", "memory": "400Mi", "pods": "2"}})
    assert worth_telling(old, old | {"usage": {"cpu": "600m", "memory": "286Mi", "pods": "3"}})
    assert worth_telling(old, old | {"capacity": {"cpu": "2"}})
    assert worth_telling({}, old)


def test_the_machine_introduces_itself(tmp_path: Path) -> None:
    root = machine(tmp_path, {"etc/os-release": 'NAME="x"\nPRETTY_NAME="Debian GNU/Linux 12"\n'})
    info = inventory.node_info("bubblewrap", "sandbox", root)
    assert info["osImage"] == "Debian GNU/Linux 12" and info["architecture"] and info["isolation"] == "bubblewrap"
    conditions = [{"type": "B", "status": "False"}, {"type": "A", "status": "False"}]
    assert [c["type"] for c in inventory.condition_list(conditions)] == ["A", "B"]
