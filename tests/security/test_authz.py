"""RBAC and what agents may touch."""

from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from metaos.resources.meta import Obj
from metaos.security.authz import Attributes, Roles, Rule, UserInfo, agent_write_problem, cluster_of, decide_agent

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
WORKS = frozenset({"shop"})


def may(verb: str, group: str, resource: str, *, sub: str = "", ns: str = "", name: str = "", fields: str = "") -> bool:
    return decide_agent("edge", Attributes(verb, group, resource, sub, ns, name, fields=fields), WORKS).allowed


def test_both_name_and_group_make_an_agent() -> None:
    assert cluster_of(AGENT) == "edge"
    assert cluster_of(UserInfo("system:cluster:edge")) is None
    assert cluster_of(UserInfo("edge", ("system:clusters",))) is None
    assert cluster_of(UserInfo("system:cluster:", ("system:clusters",))) is None


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
    lambda ns, node, label: {
        "metadata": {"name": "p", "namespace": ns, "labels": {"meta-os.eu/cluster": label} if label else {}},
        "spec": {"nodeName": node} if node else {},
    },
    st.sampled_from(["shop", "bank"]),
    st.sampled_from(["", "edge", "other"]),
    st.sampled_from(["", "edge", "other"]),
)


@given(st.none() | pods, st.none() | pods)
def test_no_write_touches_anothers_pod(obj: Obj | None, old: Obj | None) -> None:
    assume(obj is not None or old is not None)
    if not agent_write_problem("edge", "pods", obj, old, WORKS):
        for held in (obj, old):
            assert held is None or held["spec"].get("nodeName") == "edge"
        if old is None and obj is not None:
            assert obj["metadata"]["namespace"] == "shop"
