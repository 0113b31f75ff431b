"""RBAC and what agents may touch."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from metaos.resources.meta import Obj
from metaos.security.authz import (
    MAX_MIRRORS,
    MAX_REQUESTS,
    Attributes,
    Decision,
    Roles,
    Rule,
    UserInfo,
    agent_write_problem,
    cluster_of,
    decide_agent,
    decide_bootstrap,
    token_problem,
)

ROLES: list[Obj] = [
    {
        "kind": "Role",
        "metadata": {"name": "r", "namespace": "shop"},
        "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["one"]}],
    },
    {
        "kind": "ClusterRole",
        "metadata": {"name": "c"},
        "rules": [
            {"verbs": ["*"], "apiGroups": ["apps"], "resources": ["deployments", "*/scale"]},
            {"verbs": ["get"], "nonResourceURLs": ["/metrics", "/healthz/*"]},
        ],
    },
]


def bound(kind: str, namespace: str, role: str, *subjects: dict[str, str]) -> Obj:
    metadata = {"name": "b"} | ({"namespace": namespace} if namespace else {})
    return {"metadata": metadata, "roleRef": {"kind": kind, "name": role}, "subjects": list(subjects)}


def test_rbac() -> None:
    roles = Roles.of(
        ROLES,
        [
            bound("Role", "shop", "r", {"kind": "User", "name": "ann"}),
            bound("ClusterRole", "shop", "c", {"kind": "Group", "name": "devs"}),
            bound("ClusterRole", "", "c", {"kind": "ServiceAccount", "name": "bot", "namespace": "ci"}),
            bound("Role", "", "r", {"kind": "User", "name": "eve"}),
            bound("ClusterRole", "", "missing", {"kind": "User", "name": "eve"}),
        ],
    )
    ann, bob = UserInfo("ann"), UserInfo("bob", ("devs",))
    bot, eve = UserInfo("system:serviceaccount:ci:bot"), UserInfo("eve")
    one = Attributes("get", "", "configmaps", "", "shop", "one")
    assert roles.decide(ann, one).allowed and not roles.decide(bob, one).allowed and not roles.decide(eve, one).allowed
    assert not roles.decide(ann, Attributes("get", "", "configmaps", "", "shop", "two")).allowed
    assert not roles.decide(ann, Attributes("list", "", "configmaps", "", "shop")).allowed
    assert roles.decide(bob, Attributes("delete", "apps", "deployments", "", "shop", "x")).allowed
    assert not roles.decide(bob, Attributes("delete", "apps", "deployments", "", "other", "x")).allowed
    assert not roles.decide(bob, Attributes("get", "apps", "deployments", "status", "shop", "x")).allowed
    assert roles.decide(bob, Attributes("update", "apps", "statefulsets", "scale", "shop", "x")).allowed
    assert roles.decide(bot, Attributes("list", "apps", "deployments")).allowed
    assert roles.decide(bot, Attributes("get", path="/healthz/ping")).allowed
    assert not roles.decide(bob, Attributes("get", path="/metrics")).allowed
    assert roles.decide(UserInfo("root", ("system:masters",)), one).allowed


def test_nobody_grants_more_than_they_have() -> None:
    roles = Roles.of(ROLES, [bound("ClusterRole", "shop", "c", {"kind": "User", "name": "bob"})])
    bob = UserInfo("bob")
    has = {"verbs": ["get", "patch"], "apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["x"]}
    assert roles.covers(bob, [Rule.of(has)], "shop")
    assert not roles.covers(bob, [Rule.of(has)], "other")
    for more in ({"resources": ["secrets"]}, {"apiGroups": ["*"]}, {"resources": ["*"]}):
        assert not roles.covers(bob, [Rule.of(has | more)], "shop")


names = st.sampled_from(["*", "get", "list", "a", "b"])
sets = st.lists(names, min_size=1, max_size=2)
rules = st.fixed_dictionaries(
    {"verbs": sets, "apiGroups": sets, "resources": sets}, optional={"resourceNames": st.lists(names, max_size=2)}
)
asked = st.builds(Attributes, names, names, names, st.just(""), st.sampled_from(["", "n"]), names)


@given(st.lists(rules, max_size=3), rules, asked)
def test_a_covered_rule_allows_nothing_new(held: list[dict[str, Any]], wanted: dict[str, Any], request: Attributes) -> None:
    role: Obj = {"kind": "ClusterRole", "metadata": {"name": "c"}, "rules": held}
    roles = Roles.of([role], [bound("ClusterRole", "", "c", {"kind": "User", "name": "u"})])
    user = UserInfo("u")
    # "*" as a requested value is no request; it stands for all of them in rules only.
    assume("*" not in (request.verb, request.group, request.resource, request.name))
    if roles.covers(user, [Rule.of(wanted)], "") and Rule.of(wanted).allows(request):
        assert roles.decide(user, request).allowed


# -- agents ------------------------------------------------------------------------------------------------

AGENT = UserInfo("system:cluster:edge", ("system:clusters",))


class Shop:
    """What ``edge`` has been given: a Deployment ``web`` in namespace ``shop``, of which there was an earlier revision, and a
    ConfigMap of the same name."""

    pods = asked = 0

    def __contains__(self, where: object) -> bool:
        return where == "shop"

    def workload(self, kind: str, where: str, named: str) -> Obj | None:
        if (kind, where, named) not in (("Deployment", "shop", "web"), ("ConfigMap", "shop", "web")):
            return None
        return {"kind": kind, "metadata": {"name": named, "namespace": where, "uid": "web-uid"}}

    def templates(self, workload: Obj) -> Iterator[Obj]:
        if workload["kind"] == "ConfigMap":
            yield {}
            return
        yield {"metadata": {"labels": {"app": "web", "version": "2"}}, "spec": {"serviceAccountName": "robot", "volumes": VAULT}}
        yield {"metadata": {"labels": {"app": "web", "version": "1"}}}

    def owner_of_pod(self, where: str, named: str) -> str | None:
        return {"web-1": "edge", "theirs": "other"}.get(named)

    def pods_of(self, where: str, stem: str) -> int:
        return self.pods

    def requests(self) -> int:
        return self.asked


VAULT = [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"audience": "vault", "path": "token"}}]}}]
WORKS = Shop()
OWNER = {"kind": "Deployment", "name": "web", "uid": "web-uid", "controller": True}


def may(verb: str, group: str, resource: str, *, sub: str = "", ns: str = "", name: str = "", fields: str = "") -> bool:
    return decide_agent("edge", Attributes(verb, group, resource, sub, ns, name, fields=fields), WORKS).allowed


def test_both_name_and_group_make_an_agent() -> None:
    assert cluster_of(AGENT) == "edge"
    assert cluster_of(UserInfo("system:cluster:edge")) is None
    assert cluster_of(UserInfo("edge", ("system:clusters",))) is None
    assert cluster_of(UserInfo("system:cluster:", ("system:clusters",))) is None


@pytest.mark.parametrize("decide", [lambda asked: decide_agent("edge", asked, WORKS), decide_bootstrap])
def test_beside_objects_agents_and_join_tokens_read_what_everybody_may(
    decide: Callable[[Attributes], Decision],
) -> None:
    for path in ("/version", "/readyz", "/cacerts", "/apis", "/api/v1", "/openapi/v3"):
        assert decide(Attributes("get", path=path)).allowed
        assert not decide(Attributes("create", path=path)).allowed
    for path in ("/ledger", "/ledger/keys", "/metrics", "/keys", "/apisecret"):
        refused = decide(Attributes("get", path=path))
        assert not refused.allowed and path in refused.reason


def test_an_agent_reaches_its_own() -> None:
    own = "nemo-cluster-edge"
    assert may("watch", "meta-os.eu", "works", ns=own)
    assert may("update", "meta-os.eu", "works", sub="status", ns=own, name="deployment.shop.web")
    assert may("update", "coordination.k8s.io", "leases", ns=own, name="edge")
    assert may("patch", "meta-os.eu", "clusters", sub="status", name="edge")
    assert may("get", "meta-os.eu", "clusters", sub="tunnel", name="edge")
    assert may("watch", "meta-os.eu", "clusters", fields="metadata.name=edge")
    assert may("create", "certificates.k8s.io", "certificatesigningrequests", name="edge-renewal")
    assert may("list", "", "pods", fields="spec.nodeName=edge")
    assert may("create", "", "pods", ns="shop", name="web-1")
    assert may("update", "", "pods", sub="status", ns="shop", name="web-1")
    assert may("create", "", "events", ns="shop")


def test_an_agent_reaches_nothing_else() -> None:
    for verb in ("get", "list", "watch", "create", "update", "patch", "delete"):
        assert not may(verb, "", "secrets", ns="shop", name="s")
        assert not may(verb, "meta-os.eu", "works", ns="nemo-cluster-other", name="w")
        assert not may(verb, "coordination.k8s.io", "leases", ns="nemo-cluster-other", name="other")
        assert not may(verb, "meta-os.eu", "clusters", name="other")
        assert not may(verb, "rbac.authorization.k8s.io", "clusterrolebindings", name="x")
        assert not may(verb, "apps", "deployments", ns="shop", name="web")
        assert not may(verb, "", "pods", sub="exec", ns="shop", name="web-1")
    assert not may("list", "", "pods")
    assert not may("list", "", "pods", fields="spec.nodeName=other")
    assert not may("create", "", "pods", ns="bank", name="x")
    assert not may("update", "meta-os.eu", "works", ns="nemo-cluster-edge", name="w")
    assert not may("list", "meta-os.eu", "clusters")
    assert may("create", "authorization.k8s.io", "selfsubjectaccessreviews")
    assert not may("create", "authorization.k8s.io", "subjectaccessreviews")
    assert not may("create", "authentication.k8s.io", "tokenreviews")
    assert not may("impersonate", "", "users", name="admin")
    assert not may("update", "certificates.k8s.io", "certificatesigningrequests", sub="approval", name="edge-renewal")


verbs = st.sampled_from(["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"])
places = st.sampled_from(["", "shop", "bank", "nemo-system", "nemo-cluster-edge", "nemo-cluster-other"])
subs = st.sampled_from(["", "status", "approval", "exec", "token", "scale"])
things = st.sampled_from(
    [
        ("", "secrets"),
        ("", "configmaps"),
        ("meta-os.eu", "works"),
        ("meta-os.eu", "placements"),
        ("coordination.k8s.io", "leases"),
        ("", "pods"),
        ("apps", "deployments"),
        ("rbac.authorization.k8s.io", "roles"),
    ]
)


@given(
    verbs, things, subs, places, st.sampled_from(["", "edge", "other", "x"]), st.sampled_from(["", "spec.nodeName=edge", "x=y"])
)
def test_no_request_leaves_the_site(verb: str, thing: tuple[str, str], sub: str, ns: str, name: str, fields: str) -> None:
    if may(verb, *thing, sub=sub, ns=ns, name=name, fields=fields):
        assert thing[1] in ("works", "leases", "pods")
        if thing[1] != "pods":
            assert ns == "nemo-cluster-edge"
        elif verb in ("list", "watch"):
            assert fields == "spec.nodeName=edge"
        elif verb == "create":
            assert ns == "shop"


pods = st.builds(
    lambda named, ns, node, labels, owners, finalizers, image: {
        "metadata": {"name": named, "namespace": ns, "labels": labels, "ownerReferences": owners, "finalizers": finalizers},
        "spec": {"nodeName": node, "image": image} if node else {},
    },
    st.sampled_from(["web-1", "db-1"]),
    st.sampled_from(["shop", "bank"]),
    st.sampled_from(["", "edge", "other"]),
    st.dictionaries(
        st.sampled_from(["app", "version", "meta-os.eu/cluster", "job-name", "statefulset.kubernetes.io/pod-name"]),
        st.sampled_from(["web", "db", "1", "2", "3", "edge", "other", "web-1"]),
    ),
    st.lists(st.sampled_from([OWNER, OWNER | {"uid": "x"}, OWNER | {"controller": False}, OWNER | {"name": "db"}]), max_size=2),
    st.lists(st.just("stuck.example.org/for-ever"), max_size=1),
    st.sampled_from(["python:3", "evil:1"]),
)


@given(st.none() | pods, st.none() | pods)
def test_no_write_touches_anothers_pod_or_makes_one_that_stands_for_nothing(obj: Obj | None, old: Obj | None) -> None:
    assume(obj is not None or old is not None)
    if agent_write_problem("edge", "pods", obj, old, WORKS):
        return
    for held in (obj, old):
        assert held is None or held["spec"].get("nodeName") == "edge"
    if obj is None:
        return
    said = obj["metadata"]["labels"]
    assert said.get("meta-os.eu/cluster", "edge") == "edge"
    if old is None:
        assert obj["metadata"]["namespace"] == "shop" and obj["metadata"]["ownerReferences"] == [OWNER]
        assert not obj["metadata"]["finalizers"] and obj["metadata"]["name"] == "web-1"
        assert said.get("app", "web") == "web" and said.get("version", "1") in ("1", "2")
    else:
        assert obj["spec"] == old["spec"] and obj["metadata"]["ownerReferences"] == old["metadata"]["ownerReferences"]
        assert set(obj["metadata"]["finalizers"]) <= set(old["metadata"]["finalizers"])
        assert said.get("app") in ("web", None, old["metadata"]["labels"].get("app"))


def event(**about: Any) -> Obj:
    involved = {"kind": "Pod", "namespace": "shop", "name": "web-1"} | about
    metadata = {"namespace": "shop", "name": "e"}
    return {"metadata": metadata, "involvedObject": involved, "source": {"host": "edge"}, "reportingInstance": "edge"}


def test_an_agent_reports_about_its_own_only() -> None:
    def problem(obj: Obj, old: Obj | None = None) -> str:
        return agent_write_problem("edge", "events", obj, old, WORKS)

    assert not problem(event())
    assert not problem(event(name="web-9")), "its mirror is about to be made"
    assert not problem(event(kind="Deployment", name="web"))
    assert not problem(event(kind="Cluster", name="edge"))
    assert (
        problem(event(name="theirs"))
        and problem(event(kind="Deployment", name="db"))
        and problem(event(kind="Secret", name="db"))
    )
    assert problem(event(kind="Cluster", name="other")) and problem(event(kind="Node", name="other"))
    assert problem(event(namespace="bank")), "its event would lie in another namespace than what it is about"
    assert problem(event() | {"source": {"host": "other"}}) and problem(event() | {"reportingInstance": "other"})
    assert problem(event() | {"source": {}, "reportingInstance": ""}), "it says who speaks"
    assert problem(event(), event() | {"source": {"component": "hub"}, "reportingInstance": "hub"}), "others' events stay"


def test_what_the_hub_says_of_a_site_is_not_the_sites_to_say() -> None:
    held = {"metadata": {"name": "edge"}, "status": {"conditions": [{"type": "Ready"}], "carbon": {"intensity": 300}}}

    def problem(obj: Obj, old: Obj | None) -> str:
        return agent_write_problem("edge", "clusters.meta-os.eu", obj, old, WORKS)

    assert not problem(held | {"status": held["status"] | {"capacity": {"cpu": "1"}}}, held)
    assert problem(held | {"status": held["status"] | {"carbon": {"intensity": 1}}}, held)
    assert problem(held | {"status": {}}, held) and problem(held, None), "not when it is made, either"
    assert problem({"metadata": {"name": "edge", "finalizers": ["x/y"]}}, None)
    assert problem({"metadata": {"name": "edge", "ownerReferences": [OWNER]}}, None)


def test_a_site_reports_its_own_usage_and_books_none() -> None:
    for verb in ("create", "get", "update", "patch"):
        assert may(verb, "meta-os.eu", "usages", name="edge")
        assert not may(verb, "meta-os.eu", "usages", name="other") and not may(verb, "meta-os.eu", "usages")
        assert not may(verb, "meta-os.eu", "usages", sub="status", name="edge")
        assert not may(verb, "meta-os.eu", "tariffs", name="edge")
    assert not any(may(verb, "meta-os.eu", "usages", name="edge") for verb in ("delete", "deletecollection", "list", "watch"))
    held: Obj = {"metadata": {"name": "edge"}, "spec": {"periods": []}, "status": {"booked": 3}}

    def problem(obj: Obj, old: Obj | None) -> str:
        return agent_write_problem("edge", "usages.meta-os.eu", obj, old, WORKS)

    assert not problem(held | {"spec": {"periods": [{"sequence": 4}]}}, held)
    assert problem(held | {"status": {"booked": 9}}, held) and problem(held, None)
    assert problem({"metadata": {"name": "other"}}, None)


def test_what_a_site_may_have_at_the_hub_is_bounded() -> None:
    full = Shop()
    full.pods, full.asked = MAX_MIRRORS, MAX_REQUESTS
    pod: Obj = {
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web"}, "ownerReferences": [OWNER]},
        "spec": {"nodeName": "edge"},
    }
    asking: Obj = {"metadata": {"name": "edge-1"}, "spec": {"signerName": "meta-os.eu/agent"}}
    requests = "certificatesigningrequests.certificates.k8s.io"
    assert not agent_write_problem("edge", "pods", pod, None, Shop())
    assert "already" in agent_write_problem("edge", "pods", pod, None, full)
    assert not agent_write_problem("edge", "pods", pod | {"status": {"phase": "Running"}}, pod, full), "what is there is kept up"
    assert not agent_write_problem("edge", requests, asking, None, Shop())
    assert "already" in agent_write_problem("edge", requests, asking, None, full)


def asks(name: str = "web-1", uid: str = "u", **spec: Any) -> Obj:
    return {"boundObjectRef": {"kind": "Pod", "name": name, "uid": uid}, **spec}


def shown(name: str = "web-1", node: str = "edge", owner: Obj = OWNER) -> Obj:
    metadata = {"name": name, "namespace": "shop", "uid": "u", "ownerReferences": [owner]}
    return {"metadata": metadata, "spec": {"nodeName": node, "serviceAccountName": "admin"}}


@pytest.mark.parametrize(
    ("account", "asked", "pod", "says"),
    [
        ("robot", asks(), shown(), ""),
        ("default", asks(), shown(), ""),
        ("robot", asks(audiences=["api", "vault"]), shown(), ""),
        ("robot", asks(audiences=["bank"]), shown(), "no volume with a token for 'bank'"),
        ("admin", asks(), shown(), "does not run as ServiceAccount admin"),
        ("robot", {}, shown(), "must be bound to a Pod"),
        ("robot", {"boundObjectRef": {"kind": "Secret", "name": "s", "uid": "u"}}, shown(), "must be bound to a Pod"),
        ("robot", asks(uid=""), shown(), "must be bound to a Pod"),
        ("robot", asks(), None, "is not one of edge"),
        ("robot", asks(), shown(node="other"), "is not one of edge"),
        ("robot", asks(), shown(owner=OWNER | {"uid": "x"}), "was not given to edge"),
        ("robot", asks(), shown(owner=OWNER | {"name": "db"}), "was not given to edge"),
        ("default", asks(), shown(owner=OWNER | {"kind": "ConfigMap"}), "does not run as ServiceAccount default"),
    ],
)
def test_an_agent_has_tokens_for_its_own_pods_alone(account: str, asked: Obj, pod: Obj | None, says: str) -> None:
    """What account a pod runs as, its workload says, and not the Pod that an agent has shown."""
    found = token_problem("edge", account, ("api",), asked, pod, WORKS)
    assert (says in found) if says else not found
    assert may("create", "", "serviceaccounts", sub="token", ns="shop", name=account)
    assert not may("create", "", "serviceaccounts", sub="token", ns="bank", name=account)
    assert not any(may(verb, "", "serviceaccounts", ns="shop", name=account) for verb in ("get", "create", "update", "delete"))
