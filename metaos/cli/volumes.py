"""Commands about volumes: to which moment they can be brought back, and bringing one back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import SystemRandom
from typing import Any

from metaos.cli.connection import with_client
from metaos.cli.output import emit, screen_width, table
from metaos.http import HttpClient
from metaos.resources import scheme
from metaos.resources.backups import MOST_NAMES, MOST_RESTORES
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, format_time, name, parse_time

#: Between two looks at a restore that is waited for.
LOOK_SECONDS = 1.0


def show(namespace: str, output: str, kubeconfig: Path | None, data: Path) -> None:
    """The volumes of a namespace that are backed up."""
    where = namespace or "default"

    async def work(client: HttpClient) -> list[Obj]:
        return (await client.list(scheme.BACKUP_SCHEDULE, where)).items

    schedules = with_client(kubeconfig, data, work)
    found: list[dict[str, Any]] = [
        {"schedule": name(schedule), "site": (schedule.get("status") or {}).get("site", ""), **row}
        for schedule in schedules
        for row in (schedule.get("status") or {}).get("volumes") or ()
    ]
    head = ["VOLUME", "SCHEDULE", "SITE", "CAN BE BROUGHT BACK TO", "BACKUPS", "BYTES", "PROBLEM"]
    rows = [
        [
            row["claim"],
            row["schedule"],
            row["site"],
            row.get("recoveryPointTime", "nothing yet"),
            str(len(row.get("backups") or ())),
            str(row.get("bytes", "")),
            row.get("message", ""),
        ]
        for row in found
    ]
    lines = table(head, rows, screen_width(), words=True) if rows else [f"no volume in {where} is backed up yet"]
    lines += [f"{name(s)}: {why}" for s in schedules if not (s.get("status") or {}).get("volumes") and (why := _problem(s))]
    text = "\n".join(lines)
    emit({"volumes": found}, output, text=text)


def _problem(schedule: Obj) -> str:
    """What its status says is wrong; empty: nothing."""
    rows = (schedule.get("status") or {}).get("conditions") or ()
    return next((str(row.get("message")) for row in rows if row["type"] == "BackedUp" and row["status"] == "False"), "")


def _check_listed(claim: str, backup: str, schedule: Obj) -> None:
    """Raises ``ApiError`` where a schedule's status knows of no such backup."""
    rows = (schedule.get("status") or {}).get("volumes") or ()
    names = [str(each) for row in rows if row.get("claim") == claim for each in row.get("backups") or ()]
    if backup in names or (len(names) >= MOST_NAMES and backup < min(names)):
        return  # of more than so many the oldest are not listed
    has = f"the newest are {', '.join(sorted(names)[-5:])}" if names else "there is none yet"
    remedy = "take one of those; --unlisted asks the site for one that is sealed with another key"
    raise ApiError(404, "NotFound", f"volume {claim} has no backup {backup!r}: {has}; {remedy}")


def bring_back(
    claim: str,
    backup: str,
    at: str,
    wait: float,
    namespace: str,
    output: str,
    kubeconfig: Path | None,
    data: Path,
    *,
    unlisted: bool = False,
) -> None:
    """Asks for it, and waits. ``unlisted``: also where no such backup is known of. Raises ``ValueError``, ``ApiError``."""
    where = namespace or "default"
    if backup and at:
        raise ValueError("--from names a backup already: leave out --at")
    if at:
        try:
            at = format_time(parse_time(at))
        except ValueError:
            raise ValueError(f"--at {at!r} is no time: write it as 2026-12-01T03:00:00Z") from None
    asked: dict[str, Any] = {"id": f"by-hand-{SystemRandom().getrandbits(48):012x}", "claim": claim}
    asked |= {"backup": backup} if backup else {"time": at} if at else {}

    async def work(client: HttpClient) -> dict[str, Any]:
        schedules = (await client.list(scheme.BACKUP_SCHEDULE, where)).items
        known = {row["claim"]: s for s in schedules for row in (s.get("status") or {}).get("volumes") or ()}
        if claim not in known:
            has = ", ".join(sorted(known)) or "none"
            what = f"no BackupSchedule in {where} backs volume {claim!r} up"
            raise ApiError(404, "NotFound", f"{what}: name one that is (they are: {has}), or another namespace with -n")
        schedule = known[claim]
        if backup and not unlisted:
            _check_listed(claim, backup, schedule)
        restores = [*(schedule["spec"].get("restores") or ()), asked][-MOST_RESTORES:]
        await client.update(schedule | {"spec": schedule["spec"] | {"restores": restores}})
        row: dict[str, Any] = {"reason": "Pending", "message": "its site has not answered yet"}
        for _ in range(max(1, round(wait / LOOK_SECONDS))):
            found = await client.get(scheme.BACKUP_SCHEDULE, name(schedule), where)
            rows = (found.get("status") or {}).get("restores") or ()
            row = next((r for r in rows if r.get("id") == asked["id"]), row)
            if row.get("backup") or not wait:
                break
            await asyncio.sleep(LOOK_SECONDS)
        return row

    row = with_client(kubeconfig, data, work)
    if row.get("backup"):
        text = (
            f"volume {claim} is as it was at {row.get('recoveryPointTime')} (backup {row['backup']}, {row.get('seconds', 0):g} s)"
        )
    else:
        text = f"asked for, and not done yet: {row.get('message')}"
    emit({"restore": {"id": asked["id"], **row}}, output, text=text)
    if wait and not row.get("backup"):
        raise ApiError(504, "Timeout", f"volume {claim} was not brought back within {wait:g} s; it is done as soon as it can be")
