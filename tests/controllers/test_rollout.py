"""Rollouts over several sites, played with the sites' own decisions: bounds hold for the whole workload at every step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.agent.workloads import PodView, Revisions, daemon, daemon_status, deployment, deployment_status
from metaos.controllers.render import work
from metaos.controllers.rollout import progress, staged
from metaos.resources.meta import Obj, ref
from metaos.resources.workload import replicas, template_hash
from metaos.scheduler.rollout import Bounds, Progress, bounds_of, turns

BAD = "bad"
METADATA = {"name": "w", "namespace": "n", "uid": "u", "generation": 1}


def template(image: str) -> dict[str, Any]:
    return {"metadata": {"labels": {"app": "w"}}, "spec": {"containers": [{"name": "c", "image": image}]}}


def workload(kind: str, image: str, count: int, rolling: dict[str, Any] | None) -> Obj:
    strategy = {"type": "RollingUpdate", "rollingUpdate": rolling} if rolling is not None else {"type": "Recreate"}
    spec: dict[str, Any] = {"template": template(image)}
    spec |= {"replicas": count, "strategy": strategy} if kind == "Deployment" else {"updateStrategy": strategy}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": dict(METADATA), "spec": spec}


class Site:
    """The site's own decisions over pods that start, get ready and go when the test says so."""

    def __init__(self, name: str) -> None:
        self.name, self.pods, self.next = name, list[PodView](), 0
        self.work: Obj | None = None
        self.images: dict[str, str] = {}

    def plan(self) -> None:
        if self.work is None:
            return
        manifest = self.work["spec"]["manifests"][0]
        digest = template_hash(manifest)
        self.images[digest] = manifest["spec"]["template"]["spec"]["containers"][0]["image"]
        decide = daemon if manifest["kind"] == "DaemonSet" else deployment
        actions = decide(manifest, self.pods, Revisions(digest, digest), 1000.0)
        self.pods = [replace(p, deleting=True) if p.uid in actions.delete else p for p in self.pods]
        for _, revision in actions.create:
            self.next += 1
            self.pods.append(PodView(f"{self.name}-{self.next}", f"{self.name}-{self.next}", revision, float(self.next)))

    def start(self) -> None:
        waiting = [p for p in self.pods if p.living and not p.ready and self.images[p.hash] != BAD]
        for pod in waiting[:1]:
            self.pods[self.pods.index(pod)] = replace(pod, phase="Running", ready_since=500.0)

    def end(self) -> None:
        self.pods = [p for p in self.pods if not p.deleting]

    def status(self) -> dict[str, Any]:
        assert self.work is not None
        manifest = self.work["spec"]["manifests"][0]
        revisions = Revisions("", template_hash(manifest))
        if manifest["kind"] == "DaemonSet":
            found = daemon_status(manifest, self.pods, revisions, 1000.0)
        else:
            found = deployment_status(manifest, self.pods, revisions, 1000.0, {})
        entry = {"kind": manifest["kind"], "name": "w", "uid": "u", "status": found}
        entry["observedGeneration"] = manifest["metadata"]["generation"]
        conditions = [{"type": "Applied", "status": "True"}]
        return {"observedGeneration": self.work["metadata"]["generation"], "manifests": [entry], "conditions": conditions}

    def images_running(self) -> set[str]:
        return {self.images[p.hash] for p in self.pods}


class World:
    """Hub and sites. The hub remembers nothing but Works: each of its steps is that of a hub that was just started."""

    def __init__(self, obj: Obj, shares: list[int]) -> None:
        self.obj, self.shares = obj, {f"s{i}": share for i, share in enumerate(shares)}
        self.sites = {name: Site(name) for name in self.shares}
        self.works: dict[str, Obj] = {}
        self.cut: set[str] = set()

    def hub(self, writes: int = 99) -> None:
        """One step; it is killed after so many writes."""
        wanted = {}
        for name, share in self.shares.items():
            manifest = copy.deepcopy(self.obj)
            if self.obj["kind"] == "Deployment":
                manifest["spec"]["replicas"] = share
            wanted[name] = manifest
        leaving = {name: copy.deepcopy(self.obj) for name in self.works if name not in self.shares}
        told = staged(self.obj, wanted, self.works, {name: name not in self.cut for name in self.sites}, leaving)
        for name, manifest in told.items():
            made = work(ref(self.obj), name, [manifest])
            before = self.works.get(name)
            if before is not None and before["spec"] == made["spec"]:
                continue
            if not writes:
                return
            writes -= 1
            made["metadata"]["generation"] = 1 if before is None else before["metadata"]["generation"] + 1
            self.works[name] = made | ({"status": before["status"]} if before and "status" in before else {})

    def happen(self, what: str, which: int) -> None:
        name = sorted(self.sites)[which % len(self.sites)]
        site = self.sites[name]
        if what == "hub":
            self.hub()
        elif what == "killed":
            self.hub(which)
        elif what == "touch":
            self.touch()
        elif what == "tell" and name not in self.cut and name in self.works:
            site.work = copy.deepcopy({k: v for k, v in self.works[name].items() if k != "status"})
        elif what == "report" and name not in self.cut and site.work is not None:
            self.works[name] = self.works[name] | {"status": site.status()}
        elif what in ("plan", "start", "end"):
            getattr(site, what)()

    def rounds(self, count: int, check: Callable[[], None] = lambda: None) -> None:
        """So many, in which everything happens that can; fewer where nothing changes any more."""
        for _ in range(count):
            before = [(s.pods, s.work) for s in self.sites.values()], self.works.copy()
            self.hub()
            self.hub()
            for what in ("tell", "plan", "end", "start", "plan", "report"):
                for which in range(len(self.sites)):
                    self.happen(what, which)
                    check()
            if before == ([(s.pods, s.work) for s in self.sites.values()], self.works):
                return

    def available(self) -> int:
        return sum(p.available(0, 1000.0) for n, s in self.sites.items() if n not in self.cut for p in s.pods)

    def living(self) -> int:
        return sum(p.living for n, s in self.sites.items() if n not in self.cut for p in s.pods)

    def wanted(self) -> int:
        return sum(share for name, share in self.shares.items() if name not in self.cut)

    def image(self, image: str) -> None:
        self.obj["spec"]["template"] = template(image)
        self.touch()

    def touch(self) -> None:
        """The user changes something else: every Work is written anew."""
        self.obj["metadata"]["generation"] += 1

    def over(self) -> bool:
        """Everywhere where it can be: all of the wanted template, all ready, and the user is told so."""
        image = self.obj["spec"]["template"]["spec"]["containers"][0]["image"]
        return all(
            s.images_running() <= {image} and sum(p.ready for p in s.pods) == self.shares.get(n, 0) == len(s.pods)
            for n, s in self.sites.items()
            if n not in self.cut
        )


LIMIT = st.one_of(st.integers(0, 4), st.sampled_from(["0%", "20%", "34%", "100%"]))
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["hub", "tell", "plan", "start", "start", "end", "report", "bad", "good", "touch", "cut"]),
        st.integers(0, 4),
    ),
    max_size=80,
)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    kind = draw(st.sampled_from(["Deployment", "Deployment", "DaemonSet"]))
    shares = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)) if kind == "Deployment" else [1] * draw(st.integers(2, 4))
    surge, down = draw(st.tuples(LIMIT, LIMIT).filter(lambda both: not set(both) <= {0, "0%"}))
    if kind == "DaemonSet" and surge not in (0, "0%"):
        down = 0
    world = World(workload(kind, "one", sum(shares), {"maxSurge": surge, "maxUnavailable": down}), shares)
    world.rounds(8)
    assert world.over()
    if draw(st.booleans()):
        # Sites that have had a part of the bounds before.
        world.image("two")
        world.rounds(30)
        assert world.over()
    return world


@settings(deadline=None, max_examples=80)
@given(worlds(), EVENTS)
def test_bounds_hold_for_all_sites_together_and_the_rollout_ends(world: World, events: list[tuple[str, int]]) -> None:
    """Also with images that never start, changes of mind, sites that are cut off, and a hub that is killed at any step."""
    bounds = bounds_of(world.obj, sum(world.shares.values()))
    assert bounds is not None

    def check() -> None:
        assert world.available() >= world.wanted() - bounds.unavailable
        assert world.living() <= world.wanted() + bounds.surge

    for number, (what, which) in enumerate([("bad" if events and events[0][1] % 2 else "good", 0), ("hub", 0), *events]):
        if what == "bad":
            world.image(BAD)
        elif what == "good":
            world.image(f"image-{number}")
        elif what == "cut" and len(world.cut) < len(world.sites) - 1:
            world.cut.add(sorted(world.sites)[which % len(world.sites)])
        else:
            world.happen(what, which)
        check()
    world.image("final")
    world.rounds(40, check)
    assert world.over()
    world.cut.clear()
    world.rounds(40)
    assert world.over()
    before = copy.deepcopy(world.works)
    world.rounds(2)
    assert world.works == before


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 3), min_size=2, max_size=4), EVENTS)
def test_recreate_mixes_no_templates_over_sites(shares: list[int], events: list[tuple[str, int]]) -> None:
    world = World(workload("Deployment", "one", sum(shares), None), shares)
    world.rounds(8)
    assert world.over()
    world.image("two")
    for what, which in events:
        world.happen(what, which)
        assert len(set().union(*(s.images_running() for s in world.sites.values()))) <= 1
    world.rounds(8)
    assert world.over()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.lists(st.integers(1, 3), min_size=1, max_size=2), EVENTS)
def test_recreate_waits_for_the_sites_that_are_left(there: list[int], new: list[int], events: list[tuple[str, int]]) -> None:
    """Template and placement change together: who has a share of 0 afterwards is left, with what it runs."""
    world = World(workload("Deployment", "one", 2 * len(there), None), [2] * len(there))
    world.rounds(8)
    assert world.over()
    shares = [*there, *new]
    world.sites |= {f"s{i}": Site(f"s{i}") for i in range(len(there), len(shares))}
    world.shares = {f"s{i}": share for i, share in enumerate(shares) if share}
    world.image("two")
    for what, which in events:
        world.happen(what, which)
        assert len(set().union(*(s.images_running() for s in world.sites.values()))) <= 1
    world.rounds(10)
    assert world.over()


def test_who_is_left_goes_on_with_the_same_template_without_another_place_or_when_it_may_roll() -> None:
    one, two = workload("Deployment", "one", 1, None), workload("Deployment", "two", 1, None)
    existing = {"a": work(ref(one), "a", [one])}
    both = {"a": True, "b": True}
    assert staged(one, {"b": one}, existing, both, {"a": one}) == {"b": one}, "make before break"
    assert staged(two, {}, existing, both, {"a": two}) == {}
    rolling = workload("Deployment", "two", 1, {})
    assert staged(rolling, {"b": rolling}, existing, both, {"a": rolling}) == {"b": rolling}
    halted = staged(two, {"b": two}, existing, both, {"a": two})
    assert halted == {"a": two | {"spec": two["spec"] | {"replicas": 0, "template": one["spec"]["template"]}}}
    assert staged(two, {"b": two}, existing, both | {"a": False}, {"a": two}) == {"b": two}, "who is cut off holds up no other"


def test_a_bad_image_reaches_one_site_of_a_daemon_set() -> None:
    world = World(workload("DaemonSet", "one", 0, {"maxSurge": 0, "maxUnavailable": 1}), [1, 1])
    world.rounds(5)
    world.image(BAD)
    world.rounds(10)
    assert world.available() == 1 and world.sites["s1"].images_running() == {"one"}


def test_what_never_ran_can_be_mended() -> None:
    """Nothing is available: that is no reason to wait for it."""
    world = World(workload("Deployment", BAD, 4, {"maxSurge": 0, "maxUnavailable": 1}), [2, 2])
    world.rounds(5)
    assert world.available() == 0
    world.image("two")
    world.rounds(15)
    assert world.over()


def test_bounds_are_divided_by_share_and_by_name() -> None:
    there = {f"s{i}": Progress(share, share, share, seen=True, settled=True) for i, share in enumerate((6, 3, 1))}
    assert {s: t.bounds for s, t in turns(there, Bounds(5, 5)).items()} == {
        "s0": Bounds(3, 3),
        "s1": Bounds(1, 2),
        "s2": Bounds(1, 0),
    }
    first = turns(there, Bounds(0, 1))
    assert {s: t.current for s, t in first.items()} == {"s0": True, "s1": False, "s2": False}


def test_percentages_are_of_the_whole() -> None:
    usual = workload("Deployment", "one", 3, {"maxSurge": "25%", "maxUnavailable": "25%"})
    assert bounds_of(usual, replicas(usual)) == Bounds(1, 0)
    assert bounds_of(workload("DaemonSet", "one", 0, {"maxUnavailable": "10%"}), 15) == Bounds(0, 2)
    assert bounds_of(workload("Deployment", "one", 3, None), 3) is None


def test_a_kubernetes_member_has_done_its_part_when_its_server_has_taken_it_and_all_is_current() -> None:
    """It does not say which template its counts are about."""
    obj = workload("DaemonSet", "one", 0, {"maxSurge": 0, "maxUnavailable": 1})
    counts = {f"{word}NumberScheduled": 3 for word in ("desired", "current", "updated")} | {"numberAvailable": 3}
    found = work(ref(obj), "kube", [obj])
    found["metadata"]["generation"] = 2
    for applied, health, observed, settled in (
        ("True", "Current", 2, True),
        ("True", "InProgress", 2, False),
        ("False", "Current", 2, False),
        ("True", "Current", 1, False),
    ):
        entry = {"kind": "DaemonSet", "name": "w", "uid": "u", "observedGeneration": 1, "status": counts, "health": health}
        conditions = [{"type": "Applied", "status": applied}]
        found["status"] = {"observedGeneration": observed, "manifests": [entry], "conditions": conditions}
        seen = progress(obj, found, answers=True)
        assert (seen.settled, seen.share, seen.available) == (settled, 3, 3)
