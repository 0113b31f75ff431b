"""What is read from workloads."""

from __future__ import annotations

from typing import Any

from metaos.resources.workload import requests


def container(cpu: str, **more: Any) -> dict[str, Any]:
    return {"resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}, **more}


def test_sidecars_count_as_long_as_they_run() -> None:
    sidecar = container("100m", restartPolicy="Always")
    spec: dict[str, Any] = {"initContainers": [container("300m"), sidecar], "containers": [container("50m"), container("50m")]}
    assert requests(spec) == {"cpu": 300, "memory": 3 << 20}
    spec["initContainers"] = [sidecar, container("300m")]
    assert requests(spec) == {"cpu": 400, "memory": 3 << 20}
    spec["initContainers"] = [sidecar, sidecar]
    assert requests(spec)["cpu"] == 300
