"""PriorityClass. Source: ``pkg/apis/scheduling/validation`` of Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator

from metaos.apiserver.schema import forbidden, invalid
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj, name

#: Higher ones are the system's.
HIGHEST = 1_000_000_000


def priority_class(obj: Obj, old: Obj | None) -> Iterator[Cause]:
    value, word = int(obj.get("value") or 0), name(obj)
    if word.startswith("system-"):
        text = "priority class names with 'system-' prefix are reserved for system use only. error: "
        yield forbidden("metadata.name", f"{text}{word} is not a known system priority class")
    elif value > HIGHEST:
        yield forbidden("value", f"maximum allowed value of a user defined priority is {HIGHEST}")
    if old is not None:
        if value != int(old.get("value") or 0):
            yield forbidden("value", "may not be changed in an update.")
        if obj.get("preemptionPolicy") != old.get("preemptionPolicy"):
            yield invalid("preemptionPolicy", obj.get("preemptionPolicy"), "field is immutable")
