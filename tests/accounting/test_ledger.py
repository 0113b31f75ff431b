"""The ledger shows tampering, whatever is changed, and its receipts need nobody's word."""

import copy
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.accounting.ledger import (
    GENESIS,
    Checkpoint,
    Entry,
    Tampered,
    canonical,
    follow,
    key_text,
    make_checkpoint,
    make_receipt,
    merkle_paths,
    merkle_root,
    verify_chain,
    verify_checkpoint,
    verify_checkpoints,
    verify_receipt,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = key_text(KEY.public_key().public_bytes_raw())

texts = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcxyz", max_size=4), inner, max_size=3),
    max_leaves=8,
)
lines = st.dictionaries(st.text("abc", min_size=1, max_size=3), values, max_size=3)


def booked(count: int, width: int = 2) -> list[tuple[Entry, bytes]]:
    found, head = [], GENESIS
    for position in range(1, count + 1):
        pods = [{"pod": f"web-{n}", "energyMillijoules": position * 100 + n} for n in range(width)]
        entry = Entry(position, head, {"site": "paris", "start": position * 300}, pods)
        head = entry.digest()
        found.append((entry, head))
    return found


def signed(entries: list[tuple[Entry, bytes]], every: int) -> list[Checkpoint]:
    found: list[Checkpoint] = []
    for first in range(0, len(entries), every):
        hashes = [h for _, h in entries[first : first + every]]
        before = found[-1] if found else None
        found.append(make_checkpoint(hashes, first + 1, before, now=1000.0, key=PUBLIC, sign=KEY.sign))
    return found


@given(values)
def test_canonical_json_is_json_and_the_same_for_the_same(value: Any) -> None:
    text = canonical(value)
    assert json.loads(text) == value and canonical(json.loads(text)) == text


@pytest.mark.parametrize("value", [1.5, float("nan"), 2**53, {"é": 1}, {1: 2}, "\ud800", b"x"])
def test_what_has_no_single_form_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical({"x": value})


def test_what_is_nested_too_deeply_is_refused() -> None:
    value: Any = 1
    for _ in range(20):
        value = [value]
    with pytest.raises(ValueError, match="deeper than 12"):
        canonical(value)


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=40), st.data())
def test_every_leaf_has_a_path_to_the_root_and_no_other_leaf_has(data: list[bytes], drawn: st.DataObject) -> None:
    index = drawn.draw(st.integers(0, len(data) - 1))
    path = merkle_paths(data, [index])[0]
    assert merkle_paths(data, range(len(data)))[index] == path, "however many are asked for at once"
    assert follow(data[index], index, len(data), path) == merkle_root(data)
    assert follow(data[index] + b"!", index, len(data), path) != merkle_root(data)
    with pytest.raises(Tampered):
        follow(data[index], index, len(data), [*path, b""])


def test_roots_are_those_of_rfc_6962() -> None:
    """Known answers: certificate-transparency's test vectors."""
    assert merkle_root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    data = [bytes.fromhex(each) for each in ("", "00", "10", "2021", "3031", "40414243")]
    assert merkle_root(data[:1]).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert merkle_root(data[:2]).hex() == "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
    assert merkle_root(data[:3]).hex() == "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"
    assert merkle_root(data[:6]).hex() == "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"


@given(st.lists(st.tuples(lines, st.lists(lines, max_size=4)), min_size=1, max_size=5), st.data())
def test_a_changed_bit_of_any_entry_is_found(contents: list[tuple[Any, list[Any]]], drawn: st.DataObject) -> None:
    found, head = [], GENESIS
    for position, (header, pods) in enumerate(contents, 1):
        entry = Entry(position, head, header, pods)
        head = entry.digest()
        found.append((entry, head))
    assert verify_chain(found) == (len(found), head)
    at = drawn.draw(st.integers(0, len(found) - 1))
    entry, digest = found[at]
    stored = canonical([entry.header, list(entry.lines)])
    bit = drawn.draw(st.integers(0, len(stored) * 8 - 1))
    flipped = bytearray(stored)
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        header, pods = json.loads(flipped)
    except (ValueError, TypeError):
        return  # It does not even read.
    if [header, pods] == [entry.header, list(entry.lines)]:
        return
    found[at] = Entry(entry.position, entry.previous, header, pods), digest
    with pytest.raises(Tampered, match=f"entry {at + 1} "):
        verify_chain(found)


def test_a_missing_a_doubled_and_a_swapped_entry_are_found() -> None:
    entries = booked(5)
    for wrong in ([*entries[:2], *entries[3:]], [*entries[:3], *entries[2:]], [entries[1], entries[0], *entries[2:]]):
        with pytest.raises(Tampered):
            verify_chain(wrong)
    assert verify_chain(entries[2:], 2, entries[1][1]) == (5, entries[4][1]), "older entries may have been put away"


def test_a_ledger_that_was_written_anew_has_no_signatures() -> None:
    """Whoever changes an entry and all hashes after it cannot sign what follows from them."""
    entries = booked(7)
    checkpoints = signed(entries, 3)
    hashes = [h for _, h in entries]
    assert verify_checkpoints(checkpoints, lambda a, b: hashes[a - 1 : b], PUBLIC) == 3
    forged = [h for _, h in booked(7, width=1)]
    with pytest.raises(Tampered, match="checkpoint 1 signs other entries"):
        verify_checkpoints(checkpoints, lambda a, b: forged[a - 1 : b], PUBLIC)
    with pytest.raises(Tampered, match="checkpoint 3 does not follow"):
        verify_checkpoints([checkpoints[0], checkpoints[2]], lambda a, b: hashes[a - 1 : b], PUBLIC)
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    own = make_checkpoint(forged, 1, None, now=0, key=key_text(other.public_key().public_bytes_raw()), sign=other.sign)
    verify_checkpoint(own)
    with pytest.raises(Tampered, match="signed with another key"):
        verify_checkpoint(own, PUBLIC)


@given(st.integers(1, 20), st.integers(1, 6), st.data())
@settings(max_examples=40)
def test_receipts_are_verified_without_the_ledger(count: int, width: int, drawn: st.DataObject) -> None:
    entries = booked(count, width)
    checkpoint = make_checkpoint([h for _, h in entries], 1, None, now=0, key=PUBLIC, sign=KEY.sign)
    at = drawn.draw(st.integers(0, count - 1))
    chosen = sorted(drawn.draw(st.sets(st.integers(0, width - 1))))
    receipt = make_receipt(entries[at][0], chosen, [h for _, h in entries], checkpoint)
    assert verify_receipt(json.loads(json.dumps(receipt)), PUBLIC) == PUBLIC
    hidden = {f"web-{n}" for n in range(width)} - {f"web-{n}" for n in chosen}
    assert not any(name in json.dumps(receipt) for name in hidden), "others' lines are not in it"


RECEIPT = make_receipt(booked(9, 3)[4][0], [1], [h for _, h in booked(9, 3)], signed(booked(9, 3), 9)[0])


@given(st.integers(0, len(canonical(RECEIPT)) * 8 - 1))
@settings(max_examples=400)
def test_a_changed_bit_of_a_receipt_is_found(bit: int) -> None:
    flipped = bytearray(canonical(RECEIPT))
    flipped[bit // 8] ^= 1 << bit % 8
    try:
        changed = json.loads(flipped)
    except ValueError:
        return
    assert changed != RECEIPT
    with pytest.raises(Tampered):
        verify_receipt(changed, PUBLIC)


@given(values)
def test_what_is_no_receipt_is_refused(value: Any) -> None:
    with pytest.raises(Tampered):
        verify_receipt(value)


def test_fields_beside_those_that_are_proven_are_refused() -> None:
    for path in ((), ("entry",), ("checkpoint",), ("lines", 0)):
        changed = copy.deepcopy(RECEIPT)
        place: Any = changed
        for step in path:
            place = place[step]
        place["approved"] = True
        with pytest.raises(Tampered, match="and no others"):
            verify_receipt(changed, PUBLIC)
