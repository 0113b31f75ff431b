"""Objects for tests."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from metaos.resources.meta import Obj


def deployment(name: str = "web", namespace: str = "default", **spec: Any) -> Obj:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "web", "image": "python:3", "ports": [{"containerPort": 80}]}]},
            },
        }
        | spec,
    }


def config_map(name: str = "settings", namespace: str = "default", **data: str) -> Obj:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data or {"key": "value"},
    }


def cluster(name: str = "edge", **spec: Any) -> Obj:
    return {
        "apiVersion": "meta-os.eu/v1alpha1",
        "kind": "Cluster",
        "metadata": {"name": name, "labels": {"tier": "edge"}},
        "spec": {"tier": "edge", "location": {"region": "europe-west1", "country": "BE"}} | spec,
    }


def pod(name: str = "web-1", namespace: str = "default", **spec: Any) -> Obj:
    """With ``nodeName`` it is the mirror of one that runs on a site."""
    mirror = {"meta-os.eu/cluster": spec["nodeName"]} if "nodeName" in spec else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": "web"} | mirror},
        "spec": {"containers": [{"name": "web", "image": "python:3"}]} | spec,
    }


async def take(events: AsyncIterator[Any], count: int) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(5):
        while len(found) < count:
            found.append(await anext(events))
    return found
