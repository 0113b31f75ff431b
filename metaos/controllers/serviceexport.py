"""ServiceExport: one Service for all clusters, of their Multi-Cluster Services API. ServiceExport → ServiceImport → Works.

The Service is the hub's of the same name, which is wherever workloads of its namespace are; so is its import. Where the export
names a Kubernetes member (``FROM``), it is a Service of that cluster's own: the member says what it is, and the hub makes one of
the same name without a selector, with an endpoint that is the member's. Source: KEP-1645.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.concern import works_by_source
from metaos.controllers.following import Following, delete
from metaos.controllers.render import cluster_of, manifest, source_label, source_of, work
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import meta, scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    CLUSTER_LABEL,
    SERVICE_NAME_LABEL,
    SLICE_MANAGER_LABEL,
    Obj,
    ObjectRef,
    deleting,
    is_true,
    labels,
    name,
    namespace,
    owner_reference,
    ref,
    uid,
    with_condition,
)
from metaos.resources.services import FROM, derived_name, is_headless, needs_address

NAME = "serviceexport"
MANAGER = "serviceexport.meta-os.eu"
_AFFINITY = ("sessionAffinity", "sessionAffinityConfig")
_PORT = ("name", "protocol", "appProtocol", "port")


def verdict(service: Obj | None) -> tuple[str, str, str]:
    """Status, reason and message of the condition ``Valid``."""
    if service is None or deleting(service):
        return "False", "NoService", "there is no Service of this name here: make one, or take the export away"
    if not needs_address(service.get("spec") or {}):
        return "False", "InvalidServiceType", "a Service of type ExternalName leads to no pods, so it cannot be exported"
    return "True", "Valid", ""


def imported(export: Obj, service: Obj) -> Obj:
    """The ServiceImport of an exported Service."""
    spec = service["spec"]
    headless = is_headless(spec)
    result: Obj = dict(scheme.SERVICE_IMPORT.empty(name(export), namespace(export)))
    result["metadata"]["ownerReferences"] = [owner_reference(export)]
    result["spec"] = {
        "type": "Headless" if headless else "ClusterSetIP",
        "ports": [{key: port[key] for key in _PORT if key in port} for port in spec.get("ports") or ()],
        **({} if headless or not spec.get("clusterIP") else {"ips": [spec["clusterIP"]]}),
        **{key: spec[key] for key in _AFFINITY if key in spec},
    }
    return result


def derived(found: Obj, service: Obj) -> Obj:
    """The Service by which a Kubernetes member reaches an import: its own pods by the selector, all others by the slice that its
    agent adds."""
    spec = service["spec"]
    result: Obj = dict(scheme.SERVICE.empty(derived_name(name(found)), namespace(found)))
    result["metadata"]["labels"] = {"multicluster.kubernetes.io/service-name": name(found)}
    result["spec"] = {key: spec[key] for key in ("selector", "publishNotReadyAddresses", *_AFFINITY) if key in spec}
    result["spec"]["ports"] = [{k: v for k, v in port.items() if k != "nodePort"} for port in spec.get("ports") or ()]
    if is_headless(spec):
        result["spec"]["clusterIP"] = "None"
    return result


def serving(slices: list[Obj]) -> list[str]:
    """Sites with an endpoint that is ready."""
    found = set()
    for each in slices:
        for endpoint in each.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready"):
                found.add(str(endpoint.get("nodeName") or labels(each).get(CLUSTER_LABEL, "")))
    return sorted(found - {""})


def foreign(export: Obj, member: str, told: Mapping[str, Any]) -> tuple[Obj, Obj]:
    """The hub's Service for one of a member's own, and its EndpointSlice. ``told``: what the member says of it."""
    service: Obj = dict(scheme.SERVICE.empty(name(export), namespace(export)))
    service["metadata"]["ownerReferences"] = [owner_reference(export)]
    ports = [dict(port) for port in told.get("ports") or ()]
    service["spec"] = {"ports": ports, "sessionAffinity": told.get("sessionAffinity") or "None"}
    part: Obj = dict(scheme.ENDPOINT_SLICE.empty(f"{name(export)}-{member}", namespace(export)))
    part["metadata"]["labels"] = {SERVICE_NAME_LABEL: name(export), CLUSTER_LABEL: member, SLICE_MANAGER_LABEL: MANAGER}
    part["metadata"]["ownerReferences"] = [owner_reference(export)]
    part["addressType"] = "IPv4"
    ready = bool(told.get("ready"))
    part["endpoints"] = [
        {
            # As for pods of a member: where it is, only the member knows.
            "addresses": ["127.0.0.1"],
            "conditions": {"ready": ready, "serving": ready, "terminating": False},
            "nodeName": member,
            "targetRef": {"kind": "Service", "name": name(export), "namespace": namespace(export)},
        }
    ]
    part["ports"] = [{"name": p.get("name", ""), "port": p["port"], "protocol": p.get("protocol", "TCP")} for p in ports]
    return service, part


class ServiceExportReconciler:
    """Keys are ServiceExports."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock) -> None:
        self._client, self._clock = client, clock
        self._exports = manager.informer(scheme.SERVICE_EXPORT)
        self._imports = manager.informer(scheme.SERVICE_IMPORT)
        self._services = manager.informer(scheme.SERVICE)
        self._slices = manager.informer(scheme.ENDPOINT_SLICE)
        self._clusters = manager.informer(scheme.CLUSTER)
        self._works = works_by_source(manager)
        self._following = Following(client, self._works)
        self._slices.add_index("service", lambda s: [f"{namespace(s)}/{labels(s).get(SERVICE_NAME_LABEL, '')}"])

    async def reconcile(self, about: ObjectRef) -> Result:
        export, service = self._exports.get(about.name, about.namespace), self._services.get(about.name, about.namespace)
        there = self._imports.get(about.name, about.namespace)
        found = ("False", "", "") if export is None or deleting(export) else await self._found(export, service)
        if found is None:
            return DONE  # The Service that was just made comes back here.
        if export is not None and not deleting(export):
            await self._judge(export, found)
        else:
            await self._following.settle(about, {})
        if export is None or service is None or found[0] != "True":
            if there is not None:
                await delete(self._client, scheme.SERVICE_IMPORT, there)
            await self._following.settle(ref(scheme.SERVICE_IMPORT.empty(about.name, about.namespace)), {})
            return DONE
        there = await self._write(imported(export, service), there)
        slices = self._slices.by_index("service", f"{about.namespace}/{about.name}")
        status = {"clusters": [{"cluster": site} for site in serving(slices)]}
        if there.get("status") != status:
            there = await self._client.update(there | {"status": status}, subresource="status")
        wanted = {}
        for site in self._following.sites(about.namespace):
            said = manifest(there)
            wanted[site] = work(ref(there), site, [said, derived(there, service)] if self._is_kubernetes(site) else [said])
        await self._following.settle(ref(there), wanted)
        return DONE

    def _is_kubernetes(self, site: str) -> bool:
        return ((self._clusters.get(site) or {}).get("spec") or {}).get("runtime") == "kubernetes"

    async def _found(self, export: Obj, service: Obj | None) -> tuple[str, str, str] | None:
        """What ``Valid`` says; ``None`` where the Service was changed for it."""
        about, member = ref(export), meta.annotations(export).get(FROM, "")
        mine = service is not None and any(o.get("uid") == uid(export) for o in service["metadata"].get("ownerReferences") or ())
        entry = self._told(about, member) if member else {}
        told = entry.get("status") if self._is_kubernetes(member) and (service is None or mine) else None
        await self._clear(about, f"{about.name}-{member}" if told else "")
        if not member:
            await self._following.settle(about, {})
            if mine and service is not None:
                await delete(self._client, scheme.SERVICE, service)
                return None
            return verdict(service)
        if not self._is_kubernetes(member):
            return "False", "NoCluster", f"there is no Kubernetes member {member!r}: {FROM} names the one whose Service it is"
        await self._following.settle(about, {member: work(about, member, [manifest(export)])})
        if service is not None and not mine:
            why = f"the hub has a Service of this name itself: delete one of them, or take {FROM} away to export the hub's"
            return "False", "Ambiguous", why
        if not told and entry.get("reason"):
            return "False", str(entry["reason"]), str(entry.get("message") or "")
        if not told:
            return "Unknown", "Pending", f"{member} has not said yet what it has"
        there = is_true(self._clusters.get(member) or {}, "Ready")
        wanted, part = foreign(export, member, {**told, "ready": there and bool(told.get("ready"))})
        await self._put(part)
        if service is None:
            await self._client.create(wanted)
            return None
        ports = [{key: port[key] for key in _PORT if key in port} for port in service["spec"].get("ports") or ()]
        affinity = service["spec"].get("sessionAffinity", "None")
        if (ports, affinity) != (wanted["spec"]["ports"], wanted["spec"]["sessionAffinity"]):
            await self._client.update(service | {"spec": service["spec"] | wanted["spec"]})
            return None
        return "True", "Valid", ""

    def _told(self, about: ObjectRef, member: str) -> Mapping[str, Any]:
        """What a member says of one of its Services."""
        for found in self._works.by_index("source", source_label(about)):
            if cluster_of(found) == member:
                entries = (found.get("status") or {}).get("manifests") or [{}]
                return entries[0] or {}
        return {}

    async def _clear(self, about: ObjectRef, kept: str) -> None:
        """Slices of a member's own Service that is not, or no longer, exported from there."""
        for part in self._slices.by_index("service", f"{about.namespace}/{about.name}"):
            if labels(part).get(SLICE_MANAGER_LABEL) == MANAGER and name(part) != kept:
                await delete(self._client, scheme.ENDPOINT_SLICE, part)

    async def _put(self, wanted: Obj) -> None:
        there = next((s for s in self._slices.list(namespace(wanted)) if name(s) == name(wanted)), None)
        if there is None:
            try:
                await self._client.create(wanted)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
        elif any(there.get(key) != wanted[key] for key in ("endpoints", "ports")):
            await self._client.update(there | {key: wanted[key] for key in ("endpoints", "ports")})

    async def _judge(self, export: Obj, found: tuple[str, str, str]) -> None:
        now = self._clock.now()
        conditions: list[dict[str, Any]] = (export.get("status") or {}).get("conditions") or []
        wanted = with_condition(conditions, "Valid", *found, now)
        # There is one Service of the name at the hub, so clusters cannot disagree on it.
        wanted = with_condition(wanted, "Conflict", "False", "NoConflicts", "", now)
        if wanted != conditions:
            await self._client.update(export | {"status": {"conditions": wanted}}, subresource="status")

    async def _write(self, wanted: Obj, there: Obj | None) -> Obj:
        if there is None or deleting(there):
            try:
                return await self._client.create(wanted)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
                there = await self._client.get(scheme.SERVICE_IMPORT, name(wanted), namespace(wanted))
        if {key: there["spec"].get(key) for key in wanted["spec"].keys() | there["spec"].keys()} == wanted["spec"]:
            return there
        return await self._client.update(there | {"spec": wanted["spec"]})


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: when an export, its Service, its import or its endpoints changed, or a workload came to a site or left it."""
    exports = manager.informer(scheme.SERVICE_EXPORT)
    workload_kinds = {k.kind for k in scheme.WORKLOADS}

    def named(where: str, called: str) -> list[ObjectRef]:
        return [ref(scheme.SERVICE_EXPORT.empty(called, where))]

    def of_service(obj: Obj) -> list[ObjectRef]:
        return named(namespace(obj), name(obj)) if exports.get(name(obj), namespace(obj)) else []

    exports.add_index("from", lambda export: [meta.annotations(export).get(FROM, "")])

    def of_cluster(obj: Obj) -> list[ObjectRef]:
        return [ref(export) for export in exports.by_index("from", name(obj))]

    def of_slice(obj: Obj) -> list[ObjectRef]:
        called = labels(obj).get(SERVICE_NAME_LABEL, "")
        return named(namespace(obj), called) if exports.get(called, namespace(obj)) else []

    manager.add(
        ServiceExportReconciler(manager, client, clock),
        [
            (scheme.SERVICE_EXPORT, lambda obj: [ref(obj)]),
            (scheme.SERVICE_IMPORT, lambda obj: named(namespace(obj), name(obj))),
            (scheme.SERVICE, of_service),
            (scheme.ENDPOINT_SLICE, of_slice),
            (scheme.CLUSTER, of_cluster),
        ],
    )

    def on_work(old: Obj | None, new: Obj | None) -> None:
        found = new or old or {}
        about = source_of(found)
        if about.kind == scheme.SERVICE_EXPORT.kind:
            manager.enqueue(NAME, about)
        elif about.kind == scheme.SERVICE_IMPORT.kind and new is None:
            manager.enqueue(NAME, named(about.namespace, about.name)[0])
        elif about.kind in workload_kinds and (old is None or new is None or deleting(old) != deleting(new)):
            for export in exports.list(about.namespace):
                manager.enqueue(NAME, ref(export))

    manager.informer(scheme.WORK).on_change(on_work)
