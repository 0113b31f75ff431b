"""Commands of operators: join tokens, kubeconfigs, images."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import SystemRandom
from typing import Any, TypeVar

from metaos.cli.connection import ADMIN_KUBECONFIG, authority_text, with_client
from metaos.clock import SystemClock
from metaos.http import HttpClient
from metaos.plugins.points import ImageError
from metaos.resources import scheme
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, format_time

T = TypeVar("T")


def checked_site(name: str) -> str:
    """The name, if a site can have it. Raises ``ValueError``."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,40}[a-z0-9])?", name):
        raise ValueError(
            f"site name {name!r} must be lower-case letters, digits and '-', at most 42 characters, for example edge-1"
        )
    return name


def make_join_token(name: str, lifetime_seconds: float, kubeconfig: Path | None, data: Path) -> tuple[str, str]:
    """Makes the token at the hub; its text, and when it expires. The hub keeps only a hash of its secret part."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    from metaos.security.identity import TOKEN_TYPE, JoinToken, token_hash

    authority = x509.load_pem_x509_certificate(authority_text(kubeconfig, data).encode())
    token = JoinToken.create(SystemRandom(), authority.fingerprint(hashes.SHA256()).hex())
    expiration = format_time(SystemClock().now() + lifetime_seconds)
    secret: Obj = dict(scheme.SECRET.empty(token.secret_name, SYSTEM_NAMESPACE))
    secret["type"] = TOKEN_TYPE
    secret["stringData"] = {"cluster": name, "expiration": expiration, "hash": token_hash(token.secret)}

    async def create(client: HttpClient) -> None:
        await client.create(secret)

    with_client(kubeconfig, data, create)
    return str(token), expiration


def admin_kubeconfig(data: Path, server: str | None) -> str:
    """The administrator's kubeconfig, for another URL of the hub if one is named."""
    import yaml

    path = data / ADMIN_KUBECONFIG
    if not path.exists():
        raise ValueError(f"no hub found at {data}: start one with 'nemo up --data {data}'")
    text = path.read_text()
    if server is None:
        return text
    config = yaml.safe_load(text)
    config["clusters"][0]["cluster"]["server"] = server
    return yaml.safe_dump(config, sort_keys=False)


def site_data(given: Path | None, agent: Path, hub: Path) -> Path:
    """The data directory of this machine's site: the one that is ``given``, where that is a hub's the one of its local site;
    otherwise the default ``agent``'s, and where no agent has run there the local site's of the default ``hub``."""
    asked = [given] if given is not None else [agent, hub]
    for each in asked:
        for place in (each, each / "local/agent"):
            if (place / "version").exists() and not (place / "state.db").exists():
                return place
    return asked[0]


def _about_images(data: Path, work: Callable[[Any], Awaitable[T]]) -> T:
    """What ``work`` gets from the runtime of the site whose data directory is ``data``; its agent may run meanwhile."""
    from metaos.plugins.registry import load

    runtime = load("metaos.runtime", "sandbox")(str(data / "runtime"), clock=SystemClock())

    async def ask() -> T:
        try:
            return await work(runtime)
        finally:
            await runtime.close()

    try:
        return asyncio.run(ask())
    except ImageError as error:
        raise ValueError(error.message.splitlines()[0]) from None


def import_image(archive: Path, data: Path) -> list[str]:
    """Imports into the site's image store; the names."""

    async def bring(runtime: Any) -> list[str]:
        return [str(name) for name in await runtime.import_archive(str(archive))]

    return _about_images(data, bring)


def imported_images(data: Path) -> list[dict[str, Any]]:
    """What was imported: ``{"names": …, "sizeBytes": …}``. Host images are in the site file."""

    async def find(runtime: Any) -> list[dict[str, Any]]:
        images = await runtime.images()
        return [{"names": sorted(each["names"]), "sizeBytes": each["sizeBytes"]} for each in images if not each["host"]]

    return _about_images(data, find)


def remove_image(name: str, data: Path) -> None:
    """Takes a name away; the files go with the last name and the last container."""

    async def remove(runtime: Any) -> None:
        await runtime.remove_image(name)

    _about_images(data, remove)
