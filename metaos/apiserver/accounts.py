"""Answers what is asked of the ledger: statements for whoever may see them, and the ledger itself for auditors and operators.

A Statement shows lines of namespaces in which its caller may list statements. ``GET /ledger`` is the whole, page by page, as
lines of ``accounting.export``; ``GET /ledger/keys`` which keys signed and sign; ``POST /ledger/checkpoint`` signs now,
``/ledger/rotate`` takes another key, ``/ledger/cut`` removes what was exported. All but statements are for administrators, and
for whom a role lets at these paths.

Bounds: a statement reads ``MOST_LINES`` lines and works in turns of ``TURN_LINES``; ``MOST_ASKED`` are made at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from aiohttp import web

from metaos.accounting.counterfactual import Comparison, Sites, described
from metaos.accounting.export import checkpoint_line, end_line, entry_line, ledger_line
from metaos.accounting.footprint import NETWORK_SOURCE
from metaos.accounting.ledger import make_receipt
from metaos.accounting.series import Series
from metaos.accounting.statement import Sums
from metaos.apiserver.books import Books
from metaos.resources import errors, scheme
from metaos.resources.errors import Cause
from metaos.resources.meta import GROUP, Obj, parse_time
from metaos.security.authz import Attributes, Decision, UserInfo
from metaos.store.ledger import PAGE, Row

PATHS = frozenset({"/ledger", "/ledger/keys", "/ledger/checkpoint", "/ledger/rotate", "/ledger/cut"})
#: Of one statement: some 20 s of work.
MOST_LINES = 1_000_000
TURN_LINES = 200
#: Of all receipts of one statement; one period's go beyond it.
MOST_RECEIPT_LINES = 10_000
MOST_ASKED = 4
_FOREVER = 2**53

Authorize = Callable[[UserInfo, Attributes], Decision]


class _Seen:
    """The lines of entries that a caller asked for and may see; the others are counted."""

    def __init__(self, spec: dict[str, Any], visible: Callable[[str], bool]) -> None:
        self._visible, self.left_out = visible, 0
        self._namespaces, self._sites = spec.get("namespaces"), spec.get("sites")
        self._pod, self._workload = spec.get("pod"), spec.get("workload")
        self._known: dict[str, bool] = {}

    def indexes(self, header: Obj, lines: list[Obj]) -> list[int]:
        if self._sites and header["site"] not in self._sites:
            return []
        return [index for index, line in enumerate(lines) if self._wanted(line)]

    def _wanted(self, line: Obj) -> bool:
        where = line["namespace"]
        if self._namespaces and where not in self._namespaces:
            return False
        if where not in self._known:
            self._known[where] = self._visible(where)
        if not self._known[where]:
            # Whatever it is called: the count must not tell whether others have a pod of some name.
            self.left_out += 1
            return False
        if self._pod and line["name"] != self._pod:
            return False
        return not self._workload or f"{line['workload']['kind']}/{line['workload']['name']}".lower() == self._workload.lower()


class Statements:
    """``answer`` is what the registry calls for a Statement."""

    def __init__(self, books: Books, authorize: Authorize) -> None:
        self._ledger, self._books, self._authorize = books.ledger, books, authorize
        self._turns = asyncio.Semaphore(MOST_ASKED)

    async def answer(self, user: UserInfo, obj: Obj) -> Obj:
        spec = obj.get("spec") or {}
        everywhere = self._may(user, "")
        for where in spec.get("namespaces") or ():
            if not self._may(user, where):
                raise errors.forbidden(GROUP, "statements", "", f"you may not list statements in namespace {where!r}")
        if spec.get("system") and not everywhere:
            raise errors.forbidden(
                GROUP, "statements", "", "what belongs to no pod is shown to those who may list all statements"
            )
        if self._turns.locked():
            raise errors.too_many_requests(f"{MOST_ASKED} statements are made already: ask again later")
        async with self._turns:
            try:
                status = await self._made(spec, _Seen(spec, lambda where: everywhere or self._may(user, where)))
            except ValueError as error:
                raise _wrong("spec", str(error)) from None
        return {**obj, "metadata": {}, "status": status}

    def _may(self, user: UserInfo, where: str) -> bool:
        return self._authorize(user, Attributes("list", GROUP, scheme.STATEMENT.plural, "", where)).allowed

    async def _made(self, spec: dict[str, Any], seen: _Seen) -> Obj:
        by, against = str(spec.get("by") or "namespace"), spec.get("against")
        since, until = _time(spec, "since", 0), _time(spec, "until", _FOREVER)
        if since >= until:
            raise _wrong("spec.until", f"{spec.get('until')} must be after since ({spec.get('since')})")
        comparison = None
        if against:
            sites = Sites()
            async for _, entry in self._entries(since, until):
                sites.add(entry.header)
            comparison = Comparison(by, against, sites)
        sums, series = Sums(by, charged=bool(spec.get("charges"))), await self._series(spec, since, until)
        receipts: list[Obj] = []
        left, left_lines, left_out, unsigned = int(spec.get("receipts") or 0), MOST_RECEIPT_LINES, 0, 0
        async for row, entry in self._entries(since, until):
            header = dict(entry.header)
            wanted = seen.indexes(header, list(entry.lines))
            lines = [entry.lines[index] for index in wanted]
            system = bool(spec.get("system")) and (not spec.get("sites") or header["site"] in spec["sites"])
            if lines or system:
                sums.add(header, lines, system=system)
            if comparison is not None:
                comparison.add(header, lines)
            if series is not None:
                series.add(header, lines)
            if wanted and spec.get("receipts"):
                if left <= 0 or left_lines <= 0:
                    left_out += 1
                elif (receipt := await self._receipt(row, wanted)) is not None:
                    receipts.append(receipt)
                    left, left_lines = left - 1, left_lines - len(wanted)
                else:
                    unsigned += 1
        groups = [total.said() for total in sums.totals()]
        if comparison is not None:
            for group in groups:
                found = comparison.found.get(tuple(group["key"]))
                group["against"] = found.said() if found is not None else None
        status: Obj = {"by": by, "groups": groups, "linesLeftOut": seen.left_out, "network": NETWORK_SOURCE}
        status |= {"against": {"what": against, "method": described(against)}} if against else {}
        status |= {"series": series.said()} if series is not None else {}
        if spec.get("receipts"):
            status["receipts"] = {"items": receipts, "unsigned": unsigned, "leftOut": left_out}
        return status

    async def _series(self, spec: dict[str, Any], since: int, until: int) -> Series | None:
        """``None`` where none is asked for. Without ``since`` it begins with the oldest period."""
        if not spec.get("series"):
            return None
        first = await self._ledger.between(since + 1, until + 1)
        now = int(self._books.clock.now())
        return Series(
            str(spec.get("by") or "namespace"), since or (first[0].entry().header["start"] if first else now), min(until, now)
        )

    async def _receipt(self, row: Row, indexes: list[int]) -> Obj | None:
        checkpoint = await self._ledger.covering(row.position)
        if checkpoint is None:
            return None
        hashes = await self._ledger.hashes(int(checkpoint.body["first"]), int(checkpoint.body["last"]))
        return make_receipt(row.entry(), indexes, hashes, checkpoint)

    async def _entries(self, since: int, until: int) -> AsyncIterator[tuple[Row, Any]]:
        """Those that end after ``since``, up to ``until``; others get their turn between them."""
        after, lines, turn = (0, 0), 0, 0
        while page := await self._ledger.between(since + 1, until + 1, after):
            for row in page:
                entry = row.entry()
                lines += len(entry.lines)
                turn += len(entry.lines) + 1
                if lines > MOST_LINES:
                    raise ValueError(f"a statement reads {MOST_LINES} lines of the ledger at most: ask for a shorter time")
                yield row, entry
                if turn >= TURN_LINES:
                    turn = 0
                    await self._books.clock.sleep(0)
            after = page[-1].end, page[-1].position


def _time(spec: dict[str, Any], key: str, otherwise: int) -> int:
    return int(parse_time(spec[key])) if spec.get(key) else otherwise


def _wrong(field: str, message: str) -> errors.ApiError:
    return errors.invalid(GROUP, scheme.STATEMENT.kind, "", [Cause("FieldValueInvalid", field, message)])


# -- the whole ---------------------------------------------------------------------------------------------


class Accounts:
    """Serves :data:`PATHS`."""

    def __init__(self, books: Books) -> None:
        self._books, self._ledger = books, books.ledger

    async def serve(self, request: web.Request, path: str, headers: dict[str, str]) -> web.StreamResponse:
        if request.method != ("GET" if path in ("/ledger", "/ledger/keys") else "POST"):
            raise errors.method_not_allowed("the server does not allow this method on the requested resource")
        if path == "/ledger":
            return await self._page(request, headers)
        try:
            if path == "/ledger/checkpoint":
                await self._books.checkpoint()
            elif path == "/ledger/rotate":
                await self._books.rotate()
            elif path == "/ledger/cut":
                return _json(headers, {"removed": await self._cut(await request.read())})
            return _json(headers, await self._state())
        except LookupError as error:
            raise errors.unavailable(f"the ledger cannot be signed: {error}") from None

    async def _state(self) -> Obj:
        extent = await self._ledger.extent()
        keys: list[str] = []
        number = 0
        while page := await self._ledger.checkpoints(number):
            number = int(page[-1].body["number"])
            keys += [key for key in dict.fromkeys(each.key for each in page) if key not in keys]
        latest = extent.checkpoint
        return {
            "first": extent.first,
            "last": extent.last,
            "signed": extent.signed,
            "checkpoint": checkpoint_line(latest)["checkpoint"] if latest else None,
            "keys": keys,
            "signs": self._books.signing_key(latest),
        }

    async def _page(self, request: web.Request, headers: dict[str, str]) -> web.Response:
        """From after entry ``after`` and checkpoint ``checkpoint`` on; the last page has the end. ``until``: an entry."""
        after, number = _count(request, "after"), _count(request, "checkpoint")
        extent = await self._ledger.extent()
        until = min(_count(request, "until") or extent.last, extent.last)
        found: list[Any] = []
        rows = [row for row in await self._ledger.read(max(after, extent.first - 1)) if row.position <= until]
        checkpoints = await self._ledger.checkpoints(number)
        if not after:
            # What was cut off is told by the checkpoint that signs it.
            cut = await self._ledger.covering(extent.first - 1) if extent.first > 1 else None
            found.append(ledger_line(extent.first, bytes.fromhex(cut.body["head"]) if cut else bytes(32)))
            if cut is not None:
                found.append(checkpoint_line(cut))
                checkpoints = await self._ledger.checkpoints(int(cut.body["number"]))
        position, head = max(after, extent.first - 1), b""
        waiting = [each for each in checkpoints if each.body["last"] <= until]
        for row in rows:
            while waiting and waiting[0].body["last"] <= position:
                found.append(checkpoint_line(waiting.pop(0)))
            found.append(entry_line(row.entry(), row.hash))
            position, head = row.position, row.hash
        while waiting and waiting[0].body["last"] <= position:
            found.append(checkpoint_line(waiting.pop(0)))
        if position >= until and not waiting and (len(checkpoints) < PAGE or checkpoints[-1].body["last"] > until):
            if not head:
                hashes = await self._ledger.hashes(position, position)
                cut = await self._ledger.covering(position) if not hashes and position else None
                head = hashes[0] if hashes else bytes.fromhex(cut.body["head"]) if cut else bytes(32)
            latest = [each for each in found if "checkpoint" in each][-1:]
            found.append(end_line(position, head, latest[0]["checkpoint"]["body"]["number"] if latest else number))
        body = b"\n".join(orjson.dumps(each) for each in found) + b"\n"
        return web.Response(body=body, headers={**headers, "Content-Type": "application/x-ndjson"})

    async def _cut(self, body: bytes) -> int:
        """``{"checkpoint": NUMBER, "head": HASH}``: the hash shows that whoever asks has what is removed."""
        try:
            asked = orjson.loads(body)
            number, head = int(asked["checkpoint"]), str(asked["head"])
        except (ValueError, KeyError, TypeError):
            raise errors.bad_request('the body must be {"checkpoint": NUMBER, "head": HASH}') from None
        found = await self._ledger.checkpoints(number - 1, 1)
        if not found or found[0].body["head"] != head:
            raise errors.bad_request(f"checkpoint {number} with head {head[:80]!r} is not one of this ledger")
        return await self._ledger.cut(number)


def _json(headers: dict[str, str], value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), headers={**headers, "Content-Type": "application/json"})


def _count(request: web.Request, key: str) -> int:
    text = request.query.get(key, "0")
    if not text.isdigit() or len(text) > 15:
        raise errors.bad_request(f"{key}: {text[:80]!r} must be a whole number")
    return int(text)
