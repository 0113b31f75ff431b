"""What the hub asks in somebody's name: the cluster decides, and its refusal comes back as one."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from metaos.agent.contact import Contact
from metaos.agent.remote import Remote
from metaos.apiserver.tunnels import Tunnels
from metaos.http import Response
from metaos.members.access import MemberAccess
from metaos.resources.errors import ApiError
from metaos.tunnel import FORBIDDEN, StreamReset
from tests.clock import FakeClock

ALICE = {"name": "alice", "groups": ["devs"]}


class Cluster:
    """An API server that reviews access. ``asked``: (headers, attributes)."""

    def __init__(self, allowed: bool) -> None:
        self.allowed, self.asked = allowed, list[tuple[Any, Any]]()

    async def request(self, method: str, path: str, body: bytes, *, headers: Any) -> Response:
        assert (method, path) == ("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
        self.asked.append((headers, json.loads(body)["spec"]["resourceAttributes"]))
        return Response(201, (), json.dumps({"status": {"allowed": self.allowed, "reason": "no role"}}).encode())


def access(cluster: Cluster) -> MemberAccess:
    return MemberAccess(cast(Any, SimpleNamespace(client=cluster)), lambda: None, lambda where, pod: {})


async def test_whether_a_log_may_be_read_is_asked_in_the_name_of_who_asks() -> None:
    cluster = Cluster(allowed=True)
    await access(cluster).acting_for({"type": "log", "namespace": "shop", "pod": "web", "user": ALICE})
    headers, attributes = cluster.asked[0]
    assert headers == (("Impersonate-User", "nemo:alice"), ("Impersonate-Group", "nemo:devs"))
    assert attributes == {"namespace": "shop", "verb": "get", "resource": "pods", "subresource": "log", "name": "web"}


async def test_the_hubs_own_connections_are_the_agents() -> None:
    cluster = Cluster(allowed=False)
    for header in ({"type": "dial"}, {"type": "usage"}, {"type": "dial", "source": {}}):
        await access(cluster).acting_for(header)
    assert cluster.asked == []
    with pytest.raises(ApiError, match="does not say in whose name"):
        await access(cluster).acting_for({"type": "exec"})


async def test_a_refusal_is_one_for_who_asked() -> None:
    said: list[str] = []

    class Stream:
        async def reset(self, why: str) -> None:
            said.append(why)

    clock = FakeClock()
    remote = Remote("https://hub", "madrid", cast(Any, None), cast(Contact, None), clock, access(Cluster(allowed=False)))
    await remote.serve({"type": "log", "namespace": "shop", "pod": "web", "user": ALICE}, cast(Any, Stream()))
    text = 'User "nemo:alice" cannot get resource "pods/log" in the namespace "shop": no role'
    assert said == [FORBIDDEN + text]

    class Opened:
        async def accepted(self) -> None:
            raise StreamReset(said[0])

    class Line:
        async def open(self, header: dict[str, Any]) -> Any:
            return Opened()

    tunnels = Tunnels(lambda source, target, header: header)
    tunnels._tunnels["madrid"] = cast(Any, Line())
    with pytest.raises(ApiError) as caught:
        await tunnels.open("madrid", {"type": "log"})
    assert caught.value.code == 403 and caught.value.message == f"site 'madrid' does not let you: {text}"
