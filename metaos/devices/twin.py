"""A device's twin: what it reported, whether it is there, and what it has to be told. Pure.

What is wanted (``spec.desired``) is a merge patch (RFC 7396) on what the device reports; its version is the Device's
generation. :func:`delta` is the smallest patch that is left to do. A device that comes back gets all that is wanted once; while
it is there it gets deltas, each again until it reports their version.

The hub gives each session of a device a number, its *epoch*, larger than any before; the device counts its reports within it. A
report whose (epoch, sequence) is not above the last one's says nothing new: late and doubled ones never move a twin backwards,
and no device needs a clock or storage for that. A report is the whole state, so none needs the one before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from metaos.resources.mergepatch import merged

#: Sentinel: there is no value.
_ABSENT: Any = object()
#: A device that says it is heard every so many seconds is gone when it was not for this many times that, and a little.
SILENCE_FACTOR, SILENCE_SECONDS = 2.5, 5.0
#: The heartbeats that a device may state, in seconds.
HEARTBEAT_SECONDS = (1.0, 3600.0)
USUAL_HEARTBEAT = 60.0
#: How far the clock of another hub, by which it gave an epoch, may have been ahead, in seconds.
AHEAD_SECONDS = 3600.0
#: Until what is not reported is told again: the first time, and at most.
AGAIN_SECONDS = (5.0, 300.0)


def delta(reported: Mapping[str, Any], desired: Mapping[str, Any]) -> dict[str, Any]:
    """The smallest patch with ``merged(reported, patch) == merged(reported, desired)``; empty where nothing is left to do."""
    left: dict[str, Any] = {}
    for key, wanted in desired.items():
        held = reported.get(key, _ABSENT)
        if wanted is None:
            if held is not _ABSENT:
                left[key] = None
        elif isinstance(wanted, Mapping) and isinstance(held, Mapping):
            below = delta(held, wanted)
            if below:
                left[key] = below
        elif held is _ABSENT or not _same(held, merged(None, wanted)):
            left[key] = wanted
    return left


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: ``true`` is not 1."""
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


@dataclass(frozen=True, slots=True)
class Twin:
    """What is known of a device. Times in seconds; ``epoch`` and ``sequence``: see the module."""

    online: bool = False
    seen: float = 0.0
    epoch: int = 0
    sequence: int = 0
    #: What it called its present connection; empty where no birth was heard since the hub began.
    session: str = ""
    heartbeat: float = USUAL_HEARTBEAT
    reported: Mapping[str, Any] = field(default_factory=dict)
    reported_version: int = 0
    firmware: str = ""
    app: Mapping[str, Any] = field(default_factory=dict)


def value(data: bytes) -> Any:
    """What is said as JSON. Raises ``ValueError`` for what is none, or could not be kept and told again: half characters, what is
    nested too deep, numbers that JSON has not."""
    found = orjson.loads(data)
    try:
        orjson.dumps(found)
    except orjson.JSONEncodeError as error:
        raise ValueError(f"it cannot be kept: {error}") from None
    return found


class Malformed(ValueError):
    """What a device said is not what this word means. Says the field, the value and what it must be."""


def _text(message: Mapping[str, Any], key: str, most: int = 64) -> str:
    value = message.get(key, "")
    if not isinstance(value, str) or len(value) > most:
        raise Malformed(f"{key}: must be a text of at most {most} characters, not {str(value)[:80]!r}")
    return value


def _count(message: Mapping[str, Any], key: str) -> int:
    value = message.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise Malformed(f"{key}: must be a whole number from 0 to 2^53, not {str(value)[:80]!r}")
    return value


def _object(message: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = message.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Malformed(f"{key}: must be an object, not {str(value)[:80]!r}")
    return value


def born(twin: Twin, message: Mapping[str, Any], now: float) -> Twin:
    """It has connected. The same birth again changes nothing but when it was seen."""
    session = _text(message, "session")
    if not session:
        raise Malformed("session: must be given: any text that names this connection")
    beat = message.get("heartbeat", USUAL_HEARTBEAT)
    low, high = HEARTBEAT_SECONDS
    if not isinstance(beat, int | float) or isinstance(beat, bool) or not low <= beat <= high:
        raise Malformed(f"heartbeat: must be seconds from {low:g} to {high:g}, not {str(beat)[:80]!r}")
    firmware = _text(message, "firmware") or twin.firmware
    if session == twin.session:
        return replace(twin, online=True, seen=max(now, twin.seen), heartbeat=float(beat), firmware=firmware)
    # By the clock, so that a hub which lost the last numbers in a crash gives none of them again.
    epoch = max(twin.epoch + 1, int(now * 1000))
    return replace(
        twin,
        online=True,
        seen=max(now, twin.seen),
        epoch=epoch,
        sequence=0,
        session=session,
        heartbeat=float(beat),
        firmware=firmware,
    )


def reported(twin: Twin, message: Mapping[str, Any], now: float) -> Twin:
    """It says what it is. What says nothing new leaves the report as it was."""
    place = _count(message, "epoch"), _count(message, "sequence")
    state, version, app = _object(message, "reported"), _count(message, "version"), _object(message, "app")
    firmware = _text(message, "firmware")
    latest = max(twin.epoch, int((now + AHEAD_SECONDS) * 1000))
    if place[0] > latest:
        # It would outdo all that the hub will ever give, and with it every report to come.
        raise Malformed(f"epoch: must be one that the hub gave, at most {latest}, not {place[0]}")
    heard_ = heard(twin, now)
    if place <= (twin.epoch, twin.sequence):
        return heard_
    return replace(
        heard_,
        epoch=place[0],
        sequence=place[1],
        reported=dict(state),
        reported_version=version,
        firmware=firmware or twin.firmware,
        app=dict(app),
    )


def heard(twin: Twin, now: float) -> Twin:
    """It said something, so it is there."""
    return replace(twin, online=True, seen=max(now, twin.seen))


def gone(twin: Twin, message: Mapping[str, Any]) -> Twin:
    """Its last will. That of an earlier connection says nothing about this one."""
    return away(twin) if _text(message, "session") == twin.session else twin


def away(twin: Twin) -> Twin:
    """It is not there."""
    return replace(twin, online=False)


def overdue(twin: Twin, now: float) -> bool:
    """Whether it counts as gone, as nothing was heard for too long."""
    return twin.online and now - twin.seen > SILENCE_FACTOR * twin.heartbeat + SILENCE_SECONDS


def in_sync(twin: Twin, desired: Mapping[str, Any], version: int) -> bool:
    """Whether it has applied this version and is as wanted."""
    return twin.reported_version >= version and not delta(twin.reported, desired)


def pending(tries: int) -> float:
    """Seconds until a device that did not report is told again, after so many times."""
    first, most = AGAIN_SECONDS
    return float(min(most, first * 2.0 ** min(tries, 20)))
