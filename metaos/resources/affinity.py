"""Beside which pods a workload's pods want to be, and apart from which: what pod specs say of it, between sites. Pure.

Kubernetes' own words and their meaning there (``affinity`` and ``topologySpreadConstraints`` of a pod's spec), where a site
stands for the node: a topology key is a label of sites, and sites with one value of it are one domain. As there, required
anti-affinity binds both sides, and all of it is looked at when a place is chosen, not afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from metaos.resources.meta import Obj, ObjectRef, label_selector, match_expression, namespace, ref
from metaos.resources.workload import pod_spec, pod_template

if TYPE_CHECKING:
    from metaos.resources.snapshot import ClusterInfo

REQUIRED, PREFERRED = "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"
#: Words of an index of who keeps others away: any namespace, and any label.
ANY = "*"


@dataclass(frozen=True, slots=True)
class PodTerm:
    """Pods that a workload's pods shall be with in one domain of ``key``, or (``apart``) in none."""

    key: str
    #: In people's words: ``pods with app=db``.
    pods: str
    apart: bool = False
    #: 1 to 100 for a wish; 0: it is required.
    weight: float = 0.0
    #: Whether the workload's own pods are such pods.
    own: bool = False
    #: The other workload whose term this is, where it keeps this one away.
    by: str = ""
    #: Workloads that have such pods, without this one.
    refs: tuple[ObjectRef, ...] = ()
    #: The domains where they are decided to be.
    at: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SpreadTerm:
    """No domain of ``key`` has more than ``max_skew`` of the workload's pods over the one with the fewest. With fewer domains
    than ``min_domains`` the fewest counts as none."""

    key: str
    max_skew: int
    strict: bool
    min_domains: int = 1


@dataclass(frozen=True, slots=True)
class NodeWish:
    """A preferred term of node affinity; ``weight`` is 1 to 100."""

    term: Mapping[str, Any]
    weight: float


# -- of one workload ---------------------------------------------------------------------------------------


def spread_terms(obj: Obj) -> tuple[SpreadTerm, ...]:
    """Of the workload's own pods: a constraint that selects others is about no pod of this one."""
    mine = _pod_labels(obj)
    return tuple(
        SpreadTerm(
            str(raw.get("topologyKey") or ""),
            max(1, int(raw.get("maxSkew") or 1)),
            raw.get("whenUnsatisfiable") != "ScheduleAnyway",
            int(raw.get("minDomains") or 1),
        )
        for raw in pod_spec(obj).get("topologySpreadConstraints") or ()
        if label_selector(raw.get("labelSelector"))(mine)
    )


def node_wishes(obj: Obj) -> tuple[NodeWish, ...]:
    found = ((pod_spec(obj).get("affinity") or {}).get("nodeAffinity") or {}).get(PREFERRED) or ()
    return tuple(NodeWish(raw.get("preference") or {}, float(raw.get("weight") or 1)) for raw in found)


def pod_terms(
    obj: Obj,
    pods_in: Callable[[str], Iterable[Obj]],
    selected: Callable[[Mapping[str, Any]], Iterable[str]],
    repelling: Iterable[Obj] = (),
) -> tuple[PodTerm, ...]:
    """What a workload's pods say of others, and what ``repelling`` ones say of them. ``pods_in``: the workloads of a namespace;
    ``selected``: the namespaces that a selector of namespaces selects. Where those are is left open (see :func:`located`)."""
    about, mine = ref(obj), _pod_labels(obj)
    found = []
    for raw, apart, weight in _raw_terms(obj):
        selects, where = _selector(raw, mine), _namespaces(raw, obj, selected)
        refs = sorted({ref(o) for n in where for o in pods_in(n) if selects(_pod_labels(o))} - {about})
        own = about.namespace in where and selects(mine)
        found.append(PodTerm(str(raw.get("topologyKey") or ""), _words(raw, obj), apart, weight, own, refs=tuple(refs)))
    for other in repelling:
        for raw, apart, weight in _raw_terms(other) if ref(other) != about else ():
            if not apart or weight or about.namespace not in _namespaces(raw, other, selected):
                continue
            if _selector(raw, _pod_labels(other))(mine):
                by = f"{other['kind'].lower()}/{other['metadata']['name']}"
                found.append(PodTerm(str(raw.get("topologyKey") or ""), _words(raw, other), True, by=by, refs=(ref(other),)))
    return tuple(found)


def located(
    terms: tuple[PodTerm, ...],
    places: Callable[[ObjectRef], Mapping[str, int]],
    site: Callable[[str], ClusterInfo | None],
) -> tuple[PodTerm, ...]:
    """The terms with where those pods are. ``places``: site → replicas of a workload. Sites that are gone, or have no such label,
    are in no domain."""

    def at(term: PodTerm) -> frozenset[str]:
        sites = (site(name) for about in term.refs for name, count in places(about).items() if count)
        return frozenset(value for info in sites if info is not None and (value := info.labels.get(term.key)) is not None)

    return tuple(replace(term, at=at(term)) for term in terms)


def node_matches(term: Mapping[str, Any], cluster: ClusterInfo) -> bool:
    """Whether a site is as a term of a node affinity says."""
    rules = [(cluster.labels, r) for r in term.get("matchExpressions") or ()]
    rules += [({"metadata.name": cluster.name}, r) for r in term.get("matchFields") or ()]
    return bool(rules) and all(match_expression(at, r["key"], r["operator"], set(r.get("values") or ())) for at, r in rules)


# -- an index of who keeps others away ---------------------------------------------------------------------


def repels(obj: Obj) -> Iterable[str]:
    """The words under which a workload is found that keeps others away: ``namespace label=value``."""
    found = set()
    for raw, apart, weight in _raw_terms(obj):
        if apart and not weight:
            wanted = (raw.get("labelSelector") or {}).get("matchLabels") or {}
            label = next((f"{key}={value}" for key, value in sorted(wanted.items())), ANY)
            far = raw.get("namespaceSelector") is not None or raw.get("namespaces")
            found.add(f"{ANY if far else namespace(obj)} {label}")
    return sorted(found)


def repelled_by(obj: Obj) -> list[str]:
    """The words under which those may be found that keep this workload away."""
    mine = [ANY, *(f"{key}={value}" for key, value in sorted(_pod_labels(obj).items()))]
    return [f"{where} {label}" for where in (namespace(obj), ANY) for label in mine]


# -- reading pod specs -------------------------------------------------------------------------------------


def _pod_labels(obj: Obj) -> Mapping[str, str]:
    return (pod_template(obj).get("metadata") or {}).get("labels") or {}


def _raw_terms(obj: Obj) -> Iterator[tuple[Mapping[str, Any], bool, float]]:
    """(term, whether it is one of anti-affinity, weight)."""
    affinity = pod_spec(obj).get("affinity") or {}
    for word, apart in (("podAffinity", False), ("podAntiAffinity", True)):
        stated = affinity.get(word) or {}
        for raw in stated.get(REQUIRED) or ():
            yield raw, apart, 0.0
        for raw in stated.get(PREFERRED) or ():
            yield raw.get("podAffinityTerm") or {}, apart, float(raw.get("weight") or 1)


def _selector(raw: Mapping[str, Any], mine: Mapping[str, str]) -> Callable[[Mapping[str, str]], bool]:
    """With ``matchLabelKeys`` and ``mismatchLabelKeys``: keys that the own pods do not have say nothing."""
    stated = raw.get("labelSelector")
    keys = [(k, "In") for k in raw.get("matchLabelKeys") or ()] + [(k, "NotIn") for k in raw.get("mismatchLabelKeys") or ()]
    rules = [{"key": key, "operator": operator, "values": [mine[key]]} for key, operator in keys if key in mine]
    if stated is None or not rules:
        return label_selector(stated)
    return label_selector({**stated, "matchExpressions": [*(stated.get("matchExpressions") or ()), *rules]})


def _namespaces(raw: Mapping[str, Any], obj: Obj, selected: Callable[[Mapping[str, Any]], Iterable[str]]) -> set[str]:
    selector, named = raw.get("namespaceSelector"), set(raw.get("namespaces") or ())
    if selector is None:
        return named or {namespace(obj)}
    return named | set(selected(selector))


def _words(raw: Mapping[str, Any], obj: Obj) -> str:
    """``pods with app=db``; ``pods with tier in (a, b) of the namespace shop``."""
    selector = raw.get("labelSelector") or {}
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for rule in selector.get("matchExpressions") or ():
        values = f" ({', '.join(rule['values'])})" if rule.get("values") else ""
        parts.append(f"{rule['key']} {rule['operator']}{values}")
    named = sorted(raw.get("namespaces") or ())
    where = f" of {', '.join(named)}" if named and named != [namespace(obj)] else ""
    if raw.get("namespaceSelector") is not None:
        where = " of the selected namespaces"
    return f"pods with {' and '.join(parts)}{where}" if parts else f"pods{where}"
