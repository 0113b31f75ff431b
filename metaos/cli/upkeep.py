"""Commands of operators: backups, restoring them, and encryption keys."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from metaos.apiserver.upkeep import Stretched, backup_directory, describe_backup, restore_hub, stretched
from metaos.cli.connection import with_client
from metaos.cli.output import emit
from metaos.clock import SystemClock
from metaos.files import sync_directory
from metaos.http import HttpClient, error_of
from metaos.resources.errors import ApiError
from metaos.resources.meta import RESTORED, SYSTEM_NAMESPACE

#: A hub copies its state before it sends the first byte.
BEGIN_SECONDS = 600.0


def migrate_store(data: Path, store: str, output: str, *, back: bool) -> None:
    """Moves a state between SQLite and PostgreSQL, saying on standard error how far it is."""

    async def work() -> dict[str, Any]:
        from metaos.hubs import move_store

        return await move_store(data, store, SystemClock(), lambda text: print(text, file=sys.stderr, flush=True), back=back)

    found = asyncio.run(work())
    count, entries, same = found["log"]["count"], found["ledger"]["count"], found["current"]["sha256"][:16]
    text = (
        f"moved {count} revisions, up to {found['revision']}, and {entries} entries of the ledger; what is current is the same "
    )
    text += f"on both sides (SHA-256 {same}…). From the hub's end on it took {found['freezeSeconds']} s"
    emit(found, output, text=text)


def passphrase_in(file: Path | None) -> str | None:
    """The first line of a file. Raises ``ValueError`` where it is too short to protect anything."""
    if file is None:
        return None
    text = file.read_text().partition("\n")[0].strip()
    if len(text) < 12:
        raise ValueError(f"the passphrase in {file} must have at least 12 characters: it protects all keys of the hub")
    return text


def take_backup(target: Path, passphrase_file: Path | None, kubeconfig: Path | None, data: Path) -> str:
    """Writes the backup; one sentence about it. From the hub where it answers, otherwise from its data directory."""
    passphrase = passphrase_in(passphrase_file)
    secret = stretched(passphrase) if passphrase else None
    if target.exists():
        raise ValueError(f"{target} exists: name another file, or remove it first")
    part = target.with_name(f"{target.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    how = "from the hub"
    try:
        with open(descriptor, "wb") as file:

            async def download(client: HttpClient) -> None:
                async for chunk in _backup(client, secret):
                    file.write(chunk)

            try:
                with_client(kubeconfig, data, download)
            except ApiError as error:
                if error.code != 503 or kubeconfig is not None or not (data / "state.db").exists() or file.tell():
                    raise
                backup_directory(data, part, SystemClock().now(), secret)
                how = f"from {data}, as the hub does not answer"
            file.flush()
        synced = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(synced)
        os.close(synced)
        os.replace(part, target)
        sync_directory(target.absolute().parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    manifest = describe_backup(target)
    keys = (
        "with the keys, sealed by the passphrase"
        if manifest["files"]
        else "WITHOUT keys: keep copies of keys.json and pki/ of the hub's data directory apart, or give --passphrase-file"
    )
    return f"{target}: {target.stat().st_size} bytes {how}, as of revision {manifest['revision']}, {keys}"


def _backup(client: HttpClient, secret: Stretched | None) -> AsyncIterator[bytes]:
    body = b""
    if secret is not None:
        body = json.dumps({"key": base64.b64encode(secret.key).decode(), "salt": base64.b64encode(secret.salt).decode()}).encode()
    return client.chunks("POST", "/backup", body, begin_seconds=BEGIN_SECONDS)


def restore(backup: Path, data: Path, passphrase_file: Path | None, keys: Path | None) -> str:
    """Makes ``data`` of the backup; what to do next."""
    if not backup.exists():
        raise ValueError(f"{backup} does not exist: make a backup with 'nemo backup FILE'")
    revision, made = restore_hub(backup, data, SystemClock().now(), passphrase=passphrase_in(passphrase_file), keys=keys)
    return (
        f"{data} holds the hub as of {made}; its revisions begin at {revision}, so that everybody lists again.\n"
        f"Make sure that the old hub is stopped, then start this one at the old address: nemo up --data {data} --listen …\n"
        f"Apply what is missing in it; sites go on with what it does not know until you say that all is there again: "
        f"kubectl delete configmap -n {SYSTEM_NAMESPACE} {RESTORED}"
    )


def show_keys(kubeconfig: Path | None, data: Path, output: str, *, rotate: bool) -> None:
    """Prints the hub's encryption keys, after a new one was added where ``rotate``."""

    async def ask(client: HttpClient) -> dict[str, Any]:
        response = await client.request(*(("POST", "/keys/rotate") if rotate else ("GET", "/keys")))
        if response.status >= 400:
            raise error_of(response)
        found: dict[str, Any] = response.json()
        return found

    found = with_client(kubeconfig, data, ask)
    emit(found, output, text=_keys_text(found))


def _keys_text(found: dict[str, Any]) -> str:
    """One line a key."""
    lines = [f"key {found['current']} seals new values"]
    for key in found["keys"]:
        if key["id"] != found["current"]:
            why = "still seals some, which are written again" if key["inUse"] else "seals nothing any more"
            lines.append(f"key {key['id']} {why}: it goes within minutes")
    return "\n".join(lines)
