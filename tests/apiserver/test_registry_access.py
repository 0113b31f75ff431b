"""Who may do what, through the registry."""

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from metaos.apiserver.addressing import sealed
from metaos.apiserver.admission import UnsupportedFields
from metaos.apiserver.registry import Registry
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from metaos.security.authz import Attributes, UserInfo
from metaos.store.log import Listing, LogEvent
from metaos.store.memory import MemoryStore
from metaos.store.sqlite import SqliteStore
from tests.apiserver.conftest import ADMIN
from tests.apiserver.objects import cluster, config_map, deployment, pod, take
from tests.clock import FakeClock

AGENT = UserInfo("system:cluster:edge", ("system:clusters", "system:authenticated"))
ANN = UserInfo("ann", ("system:authenticated",))


async def refused(action: Any, code: int = 403) -> ApiError:
    with pytest.raises(ApiError) as found:
        await action
    assert found.value.code == code, found.value
    return found.value


def binding(role: str, user: str, namespace: str = "default") -> Obj:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"{user}-{role}", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "User", "name": user}],
    }


async def test_rbac_takes_effect_at_once(registry: Registry) -> None:
    error = await refused(registry.create(ANN, config_map()))
    assert 'User "ann" cannot create resource "configmaps" in API group "" in the namespace "default"' in error.message
    await registry.create(ADMIN, binding("edit", "ann"))
    await registry.create(ANN, config_map())
    await refused(registry.list(ANN, scheme.CONFIG_MAP))
    await refused(registry.create(ANN, binding("view", "bob")))
    await registry.delete(ADMIN, scheme.ROLE_BINDING, "ann-edit", "default")
    await refused(registry.get(ANN, scheme.CONFIG_MAP, "settings", "default"))
    assert registry.authorize(ANN, Attributes("get", path="/version")).allowed
    assert not registry.authorize(ANN, Attributes("get", path="/metrics")).allowed


async def test_nobody_grants_more_than_they_have(registry: Registry) -> None:
    await registry.create(ADMIN, binding("admin", "ann"))
    await registry.create(ANN, binding("view", "bob"))
    assert "not currently held" in (await refused(registry.create(ANN, binding("cluster-admin", "bob")))).message


async def test_reviews(registry: Registry) -> None:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "create", "resource": "pods", "namespace": "default"}},
    }
    assert (await registry.create(ADMIN, review))["status"]["allowed"] is True
    assert (await registry.create(ANN, review))["status"]["allowed"] is False
    who = await registry.create(ANN, {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
    assert who["status"]["userInfo"]["username"] == "ann"


async def site(registry: Registry, name: str = "edge") -> None:
    await registry.create(ADMIN, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"nemo-cluster-{name}"}})
    given = deployment()
    given["metadata"]["uid"] = "web-uid"
    work = {
        "apiVersion": "meta-os.eu/v1alpha1",
        "kind": "Work",
        "metadata": {"name": "deployment.default.web", "namespace": f"nemo-cluster-{name}"},
        "spec": {"manifests": [given]},
    }
    await registry.create(ADMIN, work)


async def test_an_agent_keeps_to_its_site(registry: Registry) -> None:
    await site(registry)
    await site(registry, "other")
    await registry.create(AGENT, cluster("edge"))
    await refused(registry.create(AGENT, cluster("other")))
    work = (await registry.list(AGENT, scheme.WORK, "nemo-cluster-edge")).items[0]
    work["status"] = {"observedGeneration": 1, "manifests": [{"kind": "Deployment", "status": {"replicas": 1}}]}
    work["spec"] = {"manifests": []}
    updated = await registry.update(AGENT, work, subresource="status")
    assert updated["status"]["manifests"][0]["status"] == {"replicas": 1} and len(updated["spec"]["manifests"]) == 1
    await refused(registry.update(AGENT, work))
    await refused(registry.list(AGENT, scheme.WORK, "nemo-cluster-other"))
    mirror = pod("web-1", nodeName="edge") | {"status": {"phase": "Running"}}
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "web-uid", "controller": True}
    mirror["metadata"]["ownerReferences"] = [owner]
    made = await registry.create(AGENT, mirror)
    assert made["status"]["phase"] == "Running"
    await refused(registry.create(AGENT, pod("web-2", nodeName="other")))
    await registry.create(ADMIN, pod("foreign", nodeName="other"))
    await refused(registry.get(AGENT, scheme.POD, "foreign", "default"))
    await refused(registry.delete(AGENT, scheme.POD, "foreign", "default"))
    await refused(registry.patch(AGENT, scheme.POD, "foreign", "default", {"status": {}}, subresource="status"))
    [first] = await take(registry.watch(AGENT, scheme.POD, fields="spec.nodeName=edge"), 1)
    assert first.object["metadata"]["name"] == "web-1"
    await registry.delete(AGENT, scheme.POD, "web-1", "default", grace_period_seconds=0)
    held = await registry.get(AGENT, scheme.CLUSTER, "edge")
    held["status"] = {"usage": {"cpu": "1"}}
    await registry.update(AGENT, held, subresource="status")
    held["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    held["metadata"].pop("resourceVersion")
    await refused(registry.update(AGENT, held, subresource="status"))
    await refused(registry.update(AGENT, held))
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {"holderIdentity": "edge"}}
    await registry.create(AGENT, lease | {"metadata": {"name": "edge", "namespace": "nemo-cluster-edge"}})
    await refused(registry.create(AGENT, lease | {"metadata": {"name": "edge", "namespace": "nemo-cluster-other"}}))


async def test_reserved_namespaces(registry: Registry) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "nemo-mine"}}
    rule = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "ann"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "name": "ann"}],
    }
    await registry.create(ADMIN, rule)
    assert "belong to NEMO" in (await refused(registry.create(ANN, namespace))).message
    await registry.create(ADMIN, namespace)
    await refused(registry.delete(ADMIN, scheme.NAMESPACE, "default"))


async def test_certificate_requests(registry: Registry) -> None:
    request = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": "edge-1"},
        "spec": {
            "request": "eA==",
            "signerName": "meta-os.eu/agent",
            "usages": ["client auth"],
            "username": "root",
            "groups": ["system:masters"],
        },
    }
    made = await registry.create(AGENT, request)
    assert made["spec"]["username"] == AGENT.name and made["spec"]["groups"] == list(AGENT.groups)
    made["status"] = {"conditions": [{"type": "Approved", "status": "True", "reason": "Renewal"}]}
    await refused(registry.update(AGENT, made, subresource="approval"))
    bearer = UserInfo("system:bootstrap:abc")
    await refused(registry.get(bearer, scheme.CERTIFICATE_SIGNING_REQUEST, "edge-1"))
    first = await registry.create(bearer, request | {"metadata": {"name": "edge-0"}})
    assert (await registry.get(bearer, scheme.CERTIFICATE_SIGNING_REQUEST, "edge-0")) == first
    await refused(registry.get(AGENT, scheme.CERTIFICATE_SIGNING_REQUEST, "edge-0"))
    await refused(registry.get(bearer, scheme.SECRET, "x", "default"))
    await refused(registry.list(bearer, scheme.CLUSTER))
    approved = await registry.update(ADMIN, made, subresource="approval")
    approved["status"]["conditions"] = [{"type": "Denied", "status": "True"}]
    await refused(registry.update(ADMIN, approved, subresource="approval"), 422)
    approved["status"] = {"certificate": "eA=="}
    signed = await registry.update(ADMIN, approved, subresource="status")
    assert signed["status"]["conditions"][0]["type"] == "Approved" and signed["status"]["certificate"]


async def test_admission_warns(store: SqliteStore, clock: FakeClock) -> None:
    registry = Registry(store, clock, Random(1), admission=[UnsupportedFields()])
    await registry.start()
    said: list[str] = []
    obj = deployment()
    obj["spec"]["template"]["spec"]["hostNetwork"] = True
    await registry.create(ADMIN, obj, warnings=said)
    assert any(text.startswith("spec.template.spec.hostNetwork: ") for text in said)
    await registry.stop()


def test_what_is_sealed() -> None:
    assert sealed("secrets/shop/db") and sealed("works.meta-os.eu/nemo-cluster-edge/secret.shop.db")
    assert not sealed("configmaps/shop/db") and not sealed("works.meta-os.eu/nemo-cluster-edge/deployment.shop.db")


async def test_who_approves_needs_a_right_on_the_signer(registry: Registry) -> None:
    """As in Kubernetes: the subresource alone would let anybody who may approve become anybody."""
    signer = "kubernetes.io/kube-apiserver-client"
    request = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": "eve"},
        "spec": {"request": "LS0tLS0=", "signerName": signer, "usages": ["client auth"]},
    }

    def role(name: str, resource: str, verb: str, *names: str) -> Obj:
        rule = {"apiGroups": ["certificates.k8s.io"], "resources": [resource], "verbs": [verb], "resourceNames": list(names)}
        return {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": [rule if names else {k: v for k, v in rule.items() if k != "resourceNames"}],
        }

    def bound(name: str) -> Obj:
        made = binding(name, "ann")
        del made["metadata"]["namespace"]
        return made | {"kind": "ClusterRoleBinding"}

    made = await registry.create(ADMIN, request)
    conditions = [{"type": "Approved", "status": "True", "reason": "x", "message": "x"}]
    approval = made | {"status": {"conditions": conditions}}
    signed = made | {"status": {"certificate": "LS0tLS0="}}
    for obj in (
        role("approves", "certificatesigningrequests/approval", "update"),
        role("signs", "certificatesigningrequests/status", "update"),
    ):
        await registry.create(ADMIN, obj)
        await registry.create(ADMIN, bound(obj["metadata"]["name"]))
    error = await refused(registry.update(ANN, approval, subresource="approval"))
    assert f'user not permitted to approve requests with signerName "{signer}"' in error.message
    await refused(registry.update(ANN, signed, subresource="status"))
    await registry.create(ADMIN, role("for-signer", "signers", "approve", "kubernetes.io/*"))
    await registry.create(ADMIN, bound("for-signer"))
    await registry.update(ANN, approval, subresource="approval")
    signed["metadata"].pop("resourceVersion")
    await refused(registry.update(ANN, signed, subresource="status"))


async def test_placement_reviews_are_for_whom_may_see_sites_and_answered_where_controllers_run(registry: Registry) -> None:
    bound = {**binding("system:site-viewer", "ann"), "kind": "ClusterRoleBinding", "metadata": {"name": "planners"}}
    await registry.create(ADMIN, bound)
    review = {**scheme.PLACEMENT_REVIEW.empty(""), "spec": {"objects": [deployment()]}}
    assert "none do here" in (await refused(registry.create(ANN, review), 405)).message

    async def answer(user: UserInfo, obj: Obj) -> Obj:
        return {**obj, "status": {"for": user.name}}

    registry.reviews[scheme.PLACEMENT_REVIEW] = answer
    found = await registry.create(ANN, review)
    assert found["status"] == {"for": "ann"} and found["spec"]["objects"][0]["spec"]["replicas"] == 1
    await refused(registry.create(UserInfo("bob", ("system:authenticated",)), review))
    wrong = {**review, "spec": {"objects": [{**deployment(), "spec": {}}]}}
    assert "spec.objects[0]" in (await refused(registry.create(ANN, wrong), 422)).message


class Late(MemoryStore):
    """What another hub writes to ``there`` comes here when it is asked how far that is, and not before."""

    def __init__(self, there: MemoryStore) -> None:
        super().__init__()
        self._there, self._known, self._news = there, 0, asyncio.Event()

    async def revision(self) -> int:
        self._known = await self._there.revision()
        self._news.set()
        return self._known

    async def list(self, prefix: str, *, revision: int = 0, limit: int = 0, after: str = "") -> Listing:
        return await self._there.list(prefix, revision=revision, limit=limit, after=after)

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[LogEvent]:
        async for event in self._there.watch(prefix, after=after):
            while event.revision > self._known:
                self._news.clear()
                await self._news.wait()
            yield event


async def test_rights_are_those_that_another_hub_has_acknowledged() -> None:
    store = MemoryStore()
    one, other = (Registry(each, FakeClock(), Random(1), shared=True) for each in (store, Late(store)))
    for each in (one, other):
        await each.start()
    await one.create(ADMIN, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    for _ in range(2):
        await one.create(ADMIN, binding("view", "ann", "shop"))
        assert (await other.list(ANN, scheme.POD, "shop")).items == []
        await one.delete(ADMIN, scheme.ROLE_BINDING, "ann-view", "shop")
        await refused(other.list(ANN, scheme.POD, "shop"))
        await one.create(ADMIN, binding("edit", "ann", "shop"))
        await refused(other.patch(ANN, scheme.POD, "x", "shop", {"metadata": {"labels": {"a": "b"}}}), 404)
        await one.delete(ADMIN, scheme.ROLE_BINDING, "ann-edit", "shop")
        await refused(other.patch(ANN, scheme.POD, "x", "shop", {"metadata": {"labels": {"a": "b"}}}))
    for each in (one, other):
        await each.stop()
