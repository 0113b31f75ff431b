"""What the code says of itself, for the pictures: layers and imports, kinds, controllers, processes and their connections."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from metaos.controllers import all_setups
from metaos.controllers.settings import Settings
from metaos.resources import scheme
from metaos.resources.scheme import Kind

ROOT = Path(__file__).resolve().parents[1]
CODE = ROOT / "metaos"


@cache
def tree(path: str) -> ast.Module:
    """A module of ``metaos`` by its path."""
    return ast.parse((CODE / path).read_text())


def modules() -> Iterator[Path]:
    return (p for p in sorted(CODE.rglob("*.py")) if "__pycache__" not in p.parts)


def part_of(path: Path) -> str:
    """The name below ``metaos`` that a module belongs to: ``apiserver``, ``tunnel``."""
    return path.relative_to(CODE).parts[0].removesuffix(".py")


# -- layers ------------------------------------------------------------------------------------------------


def layers() -> list[list[str]]:
    """From the top down; those in one layer may not know each other. From import-linter's contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    contract = next(c for c in settings if c["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


@cache
def parts() -> dict[str, str]:
    """Part → what it is for, by its own first sentence; the empty ones left out."""
    full = {part_of(path) for path in modules() if path.parent != CODE and len(path.read_text().splitlines()) > 1}
    found = {}
    for name in [name for layer in layers() for name in layer]:
        path = f"{name}/__init__.py" if (CODE / name).is_dir() else f"{name}.py"
        if name in full or path == f"{name}.py":
            text = " ".join((ast.get_docstring(tree(path)) or "").partition("\n\n")[0].replace("`", "").split())
            found[name] = text.partition(". ")[0].rstrip(".").removeprefix(f"{name}: ")
    return found


def imports() -> set[tuple[str, str]]:
    """(part, part that it imports)."""
    found: set[tuple[str, str]] = set()
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [f"{node.module}.{a.name}" for a in node.names] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                parts = name.split(".")
                if parts[0] == "metaos" and len(parts) > 1 and _is_part(parts[1]) and parts[1] != part_of(path):
                    found.add((part_of(path), parts[1]))
    return found


def _is_part(name: str) -> bool:
    return (CODE / name).is_dir() or (CODE / f"{name}.py").exists()


# -- kinds and controllers ---------------------------------------------------------------------------------


def kinds() -> dict[str, list[Kind]]:
    """API group → its kinds."""
    found: dict[str, list[Kind]] = {}
    for value in vars(scheme).values():
        if isinstance(value, Kind):
            held = found.setdefault(value.group or "core", [])
            held += [value] if value not in held else []
    return found


@dataclass
class Controller:
    """``watches``: a change of one leads to work; ``reads``: what it looks up besides; ``writes``."""

    name: str
    what: str
    watches: set[str] = field(default_factory=set)
    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)


class _Anything:
    """Stands for what a controller is given and does not need while it is set up."""

    def __getattr__(self, name: str) -> Any:
        return _Anything()

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        return _Anything()

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class _Informer(_Anything):
    def __init__(self, kind: Kind, found: Controller) -> None:
        self._kind, self._found = kind, found

    def on_change(self, callback: Callable[..., None]) -> None:
        self._found.watches.add(self._kind.kind)


class _Manager(_Anything):
    """Writes down what a controller asks a manager for."""

    def __init__(self, found: Controller) -> None:
        self._found = found

    def informer(self, kind: Kind, *_: Any, **_more: Any) -> _Informer:
        self._found.reads.add(kind.kind)
        return _Informer(kind, self._found)

    def add(self, reconciler: Any, watched: list[tuple[Kind, Any]], **_: Any) -> None:
        self._found.watches.update(kind.kind for kind, _ in watched)


#: Kinds of objects that modules write without naming them in the call. A test holds which modules do.
HANDED = {
    "cluster": {"Namespace", "Pod"},
    "certificate": {"CertificateSigningRequest", "Secret"},
    "placement": {"Placement"},
    "work": {"Work"},
    "status": {kind.kind for kind in (*scheme.WORKLOADS, scheme.PERSISTENT_VOLUME_CLAIM)},
    "service": {"EndpointSlice", "Work"},
    "serviceexport": {"ServiceExport", "ServiceImport", "Work"},
    "loadbalancer": {"Service"},
    "networkpolicy": {"Work"},
    "intent": {"Intent"},
    "carbon": {"ConfigMap"},
    "accounting": {"Booking"},
    "backup": {"BackupSchedule", "Work"},
    "attestation": set(),
    "cronjob": {"Job"},
    "definition": {"CustomResourceDefinition"},
    "namespace": {"Namespace"},
    "garbage": set(),
    "event": {"Event", "CertificateSigningRequest"},
    "restored": {"ConfigMap", "Work"},
    "revisions": {"ReplicaSet", "ControllerRevision"},
    "disruption": {"PodDisruptionBudget"},
    "deviceworkload": {"Deployment", "DeviceSet"},
    "autoscaling": {"HorizontalPodAutoscaler", "Deployment", "StatefulSet"},
}
_WRITES = {"create", "update", "patch", "delete", "delete_collection"}


def hands_over(name: str) -> bool:
    """Whether a controller's module writes an object whose kind does not stand in the call."""
    return any(not set(_named_kinds(call)) for call in _client_calls(name))


def _client_calls(name: str) -> Iterator[ast.Call]:
    for part in (name, *_lent(name)):
        for node in ast.walk(tree(f"controllers/{part}.py")):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _WRITES:
                owner = node.func.value
                if {getattr(owner, "attr", ""), getattr(owner, "id", "")} & {"client", "_client"}:
                    yield node


def _lent(name: str) -> list[str]:
    """Modules beside it that write for it, what records events apart."""
    known = {setup.__module__.rpartition(".")[2] for setup in all_setups()} | {"recorder"}
    found = [
        n.module.rpartition(".")[2] for n in tree(f"controllers/{name}.py").body if isinstance(n, ast.ImportFrom) and n.module
    ]
    return [part for part in found if part not in known and (CODE / f"controllers/{part}.py").exists()]


def _named_kinds(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "scheme":
            kind = getattr(scheme, part.attr, None)
            if isinstance(kind, Kind):
                yield kind.kind


@cache
def controllers() -> tuple[Controller, ...]:
    """What a hub runs, in its order. Each is set up with a manager that only writes down what it is asked for."""
    found = []
    for setup in all_setups():
        module = import_module(setup.__module__)
        name = module.__name__.rpartition(".")[2]
        one = Controller(name, (module.__doc__ or "").strip().splitlines()[0].partition(": ")[2])
        setup(_Manager(one), _Anything(), _Anything(), Settings(sign=lambda: b"", carbon=_Anything(), fleet=_Anything()))  # type: ignore[arg-type]
        for call in _client_calls(name):
            one.writes.update(_named_kinds(call))
        one.writes |= HANDED.get(name, set())
        if any(isinstance(n, ast.Name) and n.id == "Recorder" for n in ast.walk(tree(f"controllers/{name}.py"))):
            one.writes.add("Event")
        one.reads -= one.watches
        found.append(one)
    return tuple(found)


# -- processes ---------------------------------------------------------------------------------------------


def agent_parts() -> list[str]:
    """What an agent runs side by side: ``presence.keep_lease``."""
    for node in ast.walk(tree("agent/agent.py")):
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "parts" and isinstance(node.value, ast.List):
            return _called(node.value) + _connection_parts()
    raise LookupError("agent/agent.py has no list of parts any more")


def _called(found: ast.List) -> list[str]:
    return [ast.unparse(call.func).removeprefix("self.").lstrip("_") for call in found.elts if isinstance(call, ast.Call)]


def _connection_parts() -> list[str]:
    for node in ast.walk(tree("agent/connection.py")):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.List):
            return _called(node.value)
    raise LookupError("agent/connection.py has no list of parts any more")


def tasks(*paths: str) -> list[str]:
    """Names that tasks are given in these modules, and what a loop over them names."""
    found: list[str] = []
    for path in paths:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "create_task":
                found += [k.value.value for k in node.keywords if k.arg == "name" and isinstance(k.value, ast.Constant)]
            if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple) and "create_task" in ast.dump(node):
                pairs = [pair.elts[0] for pair in node.iter.elts if isinstance(pair, ast.Tuple)]
                found += [name.value for name in pairs if isinstance(name, ast.Constant)]
    return sorted(set(map(str, found)))


def streams() -> list[str]:
    """Types of streams that an agent serves to its hub."""
    found = []
    for node in ast.walk(tree("agent/remote.py")):
        if isinstance(node, ast.Compare) and getattr(node.left, "id", "") == "kind":
            found += [c.value for c in node.comparators if isinstance(c, ast.Constant)]
    return sorted(map(str, found))


def identity_commands() -> list[str]:
    """What the agent leaves to a process of its own."""
    for node in ast.walk(tree("agent/identity.py")):
        if isinstance(node, ast.Match):
            firsts = [case.pattern.patterns[0] for case in node.cases if isinstance(case.pattern, ast.MatchSequence)]
            return [f.value.value for f in firsts if isinstance(f, ast.MatchValue) and isinstance(f.value, ast.Constant)]
    raise LookupError("agent/identity.py has no commands any more")


def default_listen() -> str:
    """Where a hub serves unless told otherwise."""
    from metaos.cli.main import nemo

    return str(next(p.default for p in nemo.commands["up"].params if p.name == "listen"))
