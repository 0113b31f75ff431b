"""Restored: what runs at sites, after the hub's state was put back to that of a backup.

Each site is given a Work that says so (``nemo-restored``). As long as it has it, it goes on with what the hub does not list and
did not know either when it was restored; all that was written since is followed as ever.

What must not run twice is another matter. The hub then knows less than sites do: what it believes to be on one site may have
moved to another since. So before anybody is served, every site is told to run none of it (:func:`hold`). It starts again, where
the restored state has it, once no site can run it unknown to the hub any more: every site has either taken up what the hub says
now, which it shows by reporting that Work, or was silent for so long that it has fenced itself. Sites that the backup does not
know at all fence themselves too, so that time is waited for in any case. A Kubernetes cluster does not: it is waited for until
it reports, or its Cluster is deleted.

``nemo restore`` leaves the mark, a ConfigMap. Its ``phase`` is ``Held`` until then, and ``Kept`` from then on. Whoever deletes
it says that all is applied again that shall run: what the hub does not list ends, and nothing is waited for.
"""

import logging
from collections.abc import Iterable

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.fencing import Silence, agreed, fences_itself, fencing, halt, halted
from metaos.controllers.settings import Settings
from metaos.reconcile.manager import Manager
from metaos.reconcile.reconciler import DONE, Result
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import (
    RESTORED,
    SYSTEM_NAMESPACE,
    Obj,
    ObjectRef,
    cluster_namespace,
    deleting,
    generation,
    name,
    namespace,
)
from metaos.resources.reading import concerns
from metaos.resources.workload import DEFAULT_GRACE_SECONDS, has_local_data

log = logging.getLogger(__name__)

NAME = "restored"
#: Between two looks at who has reported: news of it comes by itself, this is only in case of none.
LOOK_SECONDS = 5.0
_WORKLOAD_KINDS = {kind.kind for kind in scheme.WORKLOADS}
RESTORED_PHASE, HELD_PHASE, KEPT_PHASE = "Restored", "Held", "Kept"


async def hold(client: Client) -> None:
    """Where the state was restored: tells sites so, and to run none of what must not run twice. Before anybody is served; may
    be repeated."""
    try:
        mark = await client.get(scheme.CONFIG_MAP, RESTORED, SYSTEM_NAMESPACE)
    except ApiError as error:
        if error.code != 404:
            raise
        return
    if phase_of(mark) != RESTORED_PHASE:
        return
    found, known, told = 0, dict[str, list[str]](), set[str]()
    works = (await client.list(scheme.WORK)).items
    for work in works:
        if name(work) == RESTORED:
            told.add(namespace(work))
        else:
            known.setdefault(namespace(work), []).append(name(work))
    clusters = (await client.list(scheme.CLUSTER)).items
    policies = (await client.list(scheme.PLACEMENT_POLICY)).items
    # These were not told to fence themselves, so their Works do not say what must not run twice.
    silent = {cluster_namespace(name(cluster)) for cluster in clusters if not fences_itself(cluster)}
    moving = {cluster_namespace(name(cluster)) for cluster in clusters if (cluster.get("status") or {}).get("volumeMoves")}
    for cluster in clusters:
        where = cluster_namespace(name(cluster))
        if where in told:
            await _remove(client, scheme.WORK, RESTORED, where)
        await _tell(client, where, mark, known.get(where, ()))
    for work in works:
        once = agreed(work) is not None or (namespace(work) in silent and _is_fenced(work, policies))
        if name(work) == RESTORED:
            continue
        if once and not halted(work):
            work = await client.update(work | {"spec": halt(work)})
            found += 1
        if namespace(work) in moving and has_local_data(work["spec"]["manifests"][0]):
            # Which site has its volumes now is for the sites to say (metaos.data.moves).
            asked = f"{mark['data']['revision']}@{mark['metadata'].get('uid', '')}"
            volumes = {**(work["spec"].get("volumes") or {}), "asked": asked}
            await client.update(work | {"spec": work["spec"] | {"volumes": volumes}})
    await client.patch(scheme.CONFIG_MAP, RESTORED, SYSTEM_NAMESPACE, {"data": {"phase": HELD_PHASE}})
    log.warning("this hub's state was restored from a backup: %d Works that must not run twice wait until that is sure", found)


def _is_fenced(work: Obj, policies: Iterable[Obj]) -> bool:
    """Whether its workload must not run twice, by the policies of now."""
    first: Obj = ((work.get("spec") or {}).get("manifests") or ({},))[0]
    if first.get("kind") not in _WORKLOAD_KINDS:
        return False
    return fencing(first, [p for p in policies if concerns(p, first)], DEFAULT_GRACE_SECONDS) is not None


def phase_of(mark: Obj) -> str:
    return str((mark.get("data") or {}).get("phase") or "")


async def _tell(client: Client, where: str, mark: Obj, known: Iterable[str]) -> None:
    """Gives a site the Work that says that the hub was restored, at which revision, and what it knew of the site then."""
    manifest: Obj = {k: mark[k] for k in ("apiVersion", "kind")}
    manifest["metadata"] = {k: mark["metadata"][k] for k in ("name", "namespace", "uid")}
    manifest["data"] = {"revision": mark["data"]["revision"], "works": "\n".join(sorted(known))}
    try:
        await client.create({**scheme.WORK.empty(RESTORED, where), "spec": {"manifests": [manifest]}})
    except ApiError as error:
        # Its namespace is about to be made, or the informer is a moment behind.
        if error.code not in (404, 409):
            raise


async def _remove(client: Client, kind: scheme.Kind, what: str, where: str) -> None:
    try:
        await client.delete(kind, what, where)
    except ApiError as error:
        if error.code != 404:
            raise


class Hold:
    """The mark of this hub, where it was restored."""

    def __init__(self, manager: Manager) -> None:
        self.marks = manager.informer(scheme.CONFIG_MAP, SYSTEM_NAMESPACE, fields=f"metadata.name={RESTORED}")

    @property
    def mark(self) -> Obj | None:
        return self.marks.get(RESTORED, SYSTEM_NAMESPACE)

    @property
    def holds(self) -> bool:
        """Whether what must not run twice is not to be started yet."""
        mark = self.mark
        return mark is not None and phase_of(mark) != KEPT_PHASE


class RestoredReconciler:
    """One key: the mark."""

    name = NAME

    def __init__(self, manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
        self._client, self._clock, self._settings = client, clock, settings
        self._hold, self._silence = Hold(manager), Silence(manager, clock)
        self._clusters, self._works = manager.informer(scheme.CLUSTER), manager.informer(scheme.WORK)
        self._started = clock.monotonic()

    async def reconcile(self, about: ObjectRef) -> Result:
        mark = self._hold.mark
        if mark is None or deleting(mark):
            for work in self._works.list():
                if name(work) == RESTORED:
                    await _remove(self._client, scheme.WORK, RESTORED, namespace(work))
            return DONE
        if phase_of(mark) == KEPT_PHASE:
            return DONE
        sites = [name(c) for c in self._clusters.list() if not deleting(c)]
        waiting = [site for site in sorted(sites) if not await self._has_heard(site, mark)]
        left = self._fencing_seconds() - (self._clock.monotonic() - self._started)
        if left > 0 or waiting:
            told = ", ".join(waiting[:20]) + (f" and {len(waiting) - 20} more" if len(waiting) > 20 else "")
            if (mark.get("data") or {}).get("waitingFor", "") != told:
                await self._client.patch(scheme.CONFIG_MAP, RESTORED, SYSTEM_NAMESPACE, {"data": {"waitingFor": told}})
            return Result(requeue_after=max(0.05, left) if not waiting else LOOK_SECONDS)
        log.info("no site runs what this restored hub does not know: what must not run twice starts again")
        done = {"phase": KEPT_PHASE, "waitingFor": None}
        await self._client.patch(scheme.CONFIG_MAP, RESTORED, SYSTEM_NAMESPACE, {"data": done})
        return DONE

    def _fencing_seconds(self) -> float:
        """After so many without a heartbeat nothing runs on any site of what must not run twice, as far as is known here."""
        usual = self._settings.fencing_after + DEFAULT_GRACE_SECONDS
        return max([usual, *(s for w in self._works.list() if (s := agreed(w)) is not None)]) + self._settings.fencing_margin

    async def _has_heard(self, site: str, mark: Obj) -> bool:
        """Whether it runs none of it unknown to the hub."""
        found = self._works.get(RESTORED, cluster_namespace(site))
        if found is None:
            # Its namespace was not there yet when the hub started: nothing of it was known.
            await _tell(self._client, cluster_namespace(site), mark, ())
        elif int((found.get("status") or {}).get("observedGeneration") or 0) >= generation(found):
            return True
        cluster = self._clusters.get(site)
        if cluster is None or not fences_itself(cluster):
            return cluster is None  # It goes on however long it is silent: only its return or its removal shows.
        heard = self._silence.renewal(site)
        silent = self._silence.seconds(site) if heard else self._clock.monotonic() - self._started
        return silent >= self._fencing_seconds()


def setup(manager: Manager, client: Client, clock: Clock, settings: Settings) -> None:
    """Runs it: when the mark, what is made for it, or the sites change."""
    key = ObjectRef(scheme.CONFIG_MAP.group, scheme.CONFIG_MAP.kind, SYSTEM_NAMESPACE, RESTORED)

    def of_work(work: Obj) -> Iterable[ObjectRef]:
        return [key] if name(work) == RESTORED else []

    manager.add(RestoredReconciler(manager, client, clock, settings), [(scheme.WORK, of_work)])
    Hold(manager).marks.on_change(lambda old, new: manager.enqueue(NAME, key))
