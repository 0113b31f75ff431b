"""How much one device may send: a bucket of tokens, and what happens to those that flood. Pure.

A device may send so many messages a second in the long run and :data:`BURST_SECONDS`' worth at once. What comes above that is
dropped and counted. One that goes on for :data:`FLOOD_SECONDS`, or sends :data:`FLOOD_FACTOR` times its burst above it, is cut
off and refused for a while, twice as long each time until it has behaved for :data:`GOOD_SECONDS`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

#: ``spec.messagesPerSecond`` where it is left out.
USUAL_RATE = 10.0
BURST_SECONDS = 5.0
#: A device that is dropped from for so long is cut off.
FLOOD_SECONDS = 5.0
#: So is one of which so many bursts were dropped before that.
FLOOD_FACTOR = 10.0
#: How long it stays out: the first time, and at most.
OUT_SECONDS = (30.0, 3600.0)
#: After so long without a drop all is forgotten.
GOOD_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Rate:
    """``tokens`` as of ``time``. ``since``: when dropping began, 0 where it has not; ``out``: until when it is refused."""

    tokens: float = -1.0
    time: float = 0.0
    dropped: int = 0
    since: float = 0.0
    last: float = 0.0
    out: float = 0.0
    cuts: int = 0


def sent(rate: Rate, now: float, per_second: float) -> tuple[Rate, bool, bool]:
    """After one message: (rate, whether it is taken, whether the device is to be cut off now)."""
    burst = max(1.0, per_second * BURST_SECONDS)
    held = burst if rate.tokens < 0 else min(burst, rate.tokens + max(0.0, now - rate.time) * per_second)
    if rate.last and now - rate.last > GOOD_SECONDS:
        rate = Rate()
    elif rate.since and now - rate.last > FLOOD_SECONDS:
        rate = replace(rate, since=0.0, dropped=0)
    if held >= 1.0:
        return replace(rate, tokens=held - 1.0, time=max(now, rate.time)), True, False
    since, dropped = rate.since or now, rate.dropped + 1
    flooded = replace(rate, tokens=held, time=max(now, rate.time), since=since, last=now, dropped=dropped)
    if now - since < FLOOD_SECONDS and dropped < FLOOD_FACTOR * burst:
        return flooded, False, False
    if now < rate.out:
        return flooded, False, False  # Cut off already: these were on their way.
    return cut(flooded, now), False, True


def cut(rate: Rate, now: float) -> Rate:
    """After it was cut off: for twice as long as the last time."""
    first, most = OUT_SECONDS
    out = now + min(most, first * 2.0 ** min(rate.cuts, 20))
    return replace(rate, last=now, out=out, cuts=rate.cuts + 1, since=0.0, dropped=0)


def flooding(rate: Rate, now: float) -> bool:
    """Whether it floods, or did a moment ago, or is out for it."""
    return now < rate.out or (rate.last > 0 and now - rate.last <= FLOOD_SECONDS)
