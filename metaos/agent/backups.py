"""Backups of this site's volumes, as BackupSchedules ask, and bringing volumes back, each by a process of its own.

It needs no hub: what was asked stands in the Works, what was done in the agent's records. A volume that is to be brought back is
held until it is: no container that uses it starts.
"""

import asyncio
import fcntl
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metaos.agent.cache import Cache
from metaos.agent.calls import Caller
from metaos.agent.containers import ConfigError, Find, data_of
from metaos.clock import Clock, sleep_or
from metaos.data.backups import KEY, Past, derived, due, key_of, pace, restore_seconds
from metaos.plugins.points import Runtime
from metaos.resources.backups import AFTER, BEFORE, CONTAINER, RESTORE, TIMEOUT, hooks_of, workload_of
from metaos.resources.meta import Obj, ObjectRef, annotations, controller_of, format_time, name, namespace, parse_time, uid
from metaos.resources.scheme import BACKUP_SCHEDULE
from metaos.runtimes import children

log = logging.getLogger(__name__)

#: Between two looks, where nothing is due sooner: a pod may have ended meanwhile.
LOOK_SECONDS = 5.0
#: A restore that failed is tried again after so long, twice as long each time.
AGAIN_SECONDS, AGAIN_MOST_SECONDS = 5.0, 300.0
HOOK_SECONDS = 60.0
#: Backups under way at the same time. A volume that is brought back waits for none of them.
AT_ONCE = 1
#: Of what was brought back, so many are remembered for each volume, with those that are asked for still, and so many told.
MOST_REMEMBERED, MOST_TOLD = 40, 2
_MODULE = "metaos.volumes.backing"
_SHOWN = ("backup", "consistency", "bytes", "sentBytes", "sentChunks", "backups")
_STORE = ("endpoint", "bucket", "prefix", "region", "caBundle")
_SECRET = ("accessKeyId", "secretAccessKey")

#: (Module, request) → its answer.
Ask = Callable[[str, bytes], Awaitable[dict[str, Any] | children.Ended]]
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Order:
    """A volume is to be brought back. ``held``: no container that uses it was started here before."""

    id: str
    claim: str
    schedule: Obj
    backup: str = ""
    at: str = ""
    held: bool = False


class Backups:
    """``pods``: this site's; ``directory`` of a volume by namespace and claim; ``record(pod or schedule, type, reason, message)``
    takes events; ``changed`` is called when :meth:`status_of` has news."""

    def __init__(
        self,
        runtime: Runtime,
        cache: Cache,
        clock: Clock,
        *,
        site: str,
        find: Find,
        pods: Callable[[], Sequence[Obj]],
        directory: Callable[[str, str], Path],
        state: Path,
        record: Callable[[Obj, str, str, str], None],
        changed: Callable[[], None],
        ask: Ask = children.ask,
    ) -> None:
        self._runtime, self._cache, self._clock, self._site = runtime, cache, clock, site
        self._find, self._pods, self._directory, self._state = find, pods, directory, state
        self._record, self._changed, self._ask = record, changed, ask
        self._schedules: dict[ObjectRef, Obj] = {}
        #: Those that a schedule names, or whose volumes are to be brought back, by kind, namespace and name.
        self._workloads: dict[Key, Obj] = {}
        #: Volumes (namespace, claim) that are being brought back.
        self._restoring: set[tuple[str, str]] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._wake = asyncio.Event()

    def set_desired(self, objects: Mapping[ObjectRef, Obj]) -> None:
        self._schedules = {about: obj for about, obj in objects.items() if about.kind == BACKUP_SCHEDULE.kind}
        named = {_workload(schedule) for schedule in self._schedules.values()}
        self._workloads = {
            key: obj
            for about, obj in objects.items()
            if (key := (about.kind, about.namespace, about.name)) in named or RESTORE in annotations(obj)
        }
        self._wake.set()

    def held(self, pod: Obj, claim: str) -> str:
        """Why no container that uses this volume may start now; empty: it may."""
        where = namespace(pod)
        if (where, claim) in self._restoring or self._left_restoring(where, claim):
            return f"volume {claim} is being brought back from a backup"
        owner = controller_of(pod) or {}
        order = _ordered(self._workloads.get((str(owner.get("kind")), where, str(owner.get("name")))))
        if claim not in order.get("claims", ()) or self._done(where, claim, str(order["id"])):
            return ""
        row = self._row(where, claim, str(order["id"]))
        said = f": {row['reason']}: {row['message']}" if row.get("reason") else ""
        if not any(about.namespace == where and about.name == order.get("schedule") for about in self._schedules):
            said = f"; BackupSchedule {order.get('schedule')}, which says from where, is gone: make it again, with the same store"
        return f"volume {claim} is brought back from a backup first, as the site that had it is lost{said}"

    def _left_restoring(self, where: str, claim: str) -> bool:
        """Whether the process of an agent that was killed is about to bring a volume back as somebody asked."""
        schedules = (schedule for about, schedule in self._schedules.items() if about.namespace == where)
        asked = (each for schedule in schedules for each in schedule["spec"].get("restores") or () if each["claim"] == claim)
        if all(self._done(where, claim, str(each["id"])) for each in asked):
            return False
        try:
            with (self._state / where / f"{claim}.lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # nothing was ever done with it
            return False
        return False

    def status_of(self, about: ObjectRef) -> Obj | None:
        """What the hub is told of a schedule."""
        schedule = self._schedules.get(about)
        if schedule is None:
            return None
        where, volumes, restores = about.namespace, [], []
        for claim in schedule["spec"].get("claims") or ():
            row = self._cache.get("backups", f"{where}/{claim}") or {}
            volumes.append({"claim": claim, **(row.get("shown") or {})})
            restores += self._rows(where, claim)[-MOST_TOLD:]
        return {"volumes": volumes, "restores": restores}

    async def run(self) -> None:
        """Never returns. Cancelled, it ends what is under way: that is begun anew."""
        running: dict[tuple[str, str], asyncio.Task[None]] = {}
        try:
            while True:
                self._wake.clear()
                running = {key: task for key, task in running.items() if not task.done()}
                wait = LOOK_SECONDS
                for _, schedule in sorted(self._schedules.items()):
                    for claim in schedule["spec"].get("claims") or ():
                        key = namespace(schedule), str(claim)
                        if key not in running:
                            again, work = self._look(schedule, *key)
                            wait = min(wait, again)
                            if work is not None:
                                running[key] = asyncio.create_task(self._finished(work))
                if self._schedules:
                    await sleep_or(self._clock, wait, self._wake)
                else:
                    await self._wake.wait()
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    async def _finished(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            log.exception("a backup or restore failed in a way of its own; it is tried again")
            await self._clock.sleep(AGAIN_SECONDS)
        finally:
            self._changed()
            self._wake.set()

    def _look(self, schedule: Obj, where: str, claim: str) -> tuple[float, Coroutine[Any, Any, None] | None]:
        """(Seconds until the next look, what is to be done with a volume now)."""
        for order in self._orders(schedule):
            if order.claim == claim and not self._done(where, claim, order.id):
                left = float(self._row(where, claim, order.id).get("again") or 0.0) - self._clock.now()
                if not 0 < left <= AGAIN_MOST_SECONDS:
                    return LOOK_SECONDS, self._bring_back(order)
                if order.held:
                    return min(left, LOOK_SECONDS), None
                # What was asked for by hand and cannot be done yet, or ever, does not end the backups.
        spec, row = schedule["spec"], self._cache.get("backups", f"{where}/{claim}") or {}
        if spec.get("suspend") or _workload(schedule) not in self._workloads or not self._directory(where, claim).is_dir():
            return LOOK_SECONDS, None
        now = self._clock.now()
        if "since" not in row:
            row["since"] = now
            self._cache.put("backups", f"{where}/{claim}", row)
        past = Past(**row.get("past", {}))
        if past.begun > now:
            # The clock was ahead then.
            past = Past(failures=past.failures, seconds=past.seconds)
        at = _next(spec, past, row)
        if at > now:
            return min(LOOK_SECONDS, at - now), None
        return LOOK_SECONDS, self._back_up(schedule, claim, row, past)

    # -- backing up -----------------------------------------------------------------------------------------

    async def _back_up(self, schedule: Obj, claim: str, row: dict[str, Any], past: Past) -> None:
        where = namespace(schedule)
        async with self._turns:
            begun = self._clock.now()
            said: dict[str, Any] | children.Ended
            try:
                request = self._request("backUp", schedule, claim) | {"keep": schedule["spec"].get("keep") or {}}
                said = await self._hooked(where, claim, request)
            except (ConfigError, OSError, ValueError) as error:
                said = {"reason": "Failed", "message": f"volume {where}/{claim}: {error}"}
        ended = self._clock.now()
        shown: dict[str, Any] = dict(row.get("shown") or {})
        if isinstance(said, children.Ended) or "reason" in said:
            reason, message = _problem(said, where, claim)
            if shown.get("reason") != reason:
                self._record(schedule, "Warning", "BackupFailed", message)
            past = Past(past.begun, ended, past.failures + 1, past.seconds)
            shown |= {"failures": past.failures, "reason": reason, "message": message[:1024]}
        else:
            past = Past(begun, ended, 0, max(0.0, ended - begun))
            shown = {key: said[key] for key in _SHOWN} | {"recoveryPointTime": format_time(float(said["time"]))}
            shown |= {"lastSuccessTime": format_time(ended), "seconds": round(past.seconds, 3), "failures": 0}
            row["pace"] = pace(float(row.get("pace") or 0.0), said["sentBytes"], said["seconds"])
            if (takes := restore_seconds(said["bytes"], row["pace"])) is not None:
                shown["restoreSeconds"] = round(takes, 3)
        shown |= {"lastTryTime": format_time(begun)}
        at = _next(schedule["spec"], past, row)
        shown = {key: value for key, value in shown.items() if key != "nextTime"}
        shown |= {"nextTime": format_time(at)} if at < float("inf") else {}
        self._cache.put("backups", f"{where}/{claim}", {**row, "past": asdict(past), "shown": shown})

    async def _hooked(self, where: str, claim: str, request: dict[str, Any]) -> dict[str, Any] | children.Ended:
        """With one command of the pod that uses the volume before the last look, and another one after it. Raises
        ``ValueError``."""
        pod = next((p for p in self._pods() if _uses(p, where, claim) and BEFORE in hooks_of(p)), None)
        if pod is None:
            return await self._ask(_MODULE, json.dumps(request).encode())
        hooks = hooks_of(pod)
        words = {key: _words(key, hooks[key]) for key in (BEFORE, AFTER) if key in hooks}
        seconds = _seconds(hooks)
        known = {str(c["name"]): c for c in pod["spec"]["containers"]}
        container = known.get(hooks.get(CONTAINER) or next(iter(known)))
        if container is None:
            raise ValueError(f"{CONTAINER}: pod {name(pod)} has no container {hooks[CONTAINER]!r}: it has {', '.join(known)}")
        caller = Caller(self._runtime, self._clock, uid(pod), container)
        ahead = await self._ask(_MODULE, json.dumps({**request, "ahead": True}).encode())
        if isinstance(ahead, children.Ended) or "reason" in ahead:
            return ahead
        try:
            if (why := await caller.call({"exec": {"command": words[BEFORE]}}, seconds)) is not None:
                return {"reason": "HookFailed", "message": f"volume {where}/{claim}: {BEFORE} in pod {name(pod)}: {why[:500]}"}
            return await self._ask(_MODULE, json.dumps({**request, "hooked": True}).encode())
        finally:
            # Also where the first one failed: half of it may have been done.
            why = await caller.call({"exec": {"command": words[AFTER]}}, seconds) if AFTER in words else None
            if why is not None:
                self._record(pod, "Warning", "BackupHookFailed", f"{AFTER}, of volume {claim}: {why[:500]}")

    def _request(self, do: str, schedule: Obj, claim: str) -> dict[str, Any]:
        """Raises :class:`ConfigError`."""
        store, where = schedule["spec"]["store"], namespace(schedule)
        known = data_of("Secret", {"name": store["secretRef"]["name"]}, where, self._find) or {}
        return {
            "do": do,
            "store": {key: store[key] for key in _STORE if key in store},
            "credentials": _credentials(known, *_workload(schedule)),
            "namespace": where,
            "claim": claim,
            "site": self._site,
            "directory": str(self._directory(where, claim)),
            "state": str(self._state / where / claim),
        }

    # -- bringing back --------------------------------------------------------------------------------------

    def _orders(self, schedule: Obj) -> Iterator[Order]:
        order = _ordered(self._workloads.get(_workload(schedule)))
        if order.get("schedule") == name(schedule):
            for claim in order["claims"]:
                yield Order(str(order["id"]), claim, schedule, held=True)
        for asked in schedule["spec"].get("restores") or ():
            backup, at = str(asked.get("backup") or ""), str(asked.get("time") or "")
            yield Order(str(asked["id"]), str(asked["claim"]), schedule, backup, at)

    async def _bring_back(self, order: Order) -> None:
        where, claim = namespace(order.schedule), order.claim
        before = self._row(where, claim, order.id)
        failures = int(before.get("failures") or 0)
        self._restoring.add((where, claim))
        try:
            said: dict[str, Any] | children.Ended
            try:
                if users := self._users(where, claim, running=order.held):
                    text = f"volume {where}/{claim} is used by {', '.join(users[:3])}: scale the workload to 0"
                    said = {"reason": "InUse", "message": text}
                else:
                    request = self._request("bringBack", order.schedule, claim)
                    request |= {"backup": order.backup, "at": parse_time(order.at) if order.at else None}
                    said = await self._ask(_MODULE, json.dumps(request).encode())
            except (ConfigError, OSError, ValueError) as error:
                said = {"reason": "Failed", "message": f"volume {where}/{claim}: {error}"}
        finally:
            self._restoring.discard((where, claim))
        if isinstance(said, children.Ended) or "reason" in said:
            reason, message = _problem(said, where, claim)
            if before.get("reason") != reason:
                self._record(order.schedule, "Warning", "RestoreFailed", message)
            wait = LOOK_SECONDS if reason == "InUse" else min(AGAIN_SECONDS * 2.0 ** min(failures, 16), AGAIN_MOST_SECONDS)
            shown: dict[str, Any] = {"reason": reason, "message": message[:1024], "failures": failures + 1}
            shown |= {"again": self._clock.now() + wait}
        else:
            shown = {key: said[key] for key in ("backup", "bytes", "seconds")}
            shown |= {"recoveryPointTime": format_time(float(said["time"])), "time": format_time(self._clock.now())}
            text = f"volume {where}/{claim} holds what it held at {shown['recoveryPointTime']} (backup {said['backup']})"
            self._record(order.schedule, "Normal", "Restored", text)
            known = self._cache.get("backups", f"{where}/{claim}") or {}
            if order.held:
                # What was backed up from here before was another state of it.
                known = {key: value for key, value in known.items() if key == "pace"}
            known["pace"] = pace(float(known.get("pace") or 0.0), said["bytes"], said["seconds"])
            self._cache.put("backups", f"{where}/{claim}", known)
        rows = [row for row in self._rows(where, claim) if row["id"] != order.id]
        # What is asked for still is never forgotten, or it would be done again.
        asked = {each.id for each in self._orders(order.schedule) if each.claim == claim}
        old = [row for row in rows if row["id"] not in asked]
        rows = old[-MOST_REMEMBERED:] + [row for row in rows if row["id"] in asked]
        self._cache.put("restores", f"{where}/{claim}", {"rows": [*rows, {"id": order.id, "claim": claim, **shown}]})

    def _users(self, where: str, claim: str, *, running: bool) -> list[str]:
        """Pods that use a volume and have not ended; with ``running`` only those of which a container runs."""
        found = []
        for pod in self._pods():
            status = pod.get("status") or {}
            if _uses(pod, where, claim) and status.get("phase") not in ("Succeeded", "Failed"):
                rows = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
                if not running or any("running" in (row.get("state") or {}) for row in rows):
                    found.append(name(pod))
        return found

    # -- records --------------------------------------------------------------------------------------------

    def _rows(self, where: str, claim: str) -> list[dict[str, Any]]:
        return list((self._cache.get("restores", f"{where}/{claim}") or {}).get("rows") or ())

    def _row(self, where: str, claim: str, id_: str) -> dict[str, Any]:
        """What is known of a restore; empty before it was tried."""
        return next((row for row in self._rows(where, claim) if row["id"] == id_), {})

    def _done(self, where: str, claim: str, id_: str) -> bool:
        return "backup" in self._row(where, claim, id_)


def _next(spec: Mapping[str, Any], past: Past, row: Mapping[str, Any]) -> float:
    return due(str(spec.get("schedule") or ""), spec.get("rpoSeconds"), past, float(row["since"]))


def _workload(schedule: Obj) -> Key:
    kind, called = workload_of(schedule)
    return kind, namespace(schedule), called


def _credentials(known: Mapping[str, bytes], kind: str, where: str, called: str) -> dict[str, str]:
    """Of the store's Secret, as this site has it: the key of this workload's backups, or, where a pod here uses the whole Secret,
    that of which it is derived."""
    found = {key: known[key].decode(errors="replace") for key in _SECRET if key in known}
    if own := known.get(key_of(kind, called)):
        found[KEY] = own.decode(errors="replace")
    elif KEY in known:
        found[KEY] = derived(known[KEY].decode(errors="replace"), where, kind, called)
    return found


def _ordered(workload: Obj | None) -> dict[str, Any]:
    """What its Work says is to be brought back before it starts; empty for nothing."""
    text = annotations(workload).get(RESTORE) if workload is not None else None
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def _uses(pod: Obj, where: str, claim: str) -> bool:
    return namespace(pod) == where and any(
        (volume.get("persistentVolumeClaim") or {}).get("claimName") == claim for volume in pod["spec"].get("volumes") or ()
    )


def _words(key: str, text: str) -> list[str]:
    """Raises ``ValueError``."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not found or not all(isinstance(word, str) for word in found):
        raise ValueError(f'{key}: {text[:100]!r} is no command: write a JSON list of words, for example ["sh", "-c", "sync"]')
    return found


def _seconds(hooks: Mapping[str, str]) -> float:
    """Raises ``ValueError``."""
    text = hooks.get(TIMEOUT, str(HOOK_SECONDS))
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 3600:
        raise ValueError(f"{TIMEOUT}: {text[:20]!r} must be a number of seconds above 0, at most 3600")
    return found


def _problem(said: dict[str, Any] | children.Ended, where: str, claim: str) -> tuple[str, str]:
    if isinstance(said, children.Ended):
        slow = "did not come to an end in time" if said.code == 128 + 14 else f"ended with {said.code}, before its end"
        return "Failed", f"volume {where}/{claim}: the process {slow}: it is tried again"
    return str(said["reason"]), str(said["message"])
