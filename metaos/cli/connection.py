"""How a command reaches its hub: a kubeconfig, or the administrator's in the hub's data directory."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import SystemRandom
from typing import Any, TypeVar

from metaos.clock import SystemClock
from metaos.http import HttpClient
from metaos.members.credentials import ExecPlugin
from metaos.resources.errors import ApiError

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

    try:
        config = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ValueError(f"kubeconfig {path} cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"kubeconfig {path} is not YAML: line {line}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"{path} is no kubeconfig: it is not a text") from None
    try:
        named = {part: {entry["name"]: entry.get(part[:-1]) or {} for entry in config.get(part) or ()} for part in _PARTS}
        wanted = config.get("current-context") or ""
        context = named["contexts"].get(wanted)
        if not context:
            what = f"has no context {wanted!r}" if wanted else "has no current-context"
            raise ValueError(f"kubeconfig {path} {what}: choose one with 'kubectl config use-context NAME'")
        cluster, user = (named[f"{part}s"].get(context.get(part), {}) for part in ("cluster", "user"))
        if not cluster.get("server"):
            raise ValueError(f"kubeconfig {path}: cluster {context.get('cluster')!r} of context {wanted!r} names no server")
        return {"cluster": cluster, "user": user, "namespace": context.get("namespace", "")}
    except (AttributeError, TypeError, KeyError):
        raise ValueError(f"{path} is no kubeconfig: print one with 'nemo kubeconfig --data DIR'") from None


_PARTS = ("clusters", "users", "contexts")


def _text(section: dict[str, Any], key: str, path: Path) -> str:
    """A PEM text that stands in the kubeconfig (``KEY-data``) or in a file that it names (``KEY``)."""
    try:
        if section.get(f"{key}-data"):
            return base64.b64decode("".join(section[f"{key}-data"].split()), validate=True).decode()
        return (path.parent / section[key]).read_text() if section.get(key) else ""
    except OSError as error:
        raise ValueError(f"kubeconfig {path}: {key} {error.filename} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"kubeconfig {path}: {key} is not PEM text in base64: print a new one with 'nemo kubeconfig'") from None


def _token(user: dict[str, Any], path: Path) -> str:
    """A user's bearer token. As in client-go, a file goes before a token that stands there, too."""
    if not user.get("tokenFile"):
        return str(user.get("token") or "")
    file = path.parent / str(user["tokenFile"])
    try:
        found: str = file.read_text().strip()
    except OSError as error:
        raise ValueError(f"kubeconfig {path}: tokenFile {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        found = ""
    if not found.isascii() or not found.isprintable() or not found:
        raise ValueError(f"kubeconfig {path}: tokenFile {file} must hold one token, as 'nemo token create' prints it")
    return found


def with_client(kubeconfig: Path | None, data: Path, action: Callable[[HttpClient], Awaitable[T]]) -> T:
    """Runs ``action`` with a connected client and closes it."""
    path = kubeconfig_path(kubeconfig, data)
    config = load_kubeconfig(path)
    cluster, user = config["cluster"], config["user"]

    unknown = sorted({"auth-provider", "username"} & user.keys())
    if unknown:
        raise ValueError(
            f"kubeconfig {path}: its user comes by {unknown[0]}, which is kubectl's alone: use a certificate, a token or exec"
        )
    # Passed over, the user behind it would act, with all that they may.
    if user.get("as"):
        who = user["as"]
        raise ValueError(f"kubeconfig {path}: its user acts as {who!r}, which is kubectl's alone: 'nemo kubeconfig --user {who}'")
    texts = [
        _text(cluster, "certificate-authority", path),
        *(_text(user, f"client-{part}", path) for part in ("certificate", "key")),
    ]
    token = _token(user, path)

    async def run() -> T:
        try:
            client = HttpClient(
                cluster["server"],
                ca=texts[0],
                certificate=texts[1],
                key=texts[2],
                token=token,
                bearer=ExecPlugin(user["exec"], SystemClock(), lambda certificate, key: None).token if user.get("exec") else None,
                clock=SystemClock(),
                random=SystemRandom(),
            )
        except ssl.SSLError as error:
            why = f"its certificates cannot be used ({error.reason or error})"
            raise ValueError(f"kubeconfig {path}: {why}: print a new one with 'nemo kubeconfig'") from None
        try:
            return await action(client)
        except ApiError as error:
            if error.reason != "ServiceUnavailable" or client.url not in error.message:
                raise
            remedy = "is it running ('nemo up'), is this its address, and is the kubeconfig of this hub?"
            if over(texts[1], SystemClock().now()):
                # The hub's refusal may be lost with the connection that it ends.
                remedy = f"the certificate in {path} has expired: print a new one with 'nemo kubeconfig'"
            raise ApiError(error.code, error.reason, f"{error.message}; {remedy}") from None
        finally:
            await client.close()

    return asyncio.run(run())


def over(certificate: str, now: float) -> bool:
    """Whether a certificate (PEM; none is fine) has expired."""
    if not certificate:
        return False
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc.timestamp() <= now
    except ValueError:
        return False


def authority_text(kubeconfig: Path | None, data: Path) -> str:
    """The hub's authority (PEM) as the kubeconfig knows it."""
    path = kubeconfig_path(kubeconfig, data)
    text = _text(load_kubeconfig(path)["cluster"], "certificate-authority", path)
    if not text:
        raise ValueError(f"kubeconfig {path} names no certificate authority, so a join token could not pin it")
    return text
