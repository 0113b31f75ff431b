"""The demonstration's own application where containers are plain processes (``isolation: none``).

Such a site has neither mounts nor networks of pods' own; the runtime says in the environment where things are instead. A few
lines in front of each of the application's programs follow that. Ordinary applications do not run like this: the site
reports as conditions what it cannot give.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

#: In front of each program. Ports below 1024 are not a plain user's, so the Service on port 80 is on port 8880.
PRELUDE = """
import builtins, os, socket
_root, _open, _exists, _replace = os.environ["NEMO_ROOT"], open, os.path.exists, os.replace
_there = lambda path: _root + path if isinstance(path, str) and path.startswith("/data") else path
builtins.open = lambda path, *more, **named: _open(_there(path), *more, **named)
os.path.exists = lambda path: _exists(_there(path))
os.replace = lambda one, other: _replace(_there(one), _there(other))
def _find(host, *more, _ask=socket.getaddrinfo, **named):
    with _open(os.environ["NEMO_HOSTS_FILE"]) as file:
        known = {name: line.split()[0] for line in reversed(file.readlines()) for name in line.split()[1:]}
    return _ask(known.get(host, host), *more, **named)
socket.getaddrinfo = _find
def _bind(self, address, _really=socket.socket.bind):
    _really(self, (os.environ["NEMO_POD_ADDRESS"], address[1]) if address[0] == "" else address)
socket.socket.bind = _bind
"""


def adapted(manifest: Path) -> str:
    """The same manifests for sites without isolation."""
    documents = list(yaml.safe_load_all(manifest.read_text().replace("http://api", "http://api:8880")))
    for document in documents:
        if document["kind"] == "ConfigMap":
            data = document["data"]
            document["data"] = {key: PRELUDE + value if key.endswith(".py") else value for key, value in data.items()}
        for port in document.get("spec", {}).get("ports") or ():
            port["port"] = 8880 if port["port"] == 80 else port["port"]
        for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers") or ():
            container["command"] = _command(container)
    return yaml.safe_dump_all(documents)


def _command(container: dict[str, Any]) -> list[str]:
    command = [str(word) for word in container["command"]]
    if "-c" in command:
        return [PRELUDE + word if "import" in word else word for word in command]
    return ["sh", "-c", "exec " + " ".join(f'"$NEMO_ROOT{word}"' if word.startswith("/") else word for word in command)]
