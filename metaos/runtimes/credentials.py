"""Which of a pod's credentials are for an image's registry: as a kubelet chooses from a docker configuration. Pure."""

from __future__ import annotations

import base64
import fnmatch
import json
from collections.abc import Iterator, Mapping, Sequence

#: A registry is asked with so many credentials at most.
MAX_TRIED = 8
_REMEDY = 'make it with "kubectl create secret docker-registry"'
_HUB = ("index.docker.io", "registry-1.docker.io", "docker.io")


def for_image(image: str, known: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """(user, password) to try for a normalised image name, the closest first. ``known``: (server, user, password), where the
    server may be a URL, name a path, and have ``*`` for parts of the host's name."""
    found = []
    for server, user, password in known:
        host, path = _place(server)
        registry, _, rest = image.partition("/")
        if _same_host(host, registry) and (not path or rest.startswith(path + "/") or rest.partition(":")[0] == path):
            found.append((len(path), "*" not in host, user, password))
    found.sort(key=lambda each: each[:2], reverse=True)
    return list(dict.fromkeys((user, password) for _, _, user, password in found))[:MAX_TRIED]


def of_secret(name: str, entries: Mapping[str, bytes]) -> Iterator[tuple[str, str, str]]:
    """(server, user, password) of a Secret of type ``kubernetes.io/dockerconfigjson`` or ``kubernetes.io/dockercfg``. Raises
    ``ValueError``, in which nothing of its content stands."""
    raw = entries.get(".dockerconfigjson", entries.get(".dockercfg"))
    if raw is None:
        raise ValueError(f'secret "{name}" has neither .dockerconfigjson nor .dockercfg: {_REMEDY}')
    try:
        servers = json.loads(raw)
        if ".dockerconfigjson" in entries:
            servers = servers["auths"]
        rows = [(str(server), *_known(entry)) for server, entry in servers.items()]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f'secret "{name}" is no docker configuration ({type(error).__name__}): {_REMEDY}') from None
    for server, user, password, token in rows:
        if user and password:
            yield server, user, password
        elif token:
            raise ValueError(f'secret "{name}": an identitytoken is not supported: put user and password there')


def _known(entry: Mapping[str, str]) -> tuple[str, str, bool]:
    """User, password, and whether there is a token."""
    user, password = entry.get("username"), entry.get("password")
    if entry.get("auth"):
        user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    return str(user or ""), str(password or ""), bool(entry.get("identitytoken"))


def _place(server: str) -> tuple[str, str]:
    host, _, path = server.removeprefix("https://").removeprefix("http://").partition("/")
    path = path.strip("/")
    # The old way to write Docker's registry; v1 and v2 are parts of the protocol and not of a name.
    return ("docker.io" if host in _HUB else host), ("" if path in ("v1", "v2") else path)


def _same_host(pattern: str, host: str) -> bool:
    parts, own = pattern.split("."), host.split(".")
    return len(parts) == len(own) and all(map(fnmatch.fnmatchcase, own, parts))
