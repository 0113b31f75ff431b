"""Brings a Kubernetes cluster to what its Works say: one object at a time, in order, and only what is ours.

Level-triggered per object: what is wanted comes from the Works, what is there from a watch of what carries our label, and the
decisions from :mod:`metaos.members.ownership`. Everything that is held is bounded by what the Works name and what is ours at the
cluster; at most ``WORKERS`` requests change something at a time, and a server that asks to be left alone is left alone by all.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

from metaos.agent.sync import Works
from metaos.agent.turns import Turns
from metaos.client import PatchType
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
    phase,
    refusal,
)
from metaos.members.member import WORKERS, Member
from metaos.members.names import Names
from metaos.members.ownership import Action, Applied, Live, closed, desired_step, found_step, taken, unwanted_step
from metaos.members.present import Present
from metaos.members.refusals import INVALID_SECONDS, refusal_of
from metaos.members.relaying import Relays
from metaos.members.spaces import Spaces
from metaos.members.status import Outcome, Seen, about, work_status
from metaos.members.wanted import Wanted, WantedObjects
from metaos.reconcile.precedence import Precedence, Turn
from metaos.reconcile.workqueue import backoff_seconds
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, ObjectRef, name, namespace, ref, uid
from metaos.resources.scheme import Kind

log = logging.getLogger(__name__)

#: News of Works within this time are taken up together; what comes after a while without news is taken up at once.
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
        precedence: Precedence | None = None,
    ) -> None:
        self._member, self._client, self._contact = member, member.client, member.contact
        self._exports = exports
        self._works, self._id, self._clock, self._random = works, membership, clock, random
        self._tell, self._record, self._taken_up = changed, record, taken_up
        self.discovery, self._names = Discovery(member.client), Names(member.client, clock)
        self._turns: Turns[ObjectRef] = Turns(
            member.contact, clock, random, self._step, "object", WORKERS, precedence, Turn.FIRST
        )
        self._wanted = WantedObjects(works, membership, relays, exports)
        self._present = Present(member.client, member.contact, clock, membership, self.discovery, self)
        self._applied: dict[ObjectRef, Applied] = {}
        self._outcomes: dict[ObjectRef, Outcome] = {}
        self._corrected: dict[ObjectRef, tuple[int, float]] = {}
        self._spaces = Spaces(member.client, clock, membership, lambda about: about in self._wanted)
        self._quiet_until = float("-inf")
        #: Works of which something else is wanted. Bounded by the Works that are or were there.
        self._changed: set[str] = set(works.names())
        self._news = asyncio.Event()
        #: Why nothing is done; empty once it is.
        self.held = "the cluster has not been claimed yet"
        works.on_wanted(self._changed.add)
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
        return sorted(about for about in self._present.refs() if about not in self._wanted and about.kind != "Namespace")

    @property
    def cleared(self) -> bool:
        """Whether nothing is left, of what an agent before this one has made neither."""
        return self._present.complete and not self.left

    def refs(self) -> list[ObjectRef]:
        """What the Works want."""
        return list(self._wanted)

    def ours(self, each: ObjectRef, live_uid: str) -> Obj | None:
        """The manifest of an object that is wanted and is at the cluster under this uid."""
        wanted, live = self._wanted.get(each), self._present.get(each)
        return wanted.manifest if wanted is not None and live is not None and live.uid == live_uid else None

    def live_uid(self, each: ObjectRef) -> str:
        """Of an object of ours at the cluster; empty while there is none."""
        live = self._present.get(each)
        return live.uid if live is not None else ""

    def refresh(self) -> None:
        """Look at everything again."""
        for each in self._wanted.ordered({*self._wanted, *self._present.refs()}):
            self._turns.add(each, 0.0)

    async def run(self) -> None:
        """Never returns."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._turns.run())
                group.create_task(self._follow_works())
                group.create_task(self._present.sweep(lambda: not self.held and self._works.listed))
        finally:
            await self._present.close()

    # -- what is wanted ----------------------------------------------------------------------------------------

    async def _follow_works(self) -> None:
        while True:
            self._news.clear()
            self.take_up()
            quiet = self._clock.monotonic() + COALESCE_SECONDS
            await self._news.wait()
            await self._clock.sleep(max(0.0, quiet - self._clock.monotonic()))

    def take_up(self) -> None:
        """See what the Works want now. By itself that is done at most :data:`COALESCE_SECONDS` after news of them."""
        changed = sorted(self._changed)
        self._changed.clear()
        for each in self._wanted.take_up(changed):
            if each not in self._wanted:
                self._outcomes.pop(each, None)
                self._corrected.pop(each, None)
            self._turns.add(each, 0.0)
        self._taken_up()

    # -- what is there (``Listener``) ----------------------------------------------------------------------------

    def listed(self, group: str, kind: str) -> None:
        for each in self._wanted.ordered(each for each, _ in self._wanted.of_kind(group, kind)):
            self._turns.add(each, 0.0)

    def unlisted(self, group: str, kind: str, error: ApiError) -> None:
        for each, wanted in self._wanted.of_kind(group, kind):
            self._fail(each, wanted, error)

    def seen(self, each: ObjectRef, obj: Obj) -> None:
        wanted = self._wanted.get(each)
        live = Live.of(obj, wanted.body if wanted is not None else None)
        if live == self._present.get(each):
            return
        self._present.keep(each, live)
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

    def lost(self, each: ObjectRef, live: Live | None) -> None:
        self._applied.pop(each, None)
        self._outcomes.pop(each, None)
        wanted = self._wanted.get(each)
        if wanted is not None:
            self._turns.add(each, self._correction_delay(each))
            self._tell(wanted.work)
            return
        self._present.forget(each)
        if live is None:
            return
        for other in self._present.refs():  # something may have waited for it
            carries = phase(other.group, other.kind) <= _FOUNDATIONS
            if carries and other not in self._wanted and self._made_by(other) == live.work:
                self._turns.add(other, 0.0)

    def _made_by(self, each: ObjectRef) -> str | None:
        """The Work that it came with."""
        live = self._present.get(each)
        return None if live is None else live.work

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
        for other, found in self._wanted.of_work(wanted.work):
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
        for other, found in self._wanted.of_work(wanted.work):
            if found.phase < wanted.phase and self._wanted.get(other) is found and self._tried(other, found) is None:
                return  # It comes before; this one is looked at again when that was tried.
        kind = await self.discovery.find(str(wanted.manifest["apiVersion"]), each.kind)
        if kind is None:
            text = f"the cluster ({self._member.version}) serves no kind {each.kind} in {wanted.manifest['apiVersion']}"
            self._set(each, wanted, "KindUnknown", f"{text}: it waits for its CustomResourceDefinition")
            # A server lists a kind a moment after it has said that the definition is established.
            self._turns.add(each, KIND_SECONDS if self._wanted.defines(each.group) else INVALID_SECONDS)
            return
        if kind.namespaced and not each.namespace:
            self._set(each, wanted, "Invalid", f"metadata.namespace must be set, as {each.kind} is namespaced")
            return
        if not kind.namespaced and each.namespace:
            self._set(each, wanted, "Invalid", f"metadata.namespace must not be set, as {each.kind} is cluster-wide")
            return
        self._present.follow(kind)
        if not self._present.is_listed(kind):
            return  # Its first list looks at all of this kind.
        live = self._present.get(each)
        action = desired_step(live, self._applied.get(each), wanted.digest)
        found_uid = live.uid if live is not None else ""
        if action in (Action.LOOK, Action.APPLY) and (why := await self._spaces.closed(each.namespace)):
            self._refuse(each, wanted, "NamespaceTaken", why)
            return
        if action is Action.LOOK:
            there = None if await self._names.lack(kind, each) else await self._get(kind, each)
            action = found_step(wanted.manifest, there, self._id, self._present.known(each))
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

    async def _apply(self, each: ObjectRef, wanted: Wanted, kind: Kind, action: Action, found_uid: str) -> None:
        before = self._present.get(each)
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
        if before is None or before.uid != live.uid or before.generation <= live.generation:
            self._present.keep(each, live)
        else:
            self._present.know(each, live.uid)
        if each.kind == "CustomResourceDefinition":
            self.discovery.forget()
        if drifted and before is not None:
            log.info("%s: fields that others changed are as they were", about(wanted.manifest))
            self._record(
                wanted.manifest, "Normal", "DriftCorrected", "fields that another writer had changed are as the hub has them"
            )

    async def _remove(self, each: ObjectRef) -> None:
        live = self._present.get(each)
        action = unwanted_step(each.kind, live, sure=self._works.listed)
        kind = self._present.kind(each)
        if live is None:
            self._present.forget(each)
            self._applied.pop(each, None)
        if action is Action.WAIT:
            self._turns.add(each, WAIT_SECONDS)
        if live is None or kind is None or action in (Action.NOTHING, Action.WAIT):
            return
        mine = phase(each.group, each.kind)
        if mine <= _FOUNDATIONS and any(
            phase(r.group, r.kind) > max(mine, _FOUNDATIONS) and self._made_by(r) == live.work for r in self.left
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
            self._present.lose(each)

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
        mine = dict(self._wanted.of_work(name(work)))

        def look(manifest: Obj) -> Seen:
            if is_export(manifest) and self._exports is not None and not self.held:
                return self._exports.seen(namespace(manifest), name(manifest))
            native = self._wanted.native(manifest)
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
                return Seen(False, why, self._present.get(each))
            return Seen(not outcome.reason, outcome, self._present.get(each))

        return work_status(work, old, look, now)


#: Kinds up to this phase carry others: definitions, rights, configuration.
_FOUNDATIONS = 4


def _identity(each: ObjectRef) -> dict[str, str]:
    return {"name": each.name} | ({"namespace": each.namespace} if each.namespace else {})
