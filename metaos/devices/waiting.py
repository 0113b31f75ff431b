"""Commands that wait for a device which is away: how many, for how long, and what happens at the bounds. Pure.

A command that waits is a dict of ``id``, ``action``, ``arguments`` and ``expirationTime``, as in ``status.commands``. They are
sent in their order when the device is back, each until it is answered: a device may be sent one twice, and does it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from metaos.resources.meta import format_time, parse_time

#: Commands that wait for one device.
MOST_WAITING = 16
#: How long one may wait at most, in seconds.
MOST_SECONDS = 7 * 86400.0
#: Of one command: its arguments as JSON.
MOST_ARGUMENTS = 4096
#: How long its caller waits for an answer: by default, and at most.
ANSWER_SECONDS, MOST_ANSWER_SECONDS = 10.0, 50.0


class Full(ValueError):
    """As many wait as may."""


def added(waiting: Iterable[Mapping[str, Any]], command: Mapping[str, Any], now: float, lasts: float) -> list[dict[str, Any]]:
    """With one more at the end, and without those whose time is up. Raises :class:`Full`."""
    left, _ = living(waiting, now)
    if len(left) >= MOST_WAITING:
        soonest = min(each["expirationTime"] for each in left)
        raise Full(
            f"{MOST_WAITING} commands wait for this device, the most there may be; the first of them expires at {soonest}: "
            "try again then, or when the device is back"
        )
    return [*left, {**command, "expirationTime": format_time(now + lasts)}]


def living(waiting: Iterable[Mapping[str, Any]], now: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(those that may still be sent, those whose time is up), each in their order."""
    left: list[dict[str, Any]] = []
    expired: list[dict[str, Any]] = []
    for each in waiting:
        (left if parse_time(each["expirationTime"]) > now else expired).append(dict(each))
    return left, expired


def answered(waiting: Iterable[Mapping[str, Any]], id_: str) -> list[dict[str, Any]]:
    """Without the one that was answered."""
    return [dict(each) for each in waiting if each["id"] != id_]
