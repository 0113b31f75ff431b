"""What components send over which links by decision, kept up to date workload by workload.

Like ``usage``, no truth of its own: it follows from Intents and Placements, and is worked out again for a workload when one of
its own changed. Only who looks makes it be worked out.
"""

from __future__ import annotations

from collections.abc import Callable

from metaos.resources.meta import ObjectRef
from metaos.resources.snapshot import ClusterInfo, WorkloadInfo
from metaos.resources.traffic import sending, sends

Way = tuple[str, str]


class Flows:
    """``read``: a workload with where it is and where its peers are; ``None`` where it is gone or nowhere. ``site``: one by name.
    Bounded by the workloads that send something."""

    def __init__(self, read: Callable[[ObjectRef], WorkloadInfo | None], site: Callable[[str], ClusterInfo | None]) -> None:
        self._read, self._site = read, site
        self._senders: dict[ObjectRef, WorkloadInfo] = {}
        self._stale: set[ObjectRef] = set()

    def changed(self, about: ObjectRef) -> None:
        """A workload, its place or what is stated of it may be another one."""
        self._stale.add(about)

    def others(self, about: ObjectRef) -> dict[Way, float]:
        """Bytes a second by (from site, to site), of everything that this workload has no part in."""
        stale, self._stale = self._stale, set()
        peers = {owner for owner, found in self._senders.items() if any(e.ref in stale for e in found.traffic)}
        for one in sorted(stale | peers):
            found = self._read(one)
            if found is not None and found.current and sends(found):
                self._senders[one] = found
            else:
                self._senders.pop(one, None)
        total: dict[Way, float] = {}
        for owner, found in self._senders.items():
            for way, amount in (sending(found, self._site, about) if owner != about else {}).items():
                total[way] = total.get(way, 0.0) + amount
        return total
