"""A site that was taken over: everything that its certificate lets it try over HTTPS, and that others are not touched by it.

``mole`` runs a Deployment ``web`` in namespace ``shop``; ``honest`` runs ``db`` there and ``vault`` in ``bank``.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from metaos.clock import SystemClock
from metaos.http import HttpClient
from metaos.resources import scheme
from metaos.resources.meta import Obj
from metaos.security.authz import MAX_REQUESTS, UserInfo
from metaos.tunnel import Stream, StreamReset, TunnelError
from tests.apiserver.conftest import ADMIN
from tests.apiserver.objects import cluster, deployment, pod
from tests.apiserver.serving import ServedHub, served, site

CANARY = "c2VjcmV0LW9mLW90aGVycw=="  # "secret-of-others"
CORE, META = "/api/v1", "/apis/meta-os.eu/v1alpha1"


def work(member: str, manifest: Obj) -> Obj:
    metadata = manifest["metadata"]
    named = f"{manifest['kind'].lower()}.{metadata['namespace']}.{metadata['name']}"
    labels = {"meta-os.eu/cluster": member}
    return {
        "apiVersion": "meta-os.eu/v1alpha1",
        "kind": "Work",
        "metadata": {"name": named, "namespace": f"nemo-cluster-{member}", "labels": labels},
        "spec": {"manifests": [manifest | {"metadata": metadata | {"uid": f"uid-of-{metadata['name']}"}}]},
    }


def secret(name: str, namespace: str) -> Obj:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"password": CANARY}}


def mirror(member: str, name: str, owner: str, namespace: str = "shop", **metadata: Any) -> Obj:
    made = pod(name, namespace, nodeName=member)
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": owner, "uid": f"uid-of-{owner}", "controller": True}
    made["metadata"] |= {"labels": {"app": owner, "meta-os.eu/cluster": member}, "ownerReferences": [reference]} | metadata
    return made


def event(about: Obj, host: str = "mole", **more: Any) -> Obj:
    metadata = about["metadata"]
    involved = {"kind": about["kind"], "name": metadata["name"], "namespace": metadata.get("namespace", "")}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.1", "namespace": metadata.get("namespace") or "shop"},
        "involvedObject": involved,
        "reason": "Lie",
        "message": "lie",
        "type": "Normal",
        "source": {"component": "nemo-agent", "host": host},
    } | more


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    async with served(tmp_path, SystemClock()) as running:
        for name in ("shop", "bank", "nemo-cluster-mole", "nemo-cluster-honest"):
            await running.make({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        await running.make(
            *(cluster("mole"), cluster("honest"), secret("db", "shop"), secret("vault", "bank")),
            work("mole", deployment("web", "shop")),
            *(work("honest", deployment("db", "shop")), work("honest", deployment("vault", "bank"))),
            work("honest", secret("db", "shop")),
        )
        honest = UserInfo("system:cluster:honest", ("system:clusters",))
        for obj in (
            *(mirror("honest", "db-1", "db"), mirror("honest", "vault-1", "vault", "bank")),
            event(mirror("honest", "db-1", "db"), "honest"),
        ):
            await running.registry.create(honest, obj)
        yield running


@pytest.fixture
async def mole(hub: ServedHub) -> AsyncIterator[HttpClient]:
    made = hub.client("system:cluster:mole", "system:clusters")
    yield made
    await made.close()


async def asked(client: HttpClient, method: str, path: str, body: Any = None, **query: str) -> tuple[int, str]:
    content = "" if body is None else json.dumps(body)
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    answer = await client.request(method, path, content.encode(), query=query or None, content_type=kind)
    return answer.status, answer.body.decode(errors="replace")


def usage(site: str) -> dict[str, Any]:
    return {**scheme.USAGE.empty(site), "spec": {"periods": [{"sequence": 1, "start": 0, "end": 300}]}}


async def snapshot(hub: ServedHub) -> dict[str, Any]:
    """Everything that is not the mole's."""
    found: dict[str, Any] = {}
    for kind in (
        scheme.SECRET,
        scheme.WORK,
        scheme.POD,
        scheme.CLUSTER,
        scheme.LEASE,
        scheme.EVENT,
        scheme.NAMESPACE,
        scheme.USAGE,
        scheme.TARIFF,
    ):
        for version in hub.registry.cache.range(kind.resource):
            obj = version.object()
            if obj.get("spec", {}).get("nodeName") != "mole" and "mole" not in (version.name, version.namespace[-4:]):
                found[f"{kind.plural}/{version.namespace}/{version.name}"] = obj
    return found


async def test_what_it_may_do_it_can_do(hub: ServedHub, mole: HttpClient) -> None:
    """So that what follows is refused for its own sake."""
    assert (await asked(mole, "GET", f"{META}/namespaces/nemo-cluster-mole/works"))[0] == 200
    assert (await asked(mole, "POST", f"{CORE}/namespaces/shop/pods", mirror("mole", "web-1", "web")))[0] == 201
    assert (await asked(mole, "PATCH", f"{CORE}/namespaces/shop/pods/web-1/status", {"status": {"phase": "Running"}}))[0] == 200
    assert (await asked(mole, "POST", f"{CORE}/namespaces/shop/events", event(mirror("mole", "web-1", "web"))))[0] == 201
    own = f"{META}/namespaces/nemo-cluster-mole/works/deployment.shop.web/status"
    assert (await asked(mole, "PATCH", own, {"status": {"observedGeneration": 1}}))[0] == 200
    assert (await asked(mole, "DELETE", f"{CORE}/namespaces/shop/pods/web-1", {"gracePeriodSeconds": 0}))[0] == 200
    assert (await asked(mole, "POST", f"{META}/usages", usage("mole")))[0] == 201
    assert (await asked(mole, "PATCH", f"{META}/usages/mole", {"spec": {"periods": []}}))[0] == 200
    assert (await asked(mole, "GET", f"{META}/usages/mole"))[0] == 200


READS = [
    *(f"{CORE}/{p}" for p in ("secrets", "pods", "configmaps", "namespaces", "nodes", "events", "services")),
    *(f"{CORE}/namespaces/shop/{p}" for p in ("secrets", "secrets/db", "pods", "pods/db-1", "pods/db-1/log", "events")),
    *(f"{CORE}/namespaces/bank/secrets/vault", f"{CORE}/namespaces/nemo-system/secrets/revoked-certificates"),
    f"{CORE}/nodes/mole",
    *(f"{META}/{p}" for p in ("works", "clusters", "clusters/honest", "placements", "intents", "usages/honest", "tariffs")),
    *(f"{META}/namespaces/nemo-cluster-honest/works", f"{META}/namespaces/nemo-cluster-honest/works/secret.shop.db"),
    "/apis/coordination.k8s.io/v1/leases",
    "/apis/coordination.k8s.io/v1/namespaces/nemo-cluster-honest/leases/honest",
    "/apis/certificates.k8s.io/v1/certificatesigningrequests",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices",
    "/apis/apps/v1/namespaces/shop/deployments/web",
]
QUERIES: list[dict[str, str]] = [
    {},
    {"watch": "1"},
    {"fieldSelector": "spec.nodeName=honest"},
    {"fieldSelector": "spec.nodeName!=mole"},
    {"labelSelector": "app=db"},
    {"fieldSelector": "metadata.name=honest"},
]


@pytest.mark.parametrize("query", QUERIES, ids=str)
async def test_it_reads_nothing_of_others(hub: ServedHub, mole: HttpClient, query: dict[str, str]) -> None:
    for path in READS:
        code, text = await asked(mole, "GET", path, **query)
        assert code in (403, 404, 405), (path, query, code, text[:300])
        assert CANARY not in text and "db-1.1" not in text


async def test_a_selector_of_its_own_shows_its_own(hub: ServedHub, mole: HttpClient) -> None:
    await asked(mole, "POST", f"{CORE}/namespaces/shop/pods", mirror("mole", "web-1", "web"))
    for selector in ("spec.nodeName=mole", "spec.nodeName=mole,spec.nodeName!=other", "metadata.name!=x,spec.nodeName=mole"):
        code, text = await asked(mole, "GET", f"{CORE}/pods", fieldSelector=selector)
        assert code == 200 and [p["metadata"]["name"] for p in json.loads(text)["items"]] == ["web-1"]
    code, text = await asked(mole, "GET", f"{CORE}/pods", fieldSelector="spec.nodeName=mole,spec.nodeName=honest")
    assert code != 200 or json.loads(text)["items"] == []


MINE = {"meta-os.eu/cluster": "mole"}
WRITES: list[tuple[str, str, Any]] = [
    ("PATCH", f"{META}/clusters/mole", {"spec": {"jurisdictions": ["EU"]}}),
    ("PATCH", f"{META}/clusters/mole", {"spec": {"taints": None, "trust": "high"}}),
    ("PATCH", f"{META}/clusters/mole", {"metadata": {"labels": {"certified": "yes"}}}),
    ("PATCH", f"{META}/clusters/mole/status", {"status": {"attested": "software"}}),
    ("PATCH", f"{META}/clusters/mole/status", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
    ("PATCH", f"{META}/clusters/mole/status", {"status": {"carbon": {"intensity": 0}}}),
    ("PATCH", f"{META}/clusters/honest/status", {"status": {"capacity": {"cpu": "0"}}}),
    ("PATCH", f"{META}/clusters/honest", {"spec": {"unschedulable": True}}),
    ("DELETE", f"{META}/clusters/honest", None),
    ("DELETE", f"{META}/clusters/mole", None),
    ("POST", f"{META}/clusters", cluster("invented")),
    ("PATCH", f"{CORE}/nodes/honest", {"spec": {"unschedulable": True}}),
    ("POST", f"{META}/usages", usage("honest")),
    ("PATCH", f"{META}/usages/mole/status", {"status": {"booked": 99}}),
    ("DELETE", f"{META}/usages/mole", None),
    ("POST", f"{META}/tariffs", {**scheme.TARIFF.empty("cheap"), "spec": {"provider": "mole", "cpuHour": 9}}),
    ("PATCH", f"{META}/namespaces/nemo-cluster-mole/works/deployment.shop.web", {"spec": {"manifests": [secret("db", "shop")]}}),
    ("POST", f"{META}/namespaces/nemo-cluster-mole/works", work("mole", secret("db", "shop"))),
    ("POST", f"{META}/namespaces/nemo-cluster-honest/works", work("honest", deployment("evil", "shop"))),
    ("PATCH", f"{META}/namespaces/nemo-cluster-honest/works/deployment.shop.db/status", {"status": {"manifests": []}}),
    ("DELETE", f"{META}/namespaces/nemo-cluster-mole/works/deployment.shop.web", None),
    ("PATCH", "/apis/coordination.k8s.io/v1/namespaces/nemo-cluster-honest/leases/honest", {"spec": {"renewTime": None}}),
    (
        "POST",
        "/apis/coordination.k8s.io/v1/namespaces/nemo-cluster-mole/leases",
        {"metadata": {"name": "other"}, "spec": {"holderIdentity": "other"}},
    ),
    ("PATCH", f"{CORE}/namespaces/shop/pods/db-1/status", {"status": {"phase": "Failed"}}),
    ("PATCH", f"{CORE}/namespaces/shop/pods/db-1", {"metadata": {"labels": {"app": None}}}),
    ("DELETE", f"{CORE}/namespaces/shop/pods/db-1", None),
    ("DELETE", f"{CORE}/namespaces/shop/pods", None),
    ("POST", f"{CORE}/namespaces/shop/pods/db-1/exec?command=sh", None),
    ("POST", f"{CORE}/namespaces/shop/pods/db-1/eviction", {"metadata": {"name": "db-1"}}),
    # A pod that stands for none of its workloads.
    ("POST", f"{CORE}/namespaces/bank/pods", mirror("mole", "vault-2", "vault", "bank")),
    ("POST", f"{CORE}/namespaces/shop/pods", mirror("mole", "web-2", "web", ownerReferences=[])),
    ("POST", f"{CORE}/namespaces/shop/pods", mirror("mole", "db-2", "db")),
    ("POST", f"{CORE}/namespaces/shop/pods", mirror("honest", "web-2", "web")),
    ("POST", f"{CORE}/namespaces/shop/pods", mirror("", "web-2", "web")),
    ("POST", f"{CORE}/namespaces/shop/pods", mirror("mole", "db-7", "web")),
    # One that would be found by Services that it does not serve.
    ("POST", f"{CORE}/namespaces/shop/pods", mirror("mole", "web-2", "web", labels=MINE | {"app": "db"})),
    ("POST", f"{CORE}/namespaces/shop/pods", mirror("mole", "web-2", "web", labels=MINE | {"app": "web", "tier": "gold"})),
    # One that never goes, or belongs to something that matters.
    ("POST", f"{CORE}/namespaces/shop/pods", mirror("mole", "web-2", "web", finalizers=["a.example.org/b"])),
    (
        "POST",
        f"{CORE}/namespaces/shop/pods",
        mirror("mole", "web-2", "web", ownerReferences=[{"apiVersion": "v1", "kind": "Namespace", "name": "shop", "uid": "x"}]),
    ),
    # Events in others' names, about others, or over others.
    ("POST", f"{CORE}/namespaces/shop/events", event(mirror("honest", "db-1", "db")) | {"metadata": {"name": "a.1"}}),
    ("POST", f"{CORE}/namespaces/shop/events", event(mirror("mole", "web-1", "web"), "honest")),
    ("POST", f"{CORE}/namespaces/shop/events", event(cluster("honest"))),
    ("POST", f"{CORE}/namespaces/bank/events", event(mirror("honest", "vault-1", "vault", "bank"))),
    ("PATCH", f"{CORE}/namespaces/shop/events/db-1.1", {"message": "everything burns", "source": {"host": "mole"}}),
    ("DELETE", f"{CORE}/namespaces/shop/events/db-1.1", None),
    # More rights, and others' identities.
    ("POST", f"{CORE}/namespaces/nemo-system/secrets", secret("x", "nemo-system")),
    ("PATCH", f"{CORE}/namespaces/nemo-system/secrets/revoked-certificates", {"stringData": {"admin": "2999-01-01T00:00:00Z"}}),
    ("PATCH", f"{CORE}/namespaces/nemo-system/configmaps/certificate-authority", {"data": {"rotate": "x"}}),
    ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", {"metadata": {"name": "x"}, "roleRef": {}}),
    ("POST", f"{CORE}/namespaces", {"metadata": {"name": "nemo-cluster-x"}}),
    ("DELETE", f"{CORE}/namespaces/nemo-cluster-mole", None),
]


_SHORT = {"leases": ("coordination.k8s.io/v1", "Lease"), "namespaces": ("v1", "Namespace"), "eviction": ("policy/v1", "Eviction")}
_SHORT |= {"clusterrolebindings": ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding")}


async def test_it_writes_nothing_of_others(hub: ServedHub, mole: HttpClient) -> None:
    before = await snapshot(hub)
    for method, path, body in WRITES:
        if isinstance(body, dict) and method == "POST" and "kind" not in body:
            version, kind = _SHORT[path.rpartition("/")[2]]
            body = {"apiVersion": version, "kind": kind} | body
        code, text = await asked(mole, method, path, body)
        assert code in (403, 405) or (code == 404 and "leases/honest" in path), (method, path, body, code, text[:400])
        assert CANARY not in text
    assert await snapshot(hub) == before


async def test_its_pods_stay_what_they_are(hub: ServedHub, mole: HttpClient) -> None:
    path = f"{CORE}/namespaces/shop/pods/web-1"
    await asked(mole, "POST", f"{CORE}/namespaces/shop/pods", mirror("mole", "web-1", "web"))
    volume = {"name": "v", "secret": {"secretName": "db"}}
    for patch in (
        {"spec": {"volumes": [volume]}},
        {"spec": {"containers": [{"name": "web", "image": "evil:1"}]}},
        {"spec": {"nodeName": "honest"}},
        {"spec": {"nodeName": None}},
        {"metadata": {"ownerReferences": None}},
        {"metadata": {"finalizers": ["a.example.org/b"]}},
        {"metadata": {"labels": {"app": "db"}}},
        {"metadata": {"labels": {"meta-os.eu/cluster": "honest"}}},
    ):
        code, text = await asked(mole, "PATCH", path, patch)
        assert code in (403, 422), (patch, code, text[:300])
    assert (await asked(mole, "PATCH", f"{path}/status", {"metadata": {"labels": {"app": "db"}}, "status": {}}))[0] in (200, 403)
    held = await hub.registry.get(ADMIN, scheme.POD, "web-1", "shop")
    assert held["metadata"]["labels"]["app"] == "web" and held["spec"]["nodeName"] == "mole"


async def test_a_report_changes_nothing_but_status(hub: ServedHub, mole: HttpClient) -> None:
    path = f"{META}/namespaces/nemo-cluster-mole/works/deployment.shop.web"
    lie = {
        "metadata": {"labels": {"meta-os.eu/source": "deployment.shop.db"}, "finalizers": ["a.example.org/b"]},
        "spec": {"manifests": []},
        "status": {"observedGeneration": 3},
    }
    assert (await asked(mole, "PATCH", f"{path}/status", lie))[0] in (200, 403)
    held = await hub.registry.get(ADMIN, scheme.WORK, "deployment.shop.web", "nemo-cluster-mole")
    assert held["metadata"]["labels"] == {"meta-os.eu/cluster": "mole"} and "finalizers" not in held["metadata"]
    assert held["spec"]["manifests"][0]["metadata"]["name"] == "web"


@pytest.mark.parametrize("name", ["honest-1", "mole2-1", "admin"])
async def test_it_asks_for_no_certificate_of_another_name(hub: ServedHub, mole: HttpClient, name: str) -> None:
    request = certificate_request(name)
    assert (await asked(mole, "POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests", request))[0] == 403


def certificate_request(name: str, signer: str = "meta-os.eu/agent") -> Obj:
    return {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {"request": "LS0tLS0=", "signerName": signer, "usages": ["client auth"], "username": "admin"},
    }


async def test_a_request_says_who_asked_and_stays_so(hub: ServedHub, mole: HttpClient) -> None:
    base = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    code, text = await asked(mole, "POST", base, certificate_request("mole-1"))
    assert code == 201 and json.loads(text)["spec"]["username"] == "system:cluster:mole"
    assert (await asked(mole, "POST", base, certificate_request("mole-2", "kubernetes.io/kube-apiserver-client")))[0] == 403
    for path, patch in (
        (f"{base}/mole-1", {"spec": {"username": "system:cluster:honest"}}),
        (f"{base}/mole-1/approval", {"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "x"}]}}),
        (f"{base}/mole-1/status", {"status": {"certificate": "LS0tLS0="}}),
    ):
        assert (await asked(mole, "PATCH", path, patch))[0] == 403
    admin = hub.client()
    code, text = await asked(admin, "PATCH", f"{base}/mole-1", {"spec": {"username": "system:cluster:honest"}})
    assert code == 422 or json.loads(text)["spec"]["username"] == "system:cluster:mole", "not even an administrator changes it"
    await admin.close()


async def test_its_requests_are_bounded_and_others_do_not_count(hub: ServedHub, mole: HttpClient) -> None:
    base = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    other = hub.client("system:cluster:mole-2", "system:clusters")
    for number in range(MAX_REQUESTS):
        assert (await asked(other, "POST", base, certificate_request(f"mole-2-{number}")))[0] == 201
    for number in range(MAX_REQUESTS):
        assert (await asked(mole, "POST", base, certificate_request(f"mole-{number:x}")))[0] == 201, "others are not counted"
    code, text = await asked(mole, "POST", base, certificate_request("mole-more"))
    assert code == 403 and "requests already" in text
    await other.close()


async def test_it_acts_as_nobody_else(hub: ServedHub) -> None:
    import aiohttp

    context = hub.context("system:cluster:mole", "system:clusters")
    async with aiohttp.ClientSession(hub.url, connector=aiohttp.TCPConnector(ssl=context)) as session:
        for headers in (
            {"Impersonate-User": "admin", "Impersonate-Group": "system:masters"},
            {"Impersonate-User": "system:cluster:honest", "Impersonate-Group": "system:clusters"},
        ):
            async with session.get(f"{CORE}/secrets", headers=headers) as answer:
                assert answer.status == 403
        async with session.get(f"{CORE}/secrets", headers={"Authorization": "Bearer nemo1.x.y"}) as answer:
            assert answer.status == 403, "its certificate says who it is, whatever it claims beside"
        for name in ("honest", "nobody"):
            async with session.get(f"{META}/clusters/{name}/tunnel", headers={"Upgrade": "websocket"}) as answer:
                assert answer.status == 403


async def test_it_has_tokens_of_its_own_pods_accounts_alone(hub: ServedHub, mole: HttpClient) -> None:
    for where, account in (("shop", "default"), ("shop", "admin"), ("bank", "default")):
        await hub.make({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": where}})
    code, text = await asked(mole, "POST", f"{CORE}/namespaces/shop/pods", mirror("mole", "web-1", "web"))
    assert code == 201
    theirs = hub.registry.current(scheme.POD, "db-1", "shop")
    assert theirs is not None
    mine, other = json.loads(text)["metadata"]["uid"], theirs["metadata"]["uid"]

    async def token(where: str, account: str, pod: str, uid: str, **more: Any) -> int:
        spec = {"boundObjectRef": {"kind": "Pod", "name": pod, "uid": uid}, **more}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return (await asked(mole, "POST", f"{CORE}/namespaces/{where}/serviceaccounts/{account}/token", body))[0]

    assert await token("shop", "default", "web-1", mine) == 201
    assert await token("shop", "default", "web-1", other) == 409
    assert await token("shop", "default", "web-1", mine, boundObjectRef=None) == 403
    assert await token("shop", "default", "web-1", mine, audiences=["vault"]) == 403
    assert await token("shop", "admin", "web-1", mine) == 403, "its pods do not run as that"
    assert await token("shop", "default", "db-1", other) == 403, "another site's pod"
    assert await token("bank", "default", "vault-1", other) == 403
    for path in ("shop/serviceaccounts", "shop/serviceaccounts/default", "shop/serviceaccounts/default/token"):
        assert (await asked(mole, "GET", f"{CORE}/namespaces/{path}"))[0] in (403, 404, 405)


async def test_its_tunnel_is_for_dialling_only_and_where_a_service_leads(hub: ServedHub) -> None:
    reached: list[dict[str, Any]] = []

    async def honest(header: dict[str, Any], stream: Stream) -> None:
        reached.append(header)
        await stream.accept()

    async def refuse(header: dict[str, Any], stream: Stream) -> None:
        raise RuntimeError("nothing here")

    async with site(hub, "honest", honest), site(hub, "mole", refuse) as tunnel:
        for header in (
            {"type": "exec", "cluster": "honest", "namespace": "shop", "pod": "db-1", "command": ["sh"]},
            {"type": "log", "cluster": "honest", "namespace": "shop", "pod": "db-1"},
            {"type": "renew", "cluster": "honest"},
            {"type": "dial", "cluster": "honest", "namespace": "shop", "pod": "db-1", "port": 5432},
            {"type": "dial", "cluster": "nowhere", "namespace": "shop", "pod": "db-1", "port": 80},
            {"type": ["dial"], "cluster": {"a": 1}, "namespace": None, "pod": 7, "port": "80"},
            {},
        ):
            stream = await tunnel.open(header)
            with pytest.raises(StreamReset):
                async with asyncio.timeout(2):
                    await stream.accepted()
        assert reached == []
        # What is passed on is what was checked, not what was added to it.
        allowed = {"type": "dial", "cluster": "honest", "namespace": "shop", "pod": "web-1", "port": 80, "command": ["sh"]}
        stream = await tunnel.open(allowed)
        async with asyncio.timeout(2):
            await stream.accepted()
        assert reached == [{"type": "dial", "namespace": "shop", "pod": "web-1", "port": 80}]


async def test_a_tunnel_that_speaks_nonsense_ends_alone(hub: ServedHub) -> None:
    async def quiet(header: dict[str, Any], stream: Stream) -> None:
        await stream.accept()
        await stream.wait_closed()

    random = Random(5)
    async with site(hub, "honest", quiet):
        for _ in range(5):
            async with site(hub, "mole", quiet) as tunnel:
                try:
                    for _ in range(200):
                        await tunnel._send(random.randbytes(random.randrange(1, 40)))
                except (TunnelError, ConnectionError, Exception):
                    pass
        assert "honest" in hub.tunnels.connected()
        stream = await hub.tunnels.open("honest", {"type": "log"})
        await stream.close()
