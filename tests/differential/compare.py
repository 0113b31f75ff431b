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

from tests.differential.peers import Answer

KNOWN = Path(__file__).with_name("known.yaml")
ABSENT = "<absent>"
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
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
    if isinstance(value, list):
        return [normal(child, namespace, now, path=path) for child in value]
    if isinstance(value, str):
        if _TIME.match(value) and abs(datetime.fromisoformat(value.replace("Z", "+00:00")) - now) < timedelta(hours=1):
            return "TIME"
        return _UUID.sub("UID", value).replace(namespace, "NS")
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


def differences(where: str, nemo: Answer, kubernetes: Answer, namespace: str) -> list[Difference]:
    """All, known ones too."""
    now = datetime.now(UTC)
    found = []
    if nemo.code != kubernetes.code:
        found.append(("code", f"{nemo.code} {_message(nemo)}", f"{kubernetes.code} {_message(kubernetes)}"))
    else:
        ours, theirs = (_sorted(normal(a.body, namespace, now)) for a in (nemo, kubernetes))
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
    ordered = sorted(causes, key=lambda c: (c.get("field", ""), c.get("reason", ""), c.get("message", "")))
    found = {**body, "details": {**body["details"], "causes": ordered}}
    if body.get("reason") == "Invalid" and len(causes) > 1:
        # The message lists the same causes in the server's own order.
        found["message"] = body["message"].partition(" is invalid: ")[0]
    return found


@dataclass(frozen=True, slots=True)
class Known:
    """A difference that is meant, or borne: ``title`` and ``reason`` stand in the docs."""

    title: str
    reason: str
    where: re.Pattern[str]
    paths: tuple[str, ...]
    nemo: re.Pattern[str]
    kubernetes: re.Pattern[str]

    def covers(self, found: Difference) -> bool:
        return bool(
            self.where.search(found.where)
            and any(fnmatch.fnmatchcase(found.path, path) for path in self.paths)
            and self.nemo.search(found.nemo)
            and self.kubernetes.search(found.kubernetes)
        )


@cache
def known() -> tuple[Known, ...]:
    """``known.yaml``: title, reason, and rules with ``path`` (globs), ``where``, ``nemo`` and ``kubernetes`` (expressions)."""
    found = []
    for entry in yaml.safe_load(KNOWN.read_text("utf-8")):
        for rule in entry["rules"]:
            paths = rule.get("path", "*")
            found.append(
                Known(
                    entry["title"],
                    entry["reason"],
                    re.compile(rule.get("where", "")),
                    tuple(p.replace("[]", "[[]]") for p in ([paths] if isinstance(paths, str) else paths)),
                    re.compile(rule.get("nemo", ""), re.S),
                    re.compile(rule.get("kubernetes", ""), re.S),
                )
            )
    return tuple(found)


def unknown(found: list[Difference]) -> list[Difference]:
    return [d for d in found if not any(k.covers(d) for k in known())]
