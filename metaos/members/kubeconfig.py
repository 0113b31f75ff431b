"""Reading a kubeconfig: which server, how to trust it, and who to be there.

``python -m metaos.members.kubeconfig FILE [CONTEXT]`` prints what the agent needs as JSON, so that the YAML parser and
``cryptography`` stay out of the agent. Source: client-go ``tools/clientcmd/api/v1``.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MAX_BYTES = 1024 * 1024
#: Where a pod finds who it is (Kubernetes, "Accessing the Kubernetes API from a Pod").
IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: What a kubeconfig may say and this agent does not do; refused, as leaving it out would mean something else.
_NOT_DONE = {
    "as": "impersonation",
    "as-uid": "impersonation",
    "as-groups": "impersonation",
    "as-user-extra": "impersonation",
    "username": "a password (Kubernetes has not served those since 1.19)",
    "password": "a password (Kubernetes has not served those since 1.19)",
}


class KubeconfigError(Exception):
    """A kubeconfig cannot be used. The message says which field, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Access:
    """PEM texts; of ways to say who we are one at most is set. ``not_after``: when the certificate ends, seconds since the
    epoch. ``exec`` and ``oidc`` are as the kubeconfig has them."""

    server: str
    ca: str = ""
    insecure: bool = False
    server_name: str = ""
    certificate: str = ""
    key: str = ""
    not_after: float | None = None
    token: str = ""
    token_file: str = ""
    exec: dict[str, Any] = field(default_factory=dict)
    oidc: dict[str, str] = field(default_factory=dict)


def read(document: Any, context: str, folder: Path) -> Access:
    """``context``: empty for the current one. Files it names are relative to ``folder``. Raises ``KubeconfigError``."""
    if not isinstance(document, dict) or not isinstance(document.get("clusters"), list):
        raise KubeconfigError("it is no kubeconfig: it has no list 'clusters'")
    chosen = context or str(document.get("current-context") or "")
    if not chosen:
        raise KubeconfigError("it has no current-context: name one with --context")
    about = _named(document, "contexts", "context", chosen)
    cluster = _named(document, "clusters", "cluster", str(about.get("cluster") or ""))
    user = _named(document, "users", "user", str(about["user"])) if about.get("user") else {}
    server = str(cluster.get("server") or "")
    if not server.startswith(("https://", "http://")):
        raise KubeconfigError(f"clusters[].cluster.server {server!r} must be a URL such as https://10.0.0.1:6443")
    if cluster.get("proxy-url"):
        raise KubeconfigError("clusters[].cluster.proxy-url is not supported: run the agent where it reaches the server directly")
    for key, what in _NOT_DONE.items():
        if user.get(key):
            raise KubeconfigError(f"users[].user.{key} is not supported ({what}): use a certificate, token, exec or OIDC instead")
    provider = user.get("auth-provider") or {}
    if provider and provider.get("name") != "oidc":
        raise KubeconfigError(
            f"users[].user.auth-provider {provider.get('name')!r} is not supported: use 'oidc', or the maker's exec plugin"
        )
    found = Access(
        server.rstrip("/"),
        ca=_content(cluster, "certificate-authority", folder),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        server_name=str(cluster.get("tls-server-name") or ""),
        certificate=_content(user, "client-certificate", folder),
        key=_content(user, "client-key", folder),
        token=str(user.get("token") or ""),
        token_file=str(folder / str(user["tokenFile"])) if user.get("tokenFile") else "",
        exec=dict(user.get("exec") or {}),
        oidc={str(k): str(v) for k, v in (provider.get("config") or {}).items()},
    )
    if bool(found.certificate) != bool(found.key):
        raise KubeconfigError("users[].user: client-certificate and client-key belong together, one of them is missing")
    if found.insecure and found.ca:
        raise KubeconfigError(
            "clusters[].cluster: certificate-authority and insecure-skip-tls-verify exclude each other, drop one"
        )
    if found.exec.get("provideClusterInfo"):
        raise KubeconfigError("users[].user.exec.provideClusterInfo is not supported: tell the plugin of the cluster by its args")
    if found.exec and not all(isinstance(e, dict) and e.get("name") for e in found.exec.get("env") or ()):
        raise KubeconfigError("users[].user.exec.env must be a list of names and values")
    if found.exec and not found.exec.get("command"):
        raise KubeconfigError("users[].user.exec.command is missing")
    if "/" in str(found.exec.get("command") or ""):
        found.exec["command"] = str(folder / str(found.exec["command"]))
    return found


def outside(document: Any) -> str:
    """The field by which whoever reads a kubeconfig would run a program or read a file beside it; empty where there is none."""
    for listed, word, keys in (
        ("clusters", "cluster", ("certificate-authority",)),
        ("users", "user", ("exec", "tokenFile", "client-certificate", "client-key")),
    ):
        for each in (document.get(listed) or ()) if isinstance(document, dict) else ():
            part = each.get(word) if isinstance(each, dict) else None
            if isinstance(part, dict):
                if key := next((key for key in keys if part.get(key)), ""):
                    return f"{listed}[].{word}.{key}"
                provider = part.get("auth-provider")
                config = provider.get("config") if isinstance(provider, dict) else None
                if isinstance(config, dict) and config.get("idp-certificate-authority"):
                    return f"{listed}[].{word}.auth-provider.config.idp-certificate-authority"
    return ""


def in_cluster(environment: Mapping[str, str], folder: Path = IN_CLUSTER) -> Access:
    """The service account of the pod that this runs in. Raises ``KubeconfigError``."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (folder / "token").exists():
        raise KubeconfigError("this process runs in no pod with a service account: name a file with --kubeconfig")
    shown = f"[{host}]" if ":" in host else host
    return Access(f"https://{shown}:{port}", ca=(folder / "ca.crt").read_text(), token_file=str(folder / "token"))


def _named(document: Mapping[str, Any], listed: str, word: str, name: str) -> dict[str, Any]:
    names = []
    for each in document.get(listed) or ():
        if isinstance(each, dict):
            if each.get("name") == name and isinstance(each.get(word), dict):
                return dict(each[word])
            names.append(str(each.get("name")))
    raise KubeconfigError(f"it has no {word} {name!r}; there are: {', '.join(names[:10]) or 'none'}")


def _content(part: Mapping[str, Any], key: str, folder: Path) -> str:
    """What stands in ``KEY-data`` (base64), or in the file that ``KEY`` names."""
    data = part.get(f"{key}-data")
    if data:
        try:
            return base64.b64decode(str(data), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise KubeconfigError(f"{key}-data is not PEM in base64") from None
    if part.get(key):
        path = folder / str(part[key])
        try:
            found = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise KubeconfigError(f"{key} cannot be read: {error}") from None
        if not found.strip():  # without an authority all those of the machine would be trusted
            raise KubeconfigError(f"{key} {path} is empty: it must hold PEM")
        return found
    return ""


def _ends(certificate: str) -> float | None:
    from metaos.agent.identity import describe

    try:
        return float(describe(certificate.encode())["notAfter"]) if certificate else None
    except ValueError:
        raise KubeconfigError("client-certificate holds no certificate in PEM") from None


def main(arguments: list[str]) -> int:
    import yaml

    path = Path(arguments[0]) if arguments else None
    try:
        if path is None:
            found = in_cluster(os.environ)
        else:
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise KubeconfigError(f"it has more than {MAX_BYTES} bytes: is it another file?")
            found = read(yaml.safe_load(content), arguments[1] if len(arguments) > 1 else "", path.resolve().parent)
        json.dump(asdict(found) | {"not_after": _ends(found.certificate)}, sys.stdout)
    except yaml.YAMLError as error:
        sys.stderr.write(f"kubeconfig {path}: it is not YAML: {' '.join(str(error).split())[:300]}\n")
        return 1
    except (OSError, KubeconfigError) as error:
        sys.stderr.write(f"kubeconfig {path or 'of the pod'}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
