"""Whatever is late, lost, told twice or killed: never two writers, nothing lost, and the old copy goes on until the switch.

Also where the hub's state is put back to an earlier one: it learns from the sites where the data is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.data.moves import Copy, Step, decide, home_of

SITES = ("a", "b", "c")


@dataclass
class Stored:
    """A site's Work at the hub. ``version`` as a resourceVersion; ``said``: what the site reports, of which version."""

    told: Copy
    version: int
    said: dict[str, object] = field(default_factory=dict)
    seen: int = 0
    asked: int = 0


@dataclass
class Site:
    """An agent and its disk. ``told``: the Work as far as it has heard; ``data``: how many records its volume has; ``came``:
    attempt → records of a whole copy that lies aside; ``pods``: whether one runs. ``adopted``: with which attempt; ``left``: for
    which it was stopped, for whom, whether it gave its data up, and whether it went on."""

    told: Copy | None = None
    version: int = 0
    pods: bool = False
    data: int | None = None
    came: dict[int, int] = field(default_factory=dict)
    adopted: int = 0
    asked: int = 0
    left: tuple[int, str, bool, bool] | None = None

    @property
    def behind(self) -> bool:
        """Whether what it is told says less than it knows."""
        if self.told is None or self.left is None or self.left[3]:
            return False
        number = self.left[0]
        runs_on = number == self.told.sent and self.told.runs
        return number > max(self.told.received, self.told.kept) and (number > self.told.sent or runs_on)

    @property
    def holds(self) -> int:
        """With which attempt it has the data, where it is told something else."""
        if self.told is None or (self.told.adopted and self.told.received >= self.adopted):
            return 0
        return self.adopted if self.data is not None and (self.left is None or self.left[0] <= self.adopted) else 0


class World:
    def __init__(self) -> None:
        self.works: dict[str, Stored] = {"a": Stored(Copy("a"), 1)}
        self.past: list[dict[str, tuple[Copy, int]]] = []
        self.versions = 1
        self.sites = {name: Site() for name in SITES}
        self.sites["a"] = Site(Copy("a"), 1, True, 0)
        self.records = 0
        self.chosen: str | None = "b"
        #: What a restored hub does not know goes on there.
        self.unknown: set[str] = set()
        self.restored = False
        self.remember()

    def remember(self) -> None:
        self.past.append({name: (self.view(stored), stored.version) for name, stored in self.works.items()})

    def view(self, stored: Stored) -> Copy:
        """As the hub reads a Work: reports count where they are of what was told last."""
        said = stored.said if stored.seen == stored.version else {}
        of = said.get("attempt") == stored.told.received
        return replace(
            stored.told,
            stopped=not stored.told.runs and said.get("pods") is False,
            close=bool(of and said.get("close")),
            complete=bool(of and said.get("complete")),
            settled=stored.told.runs and said.get("pods") is True,
            unknown=stored.asked != stored.said.get("asked", 0),
            holds=int(str(stored.said.get("holds") or 0)),
            **_left(stored.said.get("left")),
        )

    # -- what may happen, in any order ------------------------------------------------------------------------

    def hub(self, age: int, patience: bool) -> None:
        """A hub looks at what it knows, which may be old, and writes one Work, if that is as it knows it."""
        seen = self.past[max(0, len(self.past) - 1 - age)]
        action = decide([copy for copy, _ in seen.values()], self.chosen, 100.0 if patience else 0.0, 60.0, self.versions)
        if action.step is Step.WAIT:
            return
        known, stored = seen.get(action.site), self.works.get(action.site)
        if (known is None) != (stored is None) or (known is not None and stored is not None and known[1] != stored.version):
            return  # a conflict
        if action.step is Step.DROP:
            del self.works[action.site]
            self.remember()
            return
        told = known[0] if known is not None else Copy(action.site)
        bare = _bare(told)
        sends = {"sent": action.attempt, "towards": told.left_for, "discards": told.gone, "kept": 0}
        sends["adopted"] = told.received > 0
        fresh = {
            Step.EXPECT: Copy(action.site, runs=action.adopted, received=action.attempt, adopted=action.adopted),
            Step.LEFT: replace(bare, runs=False, **sends),
            Step.RECEIVE: Copy(action.site, runs=False, received=action.attempt),
            Step.SEND: replace(bare, runs=not told.barred, sent=action.attempt, towards=self.chosen or "", kept=0),
            Step.KEEP: replace(bare, runs=True, towards="", sent=0, kept=action.attempt),
            Step.HALT: replace(bare, runs=False),
            Step.ADOPT: replace(bare, runs=True, adopted=True),
            Step.DISCARD: replace(bare, discards=True),
        }[action.step]
        self.versions += 1
        said = stored.said if stored is not None else {}
        asked = stored.asked if stored is not None else 0
        self.works[action.site] = Stored(fresh, self.versions, said, 0, self.versions if action.step is Step.EXPECT else asked)
        self.unknown.discard(action.site)
        self.remember()

    def restore(self, age: int) -> None:
        """The hub's state is put back. What sites reported then is not believed."""
        seen = self.past[max(0, len(self.past) - 1 - age)]
        self.unknown = {name for name in self.sites if name not in seen and self.sites[name].told is not None}
        self.versions, self.restored = self.versions + 1, True
        self.works = {name: Stored(_bare(copy), self.versions, asked=self.versions) for name, (copy, _) in seen.items()}
        self.past.clear()
        self.remember()

    def hear(self, name: str) -> None:
        """A site hears of its Work as it is now: what came between may never arrive."""
        site, stored = self.sites[name], self.works.get(name)
        if stored is None and name in self.unknown:
            return
        site.told, site.version = (stored.told, stored.version) if stored is not None else (None, 0)
        site.asked = stored.asked if stored is not None else 0

    def act(self, name: str) -> None:
        """An agent goes by what it has heard."""
        site = self.sites[name]
        told = site.told
        if site.left is not None and told is not None:
            number = site.left[0]
            if site.adopted > number:
                site.left = None
            elif told.kept >= number or (told.runs and not told.arriving and told.sent > number):
                site.left = (*site.left[:3], True)
        if told is None or told.arriving or not told.runs:
            site.pods = False
            if told is not None and not told.arriving and told.sent and told.towards:
                before = site.left or (0, "", False, False)
                if told.sent > before[0] or (told.sent == before[0] and not before[3]):
                    site.left = (told.sent, told.towards, told.discards, False)
                if told.discards and site.adopted <= told.sent:
                    site.data = None
            if told is None:
                site.came.clear()
                site.adopted = 0
            return
        if site.behind:
            site.pods = False
            return
        if told.received and told.received != site.adopted:
            if told.received not in site.came:
                site.pods = False
                return
            site.data, site.adopted = site.came.pop(told.received), told.received
            site.came.clear()
            self.check_adopted(name)
        if site.data is None:
            site.data = 0
        site.pods = True

    def transfer(self, source: str, target: str, last: bool) -> None:
        one, other = self.sites[source], self.sites[target]
        if one.told is None or other.told is None or not other.told.arriving or other.holds:
            return
        if other.told.received in (other.adopted, *other.came):
            return  # all of it is there
        if one.told.towards != target or one.told.sent != other.told.received or one.data is None:
            return
        other.came.pop(other.told.received, None)  # what is assembled is in between
        if last and not one.told.runs and not one.pods:
            other.came[other.told.received] = one.data

    def write(self, name: str) -> None:
        site = self.sites[name]
        if site.pods and site.data is not None:
            assert site.data == self.records, "a writer that has not all that was written"
            site.data += 1
            self.records += 1

    def report(self, name: str) -> None:
        site, stored = self.sites[name], self.works.get(name)
        if stored is None or site.told is None:
            return
        if site.version == 0:
            return
        attempt = site.told.received
        complete = attempt in site.came or attempt == site.adopted
        stored.said = {"pods": site.pods, "attempt": attempt, "close": True, "complete": complete}
        stored.said |= {"left": site.left, "holds": site.holds, "asked": site.asked}
        stored.seen = site.version
        self.remember()

    # -- what always holds ------------------------------------------------------------------------------------

    def check_adopted(self, name: str) -> None:
        assert self.sites[name].data == self.records, "something that was written is not in the copy"

    def check(self) -> None:
        running = [name for name in SITES if self.sites[name].pods]
        assert len(running) <= 1, f"two writers: {running}"
        told = [name for name, stored in self.works.items() if stored.told.runs and not stored.told.arriving]
        assert self.restored or len(told) <= 1, f"two are told to run: {told}"
        assert any(site.data == self.records or self.records in site.came.values() for site in self.sites.values())


def _bare(copy: Copy) -> Copy:
    """What is told, without what is reported."""
    said = ("stopped", "close", "complete", "settled", "gone", "unknown")
    return replace(copy, **dict.fromkeys(said, False), left=0, left_for="", voided=0, holds=0)


def _left(found: object) -> dict[str, Any]:
    if not isinstance(found, tuple):
        return {}
    number, site, gone, kept = found
    return {"voided": number} if kept else {"left": number, "left_for": site, "gone": gone}


_EVENTS = st.one_of(
    st.tuples(st.just("hub"), st.sampled_from([0, 0, 0, 1, 2, 5, 50]), st.booleans()),
    st.tuples(st.just("hub"), st.just(0), st.booleans()),
    st.tuples(st.just("hear"), st.sampled_from(SITES)),
    st.tuples(st.just("act"), st.sampled_from(SITES)),
    st.tuples(st.just("write"), st.sampled_from(SITES)),
    st.tuples(st.just("report"), st.sampled_from(SITES)),
    st.tuples(st.just("transfer"), st.sampled_from(SITES), st.sampled_from(SITES), st.booleans()),
    st.tuples(st.just("choose"), st.sampled_from(SITES)),
    # What goes well for a while, so that the later steps are reached too.
    st.tuples(st.just("well"), st.integers(1, 6)),
)
_RESTORES = st.tuples(st.just("restore"), st.sampled_from([0, 1, 2, 5, 10, 20, 50, 100]))


def _happen(world: World, event: tuple[object, ...]) -> None:
    word, *rest = event
    if word == "choose":
        world.chosen = str(rest[0])
    elif word == "well":
        for _ in range(int(str(rest[0]))):
            _round(world)
    else:
        getattr(world, str(word))(*rest)
    world.check()


@given(st.lists(_EVENTS, min_size=10, max_size=60))
@settings(max_examples=60, deadline=None)
def test_never_two_writers_and_nothing_lost(events: list[tuple[object, ...]]) -> None:
    world = World()
    for event in events:
        _happen(world, event)
    # Once nothing breaks any more, it ends where it shall be.
    for _ in range(40):
        _round(world)
    assert world.chosen is not None
    assert world.sites[world.chosen].pods
    assert [name for name, stored in world.works.items() if not stored.told.discards] == [world.chosen]
    assert world.sites[world.chosen].data == world.records


@given(st.lists(st.one_of(_EVENTS, _RESTORES), min_size=10, max_size=60))
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_where_the_hub_is_put_back(events: list[tuple[object, ...]]) -> None:
    test = World()
    for event in events:
        _happen(test, event)
    for _ in range(60):
        _round(test)
    assert test.chosen is not None
    assert test.sites[test.chosen].pods
    assert test.sites[test.chosen].data == test.records


def _round(world: World) -> None:
    _happen(world, ("hub", 0, False))
    for name in SITES:
        for word in ("hear", "act", "write"):
            _happen(world, (word, name))
    for one in SITES:
        for other in SITES:
            if one != other:
                _happen(world, ("transfer", one, other, True))
    for name in SITES:
        _happen(world, ("report", name))


def test_the_steps_of_one_move() -> None:
    world, steps = World(), []
    for _ in range(20):
        copies = [world.view(stored) for stored in world.works.values()]
        steps.append(decide(copies, world.chosen, 0.0, 60.0).step)
        _round(world)
    assert [step for step in steps if step is not Step.WAIT] == [Step.RECEIVE, Step.SEND, Step.HALT, Step.ADOPT, Step.DISCARD]


def test_the_old_copy_goes_on_where_the_new_one_is_not_ready_in_time() -> None:
    home = Copy("a", runs=False, sent=3, towards="b", stopped=True)
    target = Copy("b", runs=False, received=3, close=True)
    assert decide([home, target], "b", 59.0, 60.0).step is Step.WAIT
    again = decide([home, target], "b", 60.0, 60.0)
    assert (again.step, again.site, again.attempt) == (Step.RECEIVE, "b", 4)
    later = replace(target, received=4, close=False)
    assert decide([home, later], "b", 60.0, 60.0).step is Step.SEND


def test_the_old_copy_goes_on_where_the_target_is_left() -> None:
    home = Copy("a", runs=False, sent=3, towards="b", stopped=True)
    target = Copy("b", runs=False, received=3, complete=True)
    assert decide([home, target], "c", 0.0, 60.0).step is Step.DROP
    assert decide([home, replace(target, deleting=True)], "c", 0.0, 60.0).step is Step.WAIT
    assert decide([home], "c", 0.0, 60.0).step is Step.KEEP
    assert decide([replace(home, runs=True)], "a", 0.0, 60.0).step is Step.KEEP


def test_what_the_law_bars_is_stopped_at_once_and_not_started_again() -> None:
    home = Copy("a", barred=True)
    assert decide([home], None, 0.0, 60.0).step is Step.HALT
    assert decide([home], "b", 0.0, 60.0).step is Step.RECEIVE
    sending = replace(home, sent=1, towards="b")
    target = Copy("b", runs=False, received=1)
    assert decide([sending, target], "b", 0.0, 60.0).step is Step.HALT
    halted = replace(sending, runs=False, stopped=True)
    assert decide([halted, target], "b", 1e6, 60.0).step is Step.WAIT
    assert decide([halted, replace(target, complete=True)], "b", 0.0, 60.0).step is Step.ADOPT


def test_a_home_that_does_not_answer_is_not_stopped() -> None:
    home, target = Copy("a", sent=1, towards="b", ready=False), Copy("b", runs=False, received=1, close=True)
    assert decide([home, target], "b", 0.0, 60.0).step is Step.WAIT
    assert decide([replace(home, ready=True), replace(target, ready=False)], "b", 0.0, 60.0).step is Step.WAIT


def test_where_the_data_is() -> None:
    assert home_of([]) is None
    assert home_of([Copy("b", received=2)]) is None
    found = home_of([Copy("a", runs=False, sent=2, towards="b"), Copy("b", received=2, adopted=True)])
    assert found is not None and found.site == "b"
