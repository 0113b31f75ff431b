"""What the hub may ask of a Kubernetes member through the tunnel."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, NoReturn
from urllib.parse import urlencode

from metaos.agent.flows import Counts
from metaos.http import path_of
from metaos.members.execution import RemoteExec
from metaos.members.member import MAX_LOGS, Member
from metaos.plugins.points import Exec
from metaos.resources.errors import ApiError, not_found
from metaos.resources.meta import Obj
from metaos.resources.scheme import POD


def not_offered(what: str) -> NoReturn:
    raise ApiError(501, "NotImplemented", f"{what} is not offered yet at Kubernetes members: ask the cluster itself")


class MemberAccess:
    """``SiteAccess``: logs and commands go to the cluster's own API, for pods that are ours alone (``ours`` gives such a pod).
    ``renewed`` asks for another certificate."""

    def __init__(self, member: Member, renewed: Callable[[], None], ours: Callable[[str, str], Obj | None]) -> None:
        self._member, self._renewed, self._ours = member, renewed, ours
        self._counts, self._logs = Counts(), 0

    def renew(self) -> None:
        self._renewed()

    @property
    def counts(self) -> Counts:
        return self._counts

    def logs(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        previous: bool = False,
        newest_seconds: float | None = None,
    ) -> AsyncIterator[bytes]:
        self._pod(namespace, pod)
        query = {"container": container} if container else {}
        for key, value in (("follow", follow), ("previous", previous)):
            if value:
                query[key] = "true"
        if tail is not None:
            query["tailLines"] = str(tail)
        if newest_seconds is not None:
            query["sinceSeconds"] = str(max(1, round(newest_seconds)))
        return self._read(path_of(POD, namespace, pod, "log"), query)

    async def _read(self, path: str, query: dict[str, str]) -> AsyncIterator[bytes]:
        """However many read logs, what is followed at the cluster finds its connection."""
        if self._logs >= MAX_LOGS:
            raise ApiError(429, "TooManyRequests", f"{MAX_LOGS} logs are read at this site already: end one of them first")
        self._logs += 1
        try:
            async with aclosing(self._member.client.chunks("GET", path, query=query)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._logs -= 1

    async def exec(
        self, namespace: str, pod: str, container: str, command: Sequence[str], *, stdin: bool = False, tty: bool = False
    ) -> Exec:
        asked = [*(("command", part) for part in command), ("stdin", str(stdin).lower())]
        return await self._stream(namespace, pod, "exec", container, [*asked, *_outputs(tty)])

    async def attach(self, namespace: str, pod: str, container: str) -> Exec:
        found = self._pod(namespace, pod)
        stated: Obj = next((c for c in (found.get("spec") or {}).get("containers") or () if c.get("name") == container), {})
        asked = [("stdin", str(bool(stated.get("stdin"))).lower())]
        return await self._stream(namespace, pod, "attach", container, [*asked, *_outputs(bool(stated.get("tty")))])

    async def _stream(self, namespace: str, pod: str, what: str, container: str, query: list[tuple[str, str]]) -> Exec:
        self._pod(namespace, pod)
        if container:
            query = [*query, ("container", container)]
        path = f"{path_of(POD, namespace, pod, what)}?{urlencode(query)}"
        return await RemoteExec.open(self._member.client, path, self._member.minor)

    def _pod(self, namespace: str, pod: str) -> Obj:
        found = self._ours(namespace, pod)
        if found is None:
            raise not_found("", POD.plural, pod)
        return found

    async def connect(self, namespace: str, pod: str, port: int) -> socket.socket:
        not_offered("a connection to a pod")

    async def datagrams(self, namespace: str, pod: str, port: int) -> socket.socket:
        not_offered("UDP to a pod")

    def refusal(self, source: Any, namespace: str, pod: str, port: int, protocol: str = "TCP") -> str | None:
        return "pods of Kubernetes members are not reached from other sites yet"

    async def usage(self) -> dict[str, Any]:
        return {"age": 0.0, "window": 0.0, "pods": []}


def _outputs(tty: bool) -> list[tuple[str, str]]:
    """A terminal has one output."""
    return [("stdout", "true"), ("stderr", str(not tty).lower()), ("tty", str(tty).lower())]
