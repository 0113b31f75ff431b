"""Runs the plain-text scenarios in ``placement/``: sites, workloads, intents and policies in, decisions out.

A scenario has ``title``, ``sites``, ``workload``, optionally ``intents``, ``policies`` and ``current`` (site → replicas), and
``expect``: ``clusters``, and optionally ``rejected`` (site → part of the reason), ``reason`` and ``fulfilment`` (by intent).

One of an application has ``workloads`` (each with its ``current``), optionally ``drain`` (sites), and in ``expect`` by name of a
workload: ``places``, and optionally ``reasons`` and ``rejected``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from metaos.network.intents import evaluate
from metaos.resources.meta import API_VERSION, Obj, ref
from metaos.resources.reading import cluster_info, workload_info
from metaos.resources.snapshot import Snapshot
from metaos.resources.traffic import edges_of
from metaos.scheduler.framework import decide
from metaos.scheduler.planning import Changes, project

NOW = 1_767_225_600.0
SCENARIOS = sorted((Path(__file__).parent / "placement").glob("*.yaml"))
APPLICATIONS = [path for path in SCENARIOS if "\nworkloads:" in path.read_text()]


def objects(kind: str, listed: list[dict[str, Any]]) -> list[Obj]:
    return [
        {
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": o["name"], "namespace": "shop"},
            "spec": o.get("spec") or {},
        }
        | ({"status": o["status"]} if "status" in o else {})
        for o in listed
    ]


def site(raw: dict[str, Any]) -> Obj:
    ready = {"conditions": [{"type": "Ready", "status": "Unknown" if raw.get("lost") else "True"}]}
    spec = {"capacity": {"cpu": "4", "memory": "8Gi", "pods": "40"}, "jurisdictions": ["EU"]} | (raw.get("spec") or {})
    return {"apiVersion": API_VERSION, "kind": "Cluster", "metadata": {"name": raw["name"]}, "spec": spec, "status": ready}


def workload(raw: dict[str, Any]) -> Obj:
    requests = {"cpu": raw.get("cpu", "100m"), "memory": raw.get("memory", "32Mi")}
    pod = {"containers": [{"name": "c", "resources": {"requests": requests}}], **(raw.get("pod") or {})}
    spec = {"replicas": raw.get("replicas", 1), "template": {"spec": pod}, **(raw.get("spec") or {})}
    metadata = {"name": raw["name"], "namespace": "shop", "labels": {"app": raw["name"]}}
    return {"apiVersion": "apps/v1", "kind": raw["kind"], "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("path", APPLICATIONS, ids=lambda p: p.stem)
def test_application(path: Path) -> None:
    story = yaml.safe_load(path.read_text())
    intents, policies = objects("Intent", story.get("intents") or []), objects("PlacementPolicy", story.get("policies") or [])
    works = [workload(raw) for raw in story["workloads"]]
    infos = [
        workload_info(
            o,
            current=raw.get("current"),
            intents=intents,
            policies=policies,
            traffic=edges_of(ref(o), intents),
        )
        for o, raw in zip(works, story["workloads"], strict=True)
    ]
    snapshot = Snapshot(NOW, tuple(cluster_info(site(s)) for s in story["sites"]))
    changes = Changes(drain=frozenset(story.get("drain") or ()))
    found = {o.workload.ref.name: o.plan for o in project(snapshot, changes, infos)}
    expect = story["expect"]
    assert {name: dict(plan.clusters) for name, plan in found.items()} == expect["places"]
    for name, text in (expect.get("reasons") or {}).items():
        assert text in found[name].reason
    for name, sites in (expect.get("rejected") or {}).items():
        rejected = {r.cluster: r.reason for r in found[name].rejected}
        assert all(text in rejected.get(at, "not rejected") for at, text in sites.items()), rejected


@pytest.mark.parametrize("path", [p for p in SCENARIOS if p not in APPLICATIONS], ids=lambda p: p.stem)
def test_scenario(path: Path) -> None:
    story = yaml.safe_load(path.read_text())
    intents, expect = objects("Intent", story.get("intents") or []), story["expect"]
    clusters = tuple(cluster_info(site(s)) for s in story["sites"])
    info = workload_info(
        workload(story["workload"]),
        current=story.get("current"),
        intents=intents,
        policies=objects("PlacementPolicy", story.get("policies") or []),
    )
    plan = decide(Snapshot(NOW, clusters), info)
    assert dict(plan.clusters) == expect["clusters"], plan.reason
    rejected = {r.cluster: r.reason for r in plan.rejected}
    for name, text in (expect.get("rejected") or {}).items():
        assert text in rejected.get(name, "not rejected")
    assert set(rejected) >= set(expect.get("rejected") or {})
    assert expect.get("reason", "") in plan.reason
    placed = [c for c in clusters if c.name in dict(plan.clusters)]
    for intent in intents:
        wanted = (expect.get("fulfilment") or {}).get(intent["metadata"]["name"])
        if wanted:
            status = evaluate(intent, [(info, placed)], clusters, NOW)
            assert (status["fulfilment"], wanted.get("message", "") in status["message"]) == (wanted["is"], True), status


def test_there_are_scenarios() -> None:
    assert len(SCENARIOS) >= 8
