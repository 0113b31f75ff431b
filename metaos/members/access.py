"""What the hub may ask of a Kubernetes member through the tunnel."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn

from metaos.agent.flows import Counts
from metaos.http import path_of
from metaos.members.member import Member
from metaos.plugins.points import Exec
from metaos.resources.errors import ApiError, not_found
from metaos.resources.scheme import POD


def not_offered(what: str) -> NoReturn:
    raise ApiError(501, "NotImplemented", f"{what} is not offered yet at Kubernetes members: ask the cluster itself")


class MemberAccess:
    """``SiteAccess``: logs are the cluster's own, of pods that are ours alone. ``renewed`` asks for another certificate."""

    def __init__(self, member: Member, renewed: Callable[[], None], ours: Callable[[str, str], bool]) -> None:
        self._member, self._renewed, self._ours = member, renewed, ours
        self._counts = Counts()

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
        if not self._ours(namespace, pod):
            raise not_found("", POD.plural, pod)
        query = {"container": container} if container else {}
        for key, value in (("follow", follow), ("previous", previous)):
            if value:
                query[key] = "true"
        if tail is not None:
            query["tailLines"] = str(tail)
        if newest_seconds is not None:
            query["sinceSeconds"] = str(max(1, round(newest_seconds)))
        return self._member.client.chunks("GET", path_of(POD, namespace, pod, "log"), query=query)

    async def exec(
        self, namespace: str, pod: str, container: str, command: Sequence[str], *, stdin: bool = False, tty: bool = False
    ) -> Exec:
        not_offered("exec")

    async def attach(self, namespace: str, pod: str, container: str) -> Exec:
        not_offered("attach")

    async def connect(self, namespace: str, pod: str, port: int) -> socket.socket:
        not_offered("a connection to a pod")

    async def datagrams(self, namespace: str, pod: str, port: int) -> socket.socket:
        not_offered("UDP to a pod")

    def refusal(self, source: Any, namespace: str, pod: str, port: int, protocol: str = "TCP") -> str | None:
        return "pods of Kubernetes members are not reached from other sites yet"

    async def usage(self) -> dict[str, Any]:
        return {"age": 0.0, "window": 0.0, "pods": []}
