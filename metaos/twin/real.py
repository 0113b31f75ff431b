"""Plays a scenario on real processes of this machine, in real time: a hub and agents with the sandbox runtime.

What cannot be done to them is refused before anything starts (``playable``). Looked at through the API, as the twin's play is
(:mod:`metaos.twin.observed`).
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any

import yaml

from metaos.client import Client
from metaos.clock import Clock
from metaos.resources import scheme
from metaos.resources.meta import is_true, name
from metaos.twin.administrator import Administrator
from metaos.twin.observed import Observed, metered
from metaos.twin.processes import Processes, ProcessesFailed
from metaos.twin.site import Machine
from metaos.twin.story import DEEDS, Fault, Scenario, WorkloadText
from metaos.twin.text import Part
from metaos.twin.timeline import Observer, samples

#: What can be done to real processes: SIGKILL of all of a site, or of the hub, and a new start; a link cut; what people do.
PLAYED = ("powerOff", "killHub", "cut", "change", "apply", "delete", "scale")
MAX_SITES, MAX_SECONDS = 10, 1800.0
#: Until all sites are ready.
JOIN_SECONDS = 60.0
#: Until all that people do is done, after the end.
LATE_SECONDS = 30.0
#: Requests by which the way to the hub is measured.
PINGS = 21

Deed = Callable[[], Awaitable[None]]


def playable(text: Part, story: Scenario, cores: int) -> None:
    """Raises ``ScenarioError`` with file, line, field and remedy for the first thing that cannot be played for real on a machine
    with so many ``cores``."""
    for word, why in (
        ("chaos", "faults of chance are the twin's alone"),
        ("carbon", "a trace begins anew with every start of a real hub"),
        ("start", "real processes go by the time of day"),
    ):
        if word in text:
            text[word].wrong(why, "leave it out; a site's intensity is stated as spec.electricity.carbonIntensity")
    if story.duration > MAX_SECONDS:
        text["duration"].wrong(f"{story.duration:g} s pass in real time", f"write at most {MAX_SECONDS / 60:g}m")
    if len(story.sites) > MAX_SITES:
        text["sites"].wrong(f"{len(story.sites)} sites are that many agents on this machine", f"write at most {MAX_SITES}")
    if text.get("agents", Part.text, "real") != "real":
        text["agents"].wrong("agents of real processes are real", "write 'agents: real', or leave it out")
    for key in ("fencing", "fencingMargin"):
        if "timing" in text and key in text["timing"]:
            text["timing"][key].wrong("a real hub has no such setting", "leave it out")
    for part in (text, *text.parts("sites")):
        for key in ("loss", "duplicates", "jitter"):
            if "link" in part and key in part["link"]:
                part["link"][key].wrong("messages on this machine do neither get lost nor come twice", "leave it out")
        if part is not text and ("clock" in part or part.get("agent", Part.text, "real") != "real"):
            part["clock" if "clock" in part else "agent"].wrong("all sites are on this machine, with real agents", "leave it out")
    for site in story.sites:
        if Machine(site.obj).cpu >= cores * 1000:
            text["sites"].wrong(
                f"{name(site.obj)} has all {cores} cores of this machine, so it would meter the other sites, too",
                f"write a spec.capacity.cpu below {cores}",
            )
    for part in text.parts("faults"):
        for deed in DEEDS:
            if deed in part and deed not in PLAYED:
                part[deed].wrong(f"{deed} cannot be done to real processes", f"write one of {', '.join(PLAYED)}")
        if part.get("direction", Part.text, "both") != "both":
            part["direction"].wrong("a real link is cut both ways", "leave it out")


class RealPlay(Administrator):
    """``boot`` (blocks), then ``run``; the processes are ended by whoever made them."""

    def __init__(self, story: Scenario, processes: Processes, tell: Callable[[str], None]) -> None:
        self._story, self._processes, self._tell = story, processes, tell

    def boot(self) -> None:
        """Starts the hub and its sites. Raises ``ProcessesFailed``."""
        processes = self._processes
        self._tell("a hub starts")
        processes.start_hub()
        folder = processes.directory / "sites"
        folder.mkdir()
        for site in self._story.sites:
            self._tell(f"{name(site.obj)} joins")
            processes.add_site(_site_file(folder, site.obj))

    async def run(self, client: Client, clock: Clock, random: Random) -> Observed:
        """Raises ``ProcessesFailed``, and ``ApiError`` where the hub refuses what the scenario asks for."""
        story, self.admin, self.clock = self._story, client, clock
        await self._joined(client, clock)
        given = {name(obj) for obj in story.objects if obj["kind"] == "Namespace"}
        spaces = sorted({w.namespace for w in story.workloads} - {"default"} - given)
        await self.apply(*[scheme.NAMESPACE.empty(space) for space in spaces], *story.objects)
        delay = await self._delay(client, clock)
        self._observer = Observer(client, clock, random, story.workloads)
        await self._observer.start()
        epoch = clock.now()
        try:
            async with asyncio.timeout(story.duration + LATE_SECONDS), asyncio.TaskGroup() as group:
                for at, what, deed in self._plan():
                    group.create_task(self._at(at, what, deed))
                group.create_task(clock.sleep(story.duration))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        except TimeoutError:
            late = f"{LATE_SECONDS:g} s after its end"
            raise ProcessesFailed(f"the hub did not take all that the scenario asks for until {late}") from None
        finally:
            await self._observer.stop()
        sites = await metered(client, clock, story, epoch, epoch + story.duration)
        line = self._observer.timeline
        return Observed(line, samples(line), sites, delay)

    async def _joined(self, client: Client, clock: Clock) -> None:
        deadline = clock.monotonic() + JOIN_SECONDS
        while sum(is_true(site, "Ready") for site in (await client.list(scheme.CLUSTER)).items) < len(self._story.sites):
            if clock.monotonic() > deadline:
                logs = "\n".join(self._processes.tail(site.log, 3) for site in self._processes.sites.values())
                raise ProcessesFailed(f"not all sites were ready within {JOIN_SECONDS:g} s:\n{logs}")
            await clock.sleep(0.2)

    async def _delay(self, client: Client, clock: Clock) -> float:
        """Half of what a small request takes, in the middle."""
        took = []
        for _ in range(PINGS):
            began = clock.monotonic()
            await client.get(scheme.CLUSTER, name(self._story.sites[0].obj))
            took.append(clock.monotonic() - began)
        return statistics.median(took) / 2

    # -- deeds -----------------------------------------------------------------------------------------------

    def _plan(self) -> list[tuple[float, str, Deed]]:
        plan: list[tuple[float, str, Deed]] = []
        for text in self._story.workloads:
            plan.append((text.at, f"apply {text.name}", partial(self._begin, text)))
            if text.until is not None:
                plan.append((text.until, f"delete {text.name}", partial(self._delete, [text.name])))
        for fault in self._story.faults:
            plan += self._deeds(fault)
        return [each for each in plan if each[0] <= self._story.duration]

    def _deeds(self, fault: Fault) -> list[tuple[float, str, Deed]]:
        known: dict[str, tuple[Callable[[Any], Awaitable[None]], Callable[[Any], Awaitable[None]] | None]] = {
            "powerOff": (self._off, self._on),
            "cut": (self._cut, self._mend),
            "killHub": (self._kill_hub, self._start_hub),
            "change": (self._change, None),
            "apply": (self._apply, None),
            "delete": (self._delete, None),
            "scale": (self._scale, None),
        }
        begin, end = known[fault.what]
        deeds: list[tuple[float, str, Deed]] = [(fault.at, str(fault.text()), partial(begin, fault.value))]
        # How long a hub stays away is its value.
        seconds = fault.value if fault.what == "killHub" else fault.seconds
        if end is not None and seconds is not None:
            deeds.append((fault.at + seconds, f"end of {fault.what}", partial(end, fault.value)))
        return deeds

    async def _at(self, at: float, what: str, deed: Deed) -> None:
        await self.clock.sleep(max(0.0, at - self._observer.now))
        self._tell(f"{self._observer.now:6.1f} s  {what}")
        await deed()

    async def _begin(self, text: WorkloadText) -> None:
        self._observer.did("applied", text.name, text.replicas)
        await self.apply(*text.objects)

    async def _delete(self, workloads: list[str]) -> None:
        for text in self._story.named(workloads):
            self._observer.did("deleted", text.name)
            await self.remove(text.kind, text.name, text.namespace)

    async def _scale(self, workloads: dict[str, int]) -> None:
        for text in self._story.named(workloads):
            self._observer.did("scaled", text.name, workloads[text.name])
            await self.scale(text.kind, text.name, text.namespace, workloads[text.name])

    async def _change(self, specs: dict[str, Any]) -> None:
        for site, spec in specs.items():
            await self.change(scheme.CLUSTER, site, "", {"spec": spec})

    async def _apply(self, objects: list[Any]) -> None:
        await self.apply(*objects)

    async def _off(self, sites: list[str]) -> None:
        for site in sites:
            self._observer.did("failed", site)
            await asyncio.to_thread(self._processes.kill_site, site)

    async def _on(self, sites: list[str]) -> None:
        for site in sites:
            self._observer.did("started", site)
            await asyncio.to_thread(self._processes.start_site, self._processes.sites[site])

    async def _cut(self, sites: list[str]) -> None:
        for site in sites:
            self._processes.sites[site].link.cut()

    async def _mend(self, sites: list[str]) -> None:
        for site in sites:
            self._processes.sites[site].link.mend()

    async def _kill_hub(self, _: float) -> None:
        self._observer.did("hubKilled", "hub")
        await asyncio.to_thread(self._processes.kill_hub)

    async def _start_hub(self, _: float) -> None:
        self._observer.did("hubStarted", "hub")
        await asyncio.to_thread(self._processes.start_hub)
        self._observer.did("hubAnswered", "hub")


def _site_file(folder: Path, site: dict[str, Any]) -> Path:
    file = folder / f"{name(site)}.yaml"
    file.write_text(yaml.safe_dump({**site, "spec": {"runtime": "sandbox", **(site.get("spec") or {})}}))
    return file
