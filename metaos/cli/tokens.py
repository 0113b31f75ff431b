"""Personal tokens: made, listed and revoked at the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson

from metaos.cli.connection import with_client
from metaos.cli.credentials import seconds_of
from metaos.http import HttpClient
from metaos.resources.errors import ApiError
from metaos.security.personal import scope_problem

PATH = "/tokens"


async def _ask(client: HttpClient, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
    answer = await client.request(method, path, body)
    found: dict[str, Any] = answer.json()
    if answer.status >= 300:
        raise ApiError(answer.status, str(found.get("reason") or ""), str(found.get("message") or answer.status))
    return found


def create(named: str, scopes: Sequence[str], expires: str, kubeconfig: Path | None, data: Path) -> dict[str, Any]:
    """A new token, the only time that it is shown. Raises ``ValueError``."""
    if problem := scope_problem(scopes):
        raise ValueError(f"--scopes: {problem}")
    asked = {"name": named, "scopes": list(scopes), "expirationSeconds": seconds_of(expires, "--expires")}

    async def act(client: HttpClient) -> dict[str, Any]:
        return await _ask(client, "POST", PATH, orjson.dumps(asked))

    return with_client(kubeconfig, data, act)


def listed(kubeconfig: Path | None, data: Path) -> list[dict[str, Any]]:
    async def act(client: HttpClient) -> dict[str, Any]:
        return await _ask(client, "GET", PATH)

    found: list[dict[str, Any]] = with_client(kubeconfig, data, act)["items"]
    return found


def revoke(id: str, kubeconfig: Path | None, data: Path) -> None:
    if not id:
        raise ValueError("ID is empty: 'nemo token list' shows those that you have")

    async def act(client: HttpClient) -> dict[str, Any]:
        try:
            return await _ask(client, "DELETE", f"{PATH}/{quote(id, safe='')}")
        except ApiError as error:
            if error.code != 404:
                raise
            raise ApiError(404, error.reason, f"you have no personal token {id!r}: 'nemo token list' shows yours") from None

    with_client(kubeconfig, data, act)


def text(tokens: Sequence[dict[str, Any]]) -> str:
    """For people."""
    if not tokens:
        return "you have no personal tokens: make one with 'nemo token create'"
    rows = [("ID", "NAME", "SCOPES", "EXPIRES", "LAST USED")]
    rows += [(t["id"], t["name"], ",".join(t["scopes"]), t["expires"], t["used"] or "never") for t in tokens]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows)
