"""What is asked of the ledger: sums for whoever may see them, receipts and exports that hold without the hub, keys that go on."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import make_mocked_request

from metaos.accounting.booking import book
from metaos.accounting.export import Verified, verify
from metaos.accounting.ledger import Checkpoint, Tampered, verify_receipt
from metaos.apiserver.accounts import Accounts
from metaos.apiserver.app import make_app
from metaos.apiserver.authn import Identity
from metaos.apiserver.books import MOST_SERIES, Books
from metaos.apiserver.ledgerkeys import LedgerKeys
from metaos.clock import SystemClock
from metaos.resources.errors import ApiError
from metaos.resources.meta import format_time
from metaos.security.authz import UserInfo
from metaos.store.memoryledger import MemoryLedger
from tests.accounting.test_booking import PARIS, SHOP, period
from tests.apiserver.accounting import WRITER, Hub, pod, reported, running
from tests.apiserver.conftest import ADMIN
from tests.apiserver.test_registry_access import binding
from tests.clock import FakeClock
from tests.store.ledger import booking

ANN = UserInfo("ann", ("system:authenticated",))


async def two_sites(hub: Hub) -> None:
    """Paris is dirty, Lyon clean; a shop on both, a lab on one."""
    for where in ("shop", "lab"):
        await hub.registry.create(ADMIN, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": where}})
    await hub.site("paris")
    await hub.site("lyon", electricity={"carbonIntensity": 30, "pue": 1.1}, owner="shop")
    for site in ("paris", "lyon"):
        await hub.gives(site)
    await hub.gives("paris", "train", "lab")
    await hub.settle()
    job = pod("train-1", namespace="lab", workload={"kind": "Deployment", "name": "train"}, cpuMicroseconds=300_000_000)
    await hub.reports("paris", reported(hub.clock, 1, pod(), job), reported(hub.clock, 2, pod(), estimatedSeconds=30))
    await hub.reports("lyon", reported(hub.clock, 1, pod("web-2")), reported(hub.clock, 2, pod("web-2")))
    await hub.settle()


def groups(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"/".join(group["key"]): group for group in status["groups"]}


async def test_whoever_may_list_statements_of_a_namespace_sees_that_and_no_more() -> None:
    async with running() as hub:
        await two_sites(hub)
        found = await hub.statement(by="pod")
        assert list(groups(found)) == ["lab/train-1", "shop/web-1", "shop/web-2"] and found["linesLeftOut"] == 0
        assert await hub.statement(ANN) | {"network": ""} == {"by": "namespace", "groups": [], "linesLeftOut": 5, "network": ""}
        await hub.registry.create(ADMIN, binding("view", "ann", "shop"))
        found = await hub.statement(ANN, by="site")
        assert list(groups(found)) == ["lyon", "paris"] and found["linesLeftOut"] == 1
        assert groups(found)["paris"]["lines"] == 2, "of the shop's pods only"
        for spec, why in (
            ({"namespaces": ["lab"]}, "you may not list statements in namespace 'lab'"),
            ({"system": True}, "what belongs to no pod is shown to those who may list all statements"),
        ):
            with pytest.raises(ApiError, match=why) as refused:
                await hub.statement(ANN, **spec)
            assert refused.value.code == 403
        with pytest.raises(ApiError, match='cannot create resource "statements"'):
            await hub.statement(UserInfo("system:cluster:paris", ("system:clusters",)))


async def test_how_many_lines_are_left_out_tells_nothing_of_others_names() -> None:
    async with running() as hub:
        await two_sites(hub)
        assert [(await hub.statement(ANN, **spec))["linesLeftOut"] for spec in ({}, {"pod": "train-1"}, {"pod": "no-such"})] == [
            5
        ] * 3
        assert (await hub.statement(ANN, workload="Deployment/no-such"))["linesLeftOut"] == 5


async def test_a_statement_says_what_was_asked_for() -> None:
    async with running() as hub:
        await two_sites(hub)
        everything = groups(await hub.statement(by="site", system=True))
        assert everything["paris"]["lines"] == 5 and everything["paris"]["energyKWh"] == "0.003336667"
        shop = groups(await hub.statement(namespaces=["shop"]))["shop"]
        assert shop["cost"] == {"EUR": "0.006666668"} and shop["operationalGrams"]["location"] == "0.873334"
        assert shop["energyUncertainty"] == "0.2" and shop["unknownLines"] == {"marginal": 4, "market": 4, "network": 4}
        assert shop["estimatedShare"] == "0.025" and shop["podHours"] == "0.333333"
        assert list(groups(await hub.statement(by="owner"))) == ["lab", "shop"]
        assert list(groups(await hub.statement(by="workload", sites=["lyon"]))) == ["shop/Deployment/web"]
        assert list(groups(await hub.statement(by="pod", pod="web-2"))) == ["shop/web-2"]
        assert list(groups(await hub.statement(by="pod", workload="deployment/train"))) == ["lab/train-1"]
        second = reported(hub.clock, 2)["start"]
        late = await hub.statement(since=format_time(second))
        assert sum(group["lines"] for group in late["groups"]) == 2
        early = await hub.statement(until=format_time(second))
        assert sum(group["lines"] for group in early["groups"]) == 3
        (one, two) = (await hub.statement(series=True))["series"]
        assert one["end"] == two["start"] and [g["key"] for g in one["groups"]] == [["lab"], ["shop"]]
        with pytest.raises(ApiError, match=r"spec.until: .* must be after since"):
            await hub.statement(since=format_time(second), until=format_time(second))
        with pytest.raises(ApiError, match=r"spec\.by: Unsupported value"):
            await hub.statement(by="colour")


async def test_saved_against_what() -> None:
    async with running() as hub:
        await two_sites(hub)
        there = await hub.statement(by="site", against="lyon")
        # 360 core-seconds at 20 J each, (100 - 20) W / 4 cores: 1.2 x 300 g/kWh here, 1.1 x 30 there.
        paris = groups(there)["paris"]["against"]
        assert (paris["grams"], paris["elsewhereGrams"]) == ("0.72", "0.066") and paris["savedGrams"] == "-0.654"
        assert groups(there)["lyon"]["against"]["savedGrams"] == "0"
        assert "all of it at lyon: CPU time above idle" in there["against"]["method"]
        mean = groups(await hub.statement(by="site", against="average"))["lyon"]["against"]
        assert mean["grams"] == "0.011" and float(mean["elsewhereGrams"]) == pytest.approx((0.011 + 0.12) / 2)
        local = groups(await hub.statement(against="everything-local"))
        assert local["lab"]["against"] == {"grams": None, "elsewhereGrams": None, "savedGrams": None, "unknownLines": 1}
        assert float(local["shop"]["against"]["savedGrams"]) == pytest.approx(0.011 - 0.12), "the shop has a site of its own"
        with pytest.raises(ApiError, match="no period of site 'rome' is booked in that time: there are lyon, paris"):
            await hub.statement(against="rome")


# -- checkpoints, receipts, exports ------------------------------------------------------------------------


async def pages(accounts: Accounts, **query: Any) -> list[bytes]:
    """As ``nemo carbon export`` asks for them."""
    found: list[bytes] = []
    after = number = 0
    for _ in range(100):
        more = "".join(f"&{key}={value}" for key, value in query.items())
        request = make_mocked_request("GET", f"/ledger?after={after}&checkpoint={number}{more}")
        answer = await accounts.serve(request, "/ledger", {})
        found += answer.body.splitlines()  # type: ignore[attr-defined]
        for line in map(json.loads, found):
            after = line["entry"]["position"] if "entry" in line else after
            number = line["checkpoint"]["body"]["number"] if "checkpoint" in line else number
        if found and b'"end"' in found[-1][:8]:
            return found
    raise AssertionError("it has no end")


async def test_receipts_hold_without_the_hub_and_show_no_others_lines(tmp_path: Path) -> None:
    keys = LedgerKeys(tmp_path, Random(1).randbytes)
    async with running(keys=keys) as hub:
        await two_sites(hub)
        await hub.registry.create(ADMIN, binding("view", "ann", "shop"))
        unsigned = (await hub.statement(ANN, receipts=5))["receipts"]
        assert unsigned == {"items": [], "unsigned": 4, "leftOut": 0}
        await hub.books.checkpoint()
        found = (await hub.statement(ANN, receipts=3))["receipts"]
        assert len(found["items"]) == 3 and found["leftOut"] == 1
        key = keys.signer(None)[0]
        for receipt in found["items"]:
            assert verify_receipt(receipt, key) == key
            assert all(line["line"]["namespace"] == "shop" for line in receipt["lines"])
            changed = copy.deepcopy(receipt)
            changed["lines"][0]["line"]["energyMillijoules"] += 1
            with pytest.raises(Tampered):
                verify_receipt(changed, key)


async def test_receipts_have_a_bounded_number_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaos.apiserver.accounts.MOST_RECEIPT_LINES", 2)
    async with running(keys=LedgerKeys(tmp_path, Random(1).randbytes)) as hub:
        await two_sites(hub)
        await hub.books.checkpoint()
        found = (await hub.statement(receipts=200))["receipts"]
        lines = [len(each["lines"]) for each in found["items"]]
        assert sum(lines[:-1]) < 2 <= sum(lines) and found["leftOut"] == 4 - len(lines)


async def test_an_export_ends_where_it_was_asked_to_however_many_checkpoints_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaos.apiserver.accounts.PAGE", 3)
    ledger = MemoryLedger()
    books = Books(ledger, FakeClock(), WRITER.name, LedgerKeys(tmp_path, Random(1).randbytes))
    monkeypatch.setattr(ledger, "checkpoints", lambda after=0, limit=3: MemoryLedger.checkpoints(ledger, after, min(limit, 3)))
    monkeypatch.setattr(ledger, "read", lambda after: MemoryLedger.read(ledger, after, 3))
    for n in range(1, 13):
        await ledger.append(booking("paris", n))
        await books.checkpoint()
    for until in (1, 3, 4, 11, 12):
        found = verify(await pages(Accounts(books), until=until))
        assert (found.last, found.signed) == (until, until)


async def test_an_export_is_verified_line_by_line_whatever_was_cut_and_whichever_key_signed(tmp_path: Path) -> None:
    keys, ledger = LedgerKeys(tmp_path, Random(1).randbytes), MemoryLedger()
    books = Books(ledger, FakeClock(), WRITER.name, keys)
    accounts = Accounts(books)
    assert verify(await pages(accounts)) == Verified()
    first = keys.signer(None)[0]
    for n in range(1, 301):
        await ledger.append(booking("paris", n))
        if n in (100, 250):
            await books.checkpoint()
        if n == 150:
            await books.rotate()
    exported = await pages(accounts)
    found = verify(exported, first)
    assert (found.first, found.last, found.signed, found.checkpoints, len(found.keys)) == (1, 300, 250, 3, 2)
    second = found.keys[-1]
    assert verify(exported, second) == found and keys.signer((await ledger.extent()).checkpoint)[0] == second
    assert [file.name for file in tmp_path.iterdir()] == ["ledger-2.pem"], "the older key is gone"
    partial = verify(await pages(accounts, until=150))
    assert (partial.last, partial.signed) == (150, 150)
    assert await ledger.cut(2) == 150
    rest = verify(await pages(accounts), second)
    assert (rest.first, rest.last, rest.head) == (151, 300, found.head)
    with pytest.raises(Tampered, match="nothing is signed with the key that is trusted"):
        verify(exported, "ed25519:" + "0" * 64)


async def test_whatever_is_changed_in_an_export_is_found(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    books = Books(ledger, FakeClock(), WRITER.name, LedgerKeys(tmp_path, Random(1).randbytes))
    for n in range(1, 9):
        await ledger.append(booking("paris", n))
        if n in (3, 6):
            await books.checkpoint()
    lines = await pages(Accounts(books))
    assert verify(lines).signed == 6
    for at in range(len(lines)):
        with pytest.raises(Tampered):
            verify(lines[:at] + lines[at + 1 :])
        with pytest.raises(Tampered):
            verify([*lines[:at], b"{}", *lines[at + 1 :]])
        if at:
            with pytest.raises(Tampered):
                verify([*lines[: at - 1], lines[at], lines[at - 1], *lines[at + 1 :]])
    random = Random(3)
    for _ in range(300):
        at = random.randrange(len(lines))
        text = bytearray(lines[at])
        text[random.randrange(len(text))] ^= 1 << random.randrange(7)
        try:
            same = json.loads(bytes(text)) == json.loads(lines[at])
        except ValueError:
            same = False
        if not same:
            with pytest.raises(Tampered):
                verify([*lines[:at], bytes(text), *lines[at + 1 :]])


async def test_who_signs_a_ledger_anew_is_found_by_the_key(tmp_path: Path) -> None:
    found = []
    for name in ("mine", "forged"):
        ledger = MemoryLedger()
        books = Books(ledger, FakeClock(), WRITER.name, LedgerKeys(tmp_path / name, Random(name).randbytes))
        await ledger.append(booking("paris", 1))
        await books.checkpoint()
        found.append((await pages(Accounts(books)), books.signing_key(None)))
    assert verify(found[0][0], found[0][1]).last == 1
    with pytest.raises(Tampered):
        verify(found[1][0], found[0][1])


async def test_checkpoints_come_by_time_and_number_and_not_without_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, ledger = FakeClock(), MemoryLedger()
    books = Books(ledger, clock, WRITER.name, LedgerKeys(tmp_path, Random(1).randbytes), every=600)
    task = asyncio.create_task(books.run())
    try:
        await ledger.append(booking("paris", 1))
        for wanted, seconds in ((0, 590), (1, 20), (1, 1200)):
            await clock.advance(seconds)
            await clock.settle()
            assert (await ledger.extent()).signed == wanted
        for file in tmp_path.iterdir():
            file.unlink()
        LedgerKeys(tmp_path, Random(2).randbytes)
        await ledger.append(booking("paris", 2))
        await clock.advance(700)
        await clock.settle()
        assert (await ledger.extent()).signed == 1 and "restore it from a backup" in caplog.text
        assert "nemo_ledger_unsigned_entries 1" in books.lines()
    finally:
        task.cancel()


@pytest.mark.parametrize(("content", "message"), [(None, "there is no key ledger-N.pem"), (b"mud", "ledger-1.pem holds no key")])
async def test_a_key_that_is_gone_or_damaged_is_said(tmp_path: Path, content: bytes | None, message: str) -> None:
    books = Books(MemoryLedger(), FakeClock(), WRITER.name, LedgerKeys(tmp_path, Random(1).randbytes))
    (tmp_path / "ledger-1.pem").unlink()
    if content is not None:
        (tmp_path / "ledger-1.pem").write_bytes(content)
    with pytest.raises(ApiError, match=f"the ledger cannot be signed: .*{message}") as refused:
        await Accounts(books).serve(make_mocked_request("GET", "/ledger/keys"), "/ledger/keys", {})
    assert refused.value.code == 503


async def test_prometheus_sees_a_bounded_number_of_series() -> None:
    books = Books(MemoryLedger(), FakeClock(), WRITER.name)
    header, lines = book(period(pod()), PARIS, lambda _: SHOP)
    books._count(header, lines)
    text = "\n".join(books.lines())
    assert 'nemo_carbon_grams_total{namespace="shop",site="paris",basis="location"} 0.09' in text
    assert 'nemo_cost_total{namespace="shop",site="paris",currency="EUR"} 0.001666667' in text
    assert 'nemo_energy_joules_total{namespace="shop",site="paris"} 4000.0' in text
    for n in range(MOST_SERIES + 50):
        books._count({**header, "site": f"s{n}"}, [])
    assert len(books._totals) == MOST_SERIES + 1
    before = len(books._totals)
    books._count(header, [{**lines[0], "namespace": f"invented-{n}", "given": False} for n in range(50)])
    assert len(books._totals) == before


async def test_a_cut_is_for_whom_has_what_is_cut(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    accounts = Accounts(Books(ledger, FakeClock(), WRITER.name, LedgerKeys(tmp_path, Random(1).randbytes)))
    await ledger.append(booking("paris", 1))
    made = await accounts._books.checkpoint()
    assert made is not None
    for body in (b"", b"[]", b'{"checkpoint": 1, "head": "00"}', b'{"checkpoint": 9, "head": "00"}'):
        with pytest.raises(ApiError) as refused:
            await accounts._cut(body)
        assert refused.value.code == 400
    assert await accounts._cut(json.dumps({"checkpoint": 1, "head": made.body["head"]}).encode()) == 1


async def test_who_may_do_what_over_http_and_that_it_is_written_down(tmp_path: Path) -> None:
    audit: list[dict[str, Any]] = []
    async with running(keys=LedgerKeys(tmp_path, Random(1).randbytes)) as hub:
        await two_sites(hub)
        users = {
            "root": ADMIN,
            "ann": ANN,
            "site": UserInfo("system:cluster:paris", ("system:clusters", "system:authenticated")),
        }

        class Named:
            async def authenticate(self, request: web.Request) -> Identity:
                return Identity(users[request.headers["X-User"]], lambda: True)

        clock = SystemClock()
        app = make_app(
            hub.registry, authenticator=Named(), clock=clock, random=Random(2), audit=audit.append, accounts=Accounts(hub.books)
        )
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"

        async def code(user: str, method: str, path: str, body: bytes = b"") -> int:
            async with session.request(method, url + path, data=body, headers={"X-User": user}) as answer:
                await answer.read()
                return answer.status

        async with ClientSession() as session:
            for user in ("ann", "site"):
                assert [await code(user, "GET", path) for path in ("/ledger", "/ledger/keys")] == [403, 403]
                assert await code(user, "POST", "/ledger/cut") == 403
            assert [await code("root", "GET", path) for path in ("/ledger", "/ledger/keys")] == [200, 200]
            assert await code("root", "POST", "/ledger") == await code("root", "GET", "/ledger/rotate") == 405
            assert await code("root", "POST", "/ledger/rotate") == 200
            head = (await hub.ledger.checkpoints())[0].body["head"]
            assert await code("root", "POST", "/ledger/cut", b"{}") == 400
            assert await code("root", "POST", "/ledger/cut", json.dumps({"checkpoint": 1, "head": head}).encode()) == 200
        await runner.cleanup()
    noted = [(line["path"], line["code"]) for line in audit if line["verb"] == "create"]
    assert noted.count(("/ledger/cut", 403)) == 2
    assert [each for each in noted if each[1] == 200] == [("/ledger/rotate", 200), ("/ledger/cut", 200)]


async def test_a_key_that_another_hub_adds_while_this_one_signs_costs_no_other(tmp_path: Path) -> None:
    """Of two hubs with the same files: one signs a checkpoint while the other's new key arrives."""
    keys = LedgerKeys(tmp_path, Random(1).randbytes)

    class Meanwhile(MemoryLedger):
        async def sign(self, checkpoint: Checkpoint) -> bool:
            if checkpoint.body["number"] == 1:
                LedgerKeys(tmp_path, Random(2).randbytes).add()
            return await super().sign(checkpoint)

    ledger, shared = Meanwhile(), list[list[str]]()
    books = Books(ledger, FakeClock(), WRITER.name, keys)

    async def share() -> None:
        shared.append(sorted(file.name for file in tmp_path.iterdir()))

    books.share = share
    for n in (1, 2, 3):
        await ledger.append(booking("paris", n))
        await books.checkpoint()
        if n == 1:
            assert sorted(file.name for file in tmp_path.iterdir()) == ["ledger-1.pem", "ledger-2.pem"]
    assert (await ledger.extent()).signed == 3 and [file.name for file in tmp_path.iterdir()] == ["ledger-2.pem"]
    both, one = ["ledger-1.pem", "ledger-2.pem"], ["ledger-2.pem"]
    assert shared == [both, both, one, one], "before what is new is relied on, and when the old has gone"
