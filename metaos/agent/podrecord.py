"""What is kept of a pod on disk, so that the next agent goes on where this one ended."""

from typing import Any

from metaos.resources.meta import Obj, uid


class PodRecord:
    """``value`` is plain JSON: pod, owner, ownerUid, hash, created, ordinal, and what happened."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value
        self.uid = uid(self.pod)

    @property
    def pod(self) -> Obj:
        found: Obj = self.value["pod"]
        return found

    @property
    def owner_key(self) -> tuple[str, str, str]:
        kind, where, owner = self.value["owner"]
        return str(kind), str(where), str(owner)

    @property
    def owner_uid(self) -> str:
        return str(self.value["ownerUid"])

    @property
    def deleting(self) -> bool:
        return "deletingSince" in self.value

    @property
    def grace(self) -> float:
        """Seconds that its containers get to end."""
        found = self.pod["spec"].get("terminationGracePeriodSeconds")
        return 30.0 if found is None else float(found)

    def of(self, part: str) -> dict[str, Any]:
        """A table by container: ``restarts``, ``backoff``, ``last``, ``began``, ``hooked``, ``images``."""
        found: dict[str, Any] = self.value.setdefault(part, {})
        return found
