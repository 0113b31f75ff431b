"""The two servers that get the same requests: a real kube-apiserver and NEMO, both over HTTPS."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from metaos.clock import SystemClock
from tests.apiserver.definitions import controllers
from tests.apiserver.serving import served

#: What an older server calls a group and version that NEMO serves: of which resources, and the name.
OLDER = {
    "policy/v1": (("poddisruptionbudgets",), "policy/v1beta1"),
    "autoscaling/v2": (("horizontalpodautoscalers",), "autoscaling/v2beta2"),
    "batch/v1": (("cronjobs",), "batch/v1beta1"),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """``body``: the decoded JSON, else text; of a watch the list of its events."""

    code: int
    body: Any
    warnings: tuple[str, ...] = ()


@dataclass
class Peer:
    """``saved``: what steps of a case remembered. ``older``: see ``OLDER``, as far as this server needs it. ``minor``: its
    version's, of Kubernetes 1; 0 of an old one that was built without a version."""

    name: str
    url: str
    session: aiohttp.ClientSession
    older: dict[str, str] = field(default_factory=dict)
    saved: dict[str, str] = field(default_factory=dict)
    minor: int = 0

    async def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Answer:
        headers = {"Accept": "application/json", "User-Agent": "differential/1"}
        data = None
        path, body = self._translated(path, body)
        if body is not None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            headers["Content-Type"] = content_type
        async with self.session.request(method, self.url + path, data=data, headers=headers) as response:
            text = await response.text()
            warnings = tuple(w.split('"')[1] for w in response.headers.getall("Warning", ()) if '"' in w)
            try:
                return Answer(response.status, self._restored(json.loads(text)), warnings)
            except ValueError:
                return Answer(response.status, text, warnings)

    async def watch(self, path: str, count: int, seconds: float = 10.0) -> Answer:
        """The first ``count`` events, or those of ``seconds``."""
        path, _ = self._translated(path, None)
        events: list[Any] = []
        async with self.session.get(self.url + path, headers={"Accept": "application/json"}) as response:
            if response.status != 200:
                return Answer(response.status, self._restored(json.loads(await response.text())))
            try:
                async with asyncio.timeout(seconds):
                    while len(events) < count and (line := await response.content.readline()):
                        events.append(self._restored(json.loads(line)))
            except TimeoutError:
                pass
        return Answer(200, events)

    def _translated(self, path: str, body: Any) -> tuple[str, Any]:
        for ours, (resources, _) in OLDER.items():
            theirs = self.older.get(ours)
            if theirs and path.startswith(f"/apis/{ours}/") and any(f"/{r}" in path for r in resources):
                path = path.replace(f"/apis/{ours}/", f"/apis/{theirs}/", 1)
                if isinstance(body, dict) and body.get("apiVersion") == ours:
                    body = {**body, "apiVersion": theirs}
        return path, body

    def _restored(self, body: Any) -> Any:
        text = json.dumps(body)
        for ours, theirs in self.older.items():
            text = text.replace(theirs, ours)
        return json.loads(text)


async def _older(peer: Peer) -> dict[str, str]:
    found = {}
    for ours, (resources, theirs) in OLDER.items():
        answer = await peer.request("GET", f"/apis/{ours}")
        names = {r["name"] for r in answer.body.get("resources", ())} if isinstance(answer.body, dict) else set()
        if not names.issuperset(resources):
            found[ours] = theirs
    return found


def kubeconfigs() -> list[Path]:
    """The files of ``KUBECONFIG`` that are there, one for each cluster."""
    return [Path(p) for p in os.environ.get("KUBECONFIG", "").split(os.pathsep) if p and Path(p).is_file()]


def kubeconfig() -> Path | None:
    """The first of them."""
    return next(iter(kubeconfigs()), None)


@asynccontextmanager
async def kubernetes(config: Path) -> AsyncIterator[Peer]:
    document = yaml.safe_load(config.read_text())
    context = next(c["context"] for c in document["contexts"] if c["name"] == document["current-context"])
    cluster = next(c["cluster"] for c in document["clusters"] if c["name"] == context["cluster"])
    user = next(u["user"] for u in document["users"] if u["name"] == context["user"])
    tls = ssl.create_default_context()
    if cluster.get("insecure-skip-tls-verify"):
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    elif "certificate-authority-data" in cluster:
        tls.load_verify_locations(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), headers=headers) as session:
        peer = Peer("kubernetes", cluster["server"].rstrip("/"), session)
        peer.older = await _older(peer)
        peer.minor = int(str((await peer.request("GET", "/version")).body["minor"]).rstrip("+") or 0)
        yield peer


@asynccontextmanager
async def nemo(folder: Path, *, define: bool = False) -> AsyncIterator[Peer]:
    """``define``: with the controllers that CustomResourceDefinitions need."""
    async with (
        served(folder, SystemClock()) as hub,
        controllers(hub.registry, hub.clock) if define else nullcontext(),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=hub.context("admin", "system:masters"))) as session,
    ):
        yield Peer("nemo", hub.url, session)


_VARIABLE = re.compile(r"\$(\w+)")


def filled(value: Any, variables: dict[str, str]) -> Any:
    """``$NAME`` in texts replaced; unknown names stay."""
    if isinstance(value, str):
        return _VARIABLE.sub(lambda m: variables.get(m[1], m[0]), value)
    if isinstance(value, dict):
        return {filled(k, variables): filled(v, variables) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(v, variables) for v in value]
    return value
