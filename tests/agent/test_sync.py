"""Works on disk, and fences in (virtual) time."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.agent.contact import Contact, Follower
from metaos.agent.sync import WorkFiles, Works
from metaos.client import ObjList, WatchEvent
from metaos.resources import errors, scheme
from metaos.resources.meta import RESTORED, Obj, name
from tests.clock import FakeClock
from tests.fake_client import FakeClient

HERE = "nemo-cluster-a"


def work(key: str, fence: float = 0.0, **metadata: Any) -> Obj:
    found: Any = scheme.WORK.empty(key, HERE)
    found["metadata"] |= metadata
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": key, "namespace": "ns", "uid": key}}
    return {**found, "spec": {"manifests": [manifest]} | ({"fencing": {"afterSeconds": fence}} if fence else {})}


class Site:
    def __init__(self, folder: Path, client: FakeClient, clock: FakeClock, renewed: float = float("-inf")) -> None:
        self.client, self.clock = client, clock
        self.contact = Contact(clock, Random(1), renewed)
        self.works = Works(client, self.contact, clock, WorkFiles(folder / "works"), "a")

    def desired(self) -> list[str]:
        return [name(o) for o in self.works.desired()]

    def renew(self) -> None:
        self.contact.renewed(self.clock.monotonic())


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Site]:
    clock = FakeClock()
    site = Site(tmp_path, FakeClient(clock), clock)
    tasks = [asyncio.create_task(site.works.keep_fences())]
    yield site
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_each_work_is_fenced_at_its_own_time_and_lifted_only_by_the_hub(running: Site) -> None:
    running.renew()
    running.client.seed(work("plain"), work("short", 10), work("long", 30))
    running.works.replace_all(running.client.objects(scheme.WORK), silent=0.0)
    assert running.desired() == ["long", "plain", "short"]
    await running.clock.advance(9)
    running.renew()
    await running.clock.advance(9.9)
    assert running.desired() == ["long", "plain", "short"], "a renewal counts from its beginning"
    await running.clock.advance(0.2)
    assert running.desired() == ["long", "plain"] and running.works.fenced("short")
    await running.clock.advance(20)
    assert running.desired() == ["plain"]
    running.client.drop(scheme.WORK, "long", HERE)
    running.client.fail("list", errors.unavailable("not yet"), times=2)
    running.renew()
    await running.clock.settle()
    assert running.desired() == ["plain"], "a heartbeat alone does not lift a fence"
    for _ in range(6):
        running.renew()
        await running.clock.advance(1)
    assert running.desired() == ["plain", "short"] and running.works.names() == ["plain", "short"]


async def test_a_list_from_before_the_return_does_not_lift_a_fence(running: Site) -> None:
    running.renew()
    running.works.replace_all([work("short", 10)], silent=0.0)
    await running.clock.advance(11)
    running.works.replace_all([work("short", 10)])
    running.works.apply_event(WatchEvent("MODIFIED", work("short", 10, generation=2)))
    assert running.desired() == []


async def test_a_renewal_that_came_too_late_does_not_lift_a_fence(running: Site) -> None:
    """This process, or the machine, stood still when the fence was due: nothing here has noticed yet."""
    running.renew()
    running.works.replace_all([work("short", 10), work("long", 30)], silent=0.0)
    running.clock.elapse(20)
    running.renew()
    assert running.desired() == ["long"] and running.works.fenced("short")


async def test_limits_are_the_fencing_time_and_the_grace_period(running: Site) -> None:
    def of(key: str, grace: int | None, **fencing: float) -> Obj:
        spec = {} if grace is None else {"terminationGracePeriodSeconds": grace}
        manifest = {**scheme.STATEFUL_SET.empty(key, "ns"), "spec": {"template": {"spec": spec}}}
        manifest["metadata"]["uid"] = key
        extra = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": key, "namespace": "ns", "uid": "map"}}
        return {**scheme.WORK.empty(key, HERE), "spec": {"manifests": [manifest, extra], "fencing": fencing}}

    running.renew()
    running.works.replace_all(
        [of("usual", None, afterSeconds=60), of("own", 5, afterSeconds=60), of("told", 5, afterSeconds=60, graceSeconds=300)]
    )
    assert running.works.limits() == {"usual": 90.0, "own": 65.0, "told": 360.0}


async def test_the_time_of_the_last_renewal_survives_a_restart(tmp_path: Path) -> None:
    clock = FakeClock()
    first = Site(tmp_path, FakeClient(clock), clock)
    first.works.replace_all([work("db", 10)])
    assert first.desired() == [], "without any confirmed heartbeat it does not start"
    first.renew()
    first.works.replace_all([work("db", 10)])
    assert first.desired() == [], "it may have been asked for before that"
    first.works.replace_all([work("db", 10)], silent=0.0)
    assert first.desired() == ["db"]
    await clock.advance(6)
    renewed = first.contact.last_renewal
    assert Site(tmp_path, FakeClient(clock), clock, renewed).desired() == ["db"]
    await clock.advance(5)
    assert Site(tmp_path, FakeClient(clock), clock, renewed).desired() == []
    assert Site(tmp_path, FakeClient(clock), clock).desired() == [], "after the machine's own restart nothing is known"


async def test_works_survive_a_restart_and_damage_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    site = Site(tmp_path, FakeClient(clock), clock)
    long = "deployment." + "n" * 63 + "." + "x" * 170
    site.works.replace_all([work("a"), work("b"), work(long)])
    (tmp_path / "works" / "b.json").write_text('{"half')
    again = Site(tmp_path, FakeClient(clock), clock)
    assert again.desired() == ["a", long] and "set aside" in caplog.text
    again.works.replace_all([work("a")])
    assert Site(tmp_path, FakeClient(clock), clock).desired() == ["a"]


def restored(revision: int, *known: str) -> Obj:
    found = work(RESTORED, resourceVersion=str(revision + 1))
    found["spec"]["manifests"][0]["data"] = {"revision": str(revision), "works": "\n".join(known)}
    return found


async def test_what_a_restored_hub_does_not_know_goes_on_until_its_mark_goes(tmp_path: Path) -> None:
    """Not what it knew and has deleted, not what it wrote since, not what must not run twice."""
    clock = FakeClock()
    client = FakeClient(clock)
    site = Site(tmp_path, client, clock)
    site.renew()
    before = [work(key, resourceVersion=str(at)) for at, key in enumerate(("both", "gone", "known", "later"), 10)]
    site.works.replace_all([*before, work("once", 30.0, resourceVersion="15")])
    mark = restored(1000, "both", "known")
    site.works.replace_all([before[0], mark, work("new", resourceVersion="1002")])
    kept = {"both", "gone", "later", "new", RESTORED}
    assert set(site.desired()) == kept
    # After a restart, and where one of them is applied again and another was only known for a while.
    again = Site(tmp_path, client, clock)
    again.works.replace_all([before[0], mark, work("later", resourceVersion="1003")])
    assert set(again.desired()) == {"both", "gone", "later", RESTORED}
    again.works.replace_all([before[0], mark])
    assert set(again.desired()) == {"both", "gone", RESTORED}
    again.works.apply_event(WatchEvent("DELETED", mark))
    assert again.desired() == ["both"]
    # One that was not reached then finds no mark in its list.
    site.works.replace_all([before[0]])
    assert site.desired() == ["both"]


async def test_only_what_matters_is_a_change(tmp_path: Path) -> None:
    clock = FakeClock()
    site = Site(tmp_path, FakeClient(clock), clock)
    seen: list[int] = []
    site.works.on_change(lambda: seen.append(1))
    site.works.replace_all([work("a", generation=1)])
    site.works.apply_event(WatchEvent("MODIFIED", work("a", generation=1) | {"status": {"observedGeneration": 1}}))
    assert len(seen) == 1
    site.works.apply_event(WatchEvent("MODIFIED", work("a", generation=1, annotations={"meta-os.eu/draining": "t"})))
    site.works.apply_event(WatchEvent("DELETED", work("a")))
    assert len(seen) == 3 and site.desired() == []


async def test_a_follower_survives_errors_gone_history_and_ended_watches(tmp_path: Path) -> None:
    clock = FakeClock()
    client = FakeClient(clock)
    contact = Contact(clock, Random(1))
    lists: list[list[str]] = []
    events: list[str] = []
    follower = Follower(
        client,
        contact,
        clock,
        scheme.WORK,
        HERE,
        on_list=lambda works: lists.append([name(w) for w in works.items]),
        on_event=lambda event: events.append(f"{event.type} {name(event.object)}"),
    )
    client.fail("list", errors.unavailable("away"), times=3)
    task = asyncio.create_task(follower.run())
    await clock.advance(10)
    assert lists == [[]] and contact.reachable
    client.seed(work("a"))
    await clock.settle()
    client.end_watches()
    client.seed(work("b"))
    await clock.advance(2)
    assert events == ["ADDED a", "ADDED b"] and len(lists) == 1, "a watch goes on where it ended"
    client.fail("watch", errors.expired("too old"))
    client.end_watches()
    await clock.advance(5)
    assert lists[1:] == [["a", "b"]]
    calls = client.watchers
    client.fail("watch", errors.unavailable("away"), times=1000)
    client.end_watches()
    await clock.advance(600)
    assert 600 / 15 / 2 < 1000 - len(client._failures["watch"]) < 120, "no busy loop"
    assert calls == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_status_other_than_the_known_one_is_told_and_changes_nothing_that_is_desired(running: Site) -> None:
    """Answers and events may overtake each other: an older status than the one just written arrives, and then the newer one."""
    told: list[str] = []
    running.works.on_status(told.append)
    first = work("a", uid="u") | {"status": {"observedGeneration": 1}}
    running.works.replace_all([first])
    changes: list[None] = []
    running.works.on_change(lambda: changes.append(None))
    known = running.works.get("a")
    assert known is not None and not told
    known["status"] = {"observedGeneration": 2}
    running.works.apply_event(WatchEvent("MODIFIED", first))
    running.works.apply_event(WatchEvent("MODIFIED", first))
    assert told == ["a"]
    running.works.apply_event(WatchEvent("MODIFIED", first | {"status": {"observedGeneration": 2}}))
    assert told == ["a", "a"] and not changes


def at(revision: int, replicas: int, fence: float = 10.0) -> Obj:
    """The Work ``db`` as it was then."""
    found = work("db", fence, uid="u", generation=revision, resourceVersion=str(revision))
    found["spec"]["manifests"][0]["spec"] = {"replicas": replicas}
    return found


def replicas(site: Site) -> list[int]:
    return [o["spec"]["replicas"] for o in site.works.desired()]


async def test_what_a_watch_tells_again_after_the_list_that_lifted_the_fence_changes_nothing(running: Site) -> None:
    running.renew()
    running.works.replace_all([at(5, 1)], 5, silent=0.0)
    running.works.replace_all([at(5, 1)], 5)
    assert replicas(running) == [1], "the watch's own list stops nothing"
    await running.clock.advance(11)
    assert replicas(running) == []
    running.renew()
    running.works.replace_all([at(9, 0)], 12, silent=0.0)
    for event in (at(6, 1), at(7, 1), at(9, 0)):
        running.works.apply_event(WatchEvent("MODIFIED", event))
        assert replicas(running) == [0]
    running.works.replace_all([], 13)
    running.works.apply_event(WatchEvent("MODIFIED", at(12, 1)))
    assert running.works.names() == [], "what is gone does not come back"
    running.works.apply_event(WatchEvent("ADDED", at(14, 1)))
    assert running.works.names() == ["db"]


async def test_a_list_that_an_event_has_overtaken_lifts_nothing_and_is_asked_for_again(running: Site) -> None:
    running.renew()
    running.works.replace_all([at(5, 1)], 5, silent=0.0)
    await running.clock.advance(11)
    running.works.apply_event(WatchEvent("MODIFIED", at(9, 0)))
    assert not running.works.replace_all([at(5, 1)], 8, silent=0.0)
    assert replicas(running) == [] and running.works.fenced("db")
    with pytest.raises(errors.ApiError) as caught:
        running.works._follow(ObjList([at(5, 1)], "8"))
    assert caught.value.code == 410
    running.works._follow(ObjList([at(7, 2)], "7"))
    known = running.works.get("db")
    assert known is not None and known["metadata"]["resourceVersion"] == "7", "a hub that begins anew is believed the second time"


async def test_work_that_is_first_heard_of_after_a_silence_waits_for_the_list(running: Site) -> None:
    """It was given to this site while that heard nothing, and may have been given to another since."""
    running.renew()
    running.works.replace_all([], 1, silent=0.0)
    await running.clock.advance(11)
    running.renew()
    running.works.apply_event(WatchEvent("ADDED", work("plain", resourceVersion="2")))
    running.works.apply_event(WatchEvent("ADDED", at(3, 1)))
    assert running.desired() == ["plain"] and running.works.fenced("db")
    running.client.seed(work("plain"), at(0, 1), at(0, 0), at(0, 0))
    for _ in range(6):
        running.renew()
        await running.clock.advance(1)
    assert running.works.names() == ["db", "plain"] and not running.works.fenced("db")
    assert [o["spec"]["replicas"] for o in running.works.desired() if name(o) == "db"] == [0]


class InMemory(WorkFiles):
    problem = ""

    def __init__(self) -> None: ...

    def load(self) -> list[Obj]:
        return []

    def save(self, work: Obj) -> None: ...

    def remove(self, work: Obj) -> None: ...


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_whatever_overtakes_what_the_works_are_as_of_the_youngest_news(data: st.DataObject) -> None:
    """A watch that goes on from anywhere, in order, and lists that were asked for at any time, in any order."""
    client = FakeClient(FakeClock())
    clock = FakeClock()
    works = Works(client, Contact(clock, Random(1)), clock, InMemory(), "a")
    history: list[tuple[str, Obj]] = []
    states: list[dict[str, str]] = [{}]
    for revision in range(1, data.draw(st.integers(1, 12)) + 1):
        key = data.draw(st.sampled_from("xy"))
        kind = "ADDED" if key not in states[-1] else data.draw(st.sampled_from(("MODIFIED", "DELETED")))
        history.append((kind, work(key, resourceVersion=str(revision))))
        now = {**states[-1], key: str(revision)}
        states.append(now if kind != "DELETED" else {k: v for k, v in now.items() if k != key})
    watched = youngest = data.draw(st.integers(0, len(history)))
    works.replace_all([work(k, resourceVersion=v) for k, v in states[watched].items()], watched)
    for _ in range(data.draw(st.integers(1, 20))):
        if data.draw(st.booleans()) and watched < len(history):
            kind, obj = history[watched]
            watched += 1
            works.apply_event(WatchEvent(kind, obj))
            youngest = max(youngest, watched)
        else:
            told = data.draw(st.integers(1, len(history)))
            taken = works.replace_all([work(k, resourceVersion=v) for k, v in states[told].items()], told)
            assert taken == (told >= youngest)
            youngest = max(youngest, told)
        found = {key: str((works.get(key) or {})["metadata"]["resourceVersion"]) for key in works.names()}
        assert found == states[youngest]


async def test_of_which_work_something_else_is_desired_is_told_by_name(tmp_path: Path) -> None:
    clock = FakeClock()
    site = Site(tmp_path, FakeClient(clock), clock)
    told: list[str] = []
    site.works.on_wanted(told.append)
    site.works.replace_all([work("b", generation=1), work("a", generation=1)])
    assert told == ["a", "b"]
    site.works.apply_event(WatchEvent("MODIFIED", work("a", generation=1) | {"status": {"observedGeneration": 1}}))
    site.works.apply_event(WatchEvent("MODIFIED", work("b", generation=2)))
    site.works.apply_event(WatchEvent("DELETED", work("a")))
    assert told == ["a", "b", "b", "a"]
