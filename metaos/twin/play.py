"""Plays a scenario: builds its world, does its faults in time, judges, samples, and reports."""

from __future__ import annotations

import asyncio
import heapq
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeVar

from metaos.accounting.carbon import StaticCarbonSource, TraceCarbonSource
from metaos.clock import sleep_or
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import RESTORED, SYSTEM_NAMESPACE, Obj, name
from metaos.scheduler.scores import Score
from metaos.twin.chaos import drawn
from metaos.twin.clock import Stalled, VirtualLoop, run
from metaos.twin.figures import Figures
from metaos.twin.hopes import Hopes
from metaos.twin.jobs import JobCourses
from metaos.twin.judge import Judge
from metaos.twin.network import Quality
from metaos.twin.scenario import quality_of
from metaos.twin.site import Site
from metaos.twin.story import Fault, Scenario, WorkloadText
from metaos.twin.text import Part
from metaos.twin.world import World

SAMPLES = 240
LEAST_SAMPLE_SECONDS = 10.0
#: How long all sites get to be ready before a scenario's time begins.
JOIN_SECONDS = 600.0
#: After so long whoever restored a hub says that all is applied again that shall run.
RESTORING_SECONDS = 300.0
FIDELITY = {
    "agent": "the real agent and supervisor on a simulated runtime",
    "light": "the agent's real contact, heartbeat, desired state, mirrors and reports; pods are records",
}

Progress = Callable[[float, str], None]
Deed = Callable[[], Awaitable[None]]
P = TypeVar("P", bound="Play")


def play(scenario: Scenario, *, progress: Progress | None = None, log: TextIO | None = None) -> dict[str, Any]:
    """The report. ``progress(share, text)`` is called now and then."""
    return perform(lambda loop, folder: Play(loop, with_chaos(scenario), folder, progress, log))[1]


def perform(make: Callable[[VirtualLoop, Path], P]) -> tuple[P, dict[str, Any]]:
    """A play from its beginning to its end, with its report. ``make`` is told where its sites may keep their data."""
    made: list[P] = []

    def begin(loop: VirtualLoop) -> Coroutine[Any, Any, dict[str, Any]]:
        made.append(make(loop, folder))
        return made[0].run()

    with scratch() as folder:
        try:
            report = run(begin)
        except Stalled as error:
            report = made[0].stalled(str(error))
    return made[0], report


def with_chaos(scenario: Scenario) -> Scenario:
    """With the faults that it has drawn from its seed."""
    return replace(scenario, faults=tuple(sorted((*scenario.faults, *drawn(scenario)), key=lambda f: f.at)))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for the data directories of sites: in memory where there is room for it, as nothing of it needs to last."""
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="nemo-twin-", dir=place) as folder:
        yield Path(folder)


class Play:
    """One run of one scenario."""

    def __init__(
        self,
        loop: VirtualLoop,
        scenario: Scenario,
        folder: Path,
        progress: Progress | None = None,
        log: TextIO | None = None,
        scores: tuple[Score, ...] = (),
    ) -> None:
        self.scenario, self._loop = scenario, loop
        # What all of them do at once, one after another, fits several times.
        loop.most_rounds = 20_000 + 300 * (len(scenario.sites) + len(scenario.workloads))
        self._carbon: StaticCarbonSource | TraceCarbonSource = StaticCarbonSource()
        if scenario.carbon:
            self._carbon = TraceCarbonSource(
                scenario.carbon, start_time=scenario.start, start_hour=scenario.carbon_start_hour, name="the scenario's trace"
            )
        self.world = World(
            loop,
            scenario.seed,
            scenario.timing,
            folder=folder,
            carbon=self._carbon if scenario.carbon else None,
            epoch=scenario.start,
            log=log,
            scores=scores,
        )
        self.judge = Judge(self.world, scenario)
        self._hopes = Hopes(self.world, scenario, self.seconds, lambda at, deed: self._at(at, "", deed))
        self._jobs = JobCourses(self.world, scenario, self._hopes.reason)
        self._progress = progress or (lambda share, text: None)
        self._todo: list[tuple[float, int, str, Deed]] = []
        self._begun = 0.0
        self._order = 0
        self._cuts: dict[str, list[int]] = {}
        self._stopped: dict[str, int] = {}
        self._boots: dict[str, int] = {}
        self._down = False
        self._news = asyncio.Event()
        self._backups: dict[tuple[float, float], Any] = {}
        #: How long the agent of a site stays dead that is to die at a write.
        self._away: dict[str, float] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._open = 0
        self._deleted: set[str] = set()
        self._figures = Figures(self.world, self._carbon, self.seconds, lambda site: bool(self._stopped.get(site)))
        self.world.on_crash.append(self._crashed)

    def seconds(self) -> float:
        """Of the story."""
        return self.world.now - self._begun

    # -- the whole -------------------------------------------------------------------------------------------

    async def run(self) -> dict[str, Any]:
        scenario, world = self.scenario, self.world
        await world.open()
        for text in scenario.sites:
            await world.join(text.obj, text.agent, replace(text.quality), text.clock)
        joined = await world.until(lambda: all(world.is_ready(s) for s in world.sites), JOIN_SECONDS)
        self._begun = world.now
        world.note("BEGIN", scenario.title)
        await self._prepare()
        every = max(LEAST_SAMPLE_SECONDS, scenario.duration / SAMPLES)
        self._at(0.0, "sample", partial(self._sample, every))
        step = 0
        while self._todo and self._todo[0][0] <= scenario.duration:
            if not await self._reached(self._todo[0][0]):
                continue
            at, _, what, deed = heapq.heappop(self._todo)
            if what:
                world.note("FAULT", what)
            await deed()
            if int(at / scenario.duration * 100) > step:
                step = int(at / scenario.duration * 100)
                self._progress(step / 100, f"{at / 3600:.1f} of {scenario.duration / 3600:.1f} h, {world.hub.disk.writes} writes")
        await self._reached(scenario.duration)
        if self._backups:
            await self._restored()
        await self._over()
        healed = self._all_live() and not self._open and not self._down and world.hub.up
        unfinished: list[str] = []
        if healed:
            # Everything that can run does, after bounded time.
            await world.until(lambda: not self._unfinished(), scenario.settle, 5.0)
            unfinished = self._unfinished()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        report = self._report(joined=joined, healed=healed, unfinished=unfinished)
        await world.close()
        return report

    def stalled(self, why: str) -> dict[str, Any]:
        """The report of a story whose time will not go on."""
        self.judge.wrong(why)
        return self._report(joined=True, healed=False, unfinished=[])

    async def _reached(self, at: float) -> bool:
        """Whether it is that late by now; not, where something else came up meanwhile that may be due before."""
        while (wait := self._begun + at - self.world.now) > 0:
            self._news.clear()
            await sleep_or(self.world.clock, wait, self._news)
            if self._todo and self._todo[0][0] < at:
                return False
        return True

    async def _over(self) -> None:
        """The story is at its end. For those who look at it."""

    def _at(self, at: float, what: str, deed: Deed) -> None:
        self._order += 1
        self._news.set()
        heapq.heappush(self._todo, (at, self._order, what, deed))

    async def _prepare(self) -> None:
        scenario, world = self.scenario, self.world
        given = {name(obj) for obj in scenario.objects if obj["kind"] == "Namespace"}
        spaces = sorted({w.namespace for w in scenario.workloads} - {"default"} - given)
        await world.apply(*[scheme.NAMESPACE.empty(space) for space in spaces], *scenario.objects)
        for text in scenario.workloads:
            self._at(text.at, "", partial(self._begin, text))
            if text.until is not None:
                self._at(text.until, f"delete {text.name}", partial(self._delete, text.name))
        for fault in scenario.faults:
            if fault.what == "restoreHub":
                self._at(fault.at - fault.value, "", partial(self._back_up, fault))
            self._at(fault.at, str(fault.text()), partial(self._do, fault))
        for hope in scenario.hopes:
            self._at(hope.at, "", partial(self._hopes.expect, hope))

    async def _begin(self, text: WorkloadText) -> None:
        await self._spawn(self.world.apply(*text.objects))

    async def _delete(self, workload: str) -> None:
        self._deleted.add(workload)
        for text in self.scenario.named([workload]):
            await self._spawn(self.world.remove(text.kind, text.name, text.namespace))

    async def _spawn(self, work: Any) -> None:
        """Beside the story: a hub that is away must not stop its time."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks[task] = None
        task.add_done_callback(self._done)
        await asyncio.wait((task,), timeout=0.5 if self._down else 30.0)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, ApiError):
                raise error
            self.judge.wrong(f"the hub refused what the scenario asks for: {error}")

    # -- faults ----------------------------------------------------------------------------------------------

    async def _do(self, fault: Fault) -> None:
        begin, end = self._deeds(fault)
        await begin()
        if end is not None:
            self._open += 1
            if fault.seconds is not None:

                async def over() -> None:
                    await end()
                    self._open -= 1

                self._at(fault.at + fault.seconds, f"end of {fault.what} {fault.value}", over)

    def _deeds(self, fault: Fault) -> tuple[Deed, Deed | None]:
        value, world = fault.value, self.world
        if fault.what == "cut":
            ways = {"up": (1, 0), "down": (0, 1)}.get(str(fault.more.get("direction")), (1, 1))
            return partial(self._cut, value, ways, 1), partial(self._cut, value, ways, -1)
        if fault.what == "link":
            before = {s: world.sites[s].line.quality for s in fault.more["sites"]}
            return partial(self._link, fault.more["sites"], value), partial(self._relink, before)
        if fault.what == "killHub":
            return partial(self._kill, value), None
        if fault.what == "restoreHub":
            return partial(self._restore, fault, float(fault.seconds or 0.0)), None
        if fault.what == "killHubAfterWrites":
            return partial(self._arm, value, float(fault.seconds or 0.0)), None
        if fault.what == "slowDisk":
            sites = fault.more.get("sites")
            usual = 0.0 if sites else self.scenario.timing.write
            return partial(self._slow, value, sites), partial(self._slow, usual, sites)
        if fault.what == "stopAgent":
            return partial(self._stop, value, power=False), partial(self._start, value)
        if fault.what == "stopAgentAfterWrites":
            return partial(self._arm_sites, value, float(fault.seconds or 0.0)), None
        if fault.what == "powerOff":
            return partial(self._stop, value, power=True), partial(self._start, value)
        if fault.what == "flap":
            return partial(self._flap, value, float(fault.more["every"]), fault.at + float(fault.seconds or 0.0)), None
        if fault.what == "lie":
            return partial(self._lie, value), partial(self._lie, dict.fromkeys(value))
        return {
            "hubClock": partial(self._hub_clock, value),
            "siteClock": partial(self._site_clock, value),
            "change": partial(self._change, value),
            "apply": partial(self._apply, value),
            "delete": partial(self._delete_all, value),
            "scale": partial(self._scale, value),
            "residency": partial(self._residency, value),
        }[fault.what], None

    async def _cut(self, sites: list[str], ways: tuple[int, int], change: int) -> None:
        for site in sites:
            cuts = self._cuts.setdefault(site, [0, 0])
            cuts[0] += ways[0] * change
            cuts[1] += ways[1] * change
            line = self.world.sites[site].line
            was = line.down_cut
            line.set(up=cuts[0] > 0, down=cuts[1] > 0)
            # One that still hears the hub, though it cannot answer, may be told something else.
            if line.down_cut and not was and not self._stopped.get(site):
                self.judge.cut_off(site)
            elif not line.down_cut:
                self.judge.reached(site)

    async def _link(self, sites: list[str], value: dict[str, Any]) -> None:
        for site in sites:
            line = self.world.sites[site].line
            line.quality = quality_of(Part("", value, None), line.quality)

    async def _relink(self, before: dict[str, Quality]) -> None:
        for site, usual in before.items():
            self.world.sites[site].line.quality = usual

    async def _kill(self, seconds: float) -> None:
        if not self._down:
            self._down = True
            await self.world.hub.kill()
            self._loop.much_is_gone = True
            self._at(self.seconds() + seconds, "the hub starts", self._revive)

    async def _revive(self) -> None:
        await self._spawn(self._restart())

    async def _restart(self) -> None:
        await self.world.clock.sleep(self.scenario.timing.hub_start)
        await self.world.hub.start()
        self.judge.hub_started()
        self._down = False

    async def _arm(self, writes: int, seconds: float) -> None:
        store = self.world.hub.store
        if store is None or self._down:
            return
        store.kill_after = writes
        if writes == 0:
            store.dead.set()

        async def watch() -> None:
            await store.dead.wait()
            if self.world.hub.store is store:
                self.world.note("FAULT", f"the hub has died after {writes} writes")
                await self._kill(seconds)

        task = asyncio.ensure_future(watch())
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    async def _back_up(self, fault: Fault) -> None:
        """What ``fault`` will need."""
        self._backups[fault.at, fault.value] = self.world.hub.disk.backup()

    async def _restore(self, fault: Fault, seconds: float) -> None:
        """The hub's machine is lost with its disk; another takes its place, with what a backup holds."""
        while self._down and self.world.hub.store is not None:
            await self.world.run(0.1)  # it is just starting
        await self._kill(seconds)
        self.judge.hub_lost()
        revision = self.world.hub.disk.restore(self._backups[fault.at, fault.value])
        self.world.note("FAULT", f"the hub's disk is lost; it goes on at revision {revision}")
        self.judge.hub_restored()
        self._at(fault.at + seconds + RESTORING_SECONDS, "the operator is done with restoring", self._restored)

    async def _restored(self) -> None:
        self.judge.restoring_done()
        await self._spawn(self.world.remove(scheme.CONFIG_MAP, RESTORED, SYSTEM_NAMESPACE))

    async def _slow(self, seconds: float, sites: Sequence[str] | None) -> None:
        """Of the hub where no sites are said."""
        for disk in (self.world.hub.disk,) if sites is None else [self.world.sites[site].disk for site in sites]:
            disk.write_seconds = seconds

    async def _arm_sites(self, writes: dict[str, int], seconds: float) -> None:
        for site, count in writes.items():
            if not self._stopped.get(site):
                self.world.sites[site].disk.kill_after = count
                self._away[site] = seconds

    def _all_live(self) -> bool:
        """Whether every agent does. The story is over: nobody dies at a later write, who would not come back."""
        if (store := self.world.hub.store) is not None and not store.dead.is_set():
            store.kill_after = -1
        return all([site.disk.spare() for site in self.world.sites.values()]) and not self.judge.stopped

    def _crashed(self, site: str) -> None:
        """Its agent is dead from this moment on: what runs in it is ended before anything else is done."""

        async def over() -> None:
            await self._stop([site], power=False)
            self._at(self.seconds() + self._away[site], f"the agent of {site} starts", partial(self._start, [site]))

        self._at(self.seconds(), f"the agent of {site} dies at a write", over)

    async def _stop(self, sites: list[str], *, power: bool) -> None:
        for site in sites:
            self._stopped[site] = self._stopped.get(site, 0) + 1
            self.judge.stopped.add(site)
            found = self.world.sites[site]
            if self._stopped[site] == 1:
                await found.stop()
            if power:
                self.judge.lost_power(site)
                found.power_off()

    async def _start(self, sites: list[str]) -> None:
        for site in sites:
            self._stopped[site] -= 1
            if not self._stopped[site]:
                self._order += 1
                self._boots[site] = self._order
                boot = partial(self._boot, site, self._order)
                self._at(self.seconds() + self.scenario.timing.agent_start, "", boot)

    async def _boot(self, site: str, number: int) -> None:
        """Unless it was stopped again meanwhile."""
        if not self._stopped[site] and self._boots[site] == number:
            self.judge.stopped.discard(site)
            self.world.sites[site].disk.revive()
            self.world.sites[site].start()

    async def _flap(self, sites: list[str], every: float, end: float) -> None:
        now = self.seconds()
        await self._cut(sites, (1, 1), 1)

        async def mend() -> None:
            await self._cut(sites, (1, 1), -1)

        self._at(now + every / 2, "", mend)
        if now + every < end:
            self._at(now + every, "", partial(self._flap, sites, every, end))

    async def _lie(self, told: dict[str, dict[str, Any] | None]) -> None:
        for site, capacity in told.items():
            room = None if capacity is None else {"allocatable": capacity, "capacity": capacity}
            self.judge.lied(site)
            self.world.sites[site].lie(room)

    async def _hub_clock(self, seconds: float) -> None:
        self.world.hub_clock.offset += seconds

    async def _site_clock(self, seconds: dict[str, float]) -> None:
        for site, jump in seconds.items():
            self.world.sites[site].clock.offset += jump

    async def _change(self, specs: dict[str, Obj]) -> None:
        for site, spec in specs.items():
            await self._spawn(self.world.change(scheme.CLUSTER, site, "", {"spec": spec}))

    async def _apply(self, objects: list[Obj]) -> None:
        await self._spawn(self.world.apply(*objects))

    async def _delete_all(self, workloads: list[str]) -> None:
        for workload in workloads:
            await self._delete(workload)

    async def _scale(self, workloads: dict[str, int]) -> None:
        for text in self.scenario.named(workloads):
            self.judge.asked(text.name, workloads[text.name])
            await self._spawn(self.world.scale(text.kind, text.name, text.namespace, workloads[text.name]))

    async def _residency(self, workloads: dict[str, list[str]]) -> None:
        """An Intent of its own, beside what a workload was given at first; taken back where nothing is named."""
        for text in self.scenario.named(workloads):
            intent, said = scheme.INTENT.empty(f"{text.name}-law", text.namespace), workloads[text.name]
            target = {"name": "residency", "condition": "IsOneOf", "value": said, "hard": True}
            about = {"refs": [{"kind": text.kind.kind, "name": text.name}]}
            spec = {"workloads": about, "expectations": [{"targets": [target]}]}
            if said:
                await self._spawn(self.world.apply({**intent, "spec": spec}))
            else:
                await self._spawn(self.world.remove(scheme.INTENT, name(intent), text.namespace))

    # -- what is told ----------------------------------------------------------------------------------------

    async def _sample(self, every: float) -> None:
        self._figures.sample()
        self._at(self.seconds() + every, "", partial(self._sample, every))

    def intensity(self, site: Site, now: float | None = None) -> float:
        """gCO2eq/kWh, now unless said otherwise."""
        return self._figures.intensity(site, now)

    def _unfinished(self) -> list[str]:
        if not self.world.hub.up:
            return ["the hub is not there"]
        hopeless = {w for hope in self.scenario.hopes if hope.what == "unplaced" for w in hope.value} | self._deleted
        return [text for text in self.judge.unfinished() if not any(f"/{w}:" in text or f"/{w} " in text for w in hopeless)]

    def _carbon_said(self) -> str:
        source, hours = self._carbon, self.scenario.duration / 3600
        if isinstance(source, TraceCarbonSource) and self.scenario.carbon_start_hour + hours > source.rows:
            return f"{source.describe()}; its {source.rows} hours are not enough and are repeated"
        return source.describe()

    def _report(self, *, joined: bool, healed: bool, unfinished: list[str]) -> dict[str, Any]:
        scenario, world = self.scenario, self.world
        kinds = [s.fidelity for s in world.sites.values()]
        reasons: dict[str, int] = {}
        placed: dict[str, dict[str, int]] = {}
        if world.hub.up:
            for event in world.hub.objects(scheme.EVENT):
                reasons[event["reason"]] = reasons.get(event["reason"], 0) + int(event.get("count") or 1)
            for obj in world.hub.objects(scheme.PLACEMENT)[:200]:
                spec = obj.get("spec") or {}
                placed[f"{obj['metadata']['namespace']}/{name(obj)}"] = {
                    c["name"]: c["replicas"] for c in spec.get("clusters") or ()
                }
        if not joined:
            self.judge.wrong("not all sites became ready before the beginning")
        passed = not self.judge.violations and not unfinished and all(a["held"] for a in self._hopes.answers)
        return {
            "title": scenario.title,
            "scenario": scenario.file,
            "seed": scenario.seed,
            "passed": passed,
            "expectations": self._hopes.answers,
            "violations": [{"seconds": round(t - self._begun, 3), "what": what} for t, what in self.judge.violations],
            "unfinished": unfinished,
            "healed": healed,
            "simulated": {
                "seconds": round(self.seconds(), 3),
                "sites": {k: kinds.count(k) for k in FIDELITY if k in kinds},
                "meaning": {k: text for k, text in FIDELITY.items() if k in kinds},
                "workloads": len(scenario.workloads),
                "faults": len(scenario.faults),
                "writes": world.hub.disk.writes,
                "hubLives": world.hub.lives,
            },
            "jobs": self._jobs.report(self._begun),
            "carbon": self._carbon_said(),
            "energy": self._figures.energy(),
            "events": dict(sorted(reasons.items())),
            "placements": placed,
            "faults": [fault.text() for fault in scenario.faults],
            "log": {"lines": world.lines, "sha256": world.digest},
            "series": self._figures.series,
        }
