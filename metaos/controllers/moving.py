"""Moves of volumes: reads what both sites' Works say and report, and writes the next step into one of them.

What is decided, and why nothing can go wrong between two writes, is in :mod:`metaos.data.moves`. All state is in the Works; only
how long the old copy has been stopped is counted by the monotonic clock, and anew after a start.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from metaos.client import Client
from metaos.clock import Clock
from metaos.controllers.facts import MOVABLE
from metaos.controllers.fencing import halt, stopped
from metaos.controllers.recorder import Recorder
from metaos.controllers.render import available, cluster_of
from metaos.controllers.settings import Settings
from metaos.data.moves import Action, Copy, Step, decide, home_of
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, deleting, format_time, name, namespace, parse_time, uid
from metaos.resources.traffic import NETWORK_KWH_PER_GB
from metaos.resources.workload import has_local_data

#: Of a line whose sites state what it carries, so much at most is for the volumes of one workload.
LINE_SHARE = 0.8
#: How often is looked at what no news tells of.
LOOK_SECONDS = 5.0
#: Greater numbers of attempts, as no hub has used them, are not taken from a site: a later attempt has room above, for ever.
MOST_ATTEMPT = 1 << 40
_PHASES = {
    Step.RECEIVE: "Copying",
    Step.SEND: "Copying",
    Step.KEEP: "Copying",
    Step.HALT: "Stopping",
    Step.ADOPT: "Switching",
}


def volumes_of(found: Obj) -> Mapping[str, Any]:
    """What a Work says of volumes that move; empty for others."""
    said: Mapping[str, Any] = (found.get("spec") or {}).get("volumes") or {}
    return said


def arrives(found: Obj) -> bool:
    """Whether a site was told to receive the volumes, and not to adopt them yet."""
    receive = volumes_of(found).get("receive") or {}
    return bool(receive) and not receive.get("adopt")


def _begun(found: Obj) -> bool:
    """Whether a Work is a part of a move, or was."""
    return bool(volumes_of(found).keys() - {"kept", "asked"})


def given_up(found: Obj) -> bool:
    """Whether a site reports that nothing is left there of volumes that are elsewhere now."""
    told = (volumes_of(found).get("send") or {}).get("discard")
    return bool(told) and ((found.get("status") or {}).get("volumes") or {}).get("phase") == "Discarded"


def moves(cluster: Obj | None) -> bool:
    """Whether a site's agent sends and receives volumes."""
    return bool(((cluster or {}).get("status") or {}).get("volumeMoves"))


def copy_of(found: Obj, *, ready: bool, barred: bool) -> Copy:
    """A Work as the decision sees it. What a site reports counts only of the attempt that it was told last; what it says of moves
    that the Work does not speak of, only in answer to a hub that was put back: else a site could take a workload that left it."""
    told = volumes_of(found)
    receive, send = told.get("receive") or {}, told.get("send") or {}
    said: Mapping[str, Any] = (found.get("status") or {}).get("volumes") or {}
    attempt = int(receive.get("attempt") or 0)
    phase = str(said.get("phase") or "") if said.get("attempt") == attempt else ""
    left: Mapping[str, Any] = said.get("left") or {}
    left = left if int(left.get("attempt") or 0) <= MOST_ATTEMPT else {}
    holds = int(said.get("holds") or 0)
    answers = bool(told.get("asked")) and said.get("asked") == told["asked"]
    arriving = attempt > 0 and not receive.get("adopt")
    runs = not told.get("stop") and not arriving
    return Copy(
        cluster_of(found),
        runs=runs,
        received=attempt,
        adopted=bool(receive.get("adopt")),
        sent=int(send.get("attempt") or 0),
        towards=str(send.get("to") or ""),
        discards=bool(send.get("discard")),
        barred=barred,
        ready=ready,
        stopped=stopped(found),
        close=phase in ("Close", "Complete"),
        complete=phase == "Complete",
        settled=runs and available(found),
        restored=bool((found.get("spec") or {}).get("restore")),
        deleting=deleting(found),
        kept=int(told.get("kept") or 0),
        left=int(left.get("attempt") or 0) if answers and not left.get("kept") else 0,
        voided=int(left.get("attempt") or 0) if left.get("kept") else 0,
        left_for=str(left.get("to") or ""),
        gone=bool(left.get("discarded")),
        holds=holds if answers and holds <= MOST_ATTEMPT else 0,
        unknown=bool(told.get("asked")) and not answers,
    )


def under_way(obj: Obj, chosen: Iterable[str], existing: Mapping[str, Obj], carries: Callable[[str], bool]) -> bool:
    """Whether a workload's volumes have something to do: its data is elsewhere than it shall be, or the last move is not over."""
    places = list(chosen)
    if obj.get("kind") not in MOVABLE or not has_local_data(obj) or not existing or len(places) > 1:
        return False
    if any(
        copy.ahead or copy.holds or copy.unknown for copy in (copy_of(f, ready=True, barred=False) for f in existing.values())
    ):
        return True  # the hub's state was put back
    there = existing.get(places[0], {}) if places else {}
    if (there.get("spec") or {}).get("restore") and not volumes_of(there).get("send"):
        return False  # its data was brought back there from a backup
    begun = any(_begun(found) for found in existing.values())
    if set(existing) == set(places):
        told = volumes_of(existing[places[0]])
        return bool(told.get("send") or told.get("stop")) or arrives(existing[places[0]])
    return begun or (len(existing) == 1 and all(carries(site) for site in (*existing, *places)))


class Moving:
    """``apply`` writes a Work, under the condition that it is still as it was read; ``disrupt``: why budgets do not allow to stop
    it at a site, or nothing; ``line``: bytes a second that sites state for the way between them, infinite where they do not."""

    def __init__(
        self,
        client: Client,
        clock: Clock,
        settings: Settings,
        recorder: Recorder,
        apply: Callable[[Obj | None, Obj], Any],
        disrupt: Callable[[Obj, str], Any],
        line: Callable[[str, str], float],
    ) -> None:
        self._client, self._clock, self._settings, self._recorder = client, clock, settings, recorder
        self._apply, self._disrupt, self._line = apply, disrupt, line
        #: Uid of a workload → since when (monotonic) its home is seen to be told to stop. Bounded by the workloads that move.
        self._halted: dict[str, float] = {}

    async def step(
        self,
        obj: Obj,
        placement: Obj,
        chosen: str | None,
        existing: Mapping[str, Obj],
        ready: Callable[[str], bool],
        barred: Iterable[str],
        render: Callable[[str], Obj],
    ) -> float:
        """One step, if there is one to take; seconds until the next look. ``render`` gives the Work of a site that runs it."""
        bars = set(barred)
        copies = [copy_of(found, ready=ready(site), barred=site in bars) for site, found in sorted(existing.items())]
        home = home_of(copies)
        halted = home is not None and not home.runs
        since = self._halted.setdefault(uid(obj), self._clock.monotonic()) if halted else self._clock.monotonic()
        if not halted:
            self._halted.pop(uid(obj), None)
        # No number comes again, also where this hub's state is older than some that were used.
        least = int(self._clock.now())
        action = decide(copies, chosen, self._clock.monotonic() - since, self._settings.volume_patience, least)
        if action.step is Step.HALT and action.site not in bars and (refused := await self._disrupt(obj, action.site)):
            await self._recorder.event(obj, "DisruptionBudget", f"stays on {action.site} for now: {refused}", warning=True)
            action = Action(Step.WAIT)
        for site, found in existing.items():
            if site != action.site and not deleting(found):
                await self._write(found, render(site), dict(volumes_of(found)))
        if action.step is not Step.WAIT:
            await self._take(action, obj, existing.get(action.site), render, home.site if home else "", chosen or "", bars)
        await self._show(obj, placement, action, copies, existing, chosen)
        return LOOK_SECONDS

    async def _take(
        self, action: Action, obj: Obj, found: Obj | None, render: Callable[[str], Obj], home: str, chosen: str, bars: Set[str]
    ) -> None:
        told = dict(volumes_of(found)) if found is not None else {}
        text = f"{action.why}" if action.why else ""
        if action.step is Step.DROP:
            assert found is not None
            try:
                await self._client.delete(
                    scheme.WORK,
                    name(found),
                    namespace(found),
                    uid=uid(found),
                    resource_version=str(found["metadata"].get("resourceVersion") or ""),
                )
            except ApiError as error:
                if error.code != 404:
                    raise
            return
        if action.step is Step.EXPECT:
            if not await self._is_site(action.site):
                text += f": have site {action.site} join again; until then it runs nowhere"
                await self._recorder.event(obj, "VolumesElsewhere", text, warning=True)
                return
            adopt = {"adopt": True} if action.adopted else {}
            told = {"receive": {"from": action.source, "attempt": action.attempt} | adopt} | {"asked": f"{home}@{action.attempt}"}
            text += ": it was restored from an older backup, and goes on with them there"
            await self._recorder.event(obj, "VolumesFound", text, warning=True)
        elif action.step is Step.LEFT:
            left = ((found or {}).get("status") or {}).get("volumes", {}).get("left") or {}
            gone = {"discard": True} if left.get("discarded") else {}
            # Whatever else it was told to receive, it had: it was the home.
            told = {"receive": {**told["receive"], "adopt": True}} if "receive" in told else {}
            told["stop"] = True
            told["send"] = {
                "to": str(left.get("to")),
                "attempt": action.attempt,
            } | gone
        elif action.step is Step.RECEIVE:
            told = {"receive": {"from": home, "attempt": action.attempt}}
            said = f"the volumes go from {home} to {action.site}; it runs on {home} meanwhile"
            await self._recorder.event(obj, "VolumesMoving", text or said, warning=bool(text))
        elif action.step is Step.SEND:
            rate = self._rate(action.site, chosen)
            send = {"to": chosen, "attempt": action.attempt} | ({"bytesPerSecond": rate} if rate else {})
            stop = {"stop": True} if action.site in bars else {}
            told = {k: v for k, v in told.items() if k == "receive"} | {"send": send} | stop
        elif action.step is Step.KEEP:
            told = {k: v for k, v in told.items() if k == "receive"} | ({"kept": action.attempt} if action.attempt else {})
        elif action.step is Step.HALT:
            told["stop"] = True
            await self._recorder.event(obj, "VolumesStopping", f"stops on {action.site}: {text}; the rest of its volumes follows")
        elif action.step is Step.ADOPT:
            told["receive"] = {**told.get("receive", {}), "adopt": True}
            await self._recorder.event(obj, "VolumesSwitched", f"its volumes are whole on {action.site}: it starts there")
        elif action.step is Step.DISCARD:
            told["send"] = {**told.get("send", {}), "discard": True}
        await self._write(found, render(action.site), told)

    async def _is_site(self, site: str) -> bool:
        try:
            await self._client.get(scheme.CLUSTER, site)
        except ApiError as error:
            if error.code != 404:
                raise
            return False
        return True

    def _rate(self, home: str, target: str) -> int:
        """Bytes a second that are sent at most; 0: no bound."""
        bound = self._settings.volume_bytes_per_second or math.inf
        found = min(bound, self._line(home, target) * LINE_SHARE)
        return 0 if math.isinf(found) else max(1, int(found))

    async def _show(
        self, obj: Obj, placement: Obj, action: Action, copies: Iterable[Copy], existing: Mapping[str, Obj], chosen: str | None
    ) -> None:
        """``Placement.status.volumes``: what is under way, or how the last move ended."""
        before: dict[str, Any] = (placement.get("status") or {}).get("volumes") or {}
        now = format_time(self._clock.now(), micro=True)
        found = dict(before)
        target = existing.get(chosen or "")
        said: Mapping[str, Any] = ((target or {}).get("status") or {}).get("volumes") or {}
        if action.step is Step.RECEIVE:
            home = home_of(copies)
            found = {"phase": "Copying", "from": home.site if home else "", "to": action.site, "attempt": action.attempt}
            going_on = before.get("to") == action.site and before.get("phase") != "Done"
            found["startTime"] = before.get("startTime", now) if going_on else now
            found["message"] = action.why
        elif not before:
            return
        elif before.get("phase") != "Done":
            found["phase"] = _PHASES.get(action.step, before.get("phase"))
            if action.step is Step.HALT:
                found["stopTime"] = now
            if said.get("attempt") == before.get("attempt"):
                for key in ("rounds", "bytes", "sentBytes", "sizeBytes"):
                    if key in said:
                        found[key] = said[key]
                found["energyKilowattHours"] = int(found.get("sentBytes") or 0) / 1e9 * NETWORK_KWH_PER_GB
                found["message"] = str(said.get("message") or "")
            if action.step is Step.DISCARD:
                found |= {"phase": "Done", "endTime": now, "message": ""}
                if "stopTime" in found:
                    found["downtimeSeconds"] = round(self._clock.now() - parse_time(found["stopTime"]), 3)
        if found == before:
            return
        patch = {"status": {"volumes": {**dict.fromkeys(before), **found}}}
        await self._client.patch(scheme.PLACEMENT, name(placement), namespace(placement), patch, subresource="status")
        if found.get("phase") == "Done" and before.get("phase") != "Done":
            down = f", {found['downtimeSeconds']:g} s without a writer" if "downtimeSeconds" in found else ""
            text = f"its volumes went from {found.get('from')} to {found.get('to')}: {found.get('sizeBytes', 0)} bytes of files, "
            text += f"{found.get('sentBytes', 0)} sent in {found.get('rounds', 0)} rounds{down}, "
            text += f"{found.get('energyKilowattHours', 0.0):.3g} kWh of the network"
            await self._recorder.event(obj, "VolumesMoved", text)

    async def _write(self, found: Obj | None, wanted: Obj, told: dict[str, Any]) -> None:
        if asked := volumes_of(found or {}).get("asked"):
            told = {"asked": asked} | told
        if told:
            wanted["spec"]["volumes"] = told
        if told.get("stop") or arrives(wanted):
            wanted["spec"] = halt(wanted)
        await self._apply(found, wanted)
