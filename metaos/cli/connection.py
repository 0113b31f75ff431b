"""How a command reaches its hub: a kubeconfig, or the administrator's in the hub's data directory."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import SystemRandom
from typing import Any, TypeVar

from metaos.clock import SystemClock
from metaos.http import HttpClient

T = TypeVar("T")

ADMIN_KUBECONFIG = "admin.kubeconfig"


def kubeconfig_path(kubeconfig: Path | None, data: Path) -> Path:
    """The kubeconfig to use. Raises ``ValueError`` saying what was looked for and what to do."""
    for candidate in [Path(p) for p in str(kubeconfig).split(":")] if kubeconfig else []:
        if candidate.exists():
            return candidate
    if kubeconfig:
        raise ValueError(f"kubeconfig {kubeconfig} does not exist: print one with 'nemo kubeconfig --data DIR'")
    found = data / ADMIN_KUBECONFIG
    if not found.exists():
        raise ValueError(f"no hub found at {data}: start one with 'nemo up', or name one with --data DIR or --kubeconfig FILE")
    return found


def load_kubeconfig(path: Path) -> dict[str, Any]:
    """The current context as ``{"cluster": …, "user": …, "namespace": …}``."""
    import yaml

    config = yaml.safe_load(path.read_text()) or {}
    named = {
        part: {entry["name"]: entry.get(part[:-1] if part != "contexts" else "context") or {} for entry in config.get(part) or ()}
        for part in ("clusters", "users", "contexts")
    }
    context = named["contexts"].get(config.get("current-context", ""))
    if not context:
        raise ValueError(f"kubeconfig {path} has no current-context: set one with 'kubectl config use-context NAME'")
    return {
        "cluster": named["clusters"].get(context.get("cluster"), {}),
        "user": named["users"].get(context.get("user"), {}),
        "namespace": context.get("namespace", ""),
    }


def _text(section: dict[str, Any], key: str, folder: Path) -> str:
    """A PEM text that stands in the kubeconfig (``KEY-data``) or in a file that it names (``KEY``)."""
    if section.get(f"{key}-data"):
        return base64.b64decode(section[f"{key}-data"]).decode()
    return (folder / section[key]).read_text() if section.get(key) else ""


def with_client(kubeconfig: Path | None, data: Path, action: Callable[[HttpClient], Awaitable[T]]) -> T:
    """Runs ``action`` with a connected client and closes it."""
    path = kubeconfig_path(kubeconfig, data)
    config = load_kubeconfig(path)
    cluster, user = config["cluster"], config["user"]

    async def run() -> T:
        client = HttpClient(
            cluster.get("server", ""),
            ca=_text(cluster, "certificate-authority", path.parent),
            certificate=_text(user, "client-certificate", path.parent),
            key=_text(user, "client-key", path.parent),
            token=user.get("token", ""),
            clock=SystemClock(),
            random=SystemRandom(),
        )
        try:
            return await action(client)
        finally:
            await client.close()

    return asyncio.run(run())


def authority_text(kubeconfig: Path | None, data: Path) -> str:
    """The hub's authority (PEM) as the kubeconfig knows it."""
    path = kubeconfig_path(kubeconfig, data)
    text = _text(load_kubeconfig(path)["cluster"], "certificate-authority", path.parent)
    if not text:
        raise ValueError(f"kubeconfig {path} names no certificate authority, so a join token could not pin it")
    return text
