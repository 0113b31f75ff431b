"""A Work's status as a Kubernetes member reports it: one entry per manifest, by kstatus, with the native status. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from metaos.members.health import CURRENT, FAILED, IN_PROGRESS, Health
from metaos.members.ownership import Live
from metaos.resources.meta import Obj, generation, name, namespace, ref, uid, with_condition

MAX_MESSAGE = 4096
#: So many manifests are named in a condition's message.
MAX_NAMED = 10


class Outcome(NamedTuple):
    """What came of the last attempt to apply a manifest. ``reason`` is empty where it went well."""

    digest: str
    reason: str = ""
    message: str = ""


class Seen(NamedTuple):
    """One manifest as the member has it. ``applied``: the server has taken it as it is now."""

    applied: bool
    outcome: Outcome | None
    live: Live | None
    skipped: bool = False
    #: What is said of it, where nothing of ours stands at the cluster.
    told: Mapping[str, Any] | None = None


Look = Callable[[Obj], Seen]


def work_status(work: Obj, old: Mapping[str, Any], look: Look, now: float) -> dict[str, Any]:
    """``Work.status``. The condition ``Applied`` says whether the server has taken every manifest, and why not;
    ``Available`` whether all of them are Current."""
    before = {(e.get("apiVersion"), e.get("kind"), e.get("namespace"), e.get("name")): e for e in old.get("manifests") or ()}
    entries: list[dict[str, Any]] = []
    refused, waiting, reasons = [], [], set()
    for manifest in (work.get("spec") or {}).get("manifests") or ():
        seen = look(manifest)
        label = f"{manifest.get('kind')} {f'{namespace(manifest)}/' if namespace(manifest) else ''}{name(manifest)}"
        key = str(manifest.get("apiVersion", "")), str(manifest.get("kind", "")), namespace(manifest), name(manifest)
        well = _health(seen)
        entry: dict[str, Any] = dict(zip(("apiVersion", "kind", "namespace", "name"), key, strict=True))
        entry |= {
            "uid": uid(manifest),
            "observedGeneration": _observed(manifest, seen, before.get(key) or {}),
            "status": dict(seen.live.status if seen.live is not None else seen.told or {}),
            "health": well.status,
        }
        if seen.outcome is not None and seen.outcome.reason:
            entry["reason"] = seen.outcome.reason
        if well.message:
            entry["message"] = well.message
        entries.append(entry)
        if not seen.applied:
            reasons.add(seen.outcome.reason if seen.outcome is not None and seen.outcome.reason else "NotApplied")
            refused.append(f"{label}: {well.message}")
        elif well.status != CURRENT:
            waiting.append(f"{label}: {well.message}")
    conditions = old.get("conditions") or []
    if refused:
        reason = reasons.pop() if len(reasons) == 1 else "NotApplied"
        conditions = with_condition(conditions, "Applied", "False", reason, _listed(refused), now)
    else:
        conditions = with_condition(conditions, "Applied", "True", "Applied", "", now)
    if refused or waiting:
        conditions = with_condition(conditions, "Available", "False", "NotAvailable", _listed([*refused, *waiting]), now)
    else:
        conditions = with_condition(conditions, "Available", "True", "Available", "", now)
    return {"observedGeneration": generation(work), "conditions": conditions, "manifests": entries}


def _health(seen: Seen) -> Health:
    if seen.skipped:
        return Health(CURRENT, "not carried to Kubernetes members")
    if seen.outcome is not None and seen.outcome.reason:
        waits = seen.outcome.reason in ("KindUnknown", "Waiting", "Unreachable", "Throttled")
        return Health(IN_PROGRESS if waits else FAILED, seen.outcome.message)
    if seen.live is None:
        return Health(CURRENT) if seen.applied else Health(IN_PROGRESS, "not applied yet")
    return seen.live.health


def _observed(manifest: Obj, seen: Seen, before: Mapping[str, Any]) -> int:
    """The hub's generation that the status is about: the manifest's own once the member's controllers have seen it."""
    if seen.applied and (seen.live is None or seen.live.observed):
        return generation(manifest)
    said = before.get("observedGeneration")
    same = before.get("uid") == uid(manifest) and isinstance(said, int) and seen.live is not None
    return min(int(said or 0), generation(manifest)) if same else 0


def _listed(texts: list[str]) -> str:
    more = f"; and {len(texts) - MAX_NAMED} more" if len(texts) > MAX_NAMED else ""
    return ("; ".join(texts[:MAX_NAMED]) + more)[:MAX_MESSAGE]


def about(manifest: Obj) -> str:
    """``Deployment shop/web``: for logs and messages."""
    found = ref(manifest)
    return f"{found.kind} {f'{found.namespace}/' if found.namespace else ''}{found.name}"
