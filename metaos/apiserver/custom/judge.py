"""Asks the process that evaluates rules in CEL. It is started with the first rule; a rule that runs long or takes too much memory
costs that process its life and its caller the write, and holds up nobody but others who wait for rules.

Bounds: ``SECONDS`` for one request, ``MOST_BYTES`` for an answer, one request at a time; requests wait in the seats that their
callers have.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson

from metaos.apiserver.custom.definition import schema_path
from metaos.apiserver.customkind import CustomKind
from metaos.apiserver.schema import quoted
from metaos.resources import definitions
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj

log = logging.getLogger(__name__)

#: Of one request; the first includes the start of the process.
SECONDS, START_SECONDS = 5.0, 30.0
#: Of an answer.
MOST_BYTES = 16 << 20
RULES = "x-kubernetes-validations"


class Unjudged(Exception):
    """Rules that took more time or memory than they may, or met a fault of ours."""


class Judge:
    """One process, started when it is first needed."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def ask(self, request: Mapping[str, Any]) -> Any:
        """Raises :class:`Unjudged`."""
        text = orjson.dumps(request)
        await self._turn.acquire()
        # Somebody who goes away meanwhile leaves an answer to be read, and the process to the others.
        exchange = asyncio.create_task(self._exchange(text))
        exchange.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(exchange)

    async def _exchange(self, text: bytes) -> Any:
        """Gives the turn back."""
        started = self._process is not None
        try:
            async with asyncio.timeout(SECONDS if started else START_SECONDS):
                found = await self._ask(text)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            log.warning("rules took too much time or memory; their process is started again when it is needed")
            await self._end()
            raise Unjudged(f"rules may take {SECONDS:g} s and some memory for one object") from None
        except BaseException:
            await self._end()  # What it would answer is for somebody who has gone.
            raise
        finally:
            self._turn.release()
        if "fault" in found:
            log.error("the process that evaluates rules: %s", found["fault"])
            raise Unjudged("the rules could not be evaluated; the hub's log says why")
        return found

    async def _ask(self, text: bytes) -> Any:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "metaos.apiserver.custom.judging"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        source, sink = self._process.stdout, self._process.stdin
        if source is None or sink is None:
            raise ConnectionError("the process has no pipes")
        sink.write(len(text).to_bytes(4, "big") + text)
        await sink.drain()
        size = int.from_bytes(await source.readexactly(4), "big")
        if size > MOST_BYTES:
            raise ConnectionError("the answer is too long")
        return orjson.loads(await source.readexactly(size))

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _end(self) -> None:
        self._kill()
        process, self._process = self._process, None
        if process is not None:
            # With what is left in its pipe: as long as that is full and unread, asyncio does not see the end.
            await process.communicate()

    async def close(self) -> None:
        self._kill()  # Who waits for an answer is told by its end.
        async with self._turn:
            await self._end()

    # -- what is asked -------------------------------------------------------------------------------------------

    async def definition(self, obj: Obj, old: Obj | None) -> list[Cause]:
        """What is wrong with the rules of a definition's schemas. Versions that have not changed are not looked at."""
        found: list[Cause] = []
        before = {each["name"]: each for each in ((old or {}).get("spec") or {}).get("versions") or ()}
        for i, version in enumerate(obj["spec"]["versions"]):
            schema = (version.get("schema") or {}).get("openAPIV3Schema") or {}
            alike = i and all(each.get("schema") == version.get("schema") for each in obj["spec"]["versions"])
            if before.get(version["name"]) == version or alike or not has_rules(schema):
                continue
            path = schema_path(obj["spec"]["versions"], i)
            try:
                said = (await self.ask({"check": schema, "path": path}))["found"]
            except Unjudged as failed:
                said = [["FieldValueInvalid", path, "", str(failed)]]
            found += [_cause(*each) for each in said]
        return found

    async def object(self, kind: CustomKind, obj: Obj, old: Obj | None) -> list[Cause]:
        """What the rules of its schema say of an object."""
        asked = {"rules": kind.rules_key, "object": obj, "old": old}
        try:
            answer = await self.ask(asked)
            if answer.get("unknown"):
                answer = await self.ask({**asked, "schema": kind.schema})
        except Unjudged as failed:
            return [_cause("FieldValueInvalid", "", "object", f"rule evaluation error: {failed}")]
        return [_cause(*each) for each in answer["found"]]


def has_rules(schema: Any) -> bool:
    """Whether anything in a schema is to be evaluated."""
    return any(each.get(RULES) for each in definitions.walk(schema))


def _cause(reason: str, path: str, value: Any, text: str) -> Cause:
    if reason == "FieldValueForbidden":
        return Cause(reason, path or "<nil>", f"Forbidden: {text}")
    if reason == "FieldValueRequired":
        return Cause(reason, path or "<nil>", f"Required value: {text}")
    if reason == "FieldValueDuplicate":
        return Cause(reason, path or "<nil>", f"Duplicate value: {quoted(value)}")
    return Cause(reason, path or "<nil>", f"Invalid value: {quoted(value)}: {text}")
