"""What a story expects: looked at all the time, or at its moment until it comes about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from metaos.resources import scheme
from metaos.resources.meta import is_true
from metaos.twin.story import ALWAYS, Hope, Scenario, WorkloadText
from metaos.twin.world import World

#: Does something at a second of the story.
Later = Callable[[float, Callable[[], Awaitable[None]]], None]


class Hopes:
    """``answers``: of each whether it held, in the order in which that was known. ``now``: seconds of the story."""

    def __init__(self, world: World, scenario: Scenario, now: Callable[[], float], later: Later) -> None:
        self._world, self._scenario, self._now, self._later = world, scenario, now, later
        self.answers: list[dict[str, Any]] = []

    async def expect(self, hope: Hope) -> None:
        """From now on."""
        if hope.what in ALWAYS:
            answer: dict[str, Any] = {"expected": str(hope), "held": True, "found": ""}
            self.answers.append(answer)

            def look(site: str) -> None:
                if answer["held"] and (wrong := self._breach(hope)):
                    answer.update(held=False, found=f"{wrong} at {self._now():g} s")

            self._world.on_site.append(look)
            look("")
            return
        end = hope.at + hope.within

        async def again() -> None:
            held, found = self._holds(hope)
            now = self._now()
            if held or now >= end:
                self.answers.append({"expected": str(hope), "held": held, "found": found, "seconds": round(now - hope.at, 3)})
            else:
                self._later(now + 1.0, again)

        await again()

    def _breach(self, hope: Hope) -> str:
        copies = self._world.copies()
        for workload, value in hope.value.items():
            mine = [c for c in copies if c.owner.name == workload]
            if hope.what == "neverOn":
                there = sorted({c.site for c in mine} & set(value))
                if there:
                    return f"{workload} ran on {', '.join(there)}"
            elif hope.what == "copiesAtMost" and len(mine) > value:
                return f"{len(mine)} copies of {workload} existed"
            elif hope.what == "readyAtLeast" and sum(c.ready for c in mine) < value:
                return f"only {sum(c.ready for c in mine)} copies of {workload} served"
        return ""

    def _holds(self, hope: Hope) -> tuple[bool, str]:
        world, what, value = self._world, hope.what, hope.value
        if not world.hub.up:
            return False, "the hub is not there"
        copies = world.copies()
        found: Any
        if what == "ready":
            reached = [c for c in copies if c.ready and not world.sites[c.site].line.cut]
            found = {w: sum(c.owner.name == w for c in reached) for w in value}
        elif what == "runsOn":
            found = {w: sorted({c.site for c in copies if c.owner.name == w and c.ready}) for w in value}
            stray = {w: sorted({c.site for c in copies if c.owner.name == w}) for w in value}
            if stray != found:
                return False, str(stray)
        elif what == "placed":
            found = {t.name: world.placed(t.kind.kind, t.namespace, t.name) for t in self._scenario.workloads if t.name in value}
        elif what == "lost":
            found = sorted(s for s in world.sites if not world.is_ready(s))
        elif what == "unplaced":
            found = [
                t.name for t in self._scenario.workloads if t.name in value and not world.placed(t.kind.kind, t.namespace, t.name)
            ]
            value = [t.name for t in self._scenario.workloads if t.name in value]
        elif what == "done":
            found = [
                t.name
                for t in self._scenario.workloads
                if t.name in value and is_true(world.hub.find(t.kind, t.name, t.namespace) or {}, "Complete")
            ]
            value = [t.name for t in self._scenario.workloads if t.name in value]
        else:
            found = {t.name: self.reason(t) for t in self._scenario.workloads if t.name in value}
            return all(value[w] in found[w] for w in value), str(found)
        return found == value, str(found)

    def reason(self, text: WorkloadText) -> str:
        """Why a workload is where it is, as its Placement says; empty where nothing was decided of it."""
        placement = self._world.hub.find(scheme.PLACEMENT, f"{text.kind.kind.lower()}-{text.name}", text.namespace) or {}
        return str((placement.get("spec") or {}).get("reason") or "")
