"""``nemo ledger``: exports of the hub's ledger and receipts of it, which are verified without the hub; its keys; its archive."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from metaos.accounting.export import Verified, verify
from metaos.accounting.ledger import Tampered, verify_receipt
from metaos.cli.connection import with_client
from metaos.cli.output import emit
from metaos.files import sync_directory
from metaos.http import HttpClient, error_of
from metaos.resources import scheme
from metaos.resources.meta import Obj


async def _ask(client: HttpClient, method: str, path: str, body: Any = None) -> bytes:
    response = await client.request(method, path, b"" if body is None else json.dumps(body).encode())
    if response.status >= 400:
        raise error_of(response)
    return bytes(response.body)


async def download(client: HttpClient, file: BinaryIO, until: int) -> None:
    """The whole ledger, up to an entry where one is said, page by page."""
    after = number = 0
    ended = False
    while not ended:
        more = f"&until={until}" if until else ""
        page = await _ask(client, "GET", f"/ledger?after={after}&checkpoint={number}{more}")
        file.write(page)
        for line in map(json.loads, page.splitlines()):
            after = line["entry"]["position"] if "entry" in line else after
            number = line["checkpoint"]["body"]["number"] if "checkpoint" in line else number
            ended = ended or "end" in line


def export(target: Path, kubeconfig: Path | None, data: Path, *, until: int = 0) -> Verified:
    """Writes the ledger to a new file, whole or not at all, and verifies that."""
    if target.exists():
        raise ValueError(f"{target} exists: name another file, or remove it first")
    part = target.with_name(f"{target.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            with_client(kubeconfig, data, lambda client: download(client, file, until))
            file.flush()
            os.fsync(file.fileno())
        found = verify_file(part, "")
        os.replace(part, target)
        sync_directory(target.absolute().parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return found


def verify_file(file: Path, trusted: str) -> Verified:
    """An export. Raises ``ValueError`` naming the file and what was changed in it."""
    if not file.stat().st_size:
        raise ValueError(f"{file}: the file is empty: there is nothing to verify")
    with file.open("rb") as lines:
        try:
            return verify(lines, trusted)
        except Tampered as found:
            raise ValueError(f"{file}: {found}") from None


def said(found: Verified) -> dict[str, Any]:
    return {
        "first": found.first,
        "last": found.last,
        "signed": found.signed,
        "lines": found.lines,
        "head": found.head.hex(),
        "checkpoints": found.checkpoints,
        "keys": found.keys,
    }


def text_of(found: Verified, trusted: str) -> str:
    """One sentence a fact."""
    if found.last < found.first:
        return "the ledger is empty, and whole"
    lines = [f"entries {found.first} to {found.last} ({found.lines} lines) are as they were booked, in one unbroken chain"]
    if found.first > 1:
        lines.append(f"what lies before entry {found.first} was cut off: an archive has it")
    lines.append(
        f"up to entry {found.signed} they are signed, by {found.checkpoints} checkpoints"
        if found.checkpoints
        else "none is signed"
    )
    if found.signed < found.last:
        lines.append(f"after entry {found.signed} nothing is signed yet: whoever made the file could have changed that")
    lines += [f"signed with {key}" for key in found.keys]
    if not trusted and found.keys:
        lines.append("whose keys these are was not checked: give one that you got from the hub's owner with --key")
    return "\n".join(lines)


def check(file: Path, trusted: str, output: str) -> None:
    """``nemo ledger verify``: an export, or receipts (one, or one a line)."""
    receipts = list(_receipts(file))
    if not receipts:
        found = verify_file(file, trusted)
        emit({"ledger": said(found)}, output, text=text_of(found, trusted))
        return
    keys = []
    for number, receipt in enumerate(receipts, 1):
        try:
            keys.append(verify_receipt(receipt, trusted))
        except Tampered as wrong:
            raise ValueError(f"{file}: receipt {number}: {wrong}") from None
    lines = sum(len(receipt["lines"]) for receipt in receipts)
    told = [
        f"{len(receipts)} receipts with {lines} lines are as they were booked",
        *(f"signed with {k}" for k in dict.fromkeys(keys)),
    ]
    if not trusted:
        told.append("whose keys these are was not checked: give one that you got from the hub's owner with --key")
    emit({"receipts": len(receipts), "lines": lines, "keys": list(dict.fromkeys(keys))}, output, text="\n".join(told))


def _receipts(file: Path) -> Iterator[Any]:
    """Nothing where the file begins as an export does."""
    with file.open("rb") as lines:
        for at, line in enumerate(lines, 1):
            if at == 1 and line.startswith(b'{"ledger"'):
                return
            try:
                yield json.loads(line)
            except ValueError:
                raise ValueError(f"{file}: line {at} is neither a receipt nor a line of a ledger: it is not JSON") from None


def receipts(spec: dict[str, Any], target: Path | None, kubeconfig: Path | None, data: Path) -> None:
    """``nemo ledger receipts``: one a line, each with the lines of one period that were asked for."""

    async def ask(client: HttpClient) -> Obj:
        return await client.create({**scheme.STATEMENT.empty(""), "spec": spec})

    found = with_client(kubeconfig, data, ask)["status"]["receipts"]
    text = "".join(f"{json.dumps(each, separators=(',', ':'))}\n" for each in found["items"])
    if target is None:
        click.echo(text, nl=False)
    else:
        target.write_text(text)
    told = [f"{len(found['items'])} receipts"]
    if found["unsigned"]:
        told.append(f"{found['unsigned']} periods are not signed yet: ask again after the next checkpoint")
    if found["leftOut"]:
        told.append(f"{found['leftOut']} more periods have lines that were asked for: narrow it down with --since and --until")
    click.echo("; ".join(told), err=True)


def keys(kubeconfig: Path | None, data: Path, output: str, *, path: str = "/ledger/keys") -> None:
    """What signs, and what has signed, after ``path`` was done."""
    method = "GET" if path == "/ledger/keys" else "POST"
    found = json.loads(with_client(kubeconfig, data, lambda client: _ask(client, method, path)))
    lines = [f"entries {found['first']} to {found['last']}, signed up to {found['signed']}"]
    lines.append(f"{found['signs']} signs next")
    lines += [f"{key} has signed" for key in found["keys"] if key != found["signs"]]
    emit(found, output, text="\n".join(lines))


async def _signed_before(client: HttpClient, before: str) -> dict[str, Any] | None:
    """The last checkpoint that was made before a time, what is cut off already apart."""
    state = json.loads(await _ask(client, "GET", "/ledger/keys"))
    found: dict[str, Any] | None = None
    after, number, ended = 0, 0, False
    while not ended:
        page = await _ask(client, "GET", f"/ledger?after={after}&checkpoint={number}")
        for line in map(json.loads, page.splitlines()):
            after = line["entry"]["position"] if "entry" in line else after
            ended = ended or "end" in line
            if "checkpoint" in line:
                body = line["checkpoint"]["body"]
                number = body["number"]
                if body["time"] > before:
                    return found
                if body["last"] >= state["first"]:
                    found = body
    return found


def archive(target: Path, before: str, output: str, kubeconfig: Path | None, data: Path) -> None:
    """Exports up to the last checkpoint that was made before a time, verifies the file, and cuts that off the hub's ledger."""

    body = with_client(kubeconfig, data, lambda client: _signed_before(client, before))
    if body is None:
        raise ValueError(f"nothing was signed before {before}: there is nothing to archive")
    found = export(target, kubeconfig, data, until=int(body["last"]))
    if found.signed != body["last"] or found.last != body["last"] or found.head.hex() != body["head"]:
        raise ValueError(f"{target} does not end at checkpoint {body['number']}: nothing was cut off")
    asked = {"checkpoint": body["number"], "head": body["head"]}
    removed = json.loads(with_client(kubeconfig, data, lambda client: _ask(client, "POST", "/ledger/cut", asked)))["removed"]
    text = f"{target} holds entries {found.first} to {found.last}, verified; {removed} entries were removed from the hub"
    emit({**said(found), "removed": removed}, output, text=f"{text}. Keep the file: statements no longer count what is in it")
