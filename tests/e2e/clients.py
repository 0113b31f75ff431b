"""Concurrent clients of a hub's API, what they saw, and whether it fits together."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bench.wire import Connection, Endpoint, NotSent, Unanswered, config_map
from tests.linearizability import FOREVER, Operation, Outcome, Verb, linearizable

PATH = "/api/v1/namespaces/default/configmaps"


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a watch. ``value`` is the object's, the last one for a delete."""

    type: str
    revision: int
    name: str
    value: str


@dataclass
class Record:
    """Everything that any client of the hub was told, over all its lives."""

    operations: dict[str, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    #: Acknowledged creates and updates: revision → (name, value).
    written: dict[int, tuple[str, str]] = field(default_factory=dict)
    #: Lists: their revision, and name → (revision, value).
    lists: list[tuple[int, dict[str, tuple[int, str]]]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(map(len, self.operations.values()))

    def note(self, name: str, operation: Operation, obj: dict[str, Any] | None) -> None:
        self.operations[name].append(operation)
        if operation.outcome is Outcome.DONE and obj and obj.get("kind") == "ConfigMap" and operation.verb is not Verb.DELETE:
            revision, seen = int(obj["metadata"]["resourceVersion"]), (name, obj["data"]["value"])
            assert self.written.setdefault(revision, seen) == seen, "one revision has two values"


class Client:
    """Does random things to a few objects until the hub is gone, and writes down what it was told."""

    #: Whether a hub may say that its database is away (503: nothing was done), or was lost in between (504: who knows).
    may_be_away = False

    def __init__(self, endpoint: Endpoint, mark: str, record: Record, random: Random) -> None:
        self._connection = Connection(endpoint)
        self._mark, self._record, self._random = mark, record, random
        self._count = 0
        self._known: dict[str, tuple[str, str]] = {}

    async def run(self, names: Sequence[str], stop: asyncio.Event) -> None:
        try:
            while not stop.is_set():
                await self.one(self._random.choice(names))
        except NotSent:
            return
        finally:
            self._connection.close()

    def close(self) -> None:
        self._connection.close()

    async def one(self, name: str, verb: Verb | None = None) -> None:
        known = self._known.get(name)
        chosen = verb or self._random.choice(
            (Verb.GET, Verb.CREATE, Verb.UPDATE, Verb.UPDATE, Verb.DELETE) if known else list(Verb)[:2]
        )
        value, expected, body, path = None, None, b"", f"{PATH}/{name}"
        if chosen in (Verb.CREATE, Verb.UPDATE):
            self._count += 1
            value = f"{self._mark}.{self._count}"
            body = config_map(name, value)
        if known and chosen in (Verb.UPDATE, Verb.DELETE):
            expected, version = known
            if chosen is Verb.UPDATE:
                obj = json.loads(body)
                obj["metadata"]["resourceVersion"] = version
                body = json.dumps(obj).encode()
            else:
                body = json.dumps({"preconditions": {"resourceVersion": version}}).encode()
        method = {Verb.GET: "GET", Verb.CREATE: "POST", Verb.UPDATE: "PUT", Verb.DELETE: "DELETE"}[chosen]
        clock = asyncio.get_running_loop().time
        called = clock()
        try:
            status, answer = await self._connection.call(method, PATH if chosen is Verb.CREATE else path, body)
        except Unanswered:
            if chosen is not Verb.GET:
                self._record.note(name, Operation(chosen, Outcome.UNKNOWN, called, FOREVER, value, expected), None)
            return
        if self.may_be_away and status in (503, 504):
            if status == 504 and chosen is not Verb.GET:
                self._record.note(name, Operation(chosen, Outcome.UNKNOWN, called, FOREVER, value, expected), None)
            return
        outcomes = {200: Outcome.DONE, 201: Outcome.DONE, 404: Outcome.MISSING, 409: Outcome.CONFLICT}
        assert status in outcomes, (status, answer)
        obj = json.loads(answer)
        if status < 300 and obj["kind"] == "ConfigMap" and chosen is not Verb.DELETE:
            self._known[name] = (obj["data"]["value"], obj["metadata"]["resourceVersion"])
            value = obj["data"]["value"]
        elif status != 409 or chosen is not Verb.CREATE:
            self._known.pop(name, None)
        self._record.note(name, Operation(chosen, outcomes[status], called, clock(), value, expected), obj)


class Roaming(Client):
    """Goes to another hub where one is gone."""

    may_be_away = True

    def __init__(self, endpoints: Sequence[Endpoint], first: int, mark: str, record: Record, random: Random) -> None:
        super().__init__(endpoints[first], mark, record, random)
        self._endpoints, self._place = endpoints, first

    async def run(self, names: Sequence[str], stop: asyncio.Event) -> None:
        try:
            while not stop.is_set():
                try:
                    await self.one(self._random.choice(names))
                except NotSent:
                    self._place = (self._place + 1) % len(self._endpoints)
                    self._connection = Connection(self._endpoints[self._place])
                    await asyncio.sleep(0.05)
        finally:
            self._connection.close()


async def conclude(endpoint: Endpoint, record: Record, random: Random) -> int:
    """Writes something after all else, and returns its revision: a watch that has come so far has seen the last deletes too."""
    client = Client(endpoint, "end", record, random)
    await client.one("the-end", Verb.CREATE)
    client.close()
    return max(record.written)


async def lister(endpoint: Endpoint, record: Record, stop: asyncio.Event) -> None:
    """Lists again and again."""
    connection = Connection(endpoint)
    try:
        while not stop.is_set():
            status, answer = await connection.call("GET", PATH)
            assert status == 200, answer
            listed = json.loads(answer)
            items = {
                item["metadata"]["name"]: (int(item["metadata"]["resourceVersion"]), item["data"]["value"])
                for item in listed["items"]
                if "value" in item.get("data", {})
            }
            record.lists.append((int(listed["metadata"]["resourceVersion"]), items))
            await asyncio.sleep(0.02)
    except (NotSent, Unanswered):
        return
    finally:
        connection.close()


class Watching:
    """One watch that goes on where it was after every break."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.events: list[Event] = []

    async def run(self, endpoint: Endpoint, until: int = 0) -> None:
        """Until the connection breaks, or all up to revision ``until`` has come."""
        connection = Connection(endpoint)
        try:
            while not until or self.version < until:
                async for line in connection.lines(f"{PATH}?watch=1&resourceVersion={self.version}"):
                    event = json.loads(line)
                    obj = event["object"]
                    assert event["type"] in ("ADDED", "MODIFIED", "DELETED"), event
                    revision = int(obj["metadata"]["resourceVersion"])
                    assert revision > self.version, "a watch went back, or repeated"
                    self.version = revision
                    self.events.append(Event(event["type"], revision, obj["metadata"]["name"], obj["data"].get("value", "")))
                    if until and revision >= until:
                        return
        except (NotSent, Unanswered):
            return
        finally:
            connection.close()


def check(record: Record, watches: Sequence[Watching]) -> None:
    """Every acknowledged write is in every watch, every list is a moment of it, and every object behaved as one."""
    events = watches[0].events
    for watching in watches:
        assert watching.events == events, "two watches saw different histories"
    by_revision = {event.revision: event for event in events}
    for revision, (name, value) in record.written.items():
        event = by_revision.get(revision)
        assert event is not None, f"revision {revision} of {name} was acknowledged, and no watch has it"
        assert (event.name, event.value) == (name, value)
    states: dict[str, tuple[int, str]] = {}
    lists = sorted(record.lists, key=lambda each: each[0])
    position = 0
    for event in [*events, None]:
        while position < len(lists) and (event is None or lists[position][0] < event.revision):
            assert lists[position][1] == states, f"the list at {lists[position][0]} is no moment of the history"
            position += 1
        if event is None:
            break
        before = states.get(event.name)
        if event.type == "DELETED":
            assert before is not None and before[1] == event.value, f"{event} deletes what was not there"
            del states[event.name]
        else:
            assert (before is None) == (event.type == "ADDED"), f"{event} does not follow from {before}"
            states[event.name] = (event.revision, event.value)
    for name, operations in record.operations.items():
        assert linearizable(operations), f"no order explains what happened to {name}: {shortest(operations)}"


def shortest(operations: Sequence[Operation]) -> str:
    """The end of the shortest beginning of a history that cannot be explained."""
    ordered = sorted(operations, key=lambda o: o.answered)
    count = next(
        n for n in range(1, len(ordered) + 1) if not linearizable([o for o in operations if o.called <= ordered[n - 1].answered])
    )
    return "\n".join(
        map(str, [o for o in sorted(operations, key=lambda o: o.called) if o.called <= ordered[count - 1].answered][-30:])
    )
