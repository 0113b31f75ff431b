"""A definition for tests, and a hub with the controllers that it needs."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from metaos.apiserver.registry import Registry
from metaos.clock import Clock
from metaos.controllers import definition, garbage, namespace, quota
from metaos.reconcile.manager import Manager
from metaos.resources.meta import Obj
from metaos.security.authz import UserInfo

CONTROLLERS = UserInfo("system:controller-manager", ("system:masters",))

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["cronSpec"],
            "description": "What is wanted.",
            "properties": {
                "cronSpec": {
                    "type": "string",
                    "pattern": r"^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$",
                    "description": "When it runs.",
                },
                "image": {"type": "string", "default": "busybox"},
                "replicas": {"type": "integer", "minimum": 1, "maximum": 10, "default": 1},
                "port": {"x-kubernetes-int-or-string": True},
                "free": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": True,
                    "properties": {"known": {"type": "string"}},
                },
                "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                "steps": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {
                            "name": {"type": "string"},
                            "run": {"type": "string"},
                            "retries": {"type": "integer", "default": 2},
                        },
                    },
                },
                "policy": {"type": "string", "enum": ["Allow", "Forbid"]},
                "maybe": {"type": "string", "nullable": True},
            },
        },
        "status": {
            "type": "object",
            "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}, "phase": {"type": "string"}},
        },
    },
}


def definition_of(**changes: Any) -> Obj:
    """CronTabs of stable.example.com, served as v1 and v1beta1 and kept as v1. ``changes`` replace parts of the spec."""
    v1 = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": SCHEMA},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "selectableFields": [{"jsonPath": ".spec.image"}, {"jsonPath": ".spec.replicas"}],
        "additionalPrinterColumns": [
            {"name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec", "description": "The cron spec"},
            {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
            {"name": "First", "type": "string", "jsonPath": '.spec.steps[?(@.name=="b")].run', "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ],
    }
    older = {"name": "v1beta1", "served": True, "storage": False, "deprecated": True, "schema": {"openAPIV3Schema": SCHEMA}}
    spec = {
        "group": "stable.example.com",
        "scope": "Namespaced",
        "names": {"plural": "crontabs", "singular": "crontab", "kind": "CronTab", "shortNames": ["ct"], "categories": ["all"]},
        "versions": [v1, older],
    }
    return copy.deepcopy(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "crontabs.stable.example.com"},
            "spec": spec | changes,
        }
    )


def crontab(name: str = "one", **spec: Any) -> Obj:
    return {
        "apiVersion": "stable.example.com/v1",
        "kind": "CronTab",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"cronSpec": "* * * * */5"} | spec,
    }


@asynccontextmanager
async def controllers(registry: Registry, clock: Clock) -> AsyncIterator[Manager]:
    """Runs what definitions, garbage and namespaces need."""
    client = registry.client(CONTROLLERS)
    manager = Manager(client, clock, Random(4))
    for module in (definition, garbage, namespace, quota):
        module.setup(manager, client, clock, None)  # type: ignore[arg-type]  # None of them has settings.
    await manager.start()
    try:
        yield manager
    finally:
        await manager.stop()
