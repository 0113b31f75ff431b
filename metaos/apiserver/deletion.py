"""What a delete request means for an object: gone at once, or marked and waiting. Pure.

Source: ``k8s.io/apiserver/pkg/registry/rest/delete.go`` and the garbage collector's finalizers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from metaos.resources import errors, scheme
from metaos.resources.definitions import FINALIZER
from metaos.resources.meta import Obj, deleting, format_time, name
from metaos.resources.scheme import Kind

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
PROPAGATION = ("", "Background", "Foreground", "Orphan")
DEFAULT_GRACE_SECONDS = 30
#: Kinds of which the answer to a delete is the object, also where it is gone at once; of others a Status.
SHOWN = frozenset(
    (
        *(scheme.POD, scheme.SERVICE, scheme.SERVICE_ACCOUNT, scheme.RESOURCE_QUOTA, scheme.NAMESPACE),
        *(scheme.STORAGE_CLASS, scheme.PERSISTENT_VOLUME, scheme.PERSISTENT_VOLUME_CLAIM),
    )
)
_PODS_FOLLOW = (scheme.DEPLOYMENT, scheme.STATEFUL_SET, scheme.DAEMON_SET, scheme.JOB)


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """``grace_period_seconds`` counts for Pods that are on a site only."""

    uid: str = ""
    resource_version: str = ""
    propagation: str = ""
    grace_period_seconds: int | None = None


def delete(kind: Kind, obj: Obj, options: DeleteOptions, now: float) -> Obj:
    """The object as it remains, or as it goes where it is ``finished``. Raises ``ApiError`` where preconditions do not hold."""
    if options.propagation not in PROPAGATION:
        raise errors.bad_request(
            f"invalid propagation policy {options.propagation!r}: must be one of Background, Foreground, Orphan"
        )
    metadata = obj["metadata"]
    if options.uid and options.uid != metadata.get("uid"):
        raise errors.conflict(
            kind.group,
            kind.kind,
            name(obj),
            f"the UID in the precondition ({options.uid}) does not match the UID in record ({metadata.get('uid')}). "
            "The object might have been deleted and then recreated",
        )
    if options.resource_version and options.resource_version != metadata.get("resourceVersion"):
        raise errors.conflict(
            kind.group,
            kind.kind,
            name(obj),
            f"the ResourceVersion in the precondition ({options.resource_version}) does not match the ResourceVersion in record "
            f"({metadata.get('resourceVersion')}). The object might have been modified",
        )
    if options.propagation == "Orphan" and kind in _PODS_FOLLOW:
        why = "its pods cannot outlive it: sites run what stands at the hub; to keep them, keep it and change it in place"
        raise errors.forbidden(kind.group, kind.plural, name(obj), f"propagationPolicy Orphan is not possible: {why}")
    left = copy.deepcopy(obj)
    metadata = left["metadata"]
    finalizers = [f for f in metadata.get("finalizers") or () if f not in (FOREGROUND, ORPHAN) or not options.propagation]
    if options.propagation == "Foreground":
        finalizers.append(FOREGROUND)
    elif options.propagation == "Orphan":
        finalizers.append(ORPHAN)
    if kind is scheme.CUSTOM_RESOURCE_DEFINITION and not deleting(obj) and FINALIZER not in finalizers:
        finalizers.append(FINALIZER)  # Its objects go first.
    metadata.pop("finalizers", None)
    if finalizers:
        metadata["finalizers"] = finalizers
    grace = _grace(kind, obj, options)
    if kind is scheme.NAMESPACE:
        left.setdefault("status", {})["phase"] = "Terminating"
    _mark(left, grace, now)
    return left


def _grace(kind: Kind, obj: Obj, options: DeleteOptions) -> int:
    if kind is not scheme.POD or not obj.get("spec", {}).get("nodeName"):
        return 0
    if (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    if options.grace_period_seconds is not None:
        return max(0, options.grace_period_seconds)
    wanted = obj["spec"].get("terminationGracePeriodSeconds")
    return DEFAULT_GRACE_SECONDS if wanted is None else int(wanted)


def _mark(obj: Obj, grace: int, now: float) -> None:
    metadata = obj["metadata"]
    if deleting(obj):
        # Once dying, the grace period can only become shorter.
        before = metadata.get("deletionGracePeriodSeconds") or 0
        if grace < before:
            metadata["deletionGracePeriodSeconds"] = grace
        return
    metadata["deletionTimestamp"] = format_time(now + grace)
    metadata["deletionGracePeriodSeconds"] = grace
    if metadata.get("generation"):
        metadata["generation"] += 1


def finished(kind: Kind, obj: Obj) -> bool:
    """A dying object that nothing waits for any more."""
    metadata = obj["metadata"]
    if not metadata.get("deletionTimestamp") or metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds"):
        return False
    return not (kind is scheme.NAMESPACE and (obj.get("spec") or {}).get("finalizers"))


def last(kind: Kind, obj: Obj, left: Obj) -> Obj | None:
    """How an object that is gone is shown: a Pod as it dies, others as they were. ``None``: not at all."""
    if kind not in SHOWN:
        return None
    return copy.deepcopy(left if kind is scheme.POD else obj)
