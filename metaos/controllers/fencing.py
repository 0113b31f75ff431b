"""Fencing: work that must not run twice is started elsewhere only when its old site is known not to run it.

Known in one of two ways. A site that answers is told to run none of it and reports that nothing is left. A site that does
not answer stops the work by itself, the agreed time after the last heartbeat that was confirmed to it; the hub waits longer,
by its own monotonic clock and from the last change of the site's Lease that it saw, so no clock needs to be right. After a
start the hub knows nothing about before and waits the whole time.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from metaos.clock import Clock
from metaos.controllers.render import reported
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import CLUSTER_NAMESPACE_PREFIX, Obj, cluster_namespace, generation, name, namespace
from metaos.resources.reading import is_kubernetes
from metaos.resources.workload import grace_seconds, has_local_data


def fencing(obj: Obj, policies: Iterable[Obj], default: float, backed: bool = False) -> float | None:
    """After how many seconds without a heartbeat a site stops this work, so that it never runs twice; ``None``: it goes on.

    Work with local data is never replaced elsewhere, so it need not stop, unless it is ``backed`` (see
    ``metaos.controllers.recovery``); nor need a DaemonSet, which is everywhere.
    """
    if obj.get("kind") == "DaemonSet":
        return None
    for policy in policies:
        stated = ((policy.get("spec") or {}).get("fencing") or {}).get("afterSeconds")
        if stated is not None:
            return float(stated)
    local = has_local_data(obj)
    return default if (backed and local) or (obj.get("kind") == "StatefulSet" and not local) else None


def fences_itself(cluster: Obj) -> bool:
    """Whether a site stops work by itself when it hears nothing: a Kubernetes cluster goes on, whatever becomes of its agent, so
    only its return or its removal shows that it runs none of it."""
    return not is_kubernetes(cluster)


def agreed(found: Obj) -> float | None:
    """What the site of a Work was told: how many seconds after its last heartbeat nothing of it runs there any more, the pods'
    grace period included. The site's watchdog keeps to it even where its agent does not (docs/adr/0009)."""
    stated: Mapping[str, Any] = (found.get("spec") or {}).get("fencing") or {}
    if stated.get("afterSeconds") is None:
        return None
    grace = stated.get("graceSeconds")
    return float(stated["afterSeconds"]) + (grace_seconds(found["spec"]["manifests"][0]) if grace is None else float(grace))


def fenced_after(obj: Obj, seconds: float, margin: float) -> float:
    """When nothing of it runs any more on a site that would be told now, in seconds since the last heartbeat."""
    return seconds + grace_seconds(obj) + margin


def halt(found: Obj) -> Obj:
    """The spec of a Work that tells its site to run none of it."""
    spec: Obj = found["spec"]
    first, *others = spec["manifests"]
    none: dict[str, Any] = {"suspend": True} if first.get("kind") in ("Job", "CronJob") else {"replicas": 0}
    return spec | {"manifests": [first | {"spec": (first.get("spec") or {}) | none}, *others]}


def halted(found: Obj) -> bool:
    """Whether the site of a Work was told to run none of it."""
    return bool(found["spec"] == halt(found))


def stopped(found: Obj) -> bool:
    """Whether a site that was told to run none of it reports that nothing is left, not even a pod that is ending."""
    entry = reported(found)
    status: Mapping[str, Any] = entry.get("status") or {}
    seen = int((found.get("status") or {}).get("observedGeneration") or 0) >= generation(found)
    # An object that the site has not taken up yet is reported with no generation: of it nothing is known.
    known = int(entry.get("observedGeneration") or 0) > 0
    # Any count that is not zero; a CronJob lists what is active.
    left = any(status.get(count) for count in ("replicas", "terminatingReplicas", "active", "terminating"))
    return halted(found) and seen and known and not left


class Silence:
    """Since when each site's Lease has not changed, by the hub's monotonic clock. Bounded by the number of Leases."""

    def __init__(self, manager: Manager, clock: Clock) -> None:
        self._clock = clock
        self._leases = manager.informer(scheme.LEASE)
        self._seen: dict[str, tuple[str, float]] = {}
        self._leases.on_change(self._changed)

    def seconds(self, site: str) -> float:
        """How long nothing was heard of a site; zero for one of which nothing was ever heard."""
        found = self._seen.get(site)
        return 0.0 if found is None else self._clock.monotonic() - found[1]

    def renewal(self, site: str) -> str:
        """What the Lease said last. Only compared: it is the site's clock."""
        return self._seen.get(site, ("", 0.0))[0]

    def _changed(self, old: Obj | None, new: Obj | None) -> None:
        lease = new or old or {}
        if not namespace(lease).startswith(CLUSTER_NAMESPACE_PREFIX) or namespace(lease) != cluster_namespace(name(lease)):
            return
        if new is None:
            self._seen.pop(name(lease), None)
            return
        content = renewal_of(new)
        if content != self.renewal(name(lease)) or name(lease) not in self._seen:
            self._seen[name(lease)] = content, self._clock.monotonic()


def renewal_of(lease: Obj | None) -> str:
    return str(((lease or {}).get("spec") or {}).get("renewTime") or "")


def tolerated_seconds(obj: Obj, policies: Iterable[Obj], settings: Settings, backed: bool = False) -> float:
    """How long a lost site is waited for because of fencing: it would not be replaced before, so nothing is decided before."""
    fence = fencing(obj, policies, settings.fencing_after, backed)
    return 0.0 if fence is None else fenced_after(obj, fence, settings.fencing_margin)
