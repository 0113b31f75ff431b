"""Works of what goes wherever workloads of its namespace are, and nowhere else: Services and NetworkPolicies."""

from collections.abc import Container, Mapping

from metaos.client import Client
from metaos.controllers.render import cluster_of, source_label, source_of
from metaos.reconcile.informer import Informer
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, deleting, name, namespace, uid

_WORKLOAD_KINDS = {k.kind for k in scheme.WORKLOADS}


class Following:
    """``works``: :func:`~metaos.controllers.concern.works_by_source`."""

    def __init__(self, client: Client, works: Informer) -> None:
        self._client, self._works = client, works
        works.add_index("workloadNamespace", _workload_namespace)

    def sites(self, where: str) -> list[str]:
        """Those at which a workload of the namespace is."""
        return sorted({cluster_of(w) for w in self._works.by_index("workloadNamespace", where) if not deleting(w)})

    async def settle(self, about: ObjectRef, wanted: Mapping[str, Obj], coming: Container[str] = ()) -> None:
        """Make the Works of an object what they should be. ``wanted``: by site. ``coming``: sites where one stays that is there,
        though nothing there needs it yet."""
        existing = {cluster_of(w): w for w in self._works.by_index("source", source_label(about))}
        for site, work in wanted.items():
            present = existing.pop(site, None)
            if present is None:
                try:
                    await self._client.create(work)
                except ApiError as error:
                    if error.reason != "AlreadyExists":
                        raise
            elif present["spec"] != work["spec"] and not deleting(present):
                await self._client.update(present | {"spec": work["spec"]})
        for site, left in existing.items():
            if site not in coming:
                await delete(self._client, scheme.WORK, left)


async def delete(client: Client, kind: scheme.Kind, obj: Obj) -> None:
    """This very object, if it is still there."""
    if deleting(obj):
        return
    try:
        await client.delete(kind, name(obj), namespace(obj), uid=uid(obj))
    except ApiError as error:
        if error.code != 404:
            raise


def _workload_namespace(found: Obj) -> list[str]:
    about = source_of(found)
    return [about.namespace] if about.kind in _WORKLOAD_KINDS else []
