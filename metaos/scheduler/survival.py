"""How long work of unknown length may still run, and what an hour of it is worth now. Pure.

Lengths of earlier jobs give a survival function by Kaplan and Meier (1958): those that ended count as such, those that still
run as "longer than that". Over it, running or waiting is an optimal stopping problem: the state is (ran, waited), each step
either runs at the price of that time or spends some of the slack. Backward induction solves it exactly on its grid, so no
policy that knows no more than the survival function and the forecast expects less.

Units: hours; prices in any unit an hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

#: What outlives all that are known is expected to take so much more of what it has run.
MORE = 0.25
#: Points at which a survival function is kept.
POINTS = 1024


class Survival:
    """P(length > x). ``ended``: lengths of jobs that have ended; ``running``: how long others have run so far. Raises
    ``ValueError`` where no length is known, or one is no number."""

    def __init__(self, ended: Sequence[float] | Floats, running: Sequence[float] | Floats = ()) -> None:
        import numpy as np

        over, censored = np.asarray(ended, dtype=float), np.asarray(running, dtype=float)
        for what, found in (("lengths", over), ("running", censored)):
            bad = np.flatnonzero(~np.isfinite(found) | (found < 0))
            if len(bad):
                raise ValueError(f"{what}[{bad[0]}]: {found[bad[0]]!r} must be hours, at least 0; leave it out")
        if not len(over):
            raise ValueError("no length of an earlier job is known: state how long it runs, or let it start")
        times = np.unique(over)
        sorted_over, sorted_all = np.sort(over), np.sort(np.concatenate([over, censored]))
        ends = np.searchsorted(sorted_over, times, "right") - np.searchsorted(sorted_over, times, "left")
        at_risk = len(sorted_all) - np.searchsorted(sorted_all, times, "left")
        alive = np.cumprod(1 - ends / at_risk)
        #: The longest that is known of, and the mean of what is left to one that has run longer.
        self.longest = float(max(times[-1], sorted_all[-1], 1e-3))
        self.tail = MORE * self.longest
        self._at = np.linspace(0.0, self.longest + 8 * self.tail, POINTS)
        known = np.concatenate([[1.0], alive])[np.searchsorted(times, self._at, "right")]
        # The next one may outlive them all: half an observation of that.
        outlives = 0.5 / (len(over) + 1)
        beyond = np.exp(-np.maximum(0.0, self._at - self.longest) / self.tail)
        kept = np.where(self._at > self.longest, known.min(), known)
        self._alive = (1 - outlives) * kept * beyond + outlives * beyond
        width = self._at[1]
        self._upto = np.concatenate([[0.0], np.cumsum((self._alive[1:] + self._alive[:-1]) / 2 * width)])

    def alive(self, x: Floats) -> Floats:
        """P(length > x)."""
        import numpy as np

        found: Floats = np.interp(x, self._at, self._alive)
        return np.maximum(found, 1e-12)

    def steps(self, ran: Floats, step: float, count: int) -> tuple[Floats, Floats]:
        """For jobs that have run so long, a row each over the steps that follow: hours that are expected to run in each step,
        and the probability to go on after it; both given that it is reached."""
        import numpy as np

        # One that outlives everything is as one that has just done so: its tail is memoryless.
        edges = np.minimum(ran[:, None], self.longest + self.tail) + np.arange(count + 1)[None, :] * step
        alive, upto = self.alive(edges), np.interp(edges, self._at, self._upto)
        hours = np.clip(np.diff(upto, axis=1) / alive[:, :-1], 0.0, step)
        return hours, np.clip(alive[:, 1:] / alive[:, :-1], 0.0, 1.0)

    def left(self, ran: Floats) -> Floats:
        """Hours that are expected to be left."""
        import numpy as np

        at = np.minimum(ran, self.longest + self.tail)
        found: Floats = (self._upto[-1] - np.interp(at, self._at, self._upto)) / self.alive(at)
        return found


def upto(hours: Floats, at: Floats) -> Floats:
    """The sum of prices from the beginning of the first hour to ``at``, a row each. The last hour goes on."""
    import numpy as np

    sums = np.concatenate([np.zeros((len(hours), 1)), np.cumsum(hours, axis=1)], axis=1)
    whole = np.clip(np.floor(at).astype(int), 0, hours.shape[1] - 1)
    rows = np.arange(len(hours)).reshape(-1, *[1] * (at.ndim - 1))
    found: Floats = sums[rows, whole] + (at - whole) * hours[rows, whole]
    return found


def averages(hours: Floats, passed: float, step: float, count: int) -> Floats:
    """Mean prices of the steps from now on, of which the share ``passed`` of the first hour is over. The last hour goes on."""
    import numpy as np

    at: Floats = passed + np.arange(count + 1.0)[None, :] * step
    found: Floats = np.diff(upto(hours[None, :], at)[0]) / step
    return found


class Stopping(NamedTuple):
    """For each job: ``worth``: the price at which running now is worth as much as waiting, infinite where it may not wait a step;
    ``best`` and ``direct``: what is expected to be paid in all by the best policy, and by running from now on; ``start``: the
    step in which the best policy starts what has not run meanwhile."""

    worth: Floats
    best: Floats
    direct: Floats
    start: NDArray[np.int64]


def stop(prices: Floats, survival: Survival, ran: Floats, slack: Floats, step: float) -> Stopping:
    """Run or wait, for jobs that have run and may wait so long. ``prices``: means of the steps from now on, for longer than any
    slack; one row for all or one each. Raises ``ValueError`` where there are fewer."""
    import numpy as np

    prices = np.atleast_2d(prices)
    waits = np.floor(np.maximum(slack, 0.0) / step + 1e-9).astype(int)
    most, count = int(waits.max(initial=0)), prices.shape[1]
    if count <= most:
        raise ValueError(f"{count} prices do not reach over a slack of {most} steps: give more, or fewer steps of slack")
    hours, on = survival.steps(ran, step, count)
    # What is not done when the prices end is paid at their mean.
    waited = np.arange(most + 1)[None, :]
    cost = survival.left(ran[:, None] + (count - waited) * step) * prices.mean(axis=1, keepdims=True)
    reached = np.concatenate([np.ones((len(ran), 1)), np.cumprod(on, axis=1)], axis=1)
    direct: Floats = (hours * reached[:, :-1] * prices).sum(axis=1) + reached[:, -1] * cost[:, 0]
    # Read backwards, so that one slice is what each number of steps waited leaves to have been run.
    blank = np.zeros((len(ran), most))
    hours, on = (np.concatenate([blank, found], axis=1)[:, ::-1] for found in (hours, on))
    start = np.full(len(ran), most)
    may_wait, never = waited < waits[:, None], np.full((len(ran), 1), np.inf)
    for n in range(count - 1, -1, -1):
        later = np.where(may_wait, np.concatenate([cost[:, 1:], never], axis=1), np.inf)
        part = slice(count - 1 - n, count + most - n)
        going = on[:, part] * cost
        worth: Floats = (later[:, 0] - going[:, 0]) / np.maximum(hours[:, count - 1 - n], 1e-9)
        run = prices[:, n : n + 1] * hours[:, part] + going
        if n <= most:
            start = np.where(run[:, n] <= later[:, n], n, start)
        cost = np.minimum(run, later)
    return Stopping(worth, cost[:, 0], direct, start)
