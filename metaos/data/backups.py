"""Backups of volumes: when one is due, which are kept, from which is restored, and whether a lost volume may be. Pure.

Times in seconds since the epoch. A backup's *recovery point* is the moment whose state it holds: its begin. So what a lost site
loses at worst is the time between the begins of two backups and how long the second takes until it is whole in the store.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from metaos.resources.backups import workload_of
from metaos.resources.cron import due_times
from metaos.resources.meta import Obj, namespace
from metaos.resources.scheme import BACKUP_SCHEDULE

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


# -- the store ----------------------------------------------------------------------------------------------

#: Where clouds tell machines their own credentials, beside what is link-local.
_METADATA = frozenset(("metadata.google.internal", "fd00:ec2::254", "100.100.100.200"))


def never_a_store(host: str) -> str:
    """Why a site does not connect to this host (a name or an address) for a store; empty: it may be one. Whoever may write a
    BackupStore has its sites ask there, and what answers is shown in part: what a machine tells only itself stays out of it.
    Addresses of its own network do not: stores stand there."""
    import ipaddress  # a site does without

    host = host.lower().rstrip(".").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{host} tells machines their own credentials, and is no store" if host in _METADATA else ""
    address = getattr(address, "ipv4_mapped", None) or address
    if str(address) in _METADATA or address.is_link_local:
        return f"{host} is an address at which machines are told their own credentials, and is no store"
    return f"{host} is no address of one machine" if address.is_multicast or address.is_unspecified else ""


#: Before the kind and name of whose key it is, in the Secret of a store as a site gets it.
KEY = "encryptionKey"


def key_of(kind: str, called: str) -> str:
    """Under which name a site finds the key of one workload's backups."""
    return f"{KEY}.{kind}.{called}"


def derived(key: str, where: str, kind: str, called: str) -> str:
    """The key (32 bytes in base64) of one workload's backups, from that of the store, by HKDF with SHA-256 (RFC 5869): a site
    that has the one can neither find out the other nor those of other workloads. What is no key is given back as it is: the site
    says so."""
    try:
        secret = base64.b64decode(key.strip(), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != 32:
        return key
    extracted = hmac.digest(b"nemo volume backups", secret, "sha256")
    about = "\0".join(("workload", where, kind, called)).encode()
    return base64.b64encode(hmac.digest(extracted, about + b"\x01", "sha256")).decode()


def opened_for(secret: Obj, dependents: Sequence[Obj]) -> Obj:
    """The Secret of a store as a site gets it: in place of the key of the store, from which those of all are derived, the keys of
    those workloads alone whose schedules are there. Whole, where anything else at the site refers to it: its owner's choice."""
    schedules = [each for each in dependents if each.get("kind") == BACKUP_SCHEDULE.kind]
    data = secret.get("data") or {}
    if len(schedules) < len(dependents) or not schedules or KEY not in data:
        return secret
    try:
        key = base64.b64decode(data[KEY]).decode(errors="replace")
    except ValueError:
        return secret
    keys = {}
    for each in schedules:
        kind, called = workload_of(each)
        keys[key_of(kind, called)] = base64.b64encode(derived(key, namespace(each), kind, called).encode()).decode()
    # A workload's own key in the Secret goes before: it opens what was sealed with another one.
    kept = {k: v for k, v in data.items() if k in keys or not (k == KEY or k.startswith(f"{KEY}."))}
    return secret | {"data": keys | kept}


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
