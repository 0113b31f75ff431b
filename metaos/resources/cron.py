"""When a CronJob's schedule is due. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

#: On a CronJob as its site gets it: runs that start later than they are due, as ``DUE=START`` in whole seconds since the epoch.
STARTS = "meta-os.eu/starts"
_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


def due_times(spec: Mapping[str, Any], after: float, *, back: bool = False) -> Iterator[datetime]:
    """From a time on, or back from it. Raises ``ValueError`` where schedule or time zone cannot be used."""
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    from cronsim import CronSim, CronSimError

    schedule, zone = str(spec.get("schedule")), str(spec.get("timeZone") or "")
    try:
        where = ZoneInfo(zone) if zone else UTC
    except (ZoneInfoNotFoundError, OSError) as error:
        raise ValueError(f"time zone {zone!r} is not known at this site: install its tzdata, or use another zone") from error
    try:
        return CronSim(_NAMED.get(schedule, schedule), datetime.fromtimestamp(after, where), reverse=back)
    except CronSimError as error:
        raise ValueError(f"schedule {schedule!r} cannot be used: {error}") from error


def starts_text(starts: Mapping[float, float]) -> str:
    """The annotation."""
    return ",".join(f"{int(due)}={int(start)}" for due, start in sorted(starts.items()))


def start_of(cron: Mapping[str, Any], due: float) -> float:
    """When the run that is due then starts. What the annotation says of it makes no sense: in time."""
    said = str(((cron.get("metadata") or {}).get("annotations") or {}).get(STARTS) or "")
    for part in said.split(",")[:16]:
        left, _, right = part.partition("=")
        if left.isdecimal() and right.isdecimal() and len(right) < 12 and int(left) == int(due):
            return max(due, float(right))
    return due
