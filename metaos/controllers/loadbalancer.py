"""LoadBalancer: what a Service has for the world outside. ``status.loadBalancer`` from what its sites report, and a condition.

A sandbox or podman site answers on an address of its machine where its owner said so; a Kubernetes member has its own load
balancers. The condition ``Exposed`` holds where anything answers, and says what does not. A Service with a ``loadBalancerClass``
has its addresses from whoever serves the class; they are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.concern import on_readiness, works_by_source
from metaos.controllers.recorder import Recorder
from metaos.controllers.render import cluster_of, reported, source_label, source_of
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.precedence import Turn
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.meta import (
    Obj,
    ObjectRef,
    cluster_namespace,
    condition,
    deleting,
    is_true,
    name,
    namespace,
    ref,
    with_condition,
)
from metaos.resources.services import EXPOSED

NAME = "loadbalancer"
#: Addresses in a Service's status, and sites that a message names.
MAX_INGRESS, MAX_NAMED = 256, 8
#: Why a Service is not exposed that is as it should be, or soon will be.
_QUIET = ("Exposed", "NoEndpoint", "NoWorkload", "Pending")


def outward(service: Obj, sites: Mapping[str, Mapping[str, Any] | None], members: frozenset[str], now: float) -> dict[str, Any]:
    """The status that a Service shall have. ``sites``: where it is → what the site reports of it, ``None`` where it has not or is
    lost; ``members``: which of them are Kubernetes clusters."""
    spec, status = service.get("spec") or {}, dict(service.get("status") or {})
    conditions = status.pop("conditions", None) or []
    if spec.get("type") not in ("LoadBalancer", "NodePort"):
        ours = condition(service, EXPOSED) is not None
        left = [c for c in conditions if c.get("type") != EXPOSED]
        return status | ({"loadBalancer": {}} if ours else {}) | ({"conditions": left} if left else {})
    found: list[dict[str, Any]] = []
    for site in sorted(sites):
        said = ((sites[site] or {}).get("loadBalancer") or {}).get("ingress") or ()
        found += [each for each in said if each not in found] if spec["type"] == "LoadBalancer" else []
    if found or not spec.get("loadBalancerClass"):
        status["loadBalancer"] = {"ingress": found[:MAX_INGRESS]} if found else {}
    verdict = _verdict(service, sites, members, bool(found))
    return status | {"conditions": with_condition(conditions, EXPOSED, *verdict, now)}


def _verdict(
    service: Obj, sites: Mapping[str, Mapping[str, Any] | None], members: frozenset[str], found: bool
) -> tuple[str, str, str]:
    """Status, reason and message of the condition."""
    spec = service["spec"]
    if not sites:
        return "Unknown", "NoWorkload", "it goes where workloads of its namespace are, and there are none"
    own = {site: condition({"status": sites[site] or {}}, EXPOSED) for site in sorted(sites) if site not in members}
    saying = {site: each for site, each in own.items() if each is not None}
    texts = [f"{site}: {each.get('message') or each.get('reason')}" for site, each in saying.items()]
    if len(texts) > MAX_NAMED:
        texts = [*texts[:MAX_NAMED], f"and {len(texts) - MAX_NAMED} more sites"]
    reasons = sorted({str(each.get("reason")) for each in saying.values()} - {"Exposed"})
    clusters = ", ".join(sorted(members)[:MAX_NAMED])
    if any(each.get("status") == "True" for each in saying.values()):
        return "True", reasons[0] if reasons else "Exposed", "; ".join(texts)
    if found:
        return "True", reasons[0] if reasons else "Exposed", "; ".join([*texts, f"the load balancers of {clusters}"])
    if saying:
        return "False", reasons[0] if reasons else "Pending", "; ".join(texts)
    if any(sites[site] is None for site in own):
        return "Unknown", "Pending", "its sites have not said yet where they answer"
    if members and spec["type"] == "NodePort":
        return "True", "Exposed", f"the nodes of {clusters}"
    if spec.get("loadBalancerClass"):
        return "Unknown", "Pending", f"load balancers of class {spec['loadBalancerClass']} are another's"
    if members:
        return "Unknown", "Pending", f"{clusters} has given it no address yet: the cluster needs a load balancer of its own"
    where = f"/api/v1/namespaces/{namespace(service)}/services/{name(service)}:PORT/proxy/"
    why = f"none of its sites ({', '.join(sorted(own)[:MAX_NAMED])}) opens ports of its machine: have the owner of one start its "
    return "False", "NoSite", why + f"agent with --expose ADDRESS, or reach the Service through the hub at {where}"


class LoadBalancerReconciler:
    """Keys are Services."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._services = manager.informer(scheme.SERVICE)
        self._clusters = manager.informer(scheme.CLUSTER)
        self._works = works_by_source(manager)
        self._recorder = Recorder(client, clock, NAME)

    async def reconcile(self, about: ObjectRef) -> Result:
        service = self._services.get(about.name, about.namespace)
        if service is None or deleting(service):
            return DONE
        works = {cluster_of(w): w for w in self._works.by_index("source", source_label(about)) if not deleting(w)}
        sites = {site: self._said(site, work) for site, work in works.items()}
        members = frozenset(site for site in sites if self._is_kubernetes(site))
        before, status = service.get("status") or {}, outward(service, sites, members, self._clock.now())
        if status == before:
            return DONE
        await self._client.update(service | {"status": status}, subresource="status")
        new, old = condition({"status": status}, EXPOSED), condition(service, EXPOSED)
        if new is not None and new["reason"] not in _QUIET and (old is None or old.get("message") != new["message"]):
            await self._recorder.event(service, str(new["reason"]), str(new["message"]), warning=True)
        return DONE

    def _said(self, site: str, work: Obj) -> Mapping[str, Any] | None:
        """What a site says of the Service as it is now."""
        entry = reported(work)
        cluster = self._clusters.get(site)
        if not entry or cluster is None or not is_true(cluster, "Ready"):
            return None
        wanted = ((work.get("spec") or {}).get("manifests") or [{}])[0].get("metadata", {}).get("generation") or 0
        found: Mapping[str, Any] = entry.get("status") or {}
        return found if int(entry.get("observedGeneration") or 0) >= int(wanted) else None

    def _is_kubernetes(self, site: str) -> bool:
        return ((self._clusters.get(site) or {}).get("spec") or {}).get("runtime") == "kubernetes"


def _concerned(service: Obj) -> bool:
    return (service.get("spec") or {}).get("type") in ("LoadBalancer", "NodePort") or condition(service, EXPOSED) is not None


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: when such a Service or one of its Works changed, and when a site comes or goes."""
    services = manager.informer(scheme.SERVICE)

    def of_service(obj: Obj) -> list[ObjectRef]:
        return [ref(obj)] if _concerned(obj) else []

    def of_work(obj: Obj) -> list[ObjectRef]:
        about = source_of(obj)
        if about.kind != "Service":
            return []
        return of_service(services.get(about.name, about.namespace) or {})

    watched = [(scheme.SERVICE, of_service), (scheme.WORK, of_work)]
    manager.add(LoadBalancerReconciler(manager, client, clock), watched, turn=Turn.LAST)

    def on_site(site: str) -> None:
        for work in manager.informer(scheme.WORK).list(cluster_namespace(site)):
            for about in of_work(work):
                manager.enqueue(NAME, about)

    on_readiness(manager, on_site)
