"""A DeviceClaim's certificate over TLS: it enrols devices while its claim says so, and gives no other right."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from metaos.cli.devices import _certified
from metaos.clock import SystemClock
from metaos.devices.credentials import CLAIMANTS, CertifiedClaim
from metaos.fleet.apps import Apps
from metaos.fleet.fleet import Fleet
from metaos.fleet.images import Images
from metaos.messaging.memory import MemoryBus
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj, format_time, uid
from tests.apiserver.serving import ADMIN, ServedHub, served
from tests.fleet.real import client_module
from tests.fleet.site import CONTROLLERS, MemoryGate

API = "/apis/meta-os.eu/v1alpha1/namespaces/shop"


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    async with served(tmp_path, SystemClock()) as running:
        client = running.registry.client(CONTROLLERS)

        async def bus() -> MemoryBus:
            return MemoryBus(running.clock.monotonic)

        async def key() -> Any:
            raise AssertionError("no application is signed here")

        fleet = Fleet(client, running.clock, bus, MemoryGate(), Apps(client, key, Images(client, running.clock, None)))
        fleet.leading = True
        running.registry.desk.fleet = fleet
        await running.make(scheme.NAMESPACE.empty("shop"))
        yield running


async def claim(hub: ServedHub, name: str = "line", count: int = 2) -> CertifiedClaim:
    spec = {"count": count, "expirationTime": format_time(hub.clock.now() + 3600), "namePrefix": "s-"}
    made = await hub.registry.create(ADMIN, {**scheme.DEVICE_CLAIM.empty(name, "shop"), "spec": spec})
    return CertifiedClaim("shop", name, uid(made))


async def asked(
    hub: ServedHub, of: CertifiedClaim, verb: str, path: str, body: Obj | None = None, **more: Any
) -> tuple[int, str]:
    user, groups = of.subject()
    connector = aiohttp.TCPConnector(ssl=hub.context(user, *groups))
    async with (
        aiohttp.ClientSession(hub.url, connector=connector) as session,
        session.request(verb, path, json=body, **more) as answer,
    ):
        return answer.status, await answer.text()


async def enrolled(hub: ServedHub, of: CertifiedClaim, name: str, by: str = "line") -> tuple[int, str]:
    return await asked(hub, of, "POST", f"{API}/deviceclaims/{by}/enrolment", {"spec": {"name": name}})


async def test_a_claims_certificate_makes_so_many_devices_until_the_claim_ends(hub: ServedHub) -> None:
    line = await claim(hub)
    code, text = await enrolled(hub, line, "s-1")
    assert code == 201 and json.loads(text)["status"]["username"] == "s-1"
    assert (await enrolled(hub, line, "x-1"))[0] == 422
    code, _ = await enrolled(hub, line, "s-2")
    assert code == 201
    code, text = await enrolled(hub, line, "s-3")
    assert code == 403 and "2 devices are all made" in text
    await hub.registry.patch(ADMIN, scheme.DEVICE_CLAIM, "line", "shop", {"spec": {"count": 9}})
    past = {"spec": {"expirationTime": format_time(hub.clock.now() - 1)}}
    await hub.registry.patch(ADMIN, scheme.DEVICE_CLAIM, "line", "shop", past)
    code, text = await enrolled(hub, line, "s-3")
    assert code == 403 and "expired" in text
    await hub.registry.delete(ADMIN, scheme.DEVICE_CLAIM, "line", "shop")
    code, text = await enrolled(hub, line, "s-3")
    assert code == 401 and "no more" in text
    # A later claim of its name is another one.
    later = await claim(hub)
    assert (await enrolled(hub, line, "s-3"))[0] == 401
    assert (await enrolled(hub, later, "s-3"))[0] == 201
    hub.revoked.add(later.subject()[0])
    assert (await enrolled(hub, later, "s-4"))[0] == 401


async def test_a_claims_certificate_gives_no_other_right(hub: ServedHub) -> None:
    line = await claim(hub)
    await claim(hub, "other")
    # Not even where everybody may everything.
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:authenticated"}]
    await hub.make({**scheme.CLUSTER_ROLE_BINDING.empty("all"), "roleRef": role, "subjects": subjects})
    assert (await enrolled(hub, line, "s-1", by="other"))[0] == 403
    wanted = {"group": "meta-os.eu", "resource": "devices", "verb": "create", "namespace": "shop"}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": wanted}}
    code, text = await asked(hub, line, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
    assert code == 201 and json.loads(text)["status"]["allowed"] is False
    review |= {"kind": "SelfSubjectRulesReview", "spec": {"namespace": "shop"}}
    code, text = await asked(hub, line, "POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review)
    assert code == 201 and json.loads(text)["status"]["incomplete"] is True
    for verb, path, body in (
        ("GET", f"{API}/devices", None),
        ("GET", f"{API}/deviceclaims/line", None),
        ("DELETE", f"{API}/deviceclaims/line", None),
        ("POST", f"{API}/devices", {**scheme.DEVICE.empty("lamp", "shop"), "spec": {}}),
        ("POST", f"{API}/devices/lamp/credential", {}),
        ("GET", "/api/v1/namespaces/shop/secrets", None),
        ("GET", "/api/v1/namespaces", None),
        ("POST", "/tokens", {"name": "mine"}),
        ("GET", "/tokens", None),
        ("GET", "/metrics", None),
    ):
        code, text = await asked(hub, line, verb, path, body)
        assert code == 403, (verb, path, code, text)
    code, _ = await asked(hub, line, "GET", f"{API}/devices", None, headers={"Impersonate-User": "admin"})
    assert code == 403
    for path in ("/version", "/apis"):
        assert (await asked(hub, line, "GET", path))[0] == 200


async def test_a_subject_that_is_not_quite_a_claims_is_refused(hub: ServedHub) -> None:
    line = await claim(hub)
    user, groups = line.subject()
    wrong = (
        (user, ()),
        (user, (CLAIMANTS,)),
        (user, (*groups, "system:masters")),
        (user, (groups[1], groups[1])),
        (user + "0", groups),
        line._replace(claim="other").subject(),
    )
    for name, organizations in wrong:
        async with (
            aiohttp.ClientSession(hub.url, connector=aiohttp.TCPConnector(ssl=hub.context(name, *organizations))) as session,
            session.get("/version") as answer,
        ):
            assert answer.status == 401, (name, organizations)


async def test_the_examples_device_enrols_by_a_certificate(hub: ServedHub, tmp_path: Path) -> None:
    user, groups = (await claim(hub)).subject()
    pair, nemo = hub.pair(user, *groups), client_module()
    file = tmp_path / "line.pem"
    file.write_bytes(pair.certificate + pair.key)
    made = await nemo.enrol(hub.url, hub.authority.pair.certificate.decode(), "shop/line", "s-1", certificate=str(file))
    assert made["name"] == made["username"] == "s-1"


async def test_who_may_not_have_it_signed_leaves_no_claim(hub: ServedHub) -> None:
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"}
    subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}]
    await hub.make({**scheme.ROLE_BINDING.empty("ann", "shop"), "roleRef": role, "subjects": subjects})
    spec = {"count": 1, "expirationTime": format_time(hub.clock.now() + 3600)}
    client = hub.client("ann")
    try:
        with pytest.raises(ApiError, match="certificatesigningrequests"):
            await _certified(client, {**scheme.DEVICE_CLAIM.empty("line", "shop"), "spec": spec}, 3600)
        assert not (await client.list(scheme.DEVICE_CLAIM, "shop")).items
    finally:
        await client.close()
