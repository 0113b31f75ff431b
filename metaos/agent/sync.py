"""Desired state: the Works of this site, as last heard of, on disk, and fenced where the agreement says so.

A Work is kept as one private file, so that a site needs the hub for nothing but news. Work that must not run twice
(``spec.fencing.afterSeconds``) is left out of what is desired once the lease could not be renewed for so long, and comes
back only when the hub, reached again, still lists it. So does what is first heard of after such a silence: the news of it may
be from before.

News has an order, that of the hub's revisions. The list that lifts fences is asked for beside the watch, which goes on where
it was broken off and tells again what has long changed; and a list may be overtaken by an event. What is older than what is
known changes nothing.

A hub that was restored from a backup says so by a Work of its own (``RESTORED``). What was begun after the backup is not in its
list, and goes on all the same until that Work is gone; what must not run twice does not.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from metaos.agent.contact import Contact, Follower
from metaos.client import Client, ObjList, WatchEvent
from metaos.clock import Clock, sleep_or
from metaos.files import write_private
from metaos.resources import meta
from metaos.resources.backups import RESTORE
from metaos.resources.errors import ApiError, expired
from metaos.resources.meta import DRAINING, RESTORED, Obj, cluster_namespace, name, uid
from metaos.resources.scheme import WORK, WORKLOADS
from metaos.resources.workload import grace_seconds

log = logging.getLogger(__name__)

_WORKLOAD_KINDS = {kind.kind for kind in WORKLOADS}


class WorkFiles:
    """One file per Work in a private directory. A file that cannot be read is set aside, not trusted; what cannot be written is
    tried again with the next that is, and ``problem`` says why: a full disk stops no work that goes on without it. Not
    ``durable``: where the machine stops, the newest may be lost until the hub tells them again."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder, self._durable = folder, durable
        #: Names of Works whose files are not as they are: bounded by the Works.
        self._unsaved: dict[str, Obj] = {}
        self.problem = ""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> list[Obj]:
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                found.append(json.loads(path.read_text()))
            except ValueError:
                log.error("%s is damaged; set aside as %s.damaged until the hub sends it again", path, path.name)
                path.replace(path.with_name(path.name + ".damaged"))
        return found

    def save(self, work: Obj) -> None:
        self._unsaved[name(work)] = work
        self.retry()

    def remove(self, work: Obj) -> None:
        self._unsaved.pop(name(work), None)
        self._path(work).unlink(missing_ok=True)
        self.retry()

    def retry(self) -> None:
        """Writes what could not be written before."""
        problem = ""
        for key, work in list(self._unsaved.items()):
            try:
                write_private(self._path(work), json.dumps(work, separators=(",", ":")), durable=self._durable)
                del self._unsaved[key]
            except OSError as error:
                why = error.strerror or str(error)
                problem = f"{len(self._unsaved)} Works cannot be kept in {self._folder} ({why}): free some space there; a "
                problem += "restart while the hub is away would begin with what it knew before"
                break
        if problem and not self.problem:
            log.error("%s", problem)
        elif self.problem and not problem:
            log.info("all Works are kept in %s again", self._folder)
        self.problem = problem

    def _path(self, work: Obj) -> Path:
        # Names may have 253 characters, which with a suffix is too long for a file.
        found = name(work)
        short = found if len(found) <= 200 else found[:180] + hashlib.sha256(found.encode()).hexdigest()[:16]
        return self._folder / f"{short}.json"


class Works:
    """The Works of one site. ``on_change`` is called after every change of what is desired."""

    def __init__(self, client: Client, contact: Contact, clock: Clock, files: WorkFiles, site: str) -> None:
        self._client, self._contact, self._clock, self._files = client, contact, clock, files
        self._namespace = cluster_namespace(site)
        self._works: dict[str, Obj] = {name(work): work for work in files.load()}
        self._fenced: set[str] = set()
        #: What a restored hub does not know, and goes on.
        self._unknown: set[str] = set()
        #: How long each that must not run twice may go on without the hub.
        self._limits: dict[str, float] = {key: s for key, work in self._works.items() if (s := _fence_seconds(work))}
        #: Whether nothing of a Work may run yet, whatever it says, as its volumes are not here.
        self.withheld: Callable[[Obj], bool] = lambda work: False
        self._listeners: list[Callable[[], None]] = []
        self._wanters: list[Callable[[str], None]] = []
        self._reporters: list[Callable[[str], None]] = []
        self._changed = asyncio.Event()
        #: Whether the hub has said in this run which Works there are.
        self.listed = False
        #: As of which of the hub's revisions the Works are known; 0: of none.
        self._revision = 0
        #: The longest time without a confirmed heartbeat since the list was asked for that lifted fences last, and since the one
        #: that is under way.
        self._silent = self._silent_since = contact.silent_seconds
        self._fence(contact.silent_seconds)
        contact.on_renewal(self._renewed)
        self.follower = Follower(client, contact, clock, WORK, self._namespace, on_list=self._follow, on_event=self.apply_event)

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def on_wanted(self, listener: Callable[[str], None]) -> None:
        """``listener`` is told the name of each Work of which something else is desired: it came, changed, went or was fenced."""
        self._wanters.append(listener)

    def on_status(self, listener: Callable[[str], None]) -> None:
        """``listener`` is told the name of a Work that has another status at the hub than was known here. Over a line on which
        answers overtake each other that may be an older one than this site has just written, so it is to be looked at again."""
        self._reporters.append(listener)

    @property
    def problem(self) -> str:
        """Why not all is kept for a restart without the hub; empty where it is. Looked at again by this."""
        if self._files.problem:
            self._files.retry()
        return self._files.problem

    def get(self, work: str) -> Obj | None:
        return self._works.get(work)

    def all(self) -> dict[str, Obj]:
        """By name, as they are now."""
        return dict(self._works)

    def names(self) -> list[str]:
        return sorted(self._works)

    def fenced(self, work: str) -> bool:
        return work in self._fenced

    def desired(self, *, mark_draining: bool = False) -> list[Obj]:
        """Every manifest that this site shall have now. What is brought back from a backup first says so by an annotation, as
        does with ``mark_draining`` what drains."""
        found = []
        for key in sorted(self._works):
            if key in self._fenced:
                continue
            work = self._works[key]
            spec = work.get("spec") or {}
            waits = self.withheld(work)
            marks = {RESTORE: json.dumps(spec["restore"])} if spec.get("restore") else {}
            if mark_draining and (draining := meta.annotations(work).get(DRAINING)):
                marks[DRAINING] = draining
            for manifest in spec.get("manifests") or ():
                if marks:
                    metadata = manifest.get("metadata") or {}
                    marked = (metadata.get("annotations") or {}) | marks
                    manifest = manifest | {"metadata": metadata | {"annotations": marked}}
                if waits and "replicas" in (manifest.get("spec") or {}):
                    manifest = manifest | {"spec": manifest["spec"] | {"replicas": 0}}
                found.append(manifest)
        return found

    # -- news from the hub -----------------------------------------------------------------------------------

    def _follow(self, found: ObjList) -> None:
        """The watch's own list: nobody knows whether it was asked for before or after the last renewal, so it lifts no fence.
        Raises ``ApiError`` where a younger one has overtaken it: the next one is believed, whatever its revision."""
        if not self.replace_all(found.items, int(found.resource_version or 0)):
            self._revision = 0
            raise expired("this list of Works is older than what is known")

    def replace_all(self, works: list[Obj], revision: int = 0, silent: float = float("inf")) -> bool:
        """A complete list: what is not in it is gone. ``revision``: the hub's, as of which it is; 0: now. ``silent``: the longest
        time in seconds without a confirmed heartbeat since it was asked for; what is to be fenced later than that may run again
        if it is listed. Whether it was taken: one that is older than what is known is not."""
        if 0 < revision < self._revision:
            return False
        before, self.listed = self._snapshot(), True
        self._revision = revision or self._revision
        present = {name(work): work for work in works}
        gone = [key for key in self._works if key not in present]
        self._unknown = {key for key in gone if _outlives(self._works[key], present.get(RESTORED))}
        for key in gone:
            if key not in self._unknown:
                self._drop(key)
        for work in works:
            self._keep(work)
        if silent < float("inf"):
            self._silent = silent
            self._fenced.clear()
        self._settle(before)
        return True

    def apply_event(self, event: WatchEvent) -> None:
        revision = int(meta.resource_version(event.object) or 0)
        if 0 < revision <= self._revision:
            return
        self._revision = revision or self._revision
        key = name(event.object)
        about = None if key == RESTORED else key
        before = self._snapshot(about)
        if event.type == "DELETED":
            self._drop(key)
            if key == RESTORED:
                for each in sorted(self._unknown):
                    self._drop(each)
        else:
            self._keep(event.object)
        self._settle(before, about)

    def forget_all(self) -> None:
        """This site is no member any more."""
        self.listed = True
        before = self._snapshot()
        for key in list(self._works):
            self._drop(key)
        self._settle(before)

    def _keep(self, work: Obj) -> None:
        found = self._works.get(name(work))
        self._unknown.discard(name(work))
        if found is not None and uid(found) != uid(work):
            self._fenced.discard(name(work))
        lean = {"metadata": _lean(work), "spec": work.get("spec") or {}, "status": work.get("status") or {}}
        self._works[name(work)] = {"apiVersion": WORK.api_version, "kind": WORK.kind} | lean
        if seconds := _fence_seconds(lean):
            self._limits[name(work)] = seconds
        else:
            self._limits.pop(name(work), None)
        if found is None or _wanted(found) != _wanted(lean):
            self._files.save(self._works[name(work)])
        if found is not None and found.get("status") != lean["status"]:
            for listener in self._reporters:
                listener(name(work))

    def _drop(self, key: str) -> None:
        gone = self._works.pop(key, None)
        self._limits.pop(key, None)
        self._fenced.discard(key)
        self._unknown.discard(key)
        if gone is not None:
            self._files.remove(gone)

    def _snapshot(self, about: str | None = None) -> tuple[dict[str, object], set[str]]:
        """What is desired: of all Works, or of the one that news are about."""
        names = self._works if about is None else (about,)
        return {key: _wanted(self._works[key]) for key in names if key in self._works}, set(self._fenced)

    def _settle(self, before: tuple[dict[str, object], set[str]], about: str | None = None) -> None:
        self._fence(self._contact.silent_seconds)
        after = self._snapshot(about)
        if before == after:
            return
        self._changed.set()
        (then, fenced), (now, still) = before, after
        others = {key for key in then.keys() | now.keys() if then.get(key) != now.get(key)} | (fenced ^ still)
        for key in sorted(others):
            for wanter in self._wanters:
                wanter(key)
        for listener in self._listeners:
            listener()

    # -- fencing ---------------------------------------------------------------------------------------------

    def limits(self) -> dict[str, float]:
        """Uid of a workload that must not run twice → seconds after the last confirmed heartbeat until nothing of it may run:
        the hub waits longer."""
        return {
            uid(manifest): seconds + _grace_seconds(work, manifest)
            for work in self._works.values()
            if (seconds := _fence_seconds(work))
            for manifest in (work.get("spec") or {}).get("manifests") or ()
            if manifest.get("kind") in _WORKLOAD_KINDS
        }

    def _lease_holds(self) -> bool:
        """Whether the youngest agreement is still kept."""
        return self._contact.silent_seconds < min(self._limits.values(), default=float("inf"))

    def _fence(self, silent: float) -> set[str]:
        silent = max(silent, self._silent)
        due = {key for key, seconds in self._limits.items() if silent >= seconds} - self._fenced
        self._fenced |= due
        return due

    async def keep_fences(self) -> None:
        """Never returns. Fences in time, and asks the hub again once the lease has been renewed."""
        failures = 0
        while True:
            self._changed.clear()
            self._stop(self._contact.silent_seconds)
            if self._fenced and self._lease_holds():
                self._silent_since = self._contact.silent_seconds
                try:
                    found = await self._client.list(WORK, self._namespace)
                    if self.replace_all(found.items, int(found.resource_version or 0), self._silent_since):
                        failures = 0
                    else:
                        await self._contact.pause(1)
                    continue
                except ApiError as error:
                    failures += 1
                    self._contact.missed(error)
                    await self._contact.pause(failures)
                    continue
            await self._until_due()

    async def _until_due(self) -> None:
        silent = self._contact.silent_seconds
        waits = [seconds - silent for key, seconds in self._limits.items() if key not in self._fenced]
        if waits:
            await sleep_or(self._clock, max(min(waits), 0.05), self._changed)
        else:
            await self._changed.wait()

    def _stop(self, silent: float) -> None:
        before = self._snapshot()
        if fenced := self._fence(silent):
            log.warning(
                "no heartbeat was confirmed for %.0f s: stopping what must not run twice (%s) until the hub is back",
                silent,
                ", ".join(sorted(fenced)),
            )
            self._settle(before)

    def _renewed(self, silent: float) -> None:
        """A heartbeat that came too late does not lift a fence: this process, or the machine, may have been stopped when it
        was due."""
        self._silent, self._silent_since = max(self._silent, silent), max(self._silent_since, silent)
        self._stop(silent)
        if self._fenced:
            self._changed.set()


_KEPT = ("name", "namespace", "uid", "generation", "annotations", "labels", "resourceVersion")


def _lean(work: Obj) -> dict[str, object]:
    metadata = meta.meta(work)
    return {k: metadata[k] for k in _KEPT if k in metadata}


def _outlives(work: Obj, restored: Obj | None) -> bool:
    """Whether a Work that a restored hub does not list was begun after its backup, and may go on. One that the hub knew when it
    was restored, or has written since, was deleted."""
    if restored is None or _fence_seconds(work) or name(work) == RESTORED:
        return False
    said = ((restored.get("spec") or {}).get("manifests") or [{}])[0].get("data") or {}
    known = str(said.get("works") or "").split("\n")
    return name(work) not in known and int(meta.resource_version(work) or 0) < int(said.get("revision") or 0)


def _wanted(work: Obj) -> object:
    """What decides: a new status or resourceVersion is no change of what is desired."""
    metadata = work["metadata"]
    return metadata.get("uid"), metadata.get("generation"), metadata.get("annotations"), work.get("spec")


def _grace_seconds(work: Obj, manifest: Obj) -> float:
    stated = work["spec"]["fencing"].get("graceSeconds")
    return grace_seconds(manifest) if stated is None else float(stated)


def _fence_seconds(work: Obj) -> float:
    return float(((work.get("spec") or {}).get("fencing") or {}).get("afterSeconds") or 0)
