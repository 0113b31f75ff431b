"""What this site reports about its Works: one status per manifest, written when it differs from what the hub has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.agent.contact import Contact
from metaos.agent.sync import Works
from metaos.agent.turns import Turns
from metaos.client import Client
from metaos.clock import Clock
from metaos.reconcile.precedence import Precedence
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, generation, namespace, ref, uid, with_condition
from metaos.resources.scheme import WORK
from metaos.resources.workload import replicas

#: Changes within this time become one write.
COALESCE_SECONDS = 0.2
#: What a Work that has just come makes of itself within this time (observed, so many pods made, each with conditions) is told as
#: one, unless it is available, or refused, before.
FIRST_SECONDS = 1.0
#: Instead, as long as nobody at the site has looked at all of it.
UNSEEN_SECONDS = 3.0
#: Writes under way at the same time.
WORKERS = 2

StatusOf = Callable[[ObjectRef], Obj | None]
#: (Work, the status that it has at the hub, whether it is fenced, now) → the status that it shall have there.
Judge = Callable[[Obj, dict[str, Any], bool, float], dict[str, Any]]


class WorkReports:
    """``judge`` gives a Work's status as this site sees it (:func:`local`). ``show`` returns once the hub has the pods of a
    Work's objects: who is told that they are ready may look at them at once."""

    def __init__(
        self,
        client: Client,
        contact: Contact,
        clock: Clock,
        random: Random,
        works: Works,
        judge: Judge,
        show: Callable[[Obj], Awaitable[None]],
        site_namespace: str,
        precedence: Precedence | None = None,
    ) -> None:
        self._client, self._clock = client, clock
        self._works, self._judge, self._show, self._namespace = works, judge, show, site_namespace
        self._turns: Turns[str] = Turns(contact, clock, random, self._report, "Work", WORKERS, precedence)
        #: What was written and what the hub made of it: where it normalises something, that is no reason to write again.
        self._acknowledged: dict[str, tuple[Obj, Obj]] = {}
        #: Of Works that nothing was told of yet: uid, and since when there was something to tell.
        self._fresh: dict[str, tuple[str, float]] = {}
        contact.on_return(self.refresh)
        works.on_wanted(self.look)
        works.on_status(self.look)

    def look(self, key: str) -> None:
        """Something of this Work may have changed."""
        self._turns.add(key, COALESCE_SECONDS)

    def refresh(self) -> None:
        """Something may have changed: look at every Work again, soon."""
        for key in self._works.names():
            self.look(key)

    async def run(self) -> None:
        """Never returns."""
        await self._turns.run()

    async def _report(self, key: str) -> None:
        work = self._works.get(key)
        if work is None:
            self._acknowledged.pop(key, None)
            self._fresh.pop(key, None)
            return
        old: dict[str, Any] = work.get("status") or {}
        new = self._judge(work, old, self._works.fenced(key), self._clock.now())
        if new == old or self._acknowledged.get(key) == (new, old):
            return
        if (wait := self._patience(key, work, old, new)) > 0:
            self._turns.add(key, wait)
            return
        await self._show(work)
        if self._works.get(key) is not work:
            self._turns.add(key, 0.0)
            return
        sent = merge_patch(old, new)
        patch = {"status": sent}
        try:
            answer = await self._client.patch(WORK, key, self._namespace, patch, subresource="status", field_manager="nemo-agent")
        except ApiError as error:
            if error.code == 404:
                return  # the Work is gone; the news of it is on the way
            raise
        work["status"] = answer.get("status") or {}
        if settled(sent, work["status"], new):
            self._acknowledged[key] = (new, work["status"])
        else:
            self._turns.add(key, 0.0)

    def _patience(self, key: str, work: Obj, old: Obj, new: Obj) -> float:
        """For how many seconds more the first report of a Work may wait; 0: it is due."""
        if old.get("manifests") or not _begins(new):
            self._fresh.pop(key, None)
            return 0.0
        now, since = self._clock.monotonic(), self._fresh.get(key)
        if since is None or since[0] != uid(work):
            since = self._fresh[key] = uid(work), now
        seen = all(entry["observedGeneration"] for entry in new["manifests"])
        return since[1] + (FIRST_SECONDS if seen else UNSEEN_SECONDS) - now


def _begins(status: Obj) -> bool:
    """Whether a Work's status says no more than that it is on its way."""
    told = {c.get("type"): (c.get("status"), c.get("reason")) for c in status.get("conditions") or ()}
    return told.get("Available", ("", ""))[0] == "False" and told.get("Applied") in (("True", "Applied"), ("False", "NotApplied"))


def local(status_of: StatusOf, volumes_of: Callable[[Obj], Mapping[str, Any]] = lambda work: {}) -> Judge:
    """``status_of`` gives an object's local status, ``None`` where this site does not run it (yet); ``volumes_of`` how far a
    Work's volumes are, empty where none move."""

    def judge(work: Obj, old: dict[str, Any], fenced: bool, now: float) -> dict[str, Any]:
        volumes = volumes_of(work)
        return work_status(work, old, status_of, fenced=fenced, now=now) | ({"volumes": dict(volumes)} if volumes else {})

    return judge


def work_status(work: Obj, old: dict[str, Any], status_of: StatusOf, *, fenced: bool, now: float) -> dict[str, Any]:
    """A Work's status as this site sees it. Pure, ``status_of`` apart."""
    entries, missing, waiting = [], [], []
    for manifest in (work.get("spec") or {}).get("manifests") or ():
        status = status_of(ref(manifest))
        label = f"{manifest.get('kind')} {namespace(manifest)}/{ref(manifest).name}"
        if status is None:
            missing.append(label)
        elif not available(manifest, status):
            waiting.append(label)
        entries.append(
            {
                "apiVersion": manifest.get("apiVersion", ""),
                "kind": manifest.get("kind", ""),
                "namespace": namespace(manifest),
                "name": ref(manifest).name,
                "uid": uid(manifest),
                "observedGeneration": generation(manifest) if status is not None else 0,
                "status": status or {},
            }
        )
    conditions = old.get("conditions") or []
    if fenced:
        why = "this site stopped it because it could not renew its lease in time"
        conditions = with_condition(conditions, "Applied", "False", "Fenced", why, now)
    elif missing:
        conditions = with_condition(conditions, "Applied", "False", "NotApplied", "not applied yet: " + ", ".join(missing), now)
    else:
        conditions = with_condition(conditions, "Applied", "True", "Applied", "", now)
    if fenced or missing or waiting:
        said = "waiting for " + ", ".join(missing + waiting) if missing or waiting else "fenced"
        conditions = with_condition(conditions, "Available", "False", "NotAvailable", said, now)
    else:
        conditions = with_condition(conditions, "Available", "True", "Available", "", now)
    return {"observedGeneration": generation(work), "conditions": conditions, "manifests": entries}


def available(manifest: Obj, status: Obj) -> bool:
    """Whether an object does what it is for: as many ready pods as wanted, a Job that has not failed."""
    kind = manifest.get("kind")
    if kind in ("Deployment", "StatefulSet", "ReplicaSet"):
        return int(status.get("availableReplicas") or 0) >= replicas(manifest)
    if kind == "DaemonSet":
        wanted = status.get("desiredNumberScheduled")
        return int(status.get("numberAvailable") or 0) >= (1 if wanted is None else int(wanted))
    conditions = {c.get("type"): c.get("status") for c in status.get("conditions") or ()}
    if kind == "Job":
        started = int(status.get("ready") or 0) or int(status.get("succeeded") or 0) or conditions.get("Complete") == "True"
        return bool(started) and conditions.get("Failed") != "True"
    if kind == "Pod":
        return conditions.get("Ready") == "True" or status.get("phase") == "Succeeded"
    return True


def settled(sent: Mapping[str, Any], made: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether what still differs after a write is how the hub keeps it. What was not even sent, another has changed in
    the meantime (a site that is missed has its pods marked): it has to be said again."""
    return _covers(sent, merge_patch(made, new))


def _covers(sent: Mapping[str, Any], left: Mapping[str, Any]) -> bool:
    return all(
        key in sent and (not isinstance(value, dict) or not isinstance(sent[key], dict) or _covers(sent[key], value))
        for key, value in left.items()
    )


def merge_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """RFC 7386: what turns ``old`` into ``new``."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if nested := merge_patch(before, value):
                patch[key] = nested
        elif key not in old or value != before:
            patch[key] = value
    return patch
