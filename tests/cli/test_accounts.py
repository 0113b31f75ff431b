"""What ``nemo carbon``, ``nemo cost`` and ``nemo ledger`` print: figures with what they do not say, and files that hold."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import click
import pytest
from aiohttp.test_utils import make_mocked_request
from click.testing import CliRunner

from metaos.accounting.focus import as_focus
from metaos.accounting.statement import as_csv
from metaos.apiserver.accounts import Accounts
from metaos.apiserver.books import Books
from metaos.apiserver.ledgerkeys import LedgerKeys
from metaos.cli.accounts import draw, moment, render, sci_of, unit_of
from metaos.cli.ledger import archive, check, export, text_of, verify_file
from metaos.cli.main import nemo
from metaos.cli.output import fit
from metaos.store.memoryledger import MemoryLedger
from tests.apiserver.accounting import running
from tests.apiserver.test_accounts import pages, two_sites
from tests.clock import FakeClock
from tests.store.ledger import booking

NOW = 1_764_500_000.0


def test_times_and_units_are_read_or_refused_with_what_they_may_be() -> None:
    assert moment("24h", "--since", NOW) == "2025-11-29T10:53:20Z"
    assert moment("2025-11-30", "--since", NOW) == "2025-11-30T00:00:00Z"
    assert moment("2025-11-30T10:00:00+02:00", "--since", NOW) == "2025-11-30T08:00:00Z"
    for wrong in ("yesterday", "24", "2025-13-01", "-1h"):
        with pytest.raises(click.BadParameter, match="or how long ago, such as 24h"):
            moment(wrong, "--since", NOW)
    assert unit_of("core-hour") == ("core-hour", None) and str(unit_of("requests=120000")[1]) == "120000"
    for wrong in ("requests", "requests=", "requests=0", "requests=-1", "=3", "x=nan"):
        with pytest.raises(click.BadParameter, match="NAME=COUNT"):
            unit_of(wrong)


async def asked(money: bool = False, width: int = 0, **spec: Any) -> tuple[dict[str, Any], str]:
    async with running() as hub:
        await two_sites(hub)
        status = await hub.statement(**spec, series=True)
    for group in status["groups"]:
        group["sci"] = sci_of(group, "core-hour", None)
    return status, "\n".join(render(status, width, money=money))


async def test_a_table_says_what_it_does_not_know(tmp_path: Path) -> None:
    status, text = await asked(by="workload")
    head, lab, shop = text.splitlines()[:3]
    assert head.split()[:4] == ["workload", "energy", "kWh", "+/-"] and "SCI g/core-hour" in head
    assert lab.split()[:6] == ["lab/Deployment/train", "0.001111", "20%", "0.4", "-", "-"]
    assert shop.split()[0] == "shop/Deployment/web" and shop.split()[4:6] == ["-", "-"]
    assert "5 of 5 lines without a market-based one (spec.electricity.marketIntensity of the site)" in text
    assert "energy: 100% stated" in text and "up to 2.5% of the time of a group nobody looked" in text
    assert text.count("#") > 20, "a bar for each step"
    sci = status["groups"][0]["sci"]
    assert sci["unit"] == "core-hour" and float(sci["gramsPerUnit"]) == pytest.approx((0.4 + 0.0625) / (300 / 3600), rel=0.3)
    _, text = await asked(by="site", against="average")
    assert "elsewhere g" in text and "against average: the mean of all sites that reported at that time" in text
    _, text = await asked(money=True, by="owner")
    assert text.splitlines()[0].split()[:3] == ["owner", "cost", "currency"] and "EUR" in text
    _, text = await asked(by="pod", pod="nobody")
    assert text == "nothing is booked for that"


async def test_two_currencies_are_told_beside_each_other_and_what_was_used_once() -> None:
    status, _ = await asked(by="workload")
    status["groups"][0]["cost"] = {"EUR": "1.5", "CHF": "0.25"}
    for step in status["series"]:
        step["groups"][0]["cost"] = {"EUR": "0.5", "CHF": "0.125"}
    text = "\n".join(render(status, 0, money=True))
    _, lab, more, shop = text.splitlines()[:4]
    assert lab.split()[:3] == ["lab/Deployment/train", "0.25", "CHF"] and len(lab.split()) == 7
    assert more.split() == ["1.5", "EUR"] and shop.split()[2] == "EUR"
    francs, euros = (text.partition(f"cost in {each}, by time (UTC)\n")[2].splitlines()[:2] for each in ("CHF", "EUR"))
    assert [float(line.split()[-1]) for line in francs] == [0.125, 0.125], "who pays nothing in francs is no unknown"
    assert float(euros[0].split()[-1]) > 0.5


async def test_money_without_any_price_is_not_drawn(tmp_path: Path) -> None:
    status, _ = await asked()
    for each in (status, *status["series"]):
        for group in each["groups"]:
            group["cost"] = {}
    assert "cost in" not in "\n".join(render(status, 0, money=True)) and "no price" in "\n".join(render(status, 0, money=True))
    with pytest.raises(ValueError, match="has a price"):
        draw(status, tmp_path / "c.svg", money=True)


@pytest.mark.parametrize("money", [False, True])
async def test_a_narrow_screen_has_whole_tables(money: bool) -> None:
    _, text = await asked(money, 80, by="workload", against="average")
    lines = fit(text.splitlines(), 80)
    assert max(map(len, lines)) <= 80
    for row in [line for line in lines if line.startswith("shop/Deployment/web")]:
        assert all(any(ch.isdigit() for ch in cell) or cell in ("-", "EUR") for cell in row.split()[1:]), row


async def test_sci_is_given_only_where_all_of_it_is_known() -> None:
    status, _ = await asked()
    group = status["groups"][0]
    assert sci_of(group, "requests", unit_of("requests=1000")[1])["units"] == "1000"
    unknown = {**group, "unknownLines": {"embodied": 1}}
    assert sci_of(unknown, "core-hour", None)["gramsPerUnit"] is None
    assert sci_of({**group, "cpuHours": "0"}, "core-hour", None)["gramsPerUnit"] is None


async def test_exports_for_others() -> None:
    status, _ = await asked(by="workload", charges=True)
    rows = list(csv.DictReader(io.StringIO(as_csv(status["groups"]))))
    assert [row["group"] for row in rows] == ["lab/Deployment/train", "shop/Deployment/web"]
    charges = list(csv.DictReader(io.StringIO(as_focus(status["groups"], "workload"))))
    assert {row["ProviderName"] for row in charges} == {"paris-inc", "shop"} and {row["SkuId"] for row in charges} == {"cpuHour"}
    assert json.loads(json.dumps(status)) == status


@pytest.mark.parametrize(("name", "begins"), [("c.svg", b"<?xml"), ("c.png", b"\x89PNG")])
async def test_pictures(tmp_path: Path, name: str, begins: bytes) -> None:
    status, _ = await asked()
    for money in (False, True):
        draw(status, tmp_path / name, money=money)
        assert (tmp_path / name).read_bytes().startswith(begins)
    with pytest.raises(ValueError, match="there is nothing to draw"):
        draw({**status, "series": []}, tmp_path / name, money=False)
    with pytest.raises(ValueError, match="cannot be written"):
        draw(status, tmp_path / "none" / name, money=False)


async def test_files_are_verified_without_the_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = MemoryLedger()
    books = Books(ledger, FakeClock(), "x", LedgerKeys(tmp_path / "pki", Random(1).randbytes))
    for n in range(1, 6):
        await ledger.append(booking("paris", n))
        if n == 4:
            await books.checkpoint()
    export = tmp_path / "export"
    export.write_bytes(b"\n".join(await pages(Accounts(books))) + b"\n")
    key = books.signing_key(None)
    text = text_of(verify_file(export, key), key)
    assert "entries 1 to 5 (10 lines) are as they were booked" in text and "after entry 4 nothing is signed yet" in text
    check(export, key, "text")
    assert f"signed with {key}" in capsys.readouterr().out
    (tmp_path / "none").touch()
    with pytest.raises(ValueError, match="none: the file is empty: there is nothing to verify"):
        check(tmp_path / "none", key, "text")
    export.write_bytes(export.read_bytes().replace(b'"web-1"', b'"web-9"', 1))
    with pytest.raises(ValueError, match="export: entry 1 was changed"):
        check(export, key, "text")
    async with running(keys=LedgerKeys(tmp_path / "other", Random(2).randbytes)) as hub:
        await two_sites(hub)
        await hub.books.checkpoint()
        found = (await hub.statement(receipts=9))["receipts"]["items"]
    receipts = tmp_path / "receipts"
    receipts.write_text("".join(f"{json.dumps(each)}\n" for each in found))
    check(receipts, "", "text")
    said = capsys.readouterr().out
    assert "4 receipts with 5 lines are as they were booked" in said and "whose keys these are was not checked" in said
    with pytest.raises(ValueError, match="receipt 1: it was signed with another key"):
        check(receipts, key, "text")
    receipts.write_text("hello\n")
    with pytest.raises(ValueError, match="line 1 is neither a receipt nor a line of a ledger"):
        check(receipts, "", "text")


class InProcess:
    """A client of the ledger's paths, without a network between."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def request(self, method: str, path: str, body: bytes) -> SimpleNamespace:
        async def read() -> bytes:
            return body

        made = make_mocked_request(method, path)
        request = SimpleNamespace(method=method, query=made.query, read=read)
        answer: Any = await self._accounts.serve(request, made.path, {})  # type: ignore[arg-type]
        return SimpleNamespace(status=answer.status, body=answer.body)


def test_an_archive_holds_what_was_signed_before_a_time_and_only_that_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, ledger = FakeClock(NOW), MemoryLedger()
    books = Books(ledger, clock, "x", LedgerKeys(tmp_path / "pki", Random(1).randbytes))
    client = InProcess(Accounts(books))
    monkeypatch.setattr("metaos.cli.ledger.with_client", lambda kubeconfig, data, act: asyncio.run(act(client)))

    async def days() -> None:
        # More checkpoints than one page has, before and after the time.
        for n in range(1, 501):
            await ledger.append(booking("paris", n))
            await books.checkpoint()
            await clock.advance(60)

    asyncio.run(days())
    with pytest.raises(ValueError, match="nothing was signed before"):
        archive(tmp_path / "none", moment("2025-01-01", "", NOW), "text", None, tmp_path)
    before = moment("249m", "", clock.now())
    archive(tmp_path / "old", before, "text", None, tmp_path)
    assert "holds entries 1 to 252, verified; 252 entries were removed from the hub" in capsys.readouterr().out
    found = verify_file(tmp_path / "old", books.signing_key(None))
    assert (found.first, found.last, found.signed) == (1, 252, 252)
    rest = export(tmp_path / "rest", None, tmp_path)
    assert (rest.first, rest.last) == (253, 500) and "before entry 253 was cut off: an archive has it" in text_of(rest, "")
    with pytest.raises(ValueError, match="old exists: name another file"):
        archive(tmp_path / "old", moment("1h", "", clock.now()), "text", None, tmp_path)
    with pytest.raises(ValueError, match="nothing was signed before"):
        archive(tmp_path / "again", before, "text", None, tmp_path)
    archive(tmp_path / "next", moment("1h", "", clock.now()), "text", None, tmp_path)
    following = verify_file(tmp_path / "next", books.signing_key(None))
    assert following.first == 253 and following.checkpoints == following.last - 251, "with the one that signs the cut"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("carbon --by site --against twin:cheapest", "leave --by out"),
        ("carbon --site paris --against twin:cheapest", "leave --site out"),
        ("cost -o focus --against twin:cheapest", "leave -o focus out"),
        ("cost --against paris", "must be one of twin:cheapest"),
        ("carbon --against twin:luck", "write one of twin:cheapest"),
        ("cost --against twin:nemo", "write one of twin:cheapest"),
    ],
)
def test_what_a_replay_cannot_answer_is_refused_with_what_can_be_asked(command: str, remedy: str) -> None:
    done = CliRunner().invoke(nemo, command.split())
    assert done.exit_code == 2 and remedy in done.output, done.output
