"""Reading BackupStores and BackupSchedules, and what sites are told and report of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from metaos.resources import scheme
from metaos.resources.meta import ANNOTATION_PREFIX, Obj, ObjectRef, deleting, format_time, name, namespace, parse_time
from metaos.resources.reading import concerns, targets_of
from metaos.resources.targets import UPPER
from metaos.resources.workload import claims, pod_template

#: On a workload's manifest at its site, as JSON: its volumes are brought back from a backup before a pod starts.
RESTORE = ANNOTATION_PREFIX + "restore"
#: On pods, by their owner: commands (JSON lists of words) that are run in a container before and after its volume is copied, the
#: container (the first one where it is left out), and after how many seconds a command has failed.
BEFORE, AFTER = ANNOTATION_PREFIX + "backup-before", ANNOTATION_PREFIX + "backup-after"
CONTAINER, TIMEOUT = ANNOTATION_PREFIX + "backup-container", ANNOTATION_PREFIX + "backup-timeout-seconds"
#: Restores that are asked for by hand and kept in a schedule.
MOST_RESTORES = 20
#: Volumes of one schedule; names that a status lists for each.
MOST_VOLUMES, MOST_NAMES = 100, 100
DAY_SECONDS = 86_400.0
_TEXT = 1024


def schedule_for(schedules: Iterable[Obj], obj: Obj) -> Obj | None:
    """The BackupSchedule that names a workload; of several the first by name."""
    return min(
        (
            s
            for s in schedules
            if not deleting(s) and namespace(s) == namespace(obj) and workload_of(s) == (obj.get("kind"), name(obj))
        ),
        key=name,
        default=None,
    )


def workload_of(schedule: Obj) -> tuple[str, str]:
    """(Kind, name)."""
    found = (schedule.get("spec") or {}).get("workload") or {}
    return str(found.get("kind") or ""), str(found.get("name") or "")


def volumes_of(schedule: Obj, obj: Obj) -> list[str]:
    """The claims of a workload that are backed up: those of now, and of a StatefulSet those that it had when it was larger, if
    they were backed up then: scaled to 0 it has its volumes still."""
    begins = [f"{t['metadata']['name']}-{name(obj)}-" for t in (obj.get("spec") or {}).get("volumeClaimTemplates") or ()]
    known = [str(row.get("claim")) for row in (schedule.get("status") or {}).get("volumes") or ()]
    had = {claim for claim in known for begin in begins if claim.startswith(begin) and claim[len(begin) :].isdecimal()}
    return sorted(had.union(claims(obj)))


def store_of(schedule: Obj) -> str:
    return str(((schedule.get("spec") or {}).get("storeRef") or {}).get("name") or "")


def rpo_of(obj: Obj, intents: Iterable[Obj]) -> tuple[float, bool] | None:
    """(Seconds, whether it is hard): the strictest recovery point that intents ask of a workload; ``None``: none does."""
    found = [
        (target.value, target.hard)
        for intent in intents
        if concerns(intent, obj) and not deleting(intent)
        for target in targets_of(intent)
        if target.name == "rpo" and target.condition in UPPER
    ]
    return (min(seconds for seconds, _ in found), any(hard for _, hard in found)) if found else None


def asked_by_hand(schedule: Obj) -> list[dict[str, Any]]:
    """What is to be brought back still: of each volume the last that was asked for, unless it is done, at whichever site that
    was. An earlier one that could not be done must not undo a later one, nor a new site what was written since."""
    rows = (schedule.get("status") or {}).get("restores") or ()
    done = {(row.get("id"), row.get("claim")) for row in rows if row.get("backup")}
    last = {str(each["claim"]): each for each in (schedule.get("spec") or {}).get("restores") or ()}
    return [each for each in last.values() if (each["id"], each["claim"]) not in done][-MOST_RESTORES:]


def rendered(schedule: Obj, store: Obj, volumes: Iterable[str], rpo: float | None) -> Obj:
    """A schedule as its site gets it: with the store in it, the claims by name, and the recovery point that is asked."""
    spec = schedule.get("spec") or {}
    retention = spec.get("retention") or {}
    keep: dict[str, float] = {"count": int(retention.get("count", 7))}
    if retention.get("days") is not None:
        keep["seconds"] = float(retention["days"]) * DAY_SECONDS
    told: dict[str, Any] = {
        "storeRef": {"name": name(store)},
        "store": {k: v for k, v in (store.get("spec") or {}).items() if k != "jurisdictions"},
        "workload": spec["workload"],
        "claims": sorted(volumes)[:MOST_VOLUMES],
        "keep": keep,
        "restores": asked_by_hand(schedule),
        "suspend": bool(spec.get("suspend")),
    }
    if spec.get("schedule"):
        told["schedule"] = spec["schedule"]
    if rpo is not None:
        told["rpoSeconds"] = rpo
    metadata = {k: schedule["metadata"][k] for k in ("name", "namespace", "uid", "generation") if k in schedule["metadata"]}
    return {
        "apiVersion": scheme.BACKUP_SCHEDULE.api_version,
        "kind": scheme.BACKUP_SCHEDULE.kind,
        "metadata": metadata,
        "spec": told,
    }


def secret_of(rendered_: Obj) -> ObjectRef:
    """The Secret of the store, of a schedule as its site gets it."""
    return ObjectRef("", "Secret", namespace(rendered_), str(rendered_["spec"]["store"]["secretRef"]["name"]))


def hooks_of(pod: Obj) -> Mapping[str, str]:
    """The annotations of a pod (or of a workload's template) that are hooks."""
    found = (pod_template(pod).get("metadata") or {}).get("annotations") or {}
    return {key: str(found[key]) for key in (BEFORE, AFTER, CONTAINER, TIMEOUT) if key in found}


# -- what a site reports -------------------------------------------------------------------------------------

_NUMBERS = ("bytes", "sentBytes", "sentChunks", "seconds", "restoreSeconds", "failures")
_TEXTS = ("claim", "backup", "consistency", "id", "reason", "message")
_TIMES = ("recoveryPointTime", "lastTryTime", "lastSuccessTime", "nextTime", "time")


def reported(said: Any) -> dict[str, Any]:
    """What is taken of a site's report: of the right kind, bounded, and with times that can be."""
    if not isinstance(said, Mapping):
        return {}
    found: dict[str, Any] = {}
    for word in ("volumes", "restores"):
        rows = said.get(word)
        if isinstance(rows, list):
            found[word] = [row for each in rows[:MOST_VOLUMES] if isinstance(each, Mapping) and (row := _row(each)).get("claim")]
    return found


def _row(said: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key in _NUMBERS:
        value = said.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**60:
            row[key] = round(float(value), 3) if key.lower().endswith("seconds") else int(value)
    row |= {key: said[key][:_TEXT] for key in _TEXTS if isinstance(said.get(key), str)}
    row |= {key: moment for key in _TIMES if (moment := _time(said.get(key)))}
    if isinstance(said.get("backups"), list):
        row["backups"] = [each[:300] for each in said["backups"][-MOST_NAMES:] if isinstance(each, str)]
    return row


def _time(text: Any) -> str:
    try:
        return format_time(parse_time(text)) if isinstance(text, str) else ""
    except (ValueError, OverflowError):
        return ""


def points(schedule: Obj, volumes: Iterable[str]) -> dict[str, float | None]:
    """Claim → recovery point of its newest backup (seconds since the epoch), as the sites said; ``None``: it has none."""
    rows = {row.get("claim"): row for row in (schedule.get("status") or {}).get("volumes") or ()}
    return {
        claim: parse_time(row["recoveryPointTime"]) if (row := rows.get(claim) or {}).get("recoveryPointTime") else None
        for claim in volumes
    }
