"""What a member's server means when it refuses: for whom it is news, what to do about it, and when to try again. Pure."""

from __future__ import annotations

from typing import NamedTuple

from metaos.resources.errors import ApiError

#: A manifest that is wrong is tried again after this long: what it lacks may have come.
INVALID_SECONDS = 60.0
MAX_MESSAGE = 1024


#: How etcd, a disk and NEMO's own store say that they are full.
_FULL = ("database space exceeded", "no space left on device", "no space is left")


class Refusal(NamedTuple):
    """``seconds``: when to try again; ``None``: by the usual back-off (up to a minute)."""

    reason: str
    message: str
    seconds: float | None = None


def refusal_of(error: ApiError) -> Refusal:
    """One manifest's refusal. That of a server which cannot be reached (503), or that throttles (429), is all manifests'."""
    said = error.message[:MAX_MESSAGE]
    if error.code == 409 and any(c.get("reason") == "FieldManagerConflict" for c in error.details.get("causes") or ()):
        return Refusal("Conflict", f"another writer has fields of it: {said}", INVALID_SECONDS)
    if any(words in error.message for words in _FULL):
        return Refusal("StorageFull", f"the cluster's own store is full: {said}; compact it, or delete something there")
    if "field not declared in schema" in error.message:
        return Refusal("Invalid", f"this server does not know a field of it: {said}", INVALID_SECONDS)
    if "admission webhook" in error.message or "failed calling webhook" in error.message:
        return Refusal("RefusedByWebhook", said)
    if error.code in (400, 413, 415) or error.code == 422:
        fixed = "immutable" in error.message or "updates to statefulset spec" in error.message
        remedy = "; such a field is set once and for all: delete and apply it anew" if fixed else ""
        return Refusal("Invalid", said + remedy, INVALID_SECONDS)
    match error.code:
        case 401:
            return Refusal("Unauthorized", f"the cluster does not accept the kubeconfig's credentials: {said}")
        case 403:
            return Refusal("Forbidden", said)
        case 404:
            return Refusal("NotFound", said)
        case 409:
            return Refusal("Conflict", said)
        case 429:
            return Refusal("Throttled", said)
        case 503:
            return Refusal("Unreachable", said)
    return Refusal("ServerError", said)
