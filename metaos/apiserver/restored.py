"""The mark that a restored state carries: a ConfigMap that the hub's controllers look for (``metaos.controllers.restored``)."""

from __future__ import annotations

import uuid

from metaos.apiserver.addressing import encode, key_of
from metaos.resources import scheme
from metaos.resources.meta import RESTORED, SYSTEM_NAMESPACE, Obj


def mark(revision: int, made: str) -> tuple[str, bytes]:
    """(Store key, value) of the mark in a state that begins at ``revision``, restored from a backup of the time ``made``."""
    obj: Obj = {
        **scheme.CONFIG_MAP.empty(RESTORED, SYSTEM_NAMESPACE),
        "data": {"phase": "Restored", "backup": made, "revision": str(revision)},
    }
    about = {"uid": str(uuid.UUID(int=revision, version=4)), "creationTimestamp": made}
    value = encode(obj | {"metadata": {**obj["metadata"], **about}})
    return key_of(scheme.CONFIG_MAP, SYSTEM_NAMESPACE, RESTORED), value
