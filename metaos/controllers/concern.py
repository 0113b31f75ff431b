"""Whom a site concerns: the workloads that are decided to be there, or still have a Work there."""

from collections.abc import Callable

from metaos.controllers.render import source_of
from metaos.reconcile.informer import Informer
from metaos.reconcile.manager import Manager
from metaos.resources import scheme
from metaos.resources.meta import SOURCE_LABEL, Obj, ObjectRef, cluster_namespace, is_true, labels, name, namespace

_KINDS = {k.kind for k in scheme.WORKLOADS}


def workload_of(placement: Obj) -> ObjectRef | None:
    """The workload that a Placement is about."""
    found = (placement.get("spec") or {}).get("workloadRef") or {}
    if found.get("kind") not in _KINDS:
        return None
    return ObjectRef(str(found["apiVersion"]).rpartition("/")[0], found["kind"], namespace(placement), found["name"])


def works_by_source(manager: Manager) -> Informer:
    """The informer of Works, which knows by ``source_label`` what they are rendered from, as its index ``source``."""
    works = manager.informer(scheme.WORK)
    works.add_index("source", lambda work: [labels(work).get(SOURCE_LABEL, "")])
    return works


def on_health(manager: Manager, tell: Callable[[ObjectRef], None]) -> None:
    """Tells of every workload that a site concerns when the site is ready, is not any more, or is removed."""
    placements, works = manager.informer(scheme.PLACEMENT), manager.informer(scheme.WORK)
    placements.add_index("site", lambda p: [c["name"] for c in (p.get("spec") or {}).get("clusters") or ()])

    def changed(site: str) -> None:
        for placement in placements.by_index("site", site):
            about = workload_of(placement)
            if about is not None:
                tell(about)
        for work in works.list(cluster_namespace(site)):
            about = source_of(work)
            if about.kind in _KINDS:
                tell(about)

    on_readiness(manager, changed)


def on_readiness(manager: Manager, tell: Callable[[str], None]) -> None:
    """Tells of every site, by name, that is ready, is not any more, or is removed."""

    def changed(old: Obj | None, new: Obj | None) -> None:
        if old is None or new is None or is_true(old, "Ready") != is_true(new, "Ready"):
            tell(name(new or old or {}))

    manager.informer(scheme.CLUSTER).on_change(changed)
