"""What a site remembers of a workload beyond its status: its revisions, what pods that are gone have done, and since when."""

from collections.abc import Callable, Container, Sequence
from typing import Any

from metaos.agent.cache import Cache
from metaos.agent.jobs import Past, remember
from metaos.agent.stateful import complete
from metaos.agent.workloads import PodView, Revisions
from metaos.resources.meta import Obj, ObjectRef, ref, uid
from metaos.resources.workload import pod_template, template_hash


def key_of(about: ObjectRef) -> str:
    """In the cache."""
    return "|".join(about)


class Notes:
    """One note for each workload, on disk. At most two templates of each: the current one and the one wanted."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._notes: dict[ObjectRef, dict[str, Any]] = {ObjectRef(*key.split("|")): note for key, note in cache.items("notes")}
        self._digests: dict[ObjectRef, tuple[Obj, str]] = {}

    def _note(self, about: ObjectRef, obj: Obj, **first: Any) -> dict[str, Any]:
        """Nothing of an earlier object of the same name."""
        note = self._notes.get(about)
        if note is None or note["uid"] != uid(obj):
            if note is not None:
                self._forget_templates(note, keep=())
            note = self._notes[about] = {"uid": uid(obj), **first}
            self._cache.put("notes", key_of(about), note)
        return note

    def of_another(self, about: ObjectRef, obj: Obj) -> bool:
        """Whether what is remembered is about an earlier object of the same name."""
        note = self._notes.get(about)
        return note is not None and note["uid"] != uid(obj)

    def keep_only(self, wanted: Container[ObjectRef]) -> None:
        for about in [a for a in self._notes if a not in wanted]:
            self._forget_templates(self._notes.pop(about), keep=())
            self._cache.delete("notes", key_of(about))
        for about in [a for a in self._digests if a not in wanted]:
            del self._digests[about]

    def since(self, about: ObjectRef, obj: Obj, now: float) -> float:
        """When this site first saw it (seconds since the epoch)."""
        return float(self._note(about, obj, since=now)["since"])

    # -- pods that are gone ---------------------------------------------------------------------------------

    def past(self, job: Obj) -> Past:
        return Past.from_json(self._note(ref(job), job).get("past") or {})

    def is_over(self, pod: Obj) -> bool:
        """Whether a user's own Pod has ended here for good."""
        return bool(self._note(ref(pod), pod).get("over"))

    def pod_gone(self, owner: Obj, pod: PodView) -> None:
        """Of a Job it is counted; a user's own Pod never starts again."""
        note = self._note(ref(owner), owner)
        if owner["kind"] == "Pod":
            note["over"] = True
        elif owner["kind"] == "Job":
            note["past"] = remember(Past.from_json(note.get("past") or {}), owner, pod).to_json()
        else:
            return
        self._cache.put("notes", key_of(ref(owner)), note)

    # -- revisions ------------------------------------------------------------------------------------------

    def revisions(self, about: ObjectRef, obj: Obj, pods: Callable[[], Sequence[PodView]]) -> Revisions:
        digest = self._digest(about, obj)
        note = self._note(about, obj, current=digest)
        current = str(note.get("current") or digest)
        if about.kind == "StatefulSet":
            if current != digest and complete(obj, pods(), Revisions(current, digest)):
                current = digest
        elif not (about.kind == "Deployment" and (obj.get("spec") or {}).get("paused")):
            current = digest
        keeps = about.kind in ("Deployment", "StatefulSet")
        if keeps and (current != note.get("current") or digest not in note.get("templates", ())):
            # The template outlives the object that brought it: pods of this revision may have to be made later.
            with self._cache.together():
                self._cache.put("templates", f"{uid(obj)}/{digest}", pod_template(obj))
                kept = sorted({current, digest})
                self._forget_templates(note, keep=kept)
                note |= {"current": current, "templates": kept}
                self._cache.put("notes", key_of(about), note)
        return Revisions(current, digest)

    def template(self, obj: Obj, revision: str) -> Obj:
        """The pod template of a revision; the present one where that is not known."""
        if revision == self._digest(ref(obj), obj):
            return pod_template(obj)
        return self._cache.get("templates", f"{uid(obj)}/{revision}") or pod_template(obj)

    def _forget_templates(self, note: dict[str, Any], keep: Sequence[str]) -> None:
        for digest in note.get("templates", ()):
            if digest not in keep:
                self._cache.delete("templates", f"{note['uid']}/{digest}")

    def _digest(self, about: ObjectRef, obj: Obj) -> str:
        known = self._digests.get(about)
        if known is None or known[0] is not obj:
            known = self._digests[about] = obj, template_hash(obj)
        return known[1]
