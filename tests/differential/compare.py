"""Two answers to one request compared: without identities, times and revisions, which differ by nature."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.differential.cases import Step
from tests.differential.peers import Answer

KNOWN = Path(__file__).with_name("known.yaml")
ABSENT = "<absent>"
NEWEST = 9999
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: Names that the server makes from a generateName; the cases' own begin so.
_MADE = re.compile(r"\b([Mm]ade[-_])[a-z0-9]{5}\b")
_SUPPORTED = re.compile(r"(supported values: )((?:\"[^\"]*\"(?:, )?)+)")
#: Addresses that servers have given to Services; the cases name none in these ranges. The same for ports of nodes.
_ADDRESS = re.compile(r"\b(10\.(9[6-9]|1[01]\d)|100\.(6[4-9]|7\d))\.\d+\.\d+\b(?!/)")
NAMED_PORTS = range(32001, 32010)
#: Values in texts that are no plain words: Go's notation, or JSON.
_GO = re.compile(r"((?:Invalid|Unsupported) )value: (?:[\[{]|&?\*?\w+\.\w+\{|map\[|\[\]\w)[^\n]*?[\]})]: (?=[^\"]|$)")
#: Revisions in texts.
_RECORD = re.compile(r"\(\d+\)")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z\Z")


@dataclass(frozen=True, slots=True)
class Difference:
    """``where``: the request. ``path``: the field, list indices left out."""

    where: str
    path: str
    nemo: str
    kubernetes: str

    def __str__(self) -> str:
        return f"{self.where}\n    {self.path}\n        nemo:       {self.nemo}\n        kubernetes: {self.kubernetes}"


def normal(value: Any, namespace: str, now: datetime, *, path: str = "") -> Any:
    if isinstance(value, dict):
        found = {}
        for key, child in value.items():
            below = f"{path}.{key}" if path else key
            if key in ("resourceVersion", "continue") and isinstance(child, str) and path.endswith("metadata"):
                child = key.upper()
            elif key == "managedFields" and isinstance(child, list):
                child = sorted(child, key=lambda e: (e.get("manager", ""), e.get("operation", ""), e.get("subresource", "")))
            found[key] = normal(child, namespace, now, path=below)
        generated = found.get("generateName")
        if isinstance(generated, str) and str(found.get("name", "")).startswith(generated):
            found["name"] = generated + "*"
        return found
    if isinstance(value, int) and path.rsplit(".", 1)[-1] in ("nodePort", "healthCheckNodePort") and value not in NAMED_PORTS:
        return "PORT"
    if isinstance(value, list):
        return [normal(child, namespace, now, path=path) for child in value]
    if isinstance(value, str):
        if _TIME.match(value) and abs(datetime.fromisoformat(value.replace("Z", "+00:00")) - now) < timedelta(hours=1):
            return "TIME"
        value = _GO.sub(r"\1value: …: ", value)
        value = _SUPPORTED.sub(lambda m: m[1] + ", ".join(sorted(m[2].split(", "))), _RECORD.sub("(N)", value))
        value = _ADDRESS.sub("ADDRESS", value)
        return _MADE.sub(r"\1*", _UUID.sub("UID", value)).replace(namespace, "NS")
    return value


def _differences(nemo: Any, kubernetes: Any, path: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(nemo, dict) and isinstance(kubernetes, dict):
        for key in sorted(nemo.keys() | kubernetes.keys()):
            below = f"{path}.{key}"
            if key not in nemo or key not in kubernetes:
                yield below, repr(nemo[key]) if key in nemo else ABSENT, repr(kubernetes[key]) if key in kubernetes else ABSENT
            else:
                yield from _differences(nemo[key], kubernetes[key], below)
    elif isinstance(nemo, list) and isinstance(kubernetes, list) and len(nemo) == len(kubernetes):
        for one, other in zip(nemo, kubernetes, strict=True):
            yield from _differences(one, other, f"{path}[]")
    elif nemo != kubernetes or isinstance(nemo, bool) != isinstance(kubernetes, bool):
        yield path, repr(nemo), repr(kubernetes)


#: What controllers write meanwhile: their names in managedFields, annotations, and kinds whose status they keep.
_CONTROLLERS = ("kube-controller-manager", "kube-scheduler")
_KEPT = ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "CronJob", "PersistentVolumeClaim", "PersistentVolume",
         "PodDisruptionBudget", "HorizontalPodAutoscaler", "Pod", "Namespace")  # fmt: skip
_REVISION = "deployment.kubernetes.io/revision"


def settled(body: Any, kind: str, *, status: bool) -> Any:
    """An object, a list or events without what only controllers write, which run beside one of the servers."""
    if isinstance(body, list):
        return [{**event, "object": settled(event.get("object"), kind, status=status)} for event in body]
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("items"), list):
        return {**body, "items": [settled(item, kind, status=status) for item in body["items"]]}
    if body.get("kind", kind) != kind or not isinstance(body.get("metadata"), dict):
        return body
    body = {**body, "metadata": dict(body["metadata"])}
    metadata = body["metadata"]
    if "managedFields" in metadata:
        metadata["managedFields"] = [e for e in metadata["managedFields"] if e.get("manager") not in _CONTROLLERS]
    if _REVISION in metadata.get("annotations", {}):
        metadata["annotations"] = {k: v for k, v in metadata["annotations"].items() if k != _REVISION}
        if not metadata["annotations"]:
            del metadata["annotations"]
    if kind in _KEPT and not status:
        body.pop("status", None)
    return body


def differences(step: Step, nemo: Answer, kubernetes: Answer, namespace: str) -> list[Difference]:
    """All, known ones too."""
    where, kind = str(step), step.kind.kind if step.kind else ""
    status = "/status" in step.path
    now = datetime.now(UTC)
    found = []
    if nemo.code != kubernetes.code:
        found.append(("code", f"{nemo.code} {_message(nemo)}", f"{kubernetes.code} {_message(kubernetes)}"))
    else:
        ours, theirs = (_sorted(normal(settled(a.body, kind, status=status), namespace, now)) for a in (nemo, kubernetes))
        found = list(_differences(ours, theirs, "body"))
    return [Difference(where, path, one, other) for path, one, other in found]


def _message(answer: Answer) -> str:
    return str(answer.body.get("message", "")) if isinstance(answer.body, dict) else str(answer.body)[:200]


def _sorted(body: Any) -> Any:
    """Causes in one order: Kubernetes' validation walks other ways through an object."""
    if not isinstance(body, dict) or body.get("kind") != "Status":
        return body
    causes = (body.get("details") or {}).get("causes")
    if not causes:
        return body
    # Kubernetes says some things twice.
    ordered = [dict(c) for c in sorted({tuple(sorted(c.items())) for c in causes})]
    found = {**body, "details": {**body["details"], "causes": ordered}}
    if body.get("reason") == "Invalid":
        # The message lists the same causes in the server's own order.
        found["message"] = body["message"].partition(" is invalid: ")[0]
    return found


@dataclass(frozen=True, slots=True)
class Known:
    """A difference that is meant, or borne: ``title`` and ``reason`` stand in the docs. ``servers``: the first and the last
    minor version of Kubernetes 1 that differs so."""

    title: str
    reason: str
    where: re.Pattern[str]
    paths: tuple[str, ...]
    nemo: re.Pattern[str]
    kubernetes: re.Pattern[str]
    servers: tuple[int, int] = (0, NEWEST)

    def covers(self, found: Difference, minor: int) -> bool:
        return bool(
            self.servers[0] <= minor <= self.servers[1]
            and self.where.search(found.where)
            and any(fnmatch.fnmatchcase(found.path, path) for path in self.paths)
            and self.nemo.search(found.nemo)
            and self.kubernetes.search(found.kubernetes)
        )


@cache
def known() -> tuple[Known, ...]:
    """``known.yaml``: title, reason, and rules with ``path`` (globs), ``where``, ``nemo`` and ``kubernetes`` (expressions);
    an entry or a rule may say of which servers it holds, ``since`` and ``until`` a minor version."""
    found = []
    for entry in yaml.safe_load(KNOWN.read_text("utf-8")):
        for rule in entry["rules"]:
            paths = rule.get("path", "*")
            since, until = (rule.get(key, entry.get(key, default)) for key, default in (("since", 0), ("until", NEWEST)))
            found.append(
                Known(
                    entry["title"],
                    entry["reason"],
                    re.compile(rule.get("where", "")),
                    tuple(p.replace("[]", "[[]]") for p in ([paths] if isinstance(paths, str) else paths)),
                    re.compile(rule.get("nemo", ""), re.S),
                    re.compile(rule.get("kubernetes", ""), re.S),
                    (since, until),
                )
            )
    return tuple(found)


def unknown(found: list[Difference], minor: int) -> list[Difference]:
    """``minor``: of the compared server."""
    return [d for d in found if not any(k.covers(d, minor) for k in known())]
