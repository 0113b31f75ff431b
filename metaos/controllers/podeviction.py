"""Pods without a controller that have to leave their site: they are deleted, as in Kubernetes, for nobody makes them anew.

What has a controller is placed elsewhere first (:mod:`metaos.controllers.placement`). A site that does not answer is left
out: what runs there is not known to have gone. Pure. Source: ``pkg/controller/tainteviction`` of Kubernetes.
"""

from __future__ import annotations

from metaos.resources.meta import TAINT_UNREACHABLE, Obj, controller_of, deleting, name, namespace
from metaos.resources.reading import cluster_info
from metaos.scheduler.disruption import ended
from metaos.scheduler.filters import tolerated


def alone(pod: Obj) -> bool:
    """A user's own pod at a site, that nobody would make anew."""
    return controller_of(pod) is None and not deleting(pod) and not namespace(pod).startswith("nemo-")


def overdue(pod: Obj, site: Obj, now: float) -> tuple[str, float | None]:
    """Why a pod has to leave its site, empty where it need not; and when its toleration will be over, if that is why."""
    if ended(pod):
        return "", None
    if deleting(site):
        return f"the site {name(site)} is being removed", None
    until: list[float] = []
    tolerations = tuple((pod.get("spec") or {}).get("tolerations") or ())
    for taint in cluster_info(site).taints:
        if taint.effect != "NoExecute" or taint.key == TAINT_UNREACHABLE:
            continue
        if not tolerated(taint, tolerations, now):
            value = f"={taint.value}" if taint.value else ""
            return f"the site {name(site)} has the taint {taint.key}{value}:NoExecute, which it does not tolerate", None
        seconds = [float(t["tolerationSeconds"]) for t in tolerations if t.get("tolerationSeconds") is not None]
        until += [taint.since + s for s in seconds if taint.since is not None and taint.since + s > now]
    return "", min(until, default=None)
