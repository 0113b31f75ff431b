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
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Step(StrEnum):
    """What to write next, into the Work of one site. ``WAIT``: nothing now."""

    WAIT = "Wait"
    #: The target's Work: it runs none, and receives this attempt.
    RECEIVE = "Receive"
    #: The home's Work: it runs, unless it is barred, and sends this attempt.
    SEND = "Send"
    #: The home's Work: it runs, and sends nothing.
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
    its Work goes."""

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


def home_of(copies: Iterable[Copy]) -> Copy | None:
    """Where the data is: who adopted it last, or where it began."""
    holders = [copy for copy in copies if not copy.arriving]
    return max(holders, key=lambda copy: (copy.received, copy.restored, not copy.discards, copy.site), default=None)


def decide(copies: Iterable[Copy], chosen: str | None, halted_seconds: float, patience_seconds: float) -> Action:
    """The next step, of all copies that there are. ``chosen``: where the workload shall be; ``None``: nowhere.
    ``halted_seconds``: how long the home has been told to run none, as far as is known; after ``patience_seconds`` the old copy
    goes on, and it is tried again."""
    found = {copy.site: copy for copy in copies}
    home = home_of(found.values())
    last = max((max(copy.received, copy.sent) for copy in found.values()), default=0)
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
            return Action(Step.KEEP, home.site)
        return Action(Step.WAIT)
    target = found.get(chosen)
    if target is None:
        if not home.runs and not home.barred:
            return Action(Step.KEEP, home.site)
        return Action(Step.RECEIVE, chosen, last + 1)
    if not target.arriving or target.deleting:
        return Action(Step.WAIT)
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
        return Action(Step.RECEIVE, target.site, last + 1, why)
    return Action(Step.WAIT)
