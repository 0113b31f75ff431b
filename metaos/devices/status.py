"""The status of a Device as what is known of it says. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaos.devices import twin as twins
from metaos.devices.twin import Twin
from metaos.resources.meta import Obj, format_time, generation, parse_time, with_condition

#: A device's application, as it says.
STATES = ("Running", "Trial", "RolledBack", "Refused", "None")
#: Of these the application that is wanted is not there to be waited for.
FAILED = ("RolledBack", "Refused")


@dataclass(frozen=True, slots=True)
class Known:
    """``flooding``: why it is held back, or empty; ``dropped``: messages since the hub began that were too many or made no sense.
    ``wanted``: SHA-256 of the application that it shall run; ``problem``: why there is none, though one is named."""

    twin: Twin
    commands: Sequence[Mapping[str, Any]] = ()
    last_command: Mapping[str, Any] | None = None
    flooding: str = ""
    wanted: str = ""
    problem: str = ""


def of_status(status: Mapping[str, Any]) -> Twin:
    """The twin that a stored status tells of."""
    return Twin(
        online=bool(status.get("online")),
        seen=parse_time(status["lastSeenTime"]) if status.get("lastSeenTime") else 0.0,
        epoch=int(status.get("epoch") or 0),
        sequence=int(status.get("sequence") or 0),
        reported=status.get("reported") or {},
        reported_version=int(status.get("reportedVersion") or 0),
        firmware=str(status.get("firmware") or ""),
        app={k: v for k, v in (status.get("app") or {}).items() if k != "wanted"},
    )


def status(device: Obj, known: Known, now: float) -> dict[str, Any]:
    """What its ``status`` should be. Times of conditions that did not change stay."""
    twin, spec = known.twin, device.get("spec") or {}
    found: dict[str, Any] = {"online": twin.online}
    if twin.seen:
        found["lastSeenTime"] = format_time(twin.seen)
    if twin.epoch:
        found |= {"epoch": twin.epoch, "sequence": twin.sequence}
        found |= {"reported": dict(twin.reported), "reportedVersion": twin.reported_version}
    if twin.firmware:
        found["firmware"] = twin.firmware
    app = dict(twin.app) | ({"wanted": known.wanted} if known.wanted else {})
    if app:
        found["app"] = app
    if known.commands:
        found["commands"] = [dict(each) for each in known.commands]
    if known.last_command:
        found["lastCommand"] = dict(known.last_command)
    held = (device.get("status") or {}).get("conditions") or []
    for type_, verdict, reason, message in _conditions(spec, generation(device), known, bool(held)):
        held = with_condition(held, type_, verdict, reason, message, now)
    if held:
        found["conditions"] = list(held)
    return found


def _conditions(spec: Mapping[str, Any], version: int, known: Known, said: bool) -> list[tuple[str, str, str, str]]:
    """(type, status, reason, message)."""
    twin = known.twin
    found = []
    if not twin.epoch:
        found.append(("InSync", "Unknown", "NeverSeen", "it has not reported yet"))
    elif twins.in_sync(twin, spec.get("desired") or {}, version):
        found.append(("InSync", "True", "Reported", f"it has applied version {version}"))
    else:
        left = ", ".join(sorted(twins.delta(twin.reported, spec.get("desired") or {}))[:8])
        why = f"it reports version {twin.reported_version} of {version}" + (f"; to do: {left}" if left else "")
        found.append(("InSync", "False", "Pending" if twin.online else "Offline", why))
    if known.flooding:
        found.append(("Flooding", "True", "TooManyMessages", known.flooding))
    elif said:
        found.append(("Flooding", "False", "WithinRate", "it keeps to its rate"))
    if spec.get("quarantined"):
        why = str(spec.get("quarantineReason") or "spec.quarantined is true")
        found.append(("Quarantined", "True", "Quarantined", f"its connection is cut and its credentials are refused: {why}"))
    elif said:
        found.append(("Quarantined", "False", "Admitted", "its credentials count"))
    if spec.get("app"):
        found.append(("UpToDate", *up_to_date(known)))
    return found


def up_to_date(known: Known) -> tuple[str, str, str]:
    """(status, reason, message) about its application."""
    app = known.twin.app
    if known.problem:
        return "False", "NoApplication", known.problem
    state, sha = str(app.get("state") or "None"), str(app.get("sha256") or "")
    if known.wanted and sha == known.wanted and state == "Running":
        return "True", "Running", f"it runs {known.wanted[:12]}"
    said = f": {app['message']}" if app.get("message") else ""
    if state in FAILED and str(app.get("tried") or "") == known.wanted:
        return "False", state, f"it does not run {known.wanted[:12]}{said}"
    return "False", "Pending", f"it runs {sha[:12] or 'none'} ({state}), and {known.wanted[:12]} is wanted{said}"
