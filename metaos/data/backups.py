"""Backups of volumes: when one is due, which are kept, from which is restored, and whether a lost volume may be. Pure.

Times in seconds since the epoch. A backup's *recovery point* is the moment whose state it holds: its begin. So what a lost site
loses at worst is the time between the begins of two backups and how long the second takes until it is whole in the store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from metaos.resources.cron import due_times

#: Between two tries that failed: so long at first, twice as long each time, and never longer than the last.
RETRY_SECONDS, RETRY_MOST_SECONDS = 10.0, 600.0
#: Backups begin no more often than this, whatever is asked.
LEAST_SECONDS = 10.0
#: Of the time that a recovery point allows this share is planned with: a backup may take longer than the last one did.
SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Past:
    """What a site knows of the backups of one volume. ``begun``: when the last good one did, ``ended``: when the last try did, 0:
    there was none; ``failures``: tries in a row that failed; ``seconds``: how long the last good one took."""

    begun: float = 0.0
    ended: float = 0.0
    failures: int = 0
    seconds: float = 0.0


def every(rpo: float, seconds: float) -> float:
    """How often a backup that takes so long has to begin, for a lost site to lose at most ``rpo`` seconds."""
    return max(rpo * SHARE - seconds, seconds, LEAST_SECONDS)


def best(seconds: float) -> float:
    """The shortest recovery point that can be kept where a backup takes so long: one after the other without a pause."""
    return (every(0.0, seconds) + seconds) / SHARE


def due(schedule: str, rpo: float | None, past: Past, since: float) -> float:
    """When the next backup is to begin. ``schedule``: cron, in UTC; empty: as ``rpo`` asks. ``since``: when the schedule was
    seen first. ``inf`` where neither says anything. Raises ``ValueError`` for a schedule that makes no sense."""
    if past.failures and (schedule or rpo is not None):
        # Whenever the next regular one is, as what this one was for was missed.
        return past.ended + min(RETRY_SECONDS * 2.0 ** min(past.failures - 1, 16), RETRY_MOST_SECONDS)
    if schedule:
        return next(due_times({"schedule": schedule}, past.begun or since)).timestamp()
    if rpo is not None:
        return past.begun + every(rpo, past.seconds) if past.begun else since
    return math.inf


def kept(backups: Mapping[str, float], count: int | None, seconds: float | None, now: float) -> Set[str]:
    """Of backups (name → recovery point) those that stay: the newest ``count``, of them those that are younger than ``seconds``,
    and the newest in any case."""
    newest = sorted(backups, key=lambda name: (backups[name], name), reverse=True)
    within = newest if count is None else newest[: max(1, count)]
    return {name for name in within if name == newest[0] or seconds is None or now - backups[name] <= seconds}


def chosen(backups: Mapping[str, float], name: str = "", at: float | None = None) -> str:
    """Which backup is restored: the one of this name, or the newest with a recovery point not after ``at``. Raises
    ``ValueError``."""
    if name:
        if name not in backups:
            raise ValueError(f"there is no backup {name!r}: there are {_some(sorted(backups))}")
        return name
    found = [each for each, time in backups.items() if at is None or time <= at]
    if not found:
        raise ValueError("there is no backup yet" if at is None or not backups else "every backup is younger than that")
    return max(found, key=lambda each: (backups[each], each))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[-5:]) or "none"


# -- after the loss of a site ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a workload whose site is lost may go on elsewhere from a backup. ``lost``: seconds of what it wrote, at most;
    ``None``: not known."""

    restores: bool
    reason: str
    message: str
    lost: float | None = None


def recovery(points: Mapping[str, float | None], rpo: float | None, hard: bool, lost_since: float) -> Verdict:
    """``points``: claim → recovery point of its newest backup, of all that the workload uses. ``rpo``: what its intents ask;
    ``None``: they say nothing of it, so nobody has agreed to lose anything. ``hard``: what is older is not restored by itself.
    ``lost_since``: until when the old site may have written."""
    if rpo is None:
        return Verdict(False, "NoRpo", "no intent says what may be lost (target rpo), so it waits for its site")
    lacking = sorted(claim for claim, point in points.items() if point is None)
    if lacking or not points:
        return Verdict(
            False, "NoBackup", f"there is no backup yet of {', '.join(lacking) or 'any volume'}, so it waits for its site"
        )
    lost = max(0.0, lost_since - min(point for point in points.values() if point is not None))
    if hard and lost > rpo:
        text = f"its newest backup is {lost:.0f} s older than what its site may have written, and its rpo of {rpo:.0f} s is hard"
        return Verdict(False, "RpoExceeded", f"{text}: restore it by hand, or wait for its site", lost)
    return Verdict(True, "Restoring", f"its newest backup is at most {lost:.0f} s older than what its site wrote", lost)


def pace(before: float, bytes_: float, seconds: float) -> float:
    """Bytes a second between a site and a store: the best that was seen, as what is small takes its time for other reasons."""
    return max(before, bytes_ / seconds) if bytes_ > 0 and seconds > 0 else before


def restore_seconds(bytes_: float, seen: float) -> float | None:
    """How long bringing back so many bytes takes at such a pace; ``None``: nothing was seen yet."""
    return bytes_ / seen if seen > 0 else None
