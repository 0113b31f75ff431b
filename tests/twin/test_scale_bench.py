"""``bench.scale``: its world in small, and the arithmetic from what was measured to limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import scale
from bench.scaletwin import measure


def test_its_world_in_small(tmp_path: Path) -> None:
    found = {f.name.removeprefix("3 sites, 4 workloads: "): f.value for f in measure(3, 4, tmp_path / "state.db")}
    assert found["quiet, writes"] == pytest.approx(0.3, abs=0.11)
    assert found["a workload comes, writes"] > 5 and found["objects in the store"] > 100
    assert found["a start, for a site: all of the hub"] >= 0
    assert (tmp_path / "state.db").exists()


def test_limits_are_of_the_largest_size_that_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {
        "a hub with 100 objects: memory at the end": 163.84,
        "a hub with 1,000 objects: memory at the end": 163.84,
        "a hub with 1,000 objects: start until ready, processor time": 6.0,
        "a hub with 1,000 objects: a watch over HTTPS, memory": 64.0,
        "2,000 sites, 10 workloads: quiet, for a write: all of the hub": 500.0,
        "10 sites, 10 workloads: a start, for a site: all of the hub": 9e9,
        "2,000 sites, 10 workloads: a start, for a site: all of the hub": 6000.0,
    }
    (tmp_path / "scale.json").write_text(json.dumps([{"name": name, "value": value} for name, value in figures.items()]))
    monkeypatch.setattr(scale, "RESULTS", tmp_path)
    found = {f.name.removeprefix("limit: "): round(f.value) for f in scale.limits()}
    assert found == {
        "sites, 3 lasting requests each of 8,192": 2731,
        "sites, heartbeats every 10 s take half of a core, HTTPS apart": 10_000,
        "sites, their watches take 16 GB": 87_381,
        "sites, a new leader has looked at all in 60 s": 10_000,
        "objects, the leader takes 16 GB": 100_000,
        "objects, a hub is ready in 60 s": 10_000,
    }
    (tmp_path / "scale.json").write_text("[]")
    with pytest.raises(SystemExit, match="run its part before"):
        scale.limits()
