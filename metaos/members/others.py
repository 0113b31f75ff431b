"""What runs at the cluster beside the federation: its requests take room that the hub must not count on.

Every pod with a node is followed, in all namespaces, and of each only its node and its requests are kept. Bound: the pods of the
cluster.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Set

from metaos.agent.contact import Follower
from metaos.client import ObjList, WatchEvent
from metaos.clock import Clock
from metaos.members.member import Member
from metaos.resources import workload
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, uid
from metaos.resources.scheme import POD

#: Resource → milli-CPU, bytes, pods or whole devices.
Taken = Counter[str]


class OtherPods:
    """``problem`` says why they are not known; empty where they are."""

    def __init__(self, member: Member, clock: Clock) -> None:
        self._pods: dict[str, tuple[str, Taken]] = {}
        self.problem = "the cluster's pods have not been read yet"
        self.follower = Follower(
            member.client,
            member.contact,
            clock,
            POD,
            fields="spec.nodeName!=",
            on_list=self._replace,
            on_event=self._see,
            on_error=self._miss,
        )

    def by_node(self, ours: Set[str]) -> dict[str, Taken]:
        """What pods take that are not ``ours`` (by uid)."""
        found: defaultdict[str, Taken] = defaultdict(Counter)
        for key, (node, taken) in self._pods.items():
            if key not in ours:
                found[node].update(taken)
        return dict(found)

    def _replace(self, found: ObjList) -> None:
        self._pods, self.problem = {}, ""
        for pod in found.items:
            self._keep(pod)

    def _see(self, event: WatchEvent) -> None:
        if event.type == "DELETED":
            self._pods.pop(uid(event.object), None)
        else:
            self._keep(event.object)

    def _keep(self, pod: Obj) -> None:
        taken = taken_by(pod)
        if taken is None:
            self._pods.pop(uid(pod), None)
        else:
            self._pods[uid(pod)] = taken

    def _miss(self, error: ApiError) -> None:
        if error.code != 410:
            self.problem = f"what else runs at the cluster cannot be read, so its room is counted as free: {error.message}"


def taken_by(pod: Obj) -> tuple[str, Taken] | None:
    """A pod's node and requests; ``None`` of one that takes nothing of a node (any more)."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    node = str(spec.get("nodeName") or "")
    if not node or status.get("phase") in ("Succeeded", "Failed"):
        return None
    try:
        asked = workload.requests(spec) | dict(workload.device_requests(spec))
    except ValueError:
        asked = {}  # a server of another time may write quantities that are not known here
    return node, Counter(asked | {"pods": 1})
