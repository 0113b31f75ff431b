"""Affinity and topology spread in a pod's spec. Source: ``pkg/apis/core/validation`` of Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from metaos.apiserver.metadata import label_causes
from metaos.apiserver.rules.selecting import selector_causes
from metaos.apiserver.schema import duplicate, invalid, required, unsupported
from metaos.resources.affinity import PREFERRED, REQUIRED
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj

WEIGHTS = "must be in the range 1-100"
NO_KEY = "can not be empty"


def affinity_causes(spec: Obj, path: str) -> Iterator[Cause]:
    """What is wrong with ``affinity`` and ``topologySpreadConstraints``."""
    affinity = spec.get("affinity") or {}
    nodes = affinity.get("nodeAffinity") or {}
    where = f"{path}.affinity.nodeAffinity"
    if nodes.get(REQUIRED) is not None and not nodes[REQUIRED].get("nodeSelectorTerms"):
        yield required(f"{where}.{REQUIRED}.nodeSelectorTerms", "must have at least one node selector term")
    for i, raw in enumerate(nodes.get(PREFERRED) or ()):
        yield from _weight(raw, f"{where}.{PREFERRED}[{i}]")
    for field in ("podAffinity", "podAntiAffinity"):
        stated = affinity.get(field) or {}
        for i, raw in enumerate(stated.get(REQUIRED) or ()):
            yield from _term(raw, f"{path}.affinity.{field}.{REQUIRED}[{i}]")
        for i, raw in enumerate(stated.get(PREFERRED) or ()):
            where = f"{path}.affinity.{field}.{PREFERRED}[{i}]"
            yield from _weight(raw, where)
            yield from _term(raw.get("podAffinityTerm") or {}, f"{where}.podAffinityTerm")
    yield from _spread(spec.get("topologySpreadConstraints") or (), f"{path}.topologySpreadConstraints")


def _weight(raw: Obj, path: str) -> Iterator[Cause]:
    if not 1 <= (raw.get("weight") or 0) <= 100:
        yield invalid(f"{path}.weight", raw.get("weight") or 0, WEIGHTS)


def _term(raw: Obj, path: str) -> Iterator[Cause]:
    yield from selector_causes(raw.get("labelSelector"), f"{path}.labelSelector")
    yield from selector_causes(raw.get("namespaceSelector"), f"{path}.namespaceSelector")
    yield from _key(raw, path)


def _key(raw: Obj, path: str) -> Iterator[Cause]:
    if not raw.get("topologyKey"):
        yield required(f"{path}.topologyKey", NO_KEY)
    else:
        yield from label_causes({raw["topologyKey"]: ""}, f"{path}.topologyKey")


def _spread(constraints: Any, path: str) -> Iterator[Cause]:
    seen = set()
    for i, raw in enumerate(constraints):
        where = f"{path}[{i}]"
        if (raw.get("maxSkew") or 0) <= 0:
            yield invalid(f"{where}.maxSkew", raw.get("maxSkew") or 0, "must be greater than zero")
        yield from _key(raw, where)
        when = raw.get("whenUnsatisfiable") or ""
        if when not in ("DoNotSchedule", "ScheduleAnyway"):
            yield unsupported(f"{where}.whenUnsatisfiable", when, ("DoNotSchedule", "ScheduleAnyway"))
        if (least := raw.get("minDomains")) is not None:
            if least <= 0:
                yield invalid(f"{where}.minDomains", least, "must be greater than zero")
            if when != "DoNotSchedule":
                text = f"can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}"
                yield invalid(f"{where}.minDomains", least, text)
        pair = (raw.get("topologyKey"), when)
        if pair in seen:
            yield duplicate(f"{where}.{{topologyKey, whenUnsatisfiable}}", f"{{{pair[0]}, {pair[1]}}}")
        seen.add(pair)
        yield from selector_causes(raw.get("labelSelector"), f"{where}.labelSelector")
