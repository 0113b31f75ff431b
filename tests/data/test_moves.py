"""Whatever is late, lost, told twice or killed: never two writers, nothing lost, and the old copy goes on until the switch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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


@dataclass
class Site:
    """An agent and its disk. ``told``: the Work as far as it has heard; ``data``: how many records its volume has; ``came``:
    attempt → records of a whole copy that lies aside; ``pods``: whether one runs."""

    told: Copy | None = None
    version: int = 0
    pods: bool = False
    data: int | None = None
    came: dict[int, int] = field(default_factory=dict)


class World:
    def __init__(self) -> None:
        self.works: dict[str, Stored] = {"a": Stored(Copy("a"), 1)}
        self.past: list[dict[str, tuple[Copy, int]]] = []
        self.versions = 1
        self.sites = {name: Site() for name in SITES}
        self.sites["a"] = Site(Copy("a"), 1, True, 0)
        self.records = 0
        self.chosen: str | None = "b"
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
        )

    # -- what may happen, in any order ------------------------------------------------------------------------

    def hub(self, age: int, patience: bool) -> None:
        """A hub looks at what it knows, which may be old, and writes one Work, if that is as it knows it."""
        seen = self.past[max(0, len(self.past) - 1 - age)]
        action = decide([copy for copy, _ in seen.values()], self.chosen, 100.0 if patience else 0.0, 60.0)
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
        bare = replace(told, stopped=False, close=False, complete=False, settled=False)
        fresh = {
            Step.RECEIVE: replace(bare, runs=False, received=action.attempt),
            Step.SEND: replace(bare, runs=not told.barred, sent=action.attempt, towards=self.chosen or ""),
            Step.KEEP: replace(bare, runs=True, towards=""),
            Step.HALT: replace(bare, runs=False),
            Step.ADOPT: replace(bare, runs=True, adopted=True),
            Step.DISCARD: replace(bare, discards=True),
        }[action.step]
        self.versions += 1
        self.works[action.site] = Stored(fresh, self.versions)
        self.remember()

    def hear(self, name: str) -> None:
        """A site hears of its Work as it is now: what came between may never arrive."""
        site, stored = self.sites[name], self.works.get(name)
        site.told, site.version = (stored.told, stored.version) if stored is not None else (None, 0)

    def act(self, name: str) -> None:
        """An agent goes by what it has heard."""
        site = self.sites[name]
        told = site.told
        if told is None or told.arriving or not told.runs:
            site.pods = False
            if told is not None and told.discards:
                site.data = None
            if told is None:
                site.came.clear()
            return
        if told.received:
            if told.received in site.came:
                site.data = site.came.pop(told.received)
                site.came.clear()
                self.check_adopted(name)
            elif site.data is None:
                return
        if site.data is None:
            site.data = 0
        site.pods = True

    def transfer(self, source: str, target: str, last: bool) -> None:
        one, other = self.sites[source], self.sites[target]
        if one.told is None or other.told is None or not other.told.arriving:
            return
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
        attempt = site.told.received
        stored.said = {"pods": site.pods, "attempt": attempt, "close": True, "complete": attempt in site.came}
        stored.seen = site.version
        self.remember()

    # -- what always holds ------------------------------------------------------------------------------------

    def check_adopted(self, name: str) -> None:
        assert self.sites[name].data == self.records, "something that was written is not in the copy"

    def check(self) -> None:
        running = [name for name in SITES if self.sites[name].pods]
        assert len(running) <= 1, f"two writers: {running}"
        told = [name for name, stored in self.works.items() if stored.told.runs and not stored.told.arriving]
        assert len(told) <= 1, f"two are told to run: {told}"
        assert any(site.data == self.records or self.records in site.came.values() for site in self.sites.values())


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
