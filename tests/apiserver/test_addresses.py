"""Addresses, blocks and names as newer releases of Kubernetes take them."""

from __future__ import annotations

from typing import Any

import pytest

from metaos.apiserver.metadata import metadata_causes, name_causes
from metaos.apiserver.rules.addresses import address_causes, block_causes
from metaos.apiserver.validation import causes
from metaos.resources import scheme
from metaos.resources.meta import Obj


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10.0.0.1", ""),
        ("2001:0db8::1", ""),
        ("010.0.0.1", "must not have leading 0s"),
        ("10.0.0.300", "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        ("fe80::1%eth0", "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        ("::ffff:1.2.3.4", "must not be an IPv4-mapped IPv6 address"),
    ],
)
def test_addresses(text: str, said: str) -> None:
    assert [cause.message for cause in address_causes(text, "ip")] == ([f'Invalid value: "{text}": {said}'] if said else [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.0.0.0/0", ""),
        ("::/0", ""),
        ("10.0.0.0/08", "must not have leading 0s in IP or prefix length"),
        ("010.0.0.0/8", "must not have leading 0s in IP or prefix length"),
        ("10.1.0.0/8", "must not have bits set beyond the prefix length"),
        ("::ffff:1.2.3.0/120", "must not have an IPv4-mapped IPv6 address"),
        ("10.0.0.0/255.0.0.0", "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
        ("10.0.0.0/33", "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
        ("10.0.0.0", "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
    ],
)
def test_blocks(text: str, said: str) -> None:
    assert [cause.message for cause in block_causes(text, "cidr")] == ([f'Invalid value: "{text}": {said}'] if said else [])


def policy(*blocks: dict[str, Any]) -> Obj:
    peers = [{"ipBlock": block} for block in blocks]
    return {**scheme.NETWORK_POLICY.empty("a", "default"), "spec": {"podSelector": {}, "ingress": [{"from": peers}]}}


def test_a_block_that_stood_there_may_stay() -> None:
    held = policy({"cidr": "10.1.0.0/8", "except": ["10.2.3.4/16"]})
    beyond = "must not have bits set beyond the prefix length"
    found = causes(scheme.NETWORK_POLICY, held, None)
    assert [cause.field.rpartition("ipBlock.")[2] for cause in found] == ["cidr", "except[0]"]
    assert all(cause.message.endswith(beyond) for cause in found)
    assert not causes(scheme.NETWORK_POLICY, held, held)
    more = policy({"cidr": "10.1.0.0/8", "except": ["10.2.3.4/16"]}, {"cidr": "10.9.0.0/8", "except": ["11.0.0.0/9"]})
    found = causes(scheme.NETWORK_POLICY, more, held)
    assert [cause.field for cause in found] == [f"spec.ingress[0].from[1].ipBlock.{each}" for each in ("cidr", "except[0]")]
    assert found[1].message.endswith("must be a strict subset of `cidr`")


def test_names_with_dots_and_digits() -> None:
    assert [c.message for c in name_causes(scheme.NAMESPACE, "a.b")] == ['Invalid value: "a.b": must not contain dots']
    assert name_causes(scheme.NAMESPACE, "a_b")[0].message.startswith('Invalid value: "a_b": a lowercase RFC 1123 label must')
    assert not name_causes(scheme.SERVICE, "1a")


def test_owners() -> None:
    said = [(c.field.rpartition(".")[2], c.message) for c in metadata_causes({"ownerReferences": [{"name": "b"}]})]
    assert said == [
        ("apiVersion", 'Invalid value: "": version must not be empty'),
        ("kind", 'Invalid value: "": must not be empty'),
        ("uid", 'Invalid value: "": must not be empty'),
    ]


def test_how_many_replicas_at_most() -> None:
    def said(most: int) -> list[str]:
        spec = {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": most}
        found = causes(scheme.HORIZONTAL_POD_AUTOSCALER, {**scheme.HORIZONTAL_POD_AUTOSCALER.empty("a", "b"), "spec": spec}, None)
        return [cause.message for cause in found]

    assert said(1) == []
    assert said(0) == ["Required value: must be set and greater than 0"]
    assert said(-1) == ["Invalid value: -1: must be greater than or equal to 1"]


def test_a_storage_class_is_what_it_was_made_as() -> None:
    held = {**scheme.STORAGE_CLASS.empty("a"), "provisioner": "example.org/disk", "reclaimPolicy": "Delete"}
    found = causes(scheme.STORAGE_CLASS, {**held, "reclaimPolicy": "Retain"}, held)
    assert [(c.field, c.message) for c in found] == [("reclaimPolicy", 'Invalid value: "Retain": field is immutable')]
