"""Writes ``metaos/apiserver/protobuf.json``: the protobuf field numbers of native kinds, from Kubernetes' own Go types.

    python tools/protobuf_fields.py API APIMACHINERY > metaos/apiserver/protobuf.json

API and APIMACHINERY are checkouts of k8s.io/api and k8s.io/apimachinery (Apache-2.0). Their struct tags carry number and
JSON name of each field; the Go types say what a ``.proto`` file does not: which fields are pointers (so that a zero is
meant) and which structs are inlined in JSON.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

PACKAGES = {
    "core.v1": "core/v1",
    "apps.v1": "apps/v1",
    "batch.v1": "batch/v1",
    "coordination.v1": "coordination/v1",
    "discovery.v1": "discovery/v1",
    "certificates.v1": "certificates/v1",
    "rbac.v1": "rbac/v1",
    "authorization.v1": "authorization/v1",
    "authentication.v1": "authentication/v1",
    "policy.v1": "policy/v1",
    "autoscaling.v1": "autoscaling/v1",
    "autoscaling.v2": "autoscaling/v2",
    "networking.v1": "networking/v1",
    "storage.v1": "storage/v1",
    "admissionregistration.v1": "admissionregistration/v1",
}
#: Kinds whose bodies clients send beside those that are stored.
EXTRA = ("authentication.v1.TokenRequest", "meta.v1.DeleteOptions", "autoscaling.v1.Scale", "policy.v1.Eviction")
ALIASES = {"metav1": "meta.v1", "v1": "core.v1", "corev1": "core.v1", "apiv1": "core.v1"}
SPECIAL = {
    "meta.v1.Time": "time",
    "meta.v1.MicroTime": "microtime",
    "meta.v1.FieldsV1": "raw",
    "runtime.RawExtension": "raw",
    "resource.Quantity": "quantity",
    "intstr.IntOrString": "intOrString",
    "types.UID": "string",
    "types.NodeName": "string",
}
SCALARS = {
    "string": "string",
    "bool": "bool",
    "int32": "int",
    "int64": "int",
    "uint32": "int",
    "byte": "int",
    "float64": "double",
}
STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.M | re.S)
NAMED = re.compile(r"^type (\w+) ([\w.\[\]*]+)$", re.M)
FIELD = re.compile(r'^\t(?:(\w+)\s+)?([\w.\[\]*]+)\s+`json:"([^"]*)"[^`]*? protobuf:"([^"]*)"')


def parse(sources: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Struct bodies and named types by qualified name."""
    structs: dict[str, str] = {}
    named: dict[str, str] = {}
    for package, text in sources.items():
        structs |= {f"{package}.{name}": body for name, body in STRUCT.findall(text)}
        named |= {f"{package}.{name}": target for name, target in NAMED.findall(text)}
    return structs, named


class Types:
    def __init__(self, sources: dict[str, str]) -> None:
        self.structs, self.named = parse(sources)

    def resolve(self, go: str, package: str) -> tuple[str, str, str]:
        """A Go type as (type, flags, package of a named type)."""
        if go.startswith("*"):
            kind, flags = self.resolve(go[1:], package)[:2]
            return kind, flags + "p", package
        if go == "[]byte":
            return "bytes", "", package
        if go.startswith("[]"):
            return self.resolve(go[2:].lstrip("*"), package)[0], "r", package
        if go.startswith("map["):
            value = go[go.index("]") + 1 :]
            kind, flags = self.resolve(value, package)[:2]
            return ("list" if "r" in flags else kind), "m", package
        if go in SCALARS:
            return SCALARS[go], "", package
        prefix, _, name = go.rpartition(".")
        where = ALIASES.get(prefix, prefix) if prefix else package
        if prefix == "v1" and package == "core.v1":
            where = "meta.v1"
        full = f"{where}.{name}"
        if full in SPECIAL:
            return SPECIAL[full], "", where
        if full in self.named:
            return self.resolve(self.named[full], where)
        return full, "", where

    def fields(self, name: str) -> dict[str, list[str]]:
        package = name.rpartition(".")[0]
        found: dict[str, list[str]] = {}
        for line in self.structs[name].splitlines():
            match = FIELD.match(line)
            if match is None:
                continue
            _, go, tag, proto = match.groups()
            json_name, *options = tag.split(",")
            number = proto.split(",")[1]
            kind, flags, _ = self.resolve(go, package)
            if "." in kind and kind not in self.structs:
                continue  # Of an alpha group that is not served.
            if not json_name or "inline" in options:
                flags += "i"
            found[number] = [json_name, kind, flags]
        return found


def main(api: Path, machinery: Path) -> None:
    from metaos.apiserver.schema import definition_name
    from metaos.resources.scheme import KINDS

    sources = {package: (api / folder / "types.go").read_text() for package, folder in PACKAGES.items()}
    sources["meta.v1"] = (machinery / "pkg/apis/meta/v1/types.go").read_text()
    types = Types(sources)
    roots = [definition_name(kind).removeprefix("io.k8s.api.") for kind in KINDS if kind.group != "meta-os.eu"]
    waiting = [*roots, *EXTRA]
    messages: dict[str, Any] = {}
    while waiting:
        name = waiting.pop()
        if name not in messages and name in types.structs:
            messages[name] = types.fields(name)
            waiting += [kind for _, kind, _ in messages[name].values()]
    print(json.dumps(dict(sorted(messages.items())), separators=(",", ":")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
