"""Objects as plain JSON dictionaries, and the metadata that every kind shares.

An object in NEMO is what came over the wire: a ``dict`` in the shape of its Kubernetes schema. These functions
read and write the common parts. Source: Kubernetes API conventions.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

Obj = dict[str, Any]

GROUP = "meta-os.eu"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
#: Namespaces that begin so belong to NEMO: ``nemo-system`` and one ``nemo-cluster-NAME`` per member.
RESERVED_PREFIX = "nemo-"
SYSTEM_NAMESPACE = "nemo-system"
#: A ConfigMap in it, there as long as a restored hub is not sure of what runs; and the Work by which a site shows what it knows.
RESTORED = "nemo-restored"
CLUSTER_NAMESPACE_PREFIX = "nemo-cluster-"

ANNOTATION_PREFIX = "meta-os.eu/"
#: On a Work: the site shall stop serving this workload, its replacement is healthy (value: RFC 3339 time).
DRAINING = "meta-os.eu/draining"
#: On a Pod mirror: it was evicted (``kubectl drain``); its site is to be left.
EVICTED = "meta-os.eu/evicted"
#: On a Pod mirror that is being deleted: it was evicted from a site that takes others, when.
DISRUPTED = "meta-os.eu/disrupted"
#: Reason and message of an evicted pod's condition ``DisruptionTarget``.
EVICTION = "EvictionByEvictionAPI", "Eviction API: evicting"
#: On an object of a Kubernetes cluster, by its owner: the hub may have it (value: ``true``). At the hub it says nothing.
ADOPT = "meta-os.eu/adopt"
#: On a Namespace: who pays for what runs in it; without it, the namespace's own name stands there.
OWNER = "meta-os.eu/owner"
#: On a Deployment and the ReplicaSets of its history: the number of the revision.
REVISION = "deployment.kubernetes.io/revision"
#: On anything that NEMO made for a site: the site's name.
CLUSTER_LABEL = "meta-os.eu/cluster"
#: On Works and rendered manifests: what they were rendered from, ``KIND.NAMESPACE.NAME`` in lower case.
SOURCE_LABEL = "meta-os.eu/source"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
#: Who keeps an EndpointSlice.
SLICE_MANAGER_LABEL = "endpointslice.kubernetes.io/managed-by"
#: The taint that the cluster controller sets.
TAINT_UNREACHABLE = "meta-os.eu/unreachable"


class ObjectRef(NamedTuple):
    """Which object: ``group`` is empty for core/v1, ``namespace`` is empty for cluster-wide kinds."""

    group: str
    kind: str
    namespace: str
    name: str


def cluster_namespace(cluster: str) -> str:
    """The namespace that holds a member's Works and Lease."""
    return CLUSTER_NAMESPACE_PREFIX + cluster


def ref(obj: Obj) -> ObjectRef:
    group, _, _ = obj.get("apiVersion", "").rpartition("/")
    return ObjectRef(group, obj.get("kind", ""), namespace(obj), name(obj))


def meta(obj: Obj) -> dict[str, Any]:
    found: dict[str, Any] = obj.setdefault("metadata", {})
    return found


def name(obj: Obj) -> str:
    return str(obj.get("metadata", {}).get("name") or "")


def namespace(obj: Obj) -> str:
    return str(obj.get("metadata", {}).get("namespace") or "")


def uid(obj: Obj) -> str:
    return str(obj.get("metadata", {}).get("uid") or "")


def labels(obj: Obj) -> dict[str, str]:
    return obj.get("metadata", {}).get("labels") or {}


def annotations(obj: Obj) -> dict[str, str]:
    return obj.get("metadata", {}).get("annotations") or {}


def generation(obj: Obj) -> int:
    return int(obj.get("metadata", {}).get("generation") or 0)


def resource_version(obj: Obj) -> str:
    return str(obj.get("metadata", {}).get("resourceVersion") or "")


def deleting(obj: Obj) -> bool:
    return bool(obj.get("metadata", {}).get("deletionTimestamp"))


def controller_of(obj: Obj) -> dict[str, Any] | None:
    """The owner reference with ``controller: true``."""
    for owner in obj.get("metadata", {}).get("ownerReferences") or ():
        if owner.get("controller"):
            return dict(owner)
    return None


def owner_reference(owner: Obj, *, controller: bool = True) -> dict[str, Any]:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": name(owner),
        "uid": uid(owner),
        "controller": controller,
        "blockOwnerDeletion": controller,
    }


def format_time(seconds: float, *, micro: bool = False) -> str:
    """Seconds since the epoch as RFC 3339 in UTC (``metav1.Time``, or ``MicroTime`` with six digits)."""
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds" if micro else "seconds")
    return text.removesuffix("+00:00") + "Z"


def parse_time(text: str) -> float:
    """RFC 3339 as seconds since the epoch."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def condition(obj: Obj, kind: str) -> dict[str, Any] | None:
    for found in obj.get("status", {}).get("conditions") or ():
        if found.get("type") == kind:
            return dict(found)
    return None


def is_true(obj: Obj, kind: str) -> bool:
    found = condition(obj, kind)
    return found is not None and found.get("status") == "True"


def with_condition(
    conditions: Iterable[Mapping[str, Any]], kind: str, status: str, reason: str, message: str, now: float
) -> list[dict[str, Any]]:
    """``conditions`` with one set; ``lastTransitionTime`` changes only if the status does."""
    result = [dict(c) for c in conditions if c.get("type") != kind]
    before = next((c for c in conditions if c.get("type") == kind), None)
    since = before.get("lastTransitionTime") if before and before.get("status") == status else None
    result.append(
        {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since or format_time(now)}
    )
    return sorted(result, key=lambda c: str(c["type"]))


# -- selectors ---------------------------------------------------------------------------------------------

Predicate = Callable[[Mapping[str, str]], bool]
#: Of one selector, as each is asked of every object.
MAX_REQUIREMENTS = 64

_REQUIREMENT = re.compile(
    # No two runs of spaces stand side by side: a long one is gone through once.
    r"\s*(?:(?P<absent>!)\s*(?P<akey>[\w./-]+)|(?P<key>[\w./-]+)(?:\s*(?P<set>in|notin)\s*\((?P<values>[^)]*)\)"
    r"|\s*(?P<op>==|=|!=|>|<)(?:\s*(?P<value>[\w.:/@-]+))?)?)\s*(?:,|\Z)"
)


def parse_selector(text: str) -> Predicate:
    """A label or field selector as kubectl writes it (``a=b,c!=d,e in (f,g),!h``). Raises ``ValueError``."""
    tests: list[Predicate] = []
    position = 0
    while position < len(text):
        match = _REQUIREMENT.match(text, position)
        if match is None or match.end() == position:
            raise ValueError(f"unable to parse requirement: {text[position : position + 80]!r} in selector {text[:200]!r}")
        position = match.end()
        tests.append(_requirement(match))
        if len(tests) > MAX_REQUIREMENTS:
            raise ValueError(f"a selector may have {MAX_REQUIREMENTS} requirements: {text[:200]!r} has more")
    return lambda found: all(test(found) for test in tests)


def _requirement(match: re.Match[str]) -> Predicate:
    if match["absent"]:
        absent = match["akey"]
        return lambda found: absent not in found
    key = match["key"]
    if match["set"]:
        values = {v.strip() for v in match["values"].split(",")}
        if match["set"] == "in":
            return lambda found: key in found and found[key] in values
        return lambda found: found.get(key) not in values
    value = match["value"] or ""
    if match["op"] in ("=", "=="):
        return lambda found: key in found and found[key] == value
    if match["op"] == "!=":
        return lambda found: found.get(key) != value
    if match["op"] in (">", "<"):
        more = match["op"] == ">"
        return lambda found: key in found and _exceeds(found[key], value, more)
    return lambda found: key in found


def _exceeds(left: str, right: str, more: bool) -> bool:
    try:
        return int(left) > int(right) if more else int(left) < int(right)
    except ValueError:
        return False


def label_selector(selector: Mapping[str, Any] | None) -> Predicate:
    """A ``metav1.LabelSelector``. ``None`` selects nothing, an empty one everything."""
    if selector is None:
        return _nothing
    rules = tuple((r["key"], r["operator"], frozenset(r.get("values") or ())) for r in selector.get("matchExpressions") or ())
    return _LabelSelector(selector.get("matchLabels") or {}, rules)


def _nothing(found: Mapping[str, str]) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class _LabelSelector:
    """A class of its own, so that a snapshot with one in it can go to another process."""

    wanted: Mapping[str, str]
    rules: tuple[tuple[str, str, frozenset[str]], ...]

    def __call__(self, found: Mapping[str, str]) -> bool:
        return all(found.get(k) == v for k, v in self.wanted.items()) and all(
            match_expression(found, key, operator, values) for key, operator, values in self.rules
        )


def match_expression(found: Mapping[str, str], key: str, operator: str, values: Set[str]) -> bool:
    """One ``matchExpressions`` entry, of label selectors and of node selectors (``Gt``, ``Lt``)."""
    if operator == "In":
        return key in found and found[key] in values
    if operator == "NotIn":
        return found.get(key) not in values
    if operator == "Exists":
        return key in found
    if operator == "DoesNotExist":
        return key not in found
    if operator in ("Gt", "Lt"):
        return key in found and _exceeds(found[key], next(iter(values), ""), operator == "Gt")
    raise ValueError(f"selector operator {operator!r} must be one of In, NotIn, Exists, DoesNotExist, Gt, Lt")
