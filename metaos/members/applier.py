"""Brings a Kubernetes cluster to what its Works say: one object at a time, in order, and only what is ours.

Level-triggered per object: what is wanted comes from the Works, what is there from a watch of what carries our label, and the
decisions from :mod:`metaos.members.ownership`. Everything that is held is bounded by what the Works name and what is ours at the
cluster; at most ``WORKERS`` requests change something at a time, and a server that asks to be left alone is left alone by all.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.agent.contact import Follower
from metaos.agent.sync import Works
from metaos.agent.turns import Turns
from metaos.client import ObjList, PatchType, WatchEvent
from metaos.clock import Clock
from metaos.http import json_of, path_of
from metaos.members.discovery import Discovery
from metaos.members.exports import Exports
from metaos.members.health import CURRENT
from metaos.members.manifests import (
    ADOPTED,
    FIELD_MANAGER,
    MEMBER_LABEL,
    TRACKING,
    WORK_LABEL,
    is_export,
    is_import,
    is_skipped,
    phase,
    prepared,
    refusal,
)
from metaos.members.member import MAX_KINDS, WORKERS, Member
from metaos.members.names import Names
from metaos.members.ownership import Action, Applied, Live, closed, desired_step, found_step, is_ours, taken, unwanted_step
from metaos.members.refusals import INVALID_SECONDS, refusal_of
from metaos.members.relaying import Relays
from metaos.members.spaces import Spaces
from metaos.members.status import Outcome, Seen, about, work_status
from metaos.reconcile.workqueue import backoff_seconds
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, generation, name, namespace, ref, uid
from metaos.resources.scheme import Kind

log = logging.getLogger(__name__)

#: News of Works within this time are taken up together.
COALESCE_SECONDS = 0.01
#: Another writer that goes on changing our fields is corrected later and later, up to once a minute.
CORRECT_SECONDS = 0.5
#: After so long without a change by others an object counts as quiet again.
QUIET_SECONDS = 180.0
#: A custom resource whose definition is on its way is tried again so soon.
KIND_SECONDS = 0.5
#: What waits for something else at the cluster is looked at so often, if no event comes before.
WAIT_SECONDS = 5.0

#: (object at the hub, ``Normal`` or ``Warning``, reason, message)
Record = Callable[[Obj, str, str, str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One manifest of one Work, and what is sent for it."""

    manifest: Obj
    body: Obj
    work: str
    digest: str
    phase: int


class Applier:
    """``changed`` is told the name of a Work whose status may be another one; ``taken_up`` is called when the Works want other
    objects. Nothing is done before :meth:`begin`."""

    def __init__(
        self,
        member: Member,
        works: Works,
        membership: str,
        clock: Clock,
        random: Random,
        changed: Callable[[str], None],
        record: Record,
        taken_up: Callable[[], None] = lambda: None,
        relays: Relays | None = None,
        exports: Exports | None = None,
    ) -> None:
        self._relays, self._exports = relays, exports
        self._member, self._client, self._contact = member, member.client, member.contact
        self._works, self._id, self._clock, self._random = works, membership, clock, random
        self._tell, self._record, self._taken_up = changed, record, taken_up
        self.discovery, self._names = Discovery(member.client), Names(member.client, clock)
        self._turns: Turns[ObjectRef] = Turns(member.contact, clock, random, self._step, "object", WORKERS)
        self._wanted: dict[ObjectRef, Wanted] = {}
        self._by_work: dict[str, tuple[object, list[tuple[ObjectRef, Wanted]]]] = {}
        self._live: dict[ObjectRef, Live] = {}
        #: The uid under which each was ours when it was seen last, whatever became of its labels.
        self._known: dict[ObjectRef, str] = {}
        self._applied: dict[ObjectRef, Applied] = {}
        self._outcomes: dict[ObjectRef, Outcome] = {}
        self._corrected: dict[ObjectRef, tuple[int, float]] = {}
        self._followed: dict[tuple[str, str], Kind] = {}
        self._listed: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._spaces = Spaces(member.client, clock, membership, lambda about: about in self._wanted)
        self._quiet_until = float("-inf")
        self._news, self._swept = asyncio.Event(), False
        #: Why nothing is done; empty once it is.
        self.held = "the cluster has not been claimed yet"
        works.on_change(self._news.set)
        member.contact.on_return(self.refresh)

    def begin(self) -> None:
        """The cluster is ours."""
        if self.held:
            self.held = ""
            self._news.set()
            self.refresh()

    def hold(self, why: str) -> None:
        """The cluster is not, or no longer, ours."""
        if self.held != why:
            self.held = why
            for work in self._works.names():
                self._tell(work)

    @property
    def left(self) -> list[ObjectRef]:
        """What is ours at the cluster and is to go."""
        return sorted(about for about in self._live if about not in self._wanted and about.kind != "Namespace")

    @property
    def cleared(self) -> bool:
        """Whether nothing is left, of what an agent before this one has made neither."""
        return self._swept and self._followed.keys() <= self._listed and not self.left

    def refs(self) -> list[ObjectRef]:
        """What the Works want."""
        return list(self._wanted)

    def ours(self, each: ObjectRef, live_uid: str) -> Obj | None:
        """The manifest of an object that is wanted and is at the cluster under this uid."""
        wanted, live = self._wanted.get(each), self._live.get(each)
        return wanted.manifest if wanted is not None and live is not None and live.uid == live_uid else None

    def live_uid(self, each: ObjectRef) -> str:
        """Of an object of ours at the cluster; empty while there is none."""
        live = self._live.get(each)
        return live.uid if live is not None else ""

    def refresh(self) -> None:
        """Look at everything again."""
        for each in self._ordered(self._wanted.keys() | self._live.keys()):
            self._turns.add(each, 0.0)

    async def run(self) -> None:
        """Never returns."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._turns.run())
                group.create_task(self._follow_works())
                group.create_task(self._sweep())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what is wanted ----------------------------------------------------------------------------------------

    async def _follow_works(self) -> None:
        while True:
            self._news.clear()
            self.take_up()
            await self._news.wait()
            await self._clock.sleep(COALESCE_SECONDS)

    def take_up(self) -> None:
        """See what the Works want now. By itself that is done :data:`COALESCE_SECONDS` after news of them."""
        before, self._wanted = self._wanted, {}
        names = self._works.names()
        self._by_work = {work: found for work, found in self._by_work.items() if self._works.get(work) is not None}
        for work in names:
            for each, wanted in self._of_work(work):
                self._wanted.setdefault(each, wanted)  # Of two that name one object the first has it.
        changed = [r for r in before.keys() | self._wanted.keys() if before.get(r) is not self._wanted.get(r)]
        for each in self._ordered(changed):
            if each not in self._wanted:
                self._outcomes.pop(each, None)
                self._corrected.pop(each, None)
            self._turns.add(each, 0.0)
        if self._exports is not None:
            said = [(m, work) for work in names for m in self._manifests(work)]
            self._exports.keep({(namespace(m), name(m)): work for m, work in said if is_export(m)})
        if self._relays is not None:
            self._relays.keep((namespace(m), name(m)) for work in names for m in self._manifests(work) if is_import(m))
        self._taken_up()

    def _of_work(self, work: str) -> list[tuple[ObjectRef, Wanted]]:
        obj = self._works.get(work) or {}
        manifests = (obj.get("spec") or {}).get("manifests") or ()
        imported = next((m for m in manifests if is_import(m)), None)
        # Who is there to be relayed to is another Work's.
        relayed = self._relays is not None and imported is not None and self._relays.reaches(namespace(imported), name(imported))
        key = uid(obj), generation(obj), relayed
        cached = self._by_work.get(work)
        if cached is not None and cached[0] == key:
            return cached[1]
        found = []
        for said in manifests:
            manifest = self._native(said)
            if manifest is not None:
                each = ref(manifest)
                text = json.dumps([uid(obj), manifest], sort_keys=True, separators=(",", ":"))
                digest = hashlib.sha256(text.encode()).hexdigest()
                body = prepared(manifest, self._id, uid(obj))
                found.append((each, Wanted(manifest, body, work, digest, phase(each.group, each.kind))))
        self._by_work[work] = key, found
        return found

    def _manifests(self, work: str) -> Sequence[Obj]:
        found: Sequence[Obj] = ((self._works.get(work) or {}).get("spec") or {}).get("manifests") or ()
        return found

    def _native(self, manifest: Obj) -> Obj | None:
        """What the cluster gets for a manifest, if anything."""
        if is_import(manifest):
            return None if self._relays is None else self._relays.slice(manifest)
        return None if is_skipped(manifest) or is_export(manifest) else manifest

    def _ordered(self, refs: Any) -> list[ObjectRef]:
        """What is wanted in the order of phases, then what is to go in the opposite order."""
        keep = sorted((r for r in refs if r in self._wanted), key=lambda r: (self._wanted[r].phase, r))
        drop = sorted((r for r in refs if r not in self._wanted), key=lambda r: (-phase(r.group, r.kind), r))
        return [*keep, *drop]

    # -- what is there -----------------------------------------------------------------------------------------

    def _follow(self, kind: Kind) -> None:
        key = kind.group, kind.kind
        if key in self._followed:
            return
        if len(self._followed) >= MAX_KINDS:
            raise ApiError(507, "TooManyKinds", f"at most {MAX_KINDS} kinds of objects are followed at one cluster")
        self._followed[key] = kind

        def on_list(found: ObjList) -> None:
            fresh = {ref(item) for item in found.items}
            self._listed.add(key)
            for gone in [r for r in self._live if (r.group, r.kind) == key and r not in fresh]:
                self._lose(gone)
            for item in found.items:
                self._see(item)
            for each in self._ordered([r for r in self._wanted if (r.group, r.kind) == key]):
                self._turns.add(each, 0.0)

        def on_event(event: WatchEvent) -> None:
            if event.type == "DELETED":
                self._lose(ref(event.object))
            else:
                self._see(event.object)

        def on_error(error: ApiError) -> None:
            if key not in self._listed and error.code not in (404, 410, 503):
                for each, wanted in self._wanted.items():
                    if (each.group, each.kind) == key:
                        self._fail(each, wanted, error)

        follower = Follower(
            self._client,
            self._contact,
            self._clock,
            kind,
            labels=f"{MEMBER_LABEL}={self._id}",
            on_list=on_list,
            on_event=on_event,
            on_error=on_error,
        )
        task = asyncio.create_task(follower.run())
        self._tasks.add(task)

    def _see(self, obj: Obj) -> None:
        each = ref(obj)
        if not is_ours(obj, self._id):
            if each in self._live:
                self._lose(each)  # The label alone is left: it is looked at by its uid.
            return
        wanted = self._wanted.get(each)
        before, live = self._live.get(each), Live.of(obj, wanted.body if wanted is not None else None)
        if live == before:
            return
        self._live[each], self._known[each] = live, live.uid
        if wanted is None:
            self._turns.add(each, 0.0)
            return
        if each.kind == "CustomResourceDefinition" and live.health.status == CURRENT:
            self._kinds_came()
        applied = self._applied.get(each)
        if live.deleting:
            self._turns.add(each, WAIT_SECONDS)
        elif applied is not None and applied.digest == wanted.digest and applied.fields != live.fields:
            self._turns.add(each, self._correction_delay(each))
        self._tell(wanted.work)

    def _lose(self, each: ObjectRef) -> None:
        live = self._live.pop(each, None)
        self._applied.pop(each, None)
        self._outcomes.pop(each, None)
        wanted = self._wanted.get(each)
        if wanted is not None:
            self._turns.add(each, self._correction_delay(each))
            self._tell(wanted.work)
        else:
            self._known.pop(each, None)
            for other, found in self._live.items():  # something may have waited for it
                carries = phase(other.group, other.kind) <= _FOUNDATIONS
                if carries and other not in self._wanted and live is not None and found.work == live.work:
                    self._turns.add(other, 0.0)

    def _correction_delay(self, each: ObjectRef) -> float:
        now = self._clock.monotonic()
        count, last = self._corrected.get(each, (0, float("-inf")))
        count = 1 if now - last > QUIET_SECONDS else count + 1
        self._corrected[each] = count, now
        return 0.0 if count == 1 else backoff_seconds(count - 1, self._random.random(), CORRECT_SECONDS)

    def _kinds_came(self) -> None:
        self.discovery.forget()
        for each, outcome in self._outcomes.items():
            if outcome.reason == "KindUnknown":
                self._turns.add(each, 0.0)

    async def _sweep(self) -> None:
        """Ends once it is done: what an agent before this one has left, of kinds that no Work names any more, is found."""
        while True:
            if not self.held and self._works.listed:
                try:
                    for kind in await self.discovery.everything():
                        if await self._has_ours(kind):
                            self._follow(kind)
                    self._swept = True
                    return
                except ApiError as error:
                    self._contact.missed(error)
                    log.debug("what was left is looked for again: %s", error.message)
            await self._clock.sleep(WAIT_SECONDS)

    async def _has_ours(self, kind: Kind) -> bool:
        try:
            found = await self._client.list(kind, labels=f"{MEMBER_LABEL}={self._id}")
        except ApiError as error:
            if error.code in (403, 404, 405, 406):
                return False  # What we may not list we have not made.
            raise
        return any(is_ours(item, self._id) for item in found.items)

    # -- one step ----------------------------------------------------------------------------------------------

    async def _step(self, each: ObjectRef) -> None:
        if self.held:
            return
        wait = self._quiet_until - self._clock.monotonic()
        if wait > 0:
            self._turns.add(each, wait)
            return
        wanted = self._wanted.get(each)
        try:
            if wanted is None:
                await self._remove(each)
            else:
                await self._bring(each, wanted)
        except ApiError as error:
            if error.code == 429:
                self._quiet_until = max(self._quiet_until, self._clock.monotonic() + max(1.0, error.retry_after_seconds))
            if error.code == 404 and error.details.get("kind") == "namespaces":
                self._spaces.doubt(each.namespace)
            elif error.code == 404:
                self.discovery.forget(each.group)
            if wanted is None:
                raise
            again = self._fail(each, wanted, error)
            if again is None:
                raise
            self._turns.add(each, again)

    def _fail(self, each: ObjectRef, wanted: Wanted, error: ApiError) -> float | None:
        found = refusal_of(error)
        self._set(each, wanted, found.reason, found.message)
        return found.seconds

    def _set(self, each: ObjectRef, wanted: Wanted, reason: str = "", message: str = "") -> None:
        outcome = Outcome(wanted.digest, reason, message)
        before = self._outcomes.get(each)
        if before == outcome:
            return
        self._outcomes[each] = outcome
        if reason not in ("", "KindUnknown", "Waiting", "Unreachable", "Throttled"):
            log.warning("%s: %s: %s", about(wanted.manifest), reason, message)
            self._record(wanted.manifest, "Warning", reason, message)
        self._tell(wanted.work)
        if before is None or before.digest != wanted.digest:
            for other in self._waiting_for(each, wanted):
                self._turns.add(other, 0.0)

    def _waiting_for(self, each: ObjectRef, wanted: Wanted) -> Iterator[ObjectRef]:
        for other, found in self._of_work(wanted.work):
            if found.phase > wanted.phase and self._tried(other, found) is None:
                yield other

    def _tried(self, each: ObjectRef, wanted: Wanted) -> Outcome | None:
        """What came of this manifest; ``None`` before it was tried."""
        outcome = self._outcomes.get(each)
        if outcome is None or outcome.digest != wanted.digest:
            return None
        return outcome

    async def _bring(self, each: ObjectRef, wanted: Wanted) -> None:
        reason, message = refusal(wanted.manifest)
        if reason:
            self._set(each, wanted, reason, message)
            return
        for other, found in self._of_work(wanted.work):
            if found.phase < wanted.phase and self._wanted.get(other) is found and self._tried(other, found) is None:
                return  # It comes before; this one is looked at again when that was tried.
        kind = await self.discovery.find(str(wanted.manifest["apiVersion"]), each.kind)
        if kind is None:
            text = f"the cluster ({self._member.version}) serves no kind {each.kind} in {wanted.manifest['apiVersion']}"
            self._set(each, wanted, "KindUnknown", f"{text}: it waits for its CustomResourceDefinition")
            # A server lists a kind a moment after it has said that the definition is established.
            self._turns.add(each, KIND_SECONDS if self._is_coming(each) else INVALID_SECONDS)
            return
        if kind.namespaced and not each.namespace:
            self._set(each, wanted, "Invalid", f"metadata.namespace must be set, as {each.kind} is namespaced")
            return
        if not kind.namespaced and each.namespace:
            self._set(each, wanted, "Invalid", f"metadata.namespace must not be set, as {each.kind} is cluster-wide")
            return
        self._follow(kind)
        if (kind.group, kind.kind) not in self._listed:
            return  # Its first list looks at all of this kind.
        live = self._live.get(each)
        action = desired_step(live, self._applied.get(each), wanted.digest)
        found_uid = live.uid if live is not None else ""
        if action in (Action.LOOK, Action.APPLY) and (why := await self._spaces.closed(each.namespace)):
            self._refuse(each, wanted, "NamespaceTaken", why)
            return
        if action is Action.LOOK:
            there = None if await self._names.lack(kind, each) else await self._get(kind, each)
            action = found_step(wanted.manifest, there, self._id, self._known.get(each, ""))
            if action is Action.REFUSE and there is not None:
                if each.kind == "Namespace":
                    self._refuse(each, wanted, "NamespaceTaken", closed(there, self._id))
                else:
                    self._refuse(each, wanted, "NameTaken", taken(there, self._id))
                return
            found_uid = uid(there) if there is not None else ""
        if action is Action.WAIT:
            self._set(each, wanted, "Waiting", "the object of this name is being deleted first")
            self._turns.add(each, WAIT_SECONDS)
            return
        if action is not Action.NOTHING:
            await self._apply(each, wanted, kind, action, found_uid)
        if self._wanted.get(each) is wanted:
            self._set(each, wanted)

    def _refuse(self, each: ObjectRef, wanted: Wanted, reason: str, message: str) -> None:
        """Until its owner does something about it."""
        self._set(each, wanted, reason, message)
        self._turns.add(each, INVALID_SECONDS)

    def _is_coming(self, each: ObjectRef) -> bool:
        """Whether a Work has the definition of its kind."""
        for wanted in self._wanted.values():
            spec = wanted.manifest.get("spec") or {}
            if wanted.manifest.get("kind") == "CustomResourceDefinition" and spec.get("group") == each.group:
                return True
        return False

    async def _apply(self, each: ObjectRef, wanted: Wanted, kind: Kind, action: Action, found_uid: str) -> None:
        before = self._live.get(each)
        adopted = action is Action.ADOPT or (before is not None and before.adopted)
        body = wanted.body | {"apiVersion": kind.api_version, "metadata": {**wanted.body["metadata"]}}
        if adopted:
            body["metadata"]["annotations"] = body["metadata"]["annotations"] | {ADOPTED: "true"}
        if found_uid:
            body["metadata"]["uid"] = found_uid  # Only this very object, not another one that took its name meanwhile.
        code, obj = await self._patch(kind, each, body, force=action is not Action.CREATE)
        if action is Action.CREATE and code != 201:
            # Somebody was faster. Nothing of theirs was changed, as this did not force; what it added is taken back.
            await self._patch(
                kind, each, {k: body[k] for k in ("apiVersion", "kind")} | {"metadata": _identity(each)}, force=False
            )
            raise ApiError(409, "AlreadyExists", "somebody else has just made one of this name")
        obj = {"apiVersion": kind.api_version, "kind": kind.kind} | obj
        live = Live.of(obj, wanted.body)
        drifted = before is not None and (applied := self._applied.get(each)) is not None and applied.digest == wanted.digest
        self._applied[each] = Applied(wanted.digest, live.fields)
        self._known[each] = live.uid
        if before is None or before.uid != live.uid or before.generation <= live.generation:
            self._live[each] = live
        if each.kind == "CustomResourceDefinition":
            self.discovery.forget()
        if drifted and before is not None:
            log.info("%s: fields that others changed are as they were", about(wanted.manifest))
            self._record(
                wanted.manifest, "Normal", "DriftCorrected", "fields that another writer had changed are as the hub has them"
            )

    async def _remove(self, each: ObjectRef) -> None:
        live = self._live.get(each)
        action = unwanted_step(each.kind, live, sure=self._works.listed)
        kind = self._followed.get((each.group, each.kind))
        if live is None:
            self._known.pop(each, None)
            self._applied.pop(each, None)
        if action is Action.WAIT:
            self._turns.add(each, WAIT_SECONDS)
        if live is None or kind is None or action in (Action.NOTHING, Action.WAIT):
            return
        mine = phase(each.group, each.kind)
        if mine <= _FOUNDATIONS and any(
            phase(r.group, r.kind) > max(mine, _FOUNDATIONS) and self._live[r].work == live.work for r in self.left
        ):
            self._turns.add(each, WAIT_SECONDS)  # What is built on it goes first.
            return
        try:
            if action is Action.RELEASE:
                none = {"labels": {MEMBER_LABEL: None, WORK_LABEL: None}, "annotations": {TRACKING: None, ADOPTED: None}}
                patch = {"metadata": {"uid": live.uid} | none}
                await self._client.patch(
                    kind, each.name, each.namespace, patch, type=PatchType.MERGE, field_manager=FIELD_MANAGER
                )
            else:
                await self._client.delete(kind, each.name, each.namespace, uid=live.uid, propagation="Background")
        except ApiError as error:
            if error.code != 404:
                raise
            self._lose(each)

    async def _patch(self, kind: Kind, each: ObjectRef, body: Obj, *, force: bool) -> tuple[int, Obj]:
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        content = json.dumps(body, separators=(",", ":")).encode()
        where = path_of(kind, each.namespace, each.name)
        answer = await self._client.request("PATCH", where, content, query=query, content_type=PatchType.APPLY.value)
        found: Obj = json_of(answer, f"PATCH {where}")
        return answer.status, found

    async def _get(self, kind: Kind, each: ObjectRef) -> Obj | None:
        try:
            return await self._client.get(kind, each.name, each.namespace)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    # -- what is told of it ------------------------------------------------------------------------------------

    def judge(self, work: Obj, old: dict[str, Any], fenced: bool, now: float) -> dict[str, Any]:
        """A Work's status. (The hub asks no Kubernetes member to fence itself.)"""
        mine = dict(self._of_work(name(work)))

        def look(manifest: Obj) -> Seen:
            if is_export(manifest) and self._exports is not None and not self.held:
                return self._exports.seen(namespace(manifest), name(manifest))
            native = self._native(manifest)
            if native is None:
                return Seen(True, None, None, skipped=True)
            each = ref(native)
            if self.held:
                return Seen(False, Outcome("", "NotClaimed", self.held), None)
            found, holder = mine.get(each), self._wanted.get(each)
            if found is not None and holder is not None and holder.work != found.work:
                return Seen(False, Outcome("", "Duplicate", f"Work {holder.work} has the same object"), None)
            outcome = self._outcomes.get(each)
            if found is None or outcome is None or outcome.digest != found.digest:
                why = Outcome("", "Unreachable", self._member.problem) if self._member.problem else None
                return Seen(False, why, self._live.get(each))
            return Seen(not outcome.reason, outcome, self._live.get(each))

        return work_status(work, old, look, now)


#: Kinds up to this phase carry others: definitions, rights, configuration.
_FOUNDATIONS = 4


def _identity(each: ObjectRef) -> dict[str, str]:
    return {"name": each.name} | ({"namespace": each.namespace} if each.namespace else {})
