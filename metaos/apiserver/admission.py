"""NEMO's own admission rule: a warning for every field that no member can honour. A plugin as any other.

The fields are data: ``unsupported.yaml``. A field that is not in the table is honoured, or is harmless where it is not.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import yaml

from metaos.apiserver.schema import Node, node_of
from metaos.resources import scheme
from metaos.resources.meta import Obj, annotations, controller_of
from metaos.resources.workload import GUEST_CLASS, GUEST_LIMITS, REPLICA_SET_NOT_RUN, guest_limit, pod_template
from metaos.scheduler import slack
from metaos.scheduler.slack import LEAST, SUSPENDABLE, WAITING

#: Kinds that users write. What agents and controllers report is not warned about.
KINDS = frozenset(
    (
        *scheme.WORKLOADS,
        *(scheme.REPLICA_SET, scheme.SERVICE, scheme.PERSISTENT_VOLUME_CLAIM, scheme.PERSISTENT_VOLUME),
        *(scheme.INGRESS, scheme.INGRESS_CLASS, scheme.NETWORK_POLICY, scheme.STORAGE_CLASS, scheme.PRIORITY_CLASS),
    )
)


@cache
def table() -> Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]:
    """Definition → field → rules: ``message``, and ``is`` or ``isNot`` (a value or a list of values) where it depends."""
    found = yaml.safe_load((resources.files(__package__) / "unsupported.yaml").read_text("utf-8"))
    return {
        f"io.k8s.api.{name}": {
            field: rule if isinstance(rule, list) else [{"message": rule} if isinstance(rule, str) else rule]
            for field, rule in fields.items()
        }
        for name, fields in found.items()
    }


class UnsupportedFields:
    """Accepts everything, and says what will not be honoured."""

    def admit(self, operation: str, obj: Obj, old: Obj | None) -> tuple[Obj, Sequence[str]]:
        kind = scheme.by_kind(str(obj.get("apiVersion")), str(obj.get("kind")))
        if kind is None or kind not in KINDS or operation == "DELETE":
            return obj, ()
        spec = obj.get("spec") or {}
        written = {k: v for k, v in obj.items() if k not in ("apiVersion", "kind", "metadata", "status")}
        said = list(slack.warnings(obj, old)) if kind in (scheme.JOB, scheme.CRON_JOB) else []
        if old is not None and all(old.get(k) == v for k, v in written.items()):
            return obj, said
        if kind is scheme.POD and spec.get("nodeName"):
            return obj, ()  # A mirror of what runs already.
        return obj, [*_found(node_of(kind), written, "", table()), *_unheard(obj), *_not_run(obj), *_guest(obj), *said]


def _not_run(obj: Obj) -> Iterator[str]:
    if obj.get("kind") == "ReplicaSet" and controller_of(obj) is None:
        yield REPLICA_SET_NOT_RUN


def _guest(obj: Obj) -> Iterator[str]:
    """Limits of WebAssembly that are none, or not looked at."""
    template = pod_template(obj)
    told = annotations(template)
    for key in sorted(each for each in told if each.startswith("wasm.meta-os.eu/")):
        where = f"annotation {key} of the pods"
        if key not in GUEST_LIMITS:
            yield f"{where}: there is no such limit: known are {' and '.join(GUEST_LIMITS)}"
            continue
        if (template.get("spec") or {}).get("runtimeClassName") != GUEST_CLASS:
            yield f"{where}: it limits pods with runtimeClassName: {GUEST_CLASS} only"
        try:
            guest_limit(told, key)
        except ValueError as wrong:
            yield f"{where}: their containers will not start: {wrong}"


def _unheard(obj: Obj) -> Iterator[str]:
    """Annotations about waiting on what does not wait: only Jobs do, and the runs of CronJobs."""
    if obj.get("kind") == "Job":
        return
    remedy = "say it in spec.jobTemplate.metadata" if obj.get("kind") == "CronJob" else f"this {obj.get('kind')} does not"
    for key in WAITING:
        if key in annotations(obj):
            yield f"metadata.annotations[{key}]: only Jobs wait for cleaner electricity; {remedy}"
    template = (obj.get("spec") or {}).get("jobTemplate") or {}
    for key in (SUSPENDABLE, LEAST):
        if key in annotations(template):
            yield f"spec.jobTemplate.metadata.annotations[{key}]: runs of a CronJob are started later, and not paused"


def _found(node: Node, value: Any, path: str, rules: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Iterator[str]:
    if node.kind == "object" and isinstance(value, dict):
        limited = rules.get(node.name, {})
        for key, child in value.items():
            for rule in limited.get(key, ()):
                if _applies(rule, child):
                    yield f"{path}.{key}: {rule['message']}" if path else f"{key}: {rule['message']}"
            schema = node.properties.get(key)
            if schema is not None and schema.kind in ("object", "array"):
                yield from _found(schema, child, f"{path}.{key}" if path else key, rules)
    elif node.kind == "array" and node.item is not None and isinstance(value, list):
        for i, item in enumerate(value):
            yield from _found(node.item, item, f"{path}[{i}]", rules)


def _applies(rule: Mapping[str, Any], value: Any) -> bool:
    if value in (None, False, "", [], {}):
        return False
    if "is" in rule:
        wanted = rule["is"] if isinstance(rule["is"], list) else [rule["is"]]
        return any(value == one or (isinstance(value, list) and one in value) for one in wanted)
    if "isNot" in rule:
        return value not in (rule["isNot"] if isinstance(rule["isNot"], list) else [rule["isNot"]])
    return True
