"""``nemo login``: a person logs in at an OpenID provider from another device, and kubectl gets what it needs for that.

The OAuth 2.0 device authorization grant (RFC 8628). What came of it lies in a session file that its owner alone can read; kubectl
runs ``nemo token get`` (a client-go credential plugin), which renews the ID token there. No secret is ever an argument.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import SystemRandom
from typing import Any
from urllib.parse import urlencode

from metaos.cli.connection import authority_text, kubeconfig_path, load_kubeconfig
from metaos.clock import SystemClock
from metaos.files import write_private
from metaos.http import HttpClient
from metaos.members.credentials import token_end
from metaos.resources.errors import ApiError
from metaos.resources.meta import format_time

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
EXEC_VERSION = "client.authentication.k8s.io/v1"
#: RFC 8628, section 3.5.
USUAL_INTERVAL, SLOWER = 5.0, 5.0
MOST_SECONDS = 1800.0
#: A token is renewed so long before it ends.
EARLY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Session:
    """What a log-in came to. ``ca``: PEM, empty: the machine's authorities."""

    issuer: str
    client_id: str
    ca: str
    id_token: str
    refresh_token: str

    @classmethod
    def read(cls, file: Path) -> Session:
        """Raises ``ValueError`` with the remedy."""
        try:
            found = json.loads(file.read_text())
            return cls(*(str(found[key]) for key in cls.__slots__))
        except OSError as error:
            raise ValueError(f"session {file} cannot be read ({error.strerror}): log in again with 'nemo login'") from None
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"session {file} is not one that 'nemo login' has written: log in again") from None

    def write(self, file: Path) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(file, json.dumps({key: getattr(self, key) for key in self.__slots__}))


def judge(status: int, said: Mapping[str, Any], interval: float) -> float | None:
    """How many seconds to wait before asking again whether the person is done; ``None``: the tokens are there.

    Raises ``ValueError`` where it came to nothing. Source: RFC 8628, section 3.5."""
    if status == 200:
        if not said.get("id_token"):
            raise ValueError("the provider gave no id_token: its client must allow the scope openid")
        return None
    error = said.get("error")
    if error == "authorization_pending":
        return interval
    if error == "slow_down":
        return interval + SLOWER
    reasons = {"access_denied": "it was denied there", "expired_token": "the code has expired: begin anew"}
    why = reasons.get(str(error), f"the provider answered {status}: {str(said.get('error_description') or error)[:200]}")
    raise ValueError(f"you are not logged in: {why}")


async def _ask(url: str, ca: str, form: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    if not url.startswith("https://"):
        raise ValueError(f"the provider's address {url[:200]!r} must begin with https://")
    client = HttpClient(url, ca=ca, peer="the provider", clock=SystemClock(), random=SystemRandom())
    try:
        body = b"" if form is None else urlencode(form).encode()
        kind = "application/x-www-form-urlencoded"
        answer = await client.request("GET" if form is None else "POST", "", body, content_type=kind)
    except ApiError as error:
        remedy = "is that its address, and the authority of its certificate known to this machine, or named by --issuer-ca?"
        raise ValueError(f"{error.message}; {remedy}") from None
    finally:
        await client.close()
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{url} answered {answer.status} and no JSON object: is it the address of an OpenID provider?")
    return answer.status, found


async def _metadata(issuer: str, ca: str) -> dict[str, Any]:
    status, found = await _ask(issuer.rstrip("/") + "/.well-known/openid-configuration", ca)
    if status != 200 or found.get("issuer") != issuer:
        said = f"its metadata names {str(found.get('issuer'))[:200]!r}" if status == 200 else f"it answered {status}"
        raise ValueError(f"--issuer {issuer!r} is not the provider there: {said}")
    return found


async def _device(issuer: str, client_id: str, scope: str, ca: str, show: Callable[[str], None]) -> Session:
    about = await _metadata(issuer, ca)
    endpoint, tokens = (str(about.get(key) or "") for key in ("device_authorization_endpoint", "token_endpoint"))
    if not endpoint:
        raise ValueError(f"the provider {issuer} does not offer the device flow (device_authorization_endpoint)")
    status, asked = await _ask(endpoint, ca, {"client_id": client_id, "scope": scope})
    if status != 200:
        raise ValueError(f"the provider refuses client {client_id!r}: {str(asked.get('error_description') or asked)[:200]}")
    try:
        code, where, device = (str(asked[key]) for key in ("user_code", "verification_uri", "device_code"))
        interval, lasts = float(asked.get("interval", USUAL_INTERVAL)), float(asked["expires_in"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"the provider {issuer} answered with something that is no device authorization") from None
    show(f"Open {_plain(where)} on any device and enter the code {_plain(code)}")
    if asked.get("verification_uri_complete"):
        show(f"or open {_plain(str(asked['verification_uri_complete']))}")
    clock = SystemClock()
    deadline = clock.monotonic() + min(lasts, MOST_SECONDS)
    form = {"grant_type": DEVICE_GRANT, "device_code": device, "client_id": client_id}
    wait: float | None = max(1.0, interval)
    while wait is not None:
        if clock.monotonic() + wait > deadline:
            raise ValueError("you are not logged in: the code has expired: begin anew")
        await clock.sleep(wait)
        wait = judge(*(answer := await _ask(tokens, ca, form)), wait)
    return Session(issuer, client_id, ca, str(answer[1]["id_token"]), str(answer[1].get("refresh_token") or ""))


def _plain(text: str) -> str:
    """What a provider says may not steer the terminal."""
    return "".join(each for each in text[:500] if each.isprintable())


def login(
    issuer: str, client_id: str, scope: str, issuer_ca: Path | None, out: Path, kubeconfig: Path | None, data: Path, show: Any
) -> None:
    """Logs in, and writes session and kubeconfig. Raises ``ValueError``."""
    import yaml

    path = kubeconfig_path(kubeconfig, data)
    cluster = load_kubeconfig(path)["cluster"]
    authority = authority_text(kubeconfig, data)
    ca = _pem(issuer_ca)
    if not issuer.startswith("https://"):
        raise ValueError(f"--issuer {issuer[:200]!r} must begin with https://, as the hub's configuration names it")
    if not client_id:
        raise ValueError("--client-id is empty: name the client that the provider has for the hub")
    _placeable(out)
    session = asyncio.run(_device(issuer, client_id, scope, ca, show))
    kept = out.with_suffix(".session").absolute()
    session.write(kept)
    plugin = {
        "apiVersion": EXEC_VERSION,
        "command": "nemo",
        "args": ["token", "get", "--session", str(kept)],
        "interactiveMode": "Never",
        "installHint": "nemo is a part of NEMO: pip install nemo-metaos",
    }
    written = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "nemo",
        "clusters": [
            {
                "name": "nemo",
                "cluster": {
                    "server": cluster["server"],
                    "certificate-authority-data": base64.b64encode(authority.encode()).decode(),
                },
            }
        ],
        "users": [{"name": "nemo", "user": {"exec": plugin}}],
        "contexts": [{"name": "nemo", "context": {"cluster": "nemo", "user": "nemo"}}],
    }
    write_private(out, yaml.safe_dump(written, sort_keys=False))


def _placeable(out: Path) -> None:
    """Whether a kubeconfig can be written there is found out before a person has logged in. Raises ``ValueError``."""
    if out.suffix == ".session":
        raise ValueError(f"--out {out} is where the session would lie: let it end with something else, for example .kubeconfig")
    if out.exists():
        try:
            plugin = load_kubeconfig(out)["user"].get("exec") or {}
        except ValueError:
            plugin = {}
        if (plugin.get("args") or [])[:2] != ["token", "get"]:
            raise ValueError(f"--out {out} is there and not of 'nemo login', so it is left alone: name another file")
    try:
        out.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be written: {error.strerror}") from None
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out {out} cannot be written: its directory is not yours to write")


def _pem(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        text = file.read_text()
    except OSError as error:
        raise ValueError(f"--issuer-ca {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    if "BEGIN CERTIFICATE" not in text:  # Without an authority all those of the machine would be trusted.
        raise ValueError(f"--issuer-ca {file} holds no PEM certificate")
    return text


def credential(file: Path) -> dict[str, Any]:
    """The ExecCredential of a session, renewed where it is about to end. Raises ``ValueError``."""
    session = Session.read(file)
    clock = SystemClock()
    if token_end(session.id_token) - EARLY_SECONDS <= clock.now():
        # Of programs that run at the same time one renews: providers let each refresh token be used once.
        with file.with_suffix(".lock").open("w") as lock:
            os.fchmod(lock.fileno(), 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            session = Session.read(file)
            if token_end(session.id_token) - EARLY_SECONDS <= clock.now():
                session = asyncio.run(_renewed(session))
                session.write(file)
    status = {"token": session.id_token, "expirationTimestamp": format_time(token_end(session.id_token) - EARLY_SECONDS)}
    return {"apiVersion": EXEC_VERSION, "kind": "ExecCredential", "status": status}


async def _renewed(session: Session) -> Session:
    if not session.refresh_token:
        raise ValueError("the log-in has ended, and the provider gave nothing to renew it with: run 'nemo login' again")
    about = await _metadata(session.issuer, session.ca)
    form = {"grant_type": "refresh_token", "refresh_token": session.refresh_token, "client_id": session.client_id}
    status, given = await _ask(str(about.get("token_endpoint") or ""), session.ca, form)
    if status != 200 or not given.get("id_token"):
        why = str(given.get("error_description") or given.get("error") or f"status {status}")[:200]
        raise ValueError(f"the log-in cannot be renewed ({why}): run 'nemo login' again")
    renewed = str(given.get("refresh_token") or session.refresh_token)
    return replace(session, id_token=str(given["id_token"]), refresh_token=renewed)
