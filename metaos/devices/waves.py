"""A roll-out to many devices, in waves: which of them are given what is wanted now. Pure.

Of those that are online never more are changing at a time than may be unavailable: each reports that it is as wanted before the
next one has its turn, by name. Those that are away (a device that sleeps is no fault) are given it when all that are there have
proven it. Where as many as may be unavailable went back to what they had, or refused it, nothing more is given until what is
wanted changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """One device of a set. ``given``: its spec is as wanted; ``ready``: it reports so; ``failed``: it went back, or refused."""

    name: str
    online: bool
    given: bool
    ready: bool
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Wave:
    """``give``: who is given it now, by name. ``halted``: why no more are, where some are left."""

    give: tuple[str, ...]
    unavailable: int
    updated: int
    ready: int
    failed: int
    halted: str = ""


def bound(wanted: int | str, devices: int) -> int:
    """``maxUnavailable`` as a number: at least one. Raises ``ValueError``."""
    if isinstance(wanted, str):
        text = wanted.strip()
        if not text.endswith("%") or not text[:-1].isdigit() or not 0 < int(text[:-1]) <= 100:
            raise ValueError(f"{wanted!r} must be a number of devices above 0, or a share from 1% to 100%")
        return max(1, math.floor(devices * int(text[:-1]) / 100))
    if isinstance(wanted, bool) or wanted < 1:
        raise ValueError(f"{wanted!r} must be a number of devices above 0, or a share from 1% to 100%")
    return wanted


def chosen(named: Iterable[str], held: Iterable[str], count: int | None) -> tuple[str, ...]:
    """The devices of a set: of those ``named`` by its selector, those that it ``held`` before first, then by name."""
    before, found = set(held), sorted(set(named))
    if count is None:
        return tuple(found)
    return tuple(sorted(sorted(found, key=lambda name: (name not in before, name))[:count]))


def wave(members: Iterable[Member], most: int) -> Wave:
    """What to do now. ``most``: how many may be changing at a time."""
    found = sorted(members, key=lambda m: m.name)
    changing = [m for m in found if m.given and not m.ready]
    failed = sum(m.failed for m in changing)
    ready = sum(m.given and m.ready for m in found)
    counts = sum(not m.online for m in found) + sum(m.online for m in changing), sum(m.given for m in found), ready, failed
    left = [m for m in found if not m.given]
    if left and failed >= most:
        why = f"{failed} devices went back to what they had or refused it: no more get it until what is wanted changes"
        return Wave((), *counts, halted=why)
    there = [m for m in left if m.online]
    if there:
        return Wave(tuple(m.name for m in there[: max(0, most - len(changing))]), *counts)
    # Those that are away are out of reach as it is: they wait only for those that are there to prove it.
    return Wave(() if any(m.online for m in changing) else tuple(m.name for m in left), *counts)
