"""Service: where a Service's requests can go. EndpointSlices per site from ready Pod mirrors, and Works that tell other sites.

An endpoint is known by (site, pod, port), never by address: addresses are local to a site and may overlap.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.concern import on_health, works_by_source
from metaos.controllers.following import Following, delete
from metaos.controllers.render import cluster_of, is_draining, manifest, source_of, work
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    CLUSTER_LABEL,
    SERVICE_NAME_LABEL,
    SLICE_MANAGER_LABEL,
    Obj,
    ObjectRef,
    controller_of,
    deleting,
    is_true,
    labels,
    name,
    namespace,
    owner_reference,
    ref,
    uid,
)
from metaos.resources.workload import service_selects, usable

NAME = "service"
MANAGER = "service.meta-os.eu"
ENDPOINTS_LIMIT = 1000


def target_port(port: dict[str, Any], pod: Obj) -> int | None:
    """The number of a service port's target in a pod; names are those of container ports."""
    target = port.get("targetPort", port.get("port"))
    if isinstance(target, int):
        return target
    if isinstance(target, str) and target.isdigit():
        return int(target)
    for container in (pod.get("spec") or {}).get("containers") or ():
        for found in container.get("ports") or ():
            if found.get("name") == target and found.get("protocol", "TCP") == port.get("protocol", "TCP"):
                return int(found["containerPort"])
    return None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a pod's site stands: ``reachable`` at all, and ``draining``: being left by the pod's workload."""

    reachable: bool
    draining: bool


_LOST = Standing(False, False)


def slices(service: Obj, pods: Iterable[Obj], standing: Mapping[str, Standing]) -> list[Obj]:
    """EndpointSlices, one for each site and set of port numbers. ``standing``: of pods, by uid."""
    spec = service.get("spec") or {}
    grouped: dict[tuple[str, tuple[tuple[str, int], ...]], list[Obj]] = {}
    for pod in sorted(pods, key=name):
        site = str((pod.get("spec") or {}).get("nodeName") or "")
        if not site or not service_selects(service, labels(pod)):
            continue
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            continue
        numbers = tuple((str(p.get("name") or ""), n) for p in spec.get("ports") or () if (n := target_port(p, pod)) is not None)
        grouped.setdefault((site, numbers), []).append(pod)
    result = []
    protocols = {str(p.get("name") or ""): p.get("protocol", "TCP") for p in spec.get("ports") or ()}
    several: dict[str, int] = {}
    for (site, numbers), found in sorted(grouped.items(), key=lambda item: item[0]):
        index = several[site] = several.get(site, -1) + 1
        suffix = f"-{index}" if index else ""
        obj: Obj = dict(scheme.ENDPOINT_SLICE.empty(f"{name(service)}-{site}{suffix}", namespace(service)))
        obj["metadata"]["labels"] = {SERVICE_NAME_LABEL: name(service), CLUSTER_LABEL: site, SLICE_MANAGER_LABEL: MANAGER}
        obj["metadata"]["ownerReferences"] = [owner_reference(service)]
        obj["addressType"] = "IPv4"
        obj["endpoints"] = [_endpoint(service, pod, site, standing.get(uid(pod), _LOST)) for pod in found[:ENDPOINTS_LIMIT]]
        obj["ports"] = [{"name": word, "port": number, "protocol": protocols[word]} for word, number in numbers]
        result.append(obj)
    return result


def _endpoint(service: Obj, pod: Obj, site: str, standing: Standing) -> dict[str, Any]:
    early = bool((service.get("spec") or {}).get("publishNotReadyAddresses"))
    works = is_true(pod, "Ready") and standing.reachable
    leaving = deleting(pod) or standing.draining
    endpoint: dict[str, Any] = {
        "addresses": [str((pod.get("status") or {}).get("podIP") or "127.0.0.1")],
        "conditions": {
            "ready": (works or (early and standing.reachable)) and not leaving,
            "serving": works,
            "terminating": leaving,
        },
        "nodeName": site,
        "targetRef": {"kind": "Pod", "name": name(pod), "namespace": namespace(pod), "uid": uid(pod)},
    }
    hostname = (pod.get("spec") or {}).get("hostname")
    if hostname:
        endpoint["hostname"] = hostname
    return endpoint


class ServiceReconciler:
    """Keys are Services."""

    name = NAME

    def __init__(self, manager: Manager, client: Client) -> None:
        self._client = client
        self._services = manager.informer(scheme.SERVICE)
        self._pods = manager.informer(scheme.POD)
        self._slices = manager.informer(scheme.ENDPOINT_SLICE)
        self._works = works_by_source(manager)
        self._clusters = manager.informer(scheme.CLUSTER)
        self._following = Following(client, self._works)
        self._works.add_index("workloadUid", _workload_uid)
        self._slices.add_index("service", lambda s: [f"{namespace(s)}/{labels(s).get(SERVICE_NAME_LABEL, '')}"])

    async def reconcile(self, about: ObjectRef) -> Result:
        service = self._services.get(about.name, about.namespace)
        if service is None or deleting(service):
            await self._following.settle(about, {})
            return DONE
        if (service.get("spec") or {}).get("selector"):
            pods = self._pods.list(about.namespace)
            await self._write_slices(service, slices(service, pods, {uid(p): self._standing(p) for p in pods}))
        await self._write_works(service)
        return DONE

    def _standing(self, pod: Obj) -> Standing:
        """Whether the pod's site answers, and whether the pod's workload leaves it."""
        site = str((pod.get("spec") or {}).get("nodeName") or "")
        cluster = self._clusters.get(site)
        if cluster is None or not is_true(cluster, "Ready"):
            return _LOST
        owner = controller_of(pod)
        for found in self._works.by_index("workloadUid", str((owner or {}).get("uid") or uid(pod))):
            if cluster_of(found) == site:
                return Standing(True, is_draining(found) or deleting(found))
        # Its Work has gone: it is about to stop.
        return Standing(True, owner is not None)

    async def _write_slices(self, service: Obj, wanted: list[Obj]) -> None:
        existing = {name(s): s for s in self._mine(service)}
        for obj in wanted:
            present = existing.pop(name(obj), None)
            if present is None:
                try:
                    await self._client.create(obj)
                except ApiError as error:
                    if error.reason != "AlreadyExists":
                        raise
                continue
            if any(present.get(k) != obj[k] for k in ("endpoints", "ports")):
                metadata = present["metadata"] | {"ownerReferences": obj["metadata"]["ownerReferences"]}
                await self._client.update(present | {"metadata": metadata, "endpoints": obj["endpoints"], "ports": obj["ports"]})
        for left in existing.values():
            await delete(self._client, scheme.ENDPOINT_SLICE, left)

    def _mine(self, service: Obj) -> list[Obj]:
        found = self._slices.by_index("service", f"{namespace(service)}/{name(service)}")
        return [s for s in found if labels(s).get(SLICE_MANAGER_LABEL) == MANAGER]

    async def _write_works(self, service: Obj) -> None:
        about = ref(service)
        everywhere = sorted(self._slices.by_index("service", f"{about.namespace}/{about.name}"), key=name)
        word = usable(everywhere)
        wanted = {}
        own = {labels(s).get(CLUSTER_LABEL) for s in everywhere for e in s.get("endpoints") or () if _is_service(e)}
        for site in self._following.sites(about.namespace):
            if site in own:
                continue  # It is that member's own Service.
            foreign = [_told(s, word) for s in everywhere if labels(s).get(CLUSTER_LABEL) != site]
            wanted[site] = work(about, site, [manifest(service), *foreign])
        await self._following.settle(about, wanted)


def _is_service(endpoint: Obj) -> bool:
    return (endpoint.get("targetRef") or {}).get("kind") == "Service"


def _told(found: Obj, word: str) -> Obj:
    """A slice as another site gets it: only endpoints that may be used."""
    result = manifest(found)
    result["metadata"].pop("generation", None)
    chosen = [e for e in result.get("endpoints") or () if (e.get("conditions") or {}).get(word)]
    result["endpoints"] = [e | {"conditions": {"ready": True}} for e in chosen]
    return result


def _workload_uid(found: Obj) -> list[str]:
    manifests = (found.get("spec") or {}).get("manifests") or ()
    if not manifests or manifests[0].get("kind") not in {k.kind for k in scheme.WORKLOADS}:
        return []
    return [str(manifests[0]["metadata"].get("uid") or "")]


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: when a Service, a Pod, a slice, a workload's Work, or a site's health changed."""
    services = manager.informer(scheme.SERVICE)
    workload_kinds = {k.kind for k in scheme.WORKLOADS}

    def of_namespace(where: str) -> list[ObjectRef]:
        return [ref(s) for s in services.list(where)]

    def of_pod(obj: Obj) -> list[ObjectRef]:
        found = labels(obj)
        return [ref(s) for s in services.list(namespace(obj)) if service_selects(s, found)]

    def of_slice(obj: Obj) -> list[ObjectRef]:
        found = labels(obj).get(SERVICE_NAME_LABEL)
        return [ObjectRef("", "Service", namespace(obj), found)] if found else []

    def of_work(obj: Obj) -> list[ObjectRef]:
        about = source_of(obj)
        if about.kind == "Service":
            return [about]
        return of_namespace(about.namespace) if about.kind in workload_kinds else []

    manager.add(
        ServiceReconciler(manager, client),
        [(scheme.SERVICE, lambda o: [ref(o)]), (scheme.POD, of_pod), (scheme.ENDPOINT_SLICE, of_slice)],
    )
    seen: dict[str, Any] = {}

    def on_work(old: Obj | None, new: Obj | None) -> None:
        # Status reports of Works do not matter here: only that they come, drain and go.
        key = str(uid(new or old or {}))
        state = None if new is None else (is_draining(new), deleting(new), source_of(new))
        if seen.get(key, "") == state:
            return
        if state is None:
            seen.pop(key, None)
        else:
            seen[key] = state
        for about in of_work(new or old or {}):
            manager.enqueue(NAME, about)

    manager.informer(scheme.WORK).on_change(on_work)

    def on_site(about: ObjectRef) -> None:
        for found in of_namespace(about.namespace):
            manager.enqueue(NAME, found)

    on_health(manager, on_site)
