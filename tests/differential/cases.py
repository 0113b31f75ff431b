"""Cases: sequences of requests as readable data, and how they are carried out on one server.

A case is ``case: TITLE`` and ``steps``. A step is a mapping with one request, ``VERB PATH [(FORM)]: BODY``:

- PATH begins with a plural (``deployments/web/status?dryRun=All``), which stands for the kind's URL in the case's
  namespace, or with ``/``. ``$ns`` is the namespace.
- FORM says what kind of PATCH the body is: merge, json, strategic or apply; or a media type.
- BODY: apiVersion, kind and (of a PUT or apply) the name are filled in where they are left out. Text is sent as it is.
- ``WATCH PATH: N`` takes N events of a watch.
- ``save: {NAME: FIELD.PATH}`` remembers a part of the answer, each server's own, as ``$NAME``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from metaos.resources import scheme
from metaos.resources.scheme import Kind
from tests.differential.peers import Answer, Peer, filled

FOLDER = Path(__file__).with_name("cases")
FORMS = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
    "yaml": "application/yaml",
}
_LINE = re.compile(r"(?P<verb>[A-Z]+) (?P<path>\S+)(?: \((?P<form>[^)]+)\))?\Z")
BY_PLURAL = {kind.plural: kind for kind in reversed(scheme.KINDS) if kind not in scheme.VIEWS}


@dataclass(frozen=True)
class Step:
    verb: str
    path: str
    form: str
    body: Any
    save: dict[str, str]
    kind: Kind | None

    def __str__(self) -> str:
        return f"{self.verb} {self.path}" + (f" ({self.form})" if self.form else "")

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Step:
        save = raw.get("save", {})
        line, body = next((k, v) for k, v in raw.items() if k != "save")
        match = _LINE.match(line)
        if match is None:
            raise ValueError(f"no request: {line!r}")
        path = match["path"]
        kind = None if path.startswith("/") else BY_PLURAL.get(re.split(r"[/?]", path)[0])
        if kind is None and not path.startswith("/"):
            raise ValueError(f"no kind: {line!r}")
        return cls(match["verb"], path, match["form"] or "", body, save, kind)

    def url(self) -> str:
        if self.kind is None:
            return self.path
        root = f"/apis/{self.kind.api_version}" if self.kind.group else f"/api/{self.kind.version}"
        return f"{root}/namespaces/$ns/{self.path}" if self.kind.namespaced else f"{root}/{self.path}"

    def content(self) -> Any:
        whole = self.verb in ("POST", "PUT") or (self.verb == "PATCH" and self.form == "apply")
        parts = self.path.partition("?")[0].split("/")
        if (
            not isinstance(self.body, dict)
            or not whole
            or self.kind is None
            or len(parts) > 3
            or (len(parts) == 3 and parts[2] != "status")
        ):
            return self.body
        found: dict[str, Any] = {"apiVersion": self.kind.api_version, "kind": self.kind.kind} | self.body
        metadata = found.get("metadata", {})
        if len(parts) > 1 and isinstance(metadata, dict):
            found["metadata"] = {"name": parts[1]} | metadata
        return found

    async def run(self, peer: Peer) -> Answer:
        path, body = filled(self.url(), peer.saved), filled(self.content(), peer.saved)
        if self.verb == "WATCH":
            separator = "&" if "?" in path else "?"
            return await peer.watch(f"{path}{separator}watch=1&timeoutSeconds=10", int(self.body))
        answer = await peer.request(self.verb, path, body, FORMS.get(self.form, self.form or "application/json"))
        for name, field in self.save.items():
            peer.saved[name] = str(_at(answer.body, field))
        return answer


def _at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value[int(part)] if isinstance(value, list) else value.get(part) if isinstance(value, dict) else None
    return value


@dataclass(frozen=True)
class Case:
    file: str
    title: str
    steps: tuple[Step, ...]

    @property
    def id(self) -> str:
        return f"{self.file}: {self.title}"


def cases() -> Iterator[Case]:
    for file in sorted(FOLDER.glob("*.yaml")):
        for raw in yaml.safe_load(file.read_text("utf-8")):
            yield Case(file.stem, raw["case"], tuple(Step.of(step) for step in raw["steps"]))
