"""The smallest story that still fails: faults, then workloads, are left out as long as something is still wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import yaml

from metaos.twin.chaos import drawn
from metaos.twin.play import play
from metaos.twin.report import again, summary
from metaos.twin.story import Hope, Scenario

MOST_TRIES = 80


def explained(story: Scenario, report: dict[str, Any]) -> str:
    """Of a seed of it that did not hold: what was wrong, the line that shows it again, and the smallest story that fails too."""
    smallest, tries = minimise(story.with_seed(report["seed"]), lambda text: None)
    told = f"{summary(report)}\nto see it again: {again(report)}"
    return f"{told}\nthe smallest that fails, after {tries} tries:\n{text_of(smallest)}"


def minimise(
    scenario: Scenario, tell: Callable[[str], None], fails: Callable[[Scenario], bool] | None = None
) -> tuple[Scenario, int]:
    """The scenario with its drawn faults written out and what does not matter left out, and how many runs it took."""
    fails = fails or (lambda candidate: not play(candidate)["passed"])
    present = replace(scenario, faults=(*scenario.faults, *drawn(scenario)), chaos=0)
    tries = 0

    def attempt(candidate: Scenario) -> bool:
        nonlocal tries
        tries += 1
        return bool(fails(candidate))

    for part in ("faults", "workloads", "hopes"):
        share = max(1, len(getattr(present, part)) // 2)
        while share and tries < MOST_TRIES:
            position = 0
            while position < len(getattr(present, part)) and tries < MOST_TRIES:
                found = getattr(present, part)
                left = (*found[:position], *found[position + share :])
                candidate = _without(present, part, left)
                if candidate is not None and attempt(candidate):
                    present = candidate
                    tell(f"it still fails with {len(left)} {part}")
                else:
                    position += share
            share //= 2
    return present, tries


def _without(scenario: Scenario, part: str, left: tuple[Any, ...]) -> Scenario | None:
    """``None`` where something that stays speaks of what goes."""
    if part != "workloads":
        changes: dict[str, Any] = {part: left}
        return replace(scenario, **changes)
    names = {w.name for w in left}
    hopes = [_about(hope, names) for hope in scenario.hopes]
    scaled = [f for f in scenario.faults if f.what not in ("scale", "residency") or set(f.value) <= names]
    return replace(scenario, workloads=left, hopes=tuple(h for h in hopes if h), faults=tuple(scaled))


def _about(hope: Hope, names: set[str]) -> Hope | None:
    if hope.what == "lost":
        return hope
    if isinstance(hope.value, dict):
        value: Any = {w: v for w, v in hope.value.items() if w in names}
    else:
        value = [w for w in hope.value if w in names]
    return replace(hope, value=value) if value else None


def text_of(scenario: Scenario) -> str:
    """As a scenario file: the original text, with the faults and workloads that are left."""
    raw = {k: v for k, v in scenario.raw.items() if k not in ("chaos", "faults", "workloads", "expect", "seed")}
    left = {w.name for w in scenario.workloads}
    workloads = []
    for entry in scenario.raw.get("workloads") or ():
        count, word = int(entry.get("count", 1)), str(entry["name"])
        if count == 1 and "{n}" not in word:
            workloads += [entry] if word in left else []
        elif any(w.startswith(word.split("{n}")[0]) for w in left):
            workloads.append(entry)
    raw["seed"] = scenario.seed
    raw["workloads"] = workloads
    raw["faults"] = [fault.text() for fault in scenario.faults]
    raw["expect"] = [
        {"at": f"{h.at:g}s", **({"within": f"{h.within:g}s"} if h.within else {}), h.what: h.value} for h in scenario.hopes
    ]
    return yaml.safe_dump(raw, sort_keys=False, width=120)
