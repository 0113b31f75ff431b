"""The objects that a PlacementReview brings, held to what is asked of objects that are stored. Pure."""

from __future__ import annotations

from typing import Any

from metaos.apiserver.schema import required
from metaos.apiserver.shaping import shape, validate
from metaos.resources import scheme
from metaos.resources.errors import ApiError, Cause, invalid
from metaos.resources.meta import Obj

#: What a plan follows from; everything else is passed over, as is a pod that has its site.
KINDS = (*scheme.WORKLOADS, scheme.INTENT, scheme.PLACEMENT_POLICY)


def supposed(review: Obj) -> Obj:
    """The review with those of its objects that matter, in the shape of their schemas and with defaults. Raises ``ApiError``
    422 with the first object that is wrong."""
    spec: dict[str, Any] = review["spec"]
    found = []
    for at, obj in enumerate(spec.get("objects") or ()):
        kind = scheme.by_kind(str(obj.get("apiVersion")), str(obj.get("kind")))
        if kind in KINDS and not (kind is scheme.POD and _bound(obj)):
            assert kind is not None
            found.append(_shaped(kind, obj, f"spec.objects[{at}]"))
    return {**review, "spec": {**spec, "objects": found}}


def _bound(pod: Obj) -> bool:
    spec = pod.get("spec")
    return isinstance(spec, dict) and bool(spec.get("nodeName"))


def _shaped(kind: scheme.Kind, obj: Obj, path: str) -> Obj:
    try:
        shaped = shape(kind, obj, None, "Ignore", [])
        validate(kind, shaped, None)
    except ApiError as error:
        raise _invalid([Cause("FieldValueInvalid", path, error.message)]) from None
    if not shaped["metadata"].get("namespace"):
        raise _invalid([required(f"{path}.metadata.namespace", f"a {kind.kind} is in a namespace")])
    return shaped


def _invalid(causes: list[Cause]) -> ApiError:
    kind = scheme.PLACEMENT_REVIEW
    return invalid(kind.group, kind.kind, "", causes)
