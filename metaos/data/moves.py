"""How a workload's volumes go from one site to another, step by step: either the old copy is the writer or the new one. Pure.

Everything that is decided stands in two objects, the Works of the two sites, and each step writes one of them, under the
condition that it is still as it was seen (its resourceVersion). An *attempt* is a number that only grows. The target's Work is
the judge:

- it says which attempt it receives; a home that sends another one is (or may be made) the writer;
- it is told to adopt attempt N only while it receives N, and only after the home was told to stop in N, has reported that nothing
  is left, and the target that it has everything of N. From then on it is the home.
- Before the old copy may go on again, the target is told another attempt, or its Work goes: what it has of N can then not be
  adopted any more, whatever was under way.

So whoever may crash, and whatever is late, lost or told twice: there is one order in which the target's Work was written.

A hub whose state was put back knows less than its sites: a site that was stopped for attempt N, or gave its volumes up in it,
remembers that, and runs nothing until it is told of N or a later one. What it says (``left``) is taken up first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Step(StrEnum):
    """What to write next, into the Work of one site. ``WAIT``: nothing now."""

    WAIT = "Wait"
    #: The Work of a site of which another one says that the volumes went there: as it was told in that attempt.
    EXPECT = "Expect"
    #: The Work of the site that says so: it runs none.
    LEFT = "Left"
    #: The target's Work: it runs none, and receives this attempt.
    RECEIVE = "Receive"
    #: The home's Work: it runs, unless it is barred, and sends this attempt.
    SEND = "Send"
    #: The home's Work: it runs, and sends nothing. What went in this attempt and before it is adopted by nobody.
    KEEP = "Keep"
    #: The home's Work: it runs none.
    HALT = "Halt"
    #: The target's Work: it adopts what came, and runs.
    ADOPT = "Adopt"
    #: The Work of a site that was the home: it gives up what it still has.
    DISCARD = "Discard"
    #: The Work of a site that is neither home nor target: it goes.
    DROP = "Drop"


@dataclass(frozen=True, slots=True)
class Copy:
    """What one site was told of a workload's volumes, and what it reports.

    ``runs``: it is told to run pods. ``received``: the attempt that it receives or has received, 0: its data began there;
    ``adopted``: and runs with. ``sent``: the attempt that it sends, ``towards`` which site. ``discards``: it was told to give up
    what it has. ``barred``: the law says that it may not run there. ``ready``: the site answers. ``stopped``: it was told to run
    none, and reports that nothing is left. ``close``, ``complete``: it reports of ``received`` that little is missing, or none.
    ``settled``: it runs its share, ready. ``restored``: its data came from a backup, as its former site was lost. ``deleting``:
    its Work goes. ``kept``: nobody adopts what it sent until this attempt. ``left``: the site remembers that it was stopped for
    this attempt, ``left_for`` which site; ``gone``: and gave its volumes up, so they were adopted there. ``voided``: it went on
    after it was stopped for this attempt, so what came in it, or before, is not the last state. ``holds``: it adopted the volumes
    in this attempt and has them still, and is told something else. ``unknown``: it has reported nothing since the hub's state was
    put back, so nobody knows what it has."""

    site: str
    runs: bool = True
    received: int = 0
    adopted: bool = False
    sent: int = 0
    towards: str = ""
    discards: bool = False
    barred: bool = False
    ready: bool = True
    stopped: bool = False
    close: bool = False
    complete: bool = False
    settled: bool = False
    restored: bool = False
    deleting: bool = False
    kept: int = 0
    left: int = 0
    left_for: str = ""
    gone: bool = False
    voided: int = 0
    holds: int = 0
    unknown: bool = False

    @property
    def told(self) -> int:
        """The latest attempt that its Work speaks of."""
        return max(self.received, self.sent, self.kept)

    @property
    def ahead(self) -> bool:
        """Whether the site knows more than its Work: of a later attempt, or that it was stopped in this one."""
        runs_on = self.left == self.sent and self.runs
        return self.left > max(self.received, self.kept) and (self.left > self.sent or runs_on)

    @property
    def arriving(self) -> bool:
        return self.received > 0 and not self.adopted


@dataclass(frozen=True, slots=True)
class Action:
    step: Step
    site: str = ""
    attempt: int = 0
    #: For people.
    why: str = ""
    #: Of EXPECT: from which site, and whether they were adopted.
    source: str = ""
    adopted: bool = False


def home_of(copies: Iterable[Copy]) -> Copy | None:
    """Where the data is: who adopted it last, or where it began."""
    holders = [copy for copy in copies if not copy.arriving]
    return max(holders, key=lambda copy: (copy.received, copy.restored, not copy.discards, copy.site), default=None)


def decide(copies: Iterable[Copy], chosen: str | None, halted_seconds: float, patience_seconds: float, least: int = 1) -> Action:
    """The next step, of all copies that there are. ``chosen``: where the workload shall be; ``None``: nowhere.
    ``halted_seconds``: how long the home has been told to run none, as far as is known; after ``patience_seconds`` the old copy
    goes on, and it is tried again. ``least``: the number of a new attempt is not below it; above all that were ever used, also
    where the hub's state was put back."""
    found = {copy.site: copy for copy in copies}
    home = home_of(found.values())
    last = max((max(copy.told, copy.voided, copy.left, copy.holds) for copy in found.values()), default=0)
    fresh = max(last + 1, least)
    if (learning := _learn(found)) is not None:
        return learning
    for copy in sorted(found.values(), key=lambda each: each.site):
        if copy.arriving and (home is None or copy.site != chosen):
            why = "its data is nowhere any more" if home is None else "the workload shall be elsewhere"
            return Action(Step.WAIT) if copy.deleting else Action(Step.DROP, copy.site, why=why)
    if home is None or home.deleting:
        return Action(Step.WAIT)
    for copy in sorted(found.values(), key=lambda each: each.site):
        if copy.arriving or copy.site == home.site or copy.deleting:
            continue
        if copy.runs:  # cannot be; but nothing is worse
            return Action(Step.HALT, copy.site, why=f"its data is on {home.site}")
        # What a lost site had may be younger than the backup: that is for people to look at.
        if not copy.discards and copy.towards and home.adopted and home.settled:
            return Action(Step.DISCARD, copy.site, why=f"{home.site} runs with its data")
        if copy.site == chosen and copy.discards:
            return Action(Step.DROP, copy.site, why="what it had is older")
    if chosen is None or chosen == home.site:
        if chosen is None and home.barred and home.runs:
            return Action(Step.HALT, home.site, why="the law bars it there")
        if chosen is not None and (not home.runs or home.towards) and not home.barred:
            return Action(Step.KEEP, home.site, last)
        return Action(Step.WAIT)
    target = found.get(chosen)
    if target is None:
        if not home.runs and not home.barred:
            return Action(Step.KEEP, home.site, last)
        return Action(Step.RECEIVE, chosen, fresh)
    if not target.arriving or target.deleting:
        return Action(Step.WAIT)
    if target.received <= max(home.voided, home.received):
        return Action(Step.RECEIVE, target.site, fresh, f"the volumes are on {home.site} since a later attempt")
    if (home.sent, home.towards) != (target.received, target.site):
        return Action(Step.SEND, home.site, target.received)
    if home.runs:
        if (target.close or home.barred) and home.ready and target.ready:
            return Action(Step.HALT, home.site, why="little is missing" if target.close else "the law bars it there")
        return Action(Step.WAIT)
    if home.stopped and target.complete:
        return Action(Step.ADOPT, target.site, target.received)
    if halted_seconds >= patience_seconds and not home.barred:
        why = f"{target.site} has not had all within {patience_seconds:g} s: the old copy goes on, and it is tried again"
        return Action(Step.RECEIVE, target.site, fresh, why)
    return Action(Step.WAIT)


def _learn(found: Mapping[str, Copy]) -> Action | None:
    """What sites know and the hub does not any more; ``None``: it knows all that it needs."""
    for copy in sorted(found.values(), key=lambda each: (each.left, each.site)):
        if not copy.ahead:
            continue
        target = found.get(copy.left_for)
        if copy.deleting or (target is not None and (target.deleting or (target.unknown and target.received < copy.left))):
            return Action(Step.WAIT)
        missed = target is not None and copy.gone and target.arriving and target.received == copy.left
        if target is None or missed or max(target.received, target.left, target.holds) < copy.left:
            why = f"{copy.site} says that its volumes went to {copy.left_for}, which this hub did not know"
            return Action(Step.EXPECT, copy.left_for, copy.left, why, copy.site, copy.gone)
        return Action(Step.LEFT, copy.site, copy.left)
    for copy in sorted(found.values(), key=lambda each: each.site):
        if copy.holds > copy.received or (copy.holds and not copy.adopted):
            why = f"{copy.site} has them since move {copy.holds}, which this hub did not know"
            return Action(Step.WAIT) if copy.deleting else Action(Step.EXPECT, copy.site, copy.holds, why, copy.site, True)
    return Action(Step.WAIT) if any(copy.unknown for copy in found.values()) else None
