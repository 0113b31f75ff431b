"""NetworkPolicies: each rule of Kubernetes once, and all of them against a plain reading of its documentation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.network.policies import Peer, holds_pods, in_ranges, named_ports, policy_types, refusal
from metaos.resources.meta import Obj

WEB = Peer("shop", "web-1", {"app": "web"}, {"team": "a"}, {"http": 8080})
API = Peer("shop", "api-1", {"app": "api"}, {"team": "a"}, {"http": 8000, "admin": 9000})
TEST = Peer("test", "web-1", {"app": "web"}, {"team": "b"})


def policy(where: str = "shop", **spec: Any) -> Obj:
    return {"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": where}, "spec": {"podSelector": {}} | spec}


def app(value: str) -> dict[str, Any]:
    return {"matchLabels": {"app": value}}


def test_without_policies_everything_is_allowed() -> None:
    assert refusal([], WEB, API, 8000) is None
    assert refusal([policy("test", policyTypes=["Ingress", "Egress"])], WEB, API, 8000) is None, "one of another namespace"


def test_default_deny_of_each_direction() -> None:
    ingress, egress = policy(policyTypes=["Ingress"]), policy(policyTypes=["Egress"])
    assert "allow pod api-1 no ingress from pod test/web-1 on port 8000" in str(refusal([ingress], TEST, API, 8000))
    assert "allow pod web-1 no egress to pod test/web-1 on port 80" in str(refusal([egress], WEB, TEST, 80))
    assert refusal([ingress], WEB, TEST, 80) is None and refusal([egress], TEST, WEB, 80) is None
    assert refusal([ingress, egress], WEB, WEB, 80) is None, "a pod reaches itself"


def test_rules_add_up_and_both_ends_must_allow() -> None:
    rules = [policy(podSelector=app("api"), ingress=[{"from": [{"podSelector": app("web")}]}]), policy(policyTypes=["Ingress"])]
    assert refusal(rules, WEB, API, 8000) is None
    assert refusal(rules, TEST, API, 8000), "the same labels in another namespace are not meant"
    assert refusal([*rules, policy(podSelector=app("web"), policyTypes=["Egress"])], WEB, API, 8000)


def test_peers() -> None:
    for peers, web, test in (
        ([{"namespaceSelector": {}}], True, True),
        ([{"namespaceSelector": {"matchLabels": {"team": "b"}}}], False, True),
        ([{"namespaceSelector": {"matchLabels": {"team": "b"}}, "podSelector": app("api")}], False, False),
        ([{"podSelector": app("api")}, {"podSelector": app("web")}], True, False),
        ([{"ipBlock": {"cidr": "0.0.0.0/0"}}], True, True),
        ([{"ipBlock": {"cidr": "10.0.0.0/8"}}], False, False),
        ([], True, True),
    ):
        found = policy(ingress=[{"from": peers}])
        assert (refusal([found], WEB, API, 1) is None, refusal([found], TEST, API, 1) is None) == (web, test), peers


@pytest.mark.parametrize(
    ("peer", "allowed"),
    [
        ({"ipBlock": {"cidr": "192.0.2.0/24"}}, True),
        ({"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.4/30"]}}, False),
        ({"ipBlock": {"cidr": "100.64.0.0/10"}}, False),
        ({"namespaceSelector": {}}, False),
        ({"podSelector": {}}, False),
    ],
)
def test_blocks_mean_what_they_say_for_who_comes_from_outside(peer: dict[str, Any], allowed: bool) -> None:
    outside = Peer("", "", address="192.0.2.7")
    found = policy(ingress=[{"from": [peer]}])
    assert (refusal([found], outside, API, 80) is None) is allowed
    assert refusal([], outside, API, 80) is None and refusal([policy(ingress=[{}])], outside, API, 80) is None


def test_ranges_of_addresses() -> None:
    assert in_ranges("10.9.8.7", ["2001:db8::/64", "10.0.0.0/8"]) and not in_ranges("11.9.8.7", ["10.0.0.0/8"])
    assert not in_ranges("10.9.8.7", []) and not in_ranges("fe80::1", ["0.0.0.0/0"])


@pytest.mark.parametrize(
    ("ports", "open_"),
    [
        ([], {79, 80, 90, 8000, 9000}),
        ([{"port": 80}], {80}),
        ([{"port": 80, "endPort": 90}], {80, 90}),
        ([{"port": "http"}, {"port": "admin"}], {8000, 9000}),
        ([{"port": "unknown"}], set()),
        ([{"protocol": "UDP", "port": 80}], set()),
        ([{"protocol": "UDP"}, {"protocol": "TCP"}], {79, 80, 90, 8000, 9000}),
    ],
)
def test_ports_are_those_of_the_destination_in_both_directions(ports: list[Any], open_: set[int]) -> None:
    for rules in (policy(ingress=[{"ports": ports}]), policy(egress=[{"ports": ports}], policyTypes=["Egress"])):
        assert {port for port in (79, 80, 90, 8000, 9000) if refusal([rules], WEB, API, port) is None} == open_


def test_policy_types_by_default() -> None:
    assert policy_types({}) == ("Ingress",) and policy_types({"egress": []}) == ("Ingress",)
    assert policy_types({"egress": [{}]}) == ("Ingress", "Egress") and policy_types({"policyTypes": ["Egress"]}) == ("Egress",)


@pytest.mark.parametrize(
    ("block", "holds"),
    [
        ({"cidr": "100.64.0.0/10"}, True),
        ({"cidr": "100.0.0.0/8", "except": ["10.0.0.0/8"]}, True),
        ({"cidr": "0.0.0.0/0", "except": ["100.64.7.0/24"]}, False),
        ({"cidr": "0.0.0.0/0", "except": ["100.0.0.0/8"]}, False),
        ({"cidr": "100.64.0.0/11"}, False),
        ({"cidr": "::/0"}, False),
        ({"cidr": "nonsense"}, False),
    ],
)
def test_a_block_stands_for_pods_where_it_holds_all_their_addresses(block: dict[str, Any], holds: bool) -> None:
    assert holds_pods(block) is holds


def test_named_ports() -> None:
    ports = [{"name": "http", "containerPort": 80}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"containerPort": 1}]
    assert named_ports({"spec": {"containers": [{"ports": ports}, {}]}}) == {"http": 80}
    assert named_ports({"spec": {"containers": [{"ports": ports}, {}]}}, "UDP") == {"dns": 53}


def test_each_protocol_is_allowed_by_its_own_rules() -> None:
    dns = replace(API, ports={"dns": 53})
    for rule, tcp, udp in (
        ({"port": 53}, True, False),
        ({"port": 53, "protocol": "UDP"}, False, True),
        ({"port": "dns", "protocol": "UDP"}, False, True),
        ({"protocol": "SCTP"}, False, False),
    ):
        found = [policy(podSelector=app("api"), ingress=[{"ports": [rule]}])]
        assert (refusal(found, WEB, dns, 53) is None, refusal(found, WEB, dns, 53, "UDP") is None) == (tcp, udp), rule


# -- against a plain reading --------------------------------------------------------------------------------

KEYS, VALUES = ("a", "b"), ("1", "2")
selectors = st.one_of(
    st.just({}),
    st.builds(lambda k, v: {"matchLabels": {k: v}}, st.sampled_from(KEYS), st.sampled_from(VALUES)),
    st.builds(
        lambda k, o, v: {"matchExpressions": [{"key": k, "operator": o, "values": [v] if o in ("In", "NotIn") else []}]},
        st.sampled_from(KEYS),
        st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]),
        st.sampled_from(VALUES),
    ),
)
labels_ = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES))
peers = st.one_of(
    st.builds(lambda s: {"podSelector": s}, selectors),
    st.builds(lambda s: {"namespaceSelector": s}, selectors),
    st.builds(lambda p, n: {"podSelector": p, "namespaceSelector": n}, selectors, selectors),
)
numbers = st.integers(1, 4)
ports_ = st.one_of(
    st.builds(lambda p: {"port": p}, st.one_of(numbers, st.sampled_from(["x", "y"]))),
    st.builds(lambda p, more: {"port": p, "endPort": p + more, "protocol": "TCP"}, numbers, st.integers(0, 2)),
    st.sampled_from([{"protocol": "UDP"}, {"protocol": "TCP"}, {"protocol": "SCTP", "port": 2}]),
)


def rules(word: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={word: st.lists(peers, max_size=2), "ports": st.lists(ports_, max_size=2)})


specs = st.fixed_dictionaries(
    {"podSelector": selectors},
    optional={
        "ingress": st.lists(rules("from"), max_size=2),
        "egress": st.lists(rules("to"), max_size=2),
        "policyTypes": st.sampled_from([["Ingress"], ["Egress"], ["Ingress", "Egress"]]),
    },
)
SPACES = ("n", "m")
pods_ = st.builds(
    lambda where, name, found, ports: (where, name, found, ports),
    st.sampled_from(SPACES),
    st.sampled_from("pq"),
    labels_,
    st.dictionaries(st.sampled_from(["x", "y"]), numbers),
)


def selected(selector: dict[str, Any], found: dict[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if found.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        has, value = rule["key"] in found, found.get(rule["key"])
        if not {
            "In": has and value in rule["values"],
            "NotIn": not has or value not in rule["values"],
            "Exists": has,
            "DoesNotExist": not has,
        }[rule["operator"]]:
            return False
    return True


def reference(policies: list[Obj], spaces: dict[str, dict[str, str]], source: Any, destination: Any, port: int) -> bool:
    """The documentation, sentence by sentence, by writing out what is allowed."""
    if source[:2] == destination[:2]:
        return True
    everybody = [source, destination]
    for direction, own, other in (("ingress", destination, source), ("egress", source, destination)):
        isolated, allowed = False, set()
        for each in policies:
            spec = each["spec"]
            types = spec.get("policyTypes") or (["Ingress"] + (["Egress"] if spec.get("egress") else []))
            if each["metadata"]["namespace"] != own[0] or not selected(spec["podSelector"], own[2]):
                continue
            if direction.capitalize() not in types:
                continue
            isolated = True
            for rule in spec.get(direction, []):
                listed = rule.get("from" if direction == "ingress" else "to")
                who = set()
                for index, pod in enumerate(everybody):
                    if not listed:
                        who.add(index)
                    for peer in listed or []:
                        if "namespaceSelector" in peer:
                            fits = selected(peer["namespaceSelector"], spaces[pod[0]])
                        else:
                            fits = pod[0] == each["metadata"]["namespace"]
                        if fits and ("podSelector" not in peer or selected(peer["podSelector"], pod[2])):
                            who.add(index)
                where = set(range(1, 8)) if not rule.get("ports") else set()
                for entry in rule.get("ports") or []:
                    if entry.get("protocol", "TCP") == "TCP":
                        if "port" not in entry:
                            where |= set(range(1, 8))
                        elif isinstance(entry["port"], int):
                            where |= set(range(entry["port"], entry.get("endPort", entry["port"]) + 1))
                        elif entry["port"] in destination[3]:
                            where.add(destination[3][entry["port"]])
                allowed |= {(index, number) for index in who for number in where}
        if isolated and (everybody.index(other), port) not in allowed:
            return False
    return True


@settings(max_examples=500)
@given(
    st.lists(st.tuples(st.sampled_from(SPACES), specs), max_size=4),
    st.fixed_dictionaries({"n": labels_, "m": labels_}),
    pods_,
    pods_,
    st.integers(1, 6),
)
def test_as_the_documentation_says(found: list[Any], spaces: Any, source: Any, destination: Any, port: int) -> None:
    policies = [{"metadata": {"name": f"p{i}", "namespace": where}, "spec": spec} for i, (where, spec) in enumerate(found)]
    ends = [Peer(p[0], p[1], p[2], spaces[p[0]], p[3]) for p in (source, destination)]
    assert (refusal(policies, *ends, port) is None) is reference(policies, spaces, source, destination, port)
