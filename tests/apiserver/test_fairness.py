"""Priority and fairness: who is next, and that nobody starves (properties of the decision, without any server)."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver.fairness import (
    CATCH_ALL,
    CONTROLLERS,
    GLOBAL_DEFAULT,
    SYSTEM,
    WORKLOAD_HIGH,
    Budget,
    FairQueue,
    Level,
    classify,
    turn_of,
    width,
)
from metaos.reconcile.precedence import Turn
from metaos.security.authz import UserInfo

AGENT = UserInfo("system:cluster:edge", ("system:clusters", "system:authenticated"))


def test_levels() -> None:
    assert classify(AGENT, "leases.coordination.k8s.io", "", "a") == (SYSTEM, AGENT.name)
    assert classify(AGENT, "works.meta-os.eu", "status", "a") == (SYSTEM, AGENT.name)
    assert classify(AGENT, "works.meta-os.eu", "", "a") == (WORKLOAD_HIGH, AGENT.name)
    assert classify(UserInfo("x", ("system:masters", "system:authenticated")), "pods", "", "a") == (WORKLOAD_HIGH, "x")
    assert classify(UserInfo("x", ("system:authenticated",)), "pods", "", "a") == (GLOBAL_DEFAULT, "x")
    assert classify(UserInfo("system:controller:x", ("system:authenticated",)), "pods", "", "a")[0] is CONTROLLERS
    assert classify(UserInfo("system:anonymous", ("system:unauthenticated",)), "pods", "", "a") == (CATCH_ALL, "a")
    # A name alone makes nobody an agent.
    assert classify(UserInfo(AGENT.name, ("system:authenticated",)), "leases.coordination.k8s.io", "", "a")[0] is GLOBAL_DEFAULT


def test_what_agents_tell_comes_after_what_users_ask_for_and_their_lives_depend_on_neither() -> None:
    user = UserInfo("x", ("system:authenticated",))
    assert turn_of(user, "pods", "") is turn_of(user, "works.meta-os.eu", "status") is Turn.FIRST
    lasting = [("devices.meta-os.eu", "command"), ("devicebatches.meta-os.eu", ""), ("placementreviews.meta-os.eu", "")]
    assert {turn_of(user, *each) for each in lasting} == {Turn.ANY}, "nobody's reports wait for a device"
    told = [("events", ""), ("pods", ""), ("pods", "status"), ("works.meta-os.eu", "status")]
    assert {turn_of(AGENT, *each) for each in told} == {Turn.LAST}
    vital = [("leases.coordination.k8s.io", ""), ("clusters.meta-os.eu", "status"), ("works.meta-os.eu", "")]
    assert {turn_of(AGENT, *each) for each in vital} == {Turn.ANY}


def test_lists_take_more_seats_but_never_all() -> None:
    assert width(GLOBAL_DEFAULT, 0) == 1
    assert 1 < width(GLOBAL_DEFAULT, 2000) <= width(GLOBAL_DEFAULT, 10**9) <= GLOBAL_DEFAULT.seats // 2


#: (flow, seats) that arrive, or None: the oldest that runs ends.
STEPS = st.lists(st.one_of(st.none(), st.tuples(st.sampled_from("abcd"), st.integers(1, 4))), max_size=200)


@given(STEPS)
def test_bounds_hold_and_everyone_who_waits_gets_in(steps: list[tuple[str, int] | None]) -> None:
    level = Level("test", seats=8, waiting_of_flow=5, waiting=12)
    queue: FairQueue[tuple[int, str, int]] = FairQueue(level)
    running: list[tuple[int, str, int]] = []
    waiting: set[tuple[int, str, int]] = set()

    def end() -> None:
        _, flow, seats = running.pop(0)
        queue.leave(flow, seats)
        while (ticket := queue.next()) is not None:
            waiting.remove(ticket)
            running.append(ticket)

    for i, step in enumerate(steps):
        if step is None:
            if running:
                end()
        else:
            ticket = (i, *step)
            admitted = queue.arrive(*step, ticket)
            if admitted:
                running.append(ticket)
            elif admitted is False:
                waiting.add(ticket)
        assert queue.taken == sum(seats for _, _, seats in running) <= level.seats
        assert queue.waiting == len(waiting) <= level.waiting
        assert all(count <= level.waiting_of_flow for count in Counter(flow for _, flow, _ in waiting).values())
        # Nobody waits while there is room for the one who is next.
        assert not waiting or running
        assert queue.flows == len({flow for _, flow, _ in [*running, *waiting]})
    while running:
        end()
    assert not waiting and not queue.taken and not queue.flows


@given(hostile=st.integers(1, 100), seats=st.integers(1, 4), polite=st.integers(1, 5))
def test_one_that_asks_for_little_waits_for_no_more_than_one_turn_of_the_others(hostile: int, seats: int, polite: int) -> None:
    """However much the others have waiting, each of them is let in once at most before a newcomer."""
    queue: FairQueue[str] = FairQueue(Level("test", 4, 100, 1000))
    for _ in range(hostile):
        queue.arrive("hostile", seats, "hostile")
    for i in range(polite):
        queue.arrive(f"polite{i}", 1, f"polite{i}")
    for _ in range(seats * 8):
        queue.arrive("hostile", seats, "hostile")
    let_in: list[str] = []
    running = [("hostile", seats)] * min(hostile, 4 // seats)
    running += [(f"polite{i}", 1) for i in range(polite)] if queue.waiting == 0 else []
    while queue.waiting and running:
        queue.leave(*running.pop(0))
        while (ticket := queue.next()) is not None:
            let_in.append(ticket)
            running.append((ticket, seats if ticket == "hostile" else 1))
    for i in range(polite):
        if f"polite{i}" in let_in:
            assert let_in[: let_in.index(f"polite{i}")].count("hostile") <= 2


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 50)), max_size=60))
def test_budget(takes: list[tuple[str, int]]) -> None:
    budget, held = Budget(each=60, total=100), Counter[str]()
    for flow, count in takes:
        if budget.take(flow, count):
            held[flow] += count
        assert budget.held == held.total() <= 100
        assert all(mine <= 60 for mine in held.values())
    for flow, count in held.items():
        budget.give(flow, count)
    assert budget.held == 0
