"""What belongs to a site, as the hub knows it: the Works that it was given, and the Pods that it mirrors.

Looked up in the watch cache only when a rule asks.
"""

from __future__ import annotations

from collections.abc import Iterator

from metaos.apiserver.addressing import key_of
from metaos.apiserver.cache import WatchCache
from metaos.resources import scheme
from metaos.resources.meta import Obj, ObjectRef, cluster_namespace, controller_of, uid
from metaos.resources.workload import pod_template, work_name
from metaos.security.authz import CLUSTER_USER_PREFIX

#: Where the templates of earlier revisions are kept (``controllers/revisions.py``).
_HISTORY = (scheme.REPLICA_SET, scheme.CONTROLLER_REVISION)


class Share:
    """Implements :class:`metaos.security.authz.Share`."""

    def __init__(self, cache: WatchCache, member: str) -> None:
        self._cache, self._member = cache, member

    def __contains__(self, where: object) -> bool:
        """Whether the member has a Work in a namespace: the second part of its Works' names."""
        works = self._cache.range(scheme.WORK.resource, cluster_namespace(self._member))
        return any(v.name.count(".") >= 2 and v.name.split(".")[1] == where for v in works)

    def workload(self, kind: str, where: str, named: str) -> Obj | None:
        about = work_name(ObjectRef("", kind, where, named))
        version = self._cache.get(key_of(scheme.WORK, cluster_namespace(self._member), about))
        manifests = (version.object().get("spec") or {}).get("manifests") if version else None
        return manifests[0] if manifests else None

    def templates(self, workload: Obj) -> Iterator[Obj]:
        yield pod_template(workload)
        for kind in _HISTORY:
            for version in self._cache.range(kind.resource, workload["metadata"].get("namespace") or ""):
                record = version.object()
                if (controller_of(record) or {}).get("uid") == uid(workload):
                    found = record if kind is scheme.REPLICA_SET else {"kind": workload["kind"], **(record.get("data") or {})}
                    yield pod_template(found)

    def owner_of_pod(self, where: str, named: str) -> str | None:
        """The site whose pod this is; ``None`` where there is none of this name."""
        version = self._cache.get(key_of(scheme.POD, where, named))
        return str((version.object().get("spec") or {}).get("nodeName") or "") if version else None

    def pods_of(self, where: str, stem: str) -> int:
        """How many of the member's Pods in a namespace have names that begin so."""
        pods = self._cache.range(scheme.POD.resource, where, stem=stem)
        return sum(v.field_values()["spec.nodeName"] == self._member for v in pods)

    def requests(self) -> int:
        """How many requests for certificates the member has at the hub."""
        who = CLUSTER_USER_PREFIX + self._member
        found = self._cache.range(scheme.CERTIFICATE_SIGNING_REQUEST.resource, stem=f"{self._member}-")
        # Names of others may begin so, too: of site-1 where this is site.
        return sum(v.object()["spec"].get("username") == who for v in found)
