"""Withdrawn certificates. Pure.

A name is withdrawn at a time: certificates of that name that were issued until then are worth nothing, on connections that
are open too; ones issued later count. So a name can be used again, and what was stolen stays worthless. The record is
a Secret in ``nemo-system``; an entry is kept for as long as a certificate from before it could live.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from metaos.resources.meta import format_time, parse_time
from metaos.security.authz import CLUSTER_USER_PREFIX
from metaos.security.identity import BACKDATE_SECONDS, SERVER_LIFETIME_SECONDS

#: The record's name.
RECORD = "revoked-certificates"
#: By how much the validity of the first layout's certificates begins before they were issued.
FORMER_BACKDATE_SECONDS = 3600.0
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.")


def entry_key(user: str) -> str:
    """A user's name as a Secret's key: what may not stand there is written as ``_`` and two hexadecimal digits a byte."""
    return "".join(c if c in _PLAIN else "".join(f"_{byte:02x}" for byte in c.encode()) for c in user)


def entry(user: str, now: float) -> dict[str, str]:
    """What is added to the record to withdraw a user's certificates."""
    return {entry_key(user): format_time(now)}


def taken_over(record: Mapping[str, str], sites: Mapping[str, float]) -> dict[str, str]:
    """What is to be added to a record that the first layout began: it kept the sites that were removed by their names, not by
    their users. ``sites`` are those that are members now, with the time since when: of a name that was a member when it was
    withdrawn, and still is one, the entry is about a user called so. The old entries stay, as they may be about such a user
    and hurt nobody else."""
    found = {}
    for key, text in record.items():
        user, withdrawn = CLUSTER_USER_PREFIX + key, withdrawn_time(record, key)
        if isfinite(withdrawn):
            # Of a certificate of that release it looks as if it had been issued later.
            withdrawn += BACKDATE_SECONDS - FORMER_BACKDATE_SECONDS
            text = format_time(withdrawn)
        was_removed = "_" not in key and (key not in sites or sites[key] > withdrawn)
        if was_removed and withdrawn > withdrawn_time(record, user):
            found[entry_key(user)] = text
    return found


def issued_time(not_before: float) -> float:
    """When a certificate was issued: its validity begins a fixed time earlier."""
    return not_before + BACKDATE_SECONDS


def withdrawn_time(record: Mapping[str, str], user: str) -> float:
    """Until when a user's certificates are withdrawn; minus infinity where they are not. A damaged entry withdraws all."""
    text = record.get(entry_key(user))
    if text is None:
        return float("-inf")
    try:
        return parse_time(text)
    except ValueError:
        return float("inf")


def is_withdrawn(record: Mapping[str, str], user: str, not_before: float) -> bool:
    """Whether a certificate of this user and age is worth nothing. Times in certificates are whole seconds."""
    return issued_time(not_before) <= withdrawn_time(record, user)


def issue_time(record: Mapping[str, str], user: str, now: float) -> float:
    """When a new certificate counts as issued: now, or just after the name was withdrawn."""
    withdrawn = withdrawn_time(record, user)
    return now if now >= withdrawn + 1 or withdrawn == float("inf") else float(int(withdrawn) + 1)


def outdated(record: Mapping[str, str], now: float) -> list[str]:
    """Keys of entries that no living certificate can be older than."""
    found = []
    for key, text in record.items():
        try:
            if parse_time(text) + SERVER_LIFETIME_SECONDS + BACKDATE_SECONDS < now:
                found.append(key)
        except ValueError:
            continue
    return found
