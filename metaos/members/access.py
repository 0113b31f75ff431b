"""What the hub may ask of a Kubernetes member through the tunnel."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, NoReturn
from urllib.parse import urlencode

from metaos.agent.flows import Counts
from metaos.agent.remote import PodAccess
from metaos.http import json_of, path_of
from metaos.members import execution
from metaos.members.callers import Headers, Identities, acting_as, shown
from metaos.members.forwarding import Forwards
from metaos.members.member import MAX_LOGS, Member
from metaos.members.metrics import usage_of
from metaos.plugins.points import Exec
from metaos.resources.errors import ApiError, not_found
from metaos.resources.meta import Obj, uid
from metaos.resources.scheme import POD
from metaos.resources.services import service_of
from metaos.tunnel import Stream

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

#: A pod of ours by namespace and name, as the hub shows it.
Ours = Callable[[str, str], Obj | None]


def not_offered(what: str) -> NoReturn:
    raise ApiError(501, "NotImplemented", f"{what} is not offered at Kubernetes members: ask the cluster itself")


class MemberAccess:
    """``SiteAccess``: streams go to the cluster's own API, for pods that are ours alone (``ours`` gives such a pod, ``pods``
    all), in the name of whoever asks at the hub (``identities``). ``renewed`` asks for another certificate."""

    def __init__(
        self,
        member: Member,
        renewed: Callable[[], None],
        ours: Ours,
        pods: Callable[[], Sequence[Obj]] = tuple,
        identities: Identities = Identities.PREFIXED,
        exported: Callable[[str, str, int], Awaitable[socket.socket]] | None = None,
    ) -> None:
        self._exported = exported
        self._member, self._renewed, self._ours, self._pods, self._identities = member, renewed, ours, pods, identities
        self._counts, self._reading = Counts(), asyncio.Semaphore(MAX_LOGS)
        self._forwards = Forwards(member.client)
        #: Why the hub got no figures when it asked last.
        self.unmeasured = ""

    def renew(self) -> None:
        self._renewed()

    @property
    def counts(self) -> Counts:
        return self._counts

    async def acting_for(self, header: dict[str, Any]) -> PodAccess:
        """A connection without a user is another site's pod's."""
        kind = header.get("type")
        if kind not in ("log", "exec", "attach") and "user" not in header:
            return self._caller(())
        caller = acting_as(header.get("user"), self._identities)
        if kind == "log" and caller:
            # A log has begun for the hub before it does here; whether it may is asked before.
            await self._may_read(caller, str(header.get("namespace") or ""), str(header.get("pod") or ""))
        return self._caller(caller)

    def _caller(self, headers: Headers) -> PodAccess:
        return _Caller(self._member, self._ours, self._reading, self._forwards, headers, self._exported)

    async def forward(self, path: str, port: int) -> socket.socket:
        """To a port of any pod of the cluster, in the agent's own name."""
        return await self._forwards.open(path, port, ())

    async def _may_read(self, caller: Headers, namespace: str, pod: str) -> None:
        asked = {"namespace": namespace, "verb": "get", "resource": "pods", "subresource": "log", "name": pod}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        body = json.dumps(review | {"spec": {"resourceAttributes": asked}}).encode()
        answer = await self._member.client.request("POST", _REVIEWS, body, headers=caller)
        status = json_of(answer, f"POST {_REVIEWS}").get("status") or {}
        if not status.get("allowed"):
            why = f": {status['reason']}" if status.get("reason") else ""
            text = f'User "{shown(caller)}" cannot get resource "pods/log" in the namespace "{namespace}"'
            raise ApiError(403, "Forbidden", text + why)

    async def datagrams(self, namespace: str, pod: str, port: int) -> socket.socket:
        not_offered("UDP to a pod")

    async def send_volumes(self, header: dict[str, Any], stream: Stream) -> None:
        not_offered("taking volumes along to another site")

    def refusal(self, source: Any, namespace: str, pod: str, port: int, protocol: str = "TCP") -> str | None:
        """The hub has asked its own NetworkPolicies. Those of the cluster alone do not see such a connection: it comes from the
        pod's node, as a probe does."""
        if protocol != "TCP":
            return "pods of Kubernetes members are reached by TCP only"
        if service_of(pod):
            return None  # Whether it is exported, and offered still, is seen when it is connected to.
        return None if self._ours(namespace, pod) is not None else f"there is no pod {pod} of the federation in {namespace}"

    async def usage(self) -> dict[str, Any]:
        try:
            found = await usage_of(self._member.client, {uid(pod): pod for pod in self._pods()})
        except ApiError as error:
            self.unmeasured = error.message
            raise
        self.unmeasured = ""
        return found

    async def close(self) -> None:
        await self._forwards.close()


class _Caller:
    """``PodAccess`` in somebody's name: ``headers`` say whose."""

    def __init__(
        self,
        member: Member,
        ours: Ours,
        reading: asyncio.Semaphore,
        forwards: Forwards,
        headers: Headers,
        exported: Callable[[str, str, int], Awaitable[socket.socket]] | None,
    ) -> None:
        self._member, self._ours, self._headers, self._exported = member, ours, headers, exported
        self._reading, self._forwards = reading, forwards

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
        if self._reading.locked():
            raise ApiError(429, "TooManyRequests", f"{MAX_LOGS} logs are read at this site already: end one of them first")
        async with self._reading, aclosing(self._member.client.chunks("GET", path, query=query, headers=self._headers)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def exec(
        self, namespace: str, pod: str, container: str, command: Sequence[str], *, stdin: bool = False, tty: bool = False
    ) -> Exec:
        asked = [("command", part) for part in command]
        return await self._stream(namespace, pod, "exec", container, asked, stdin, tty)

    async def attach(self, namespace: str, pod: str, container: str) -> Exec:
        found = self._pod(namespace, pod)
        stated: Obj = next((c for c in (found.get("spec") or {}).get("containers") or () if c.get("name") == container), {})
        return await self._stream(namespace, pod, "attach", container, [], bool(stated.get("stdin")), bool(stated.get("tty")))

    async def _stream(
        self, namespace: str, pod: str, what: str, container: str, query: list[tuple[str, str]], stdin: bool, tty: bool
    ) -> Exec:
        self._pod(namespace, pod)
        query = [*query, ("stdin", str(stdin).lower()), *_outputs(tty)]
        if container:
            query = [*query, ("container", container)]
        path = f"{path_of(POD, namespace, pod, what)}?{urlencode(query)}"
        return await execution.run(self._member.client, path, self._member.minor, self._headers, stdin=stdin, tty=tty)

    async def connect(self, namespace: str, pod: str, port: int) -> socket.socket:
        if (service := service_of(pod)) and self._exported is not None:
            # In nobody's name: its owner has offered it to whoever may reach it at the hub.
            return await self._exported(namespace, service, port)
        self._pod(namespace, pod)
        return await self._forwards.open(path_of(POD, namespace, pod, "portforward"), port, self._headers)

    def _pod(self, namespace: str, pod: str) -> Obj:
        found = self._ours(namespace, pod)
        if found is None:
            raise not_found("", POD.plural, pod)
        return found


def _outputs(tty: bool) -> list[tuple[str, str]]:
    """A terminal has one output."""
    return [("stdout", "true"), ("stderr", str(not tty).lower()), ("tty", str(tty).lower())]
