"""Controllers over a dictionary: a manager on the fake client, and the objects they look at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import API_VERSION, Obj
from tests.clock import FakeClock
from tests.fake_client import FakeClient

Setup = Callable[[Manager, Client, Clock, Settings], None]


def _unsigned(*arguments: Any) -> bytes:
    raise AssertionError("nothing is signed here")


@asynccontextmanager
async def running(*setups: Setup, objects: tuple[Obj, ...] = ()) -> AsyncIterator[tuple[FakeClient, FakeClock]]:
    """The controllers, until the block ends."""
    clock = FakeClock()
    client = FakeClient(clock)
    client.seed(*objects)
    manager = Manager(client, clock, Random(1))
    for setup in setups:
        setup(manager, client, clock, Settings(sign=_unsigned))
    await manager.start()
    try:
        await clock.settle()
        yield client, clock
    finally:
        await manager.stop()


async def until(clock: FakeClock, holds: Callable[[], Any], seconds: float = 10.0) -> Any:
    """The first truthy answer, in virtual time; real time passes only for the event loop."""
    for _ in range(int(seconds / 0.1)):
        found = holds()
        if found:
            return found
        await clock.advance(0.1)
        await asyncio.sleep(0)
    raise AssertionError("waited in vain")


def cluster(name: str, *, ready: bool = True, status: dict[str, Any] | None = None, **spec: Any) -> Obj:
    usual: dict[str, Any] = {
        "tier": "cloud",
        "jurisdictions": ["EU"],
        "capacity": {"cpu": "4", "memory": "8Gi", "pods": "40"},
        "electricity": {"carbonIntensity": 200},
    }
    conditions = [{"type": "Ready", "status": "True" if ready else "Unknown"}]
    return {
        "apiVersion": API_VERSION,
        "kind": "Cluster",
        "metadata": {"name": name},
        "spec": usual | spec,
        "status": {"conditions": conditions, "volumeRestores": True, **(status or {})},
    }


def deployment(name: str = "web", namespace: str = "shop", cpu: str = "100m", replicas: int = 1) -> Obj:
    container = {"name": "c", "image": "python:3", "resources": {"requests": {"cpu": cpu, "memory": "32Mi"}}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [container]}}},
    }


def intent(*targets: dict[str, Any], name: str = "wish") -> Obj:
    return {
        "apiVersion": API_VERSION,
        "kind": "Intent",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"priority": 90, "expectations": [{"targets": list(targets)}]},
    }


def traffic(*edges: dict[str, Any], name: str = "near", priority: int = 100) -> Obj:
    return {
        "apiVersion": API_VERSION,
        "kind": "Intent",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"priority": priority, "traffic": list(edges)},
    }


def places(client: FakeClient, name: str = "deployment-web") -> dict[str, int]:
    found = client.find(scheme.PLACEMENT, name, "shop") or {}
    return {c["name"]: c["replicas"] for c in (found.get("spec") or {}).get("clusters") or ()}


def events(client: FakeClient) -> list[str]:
    return [str(e["reason"]) for e in client.objects(scheme.EVENT)]
