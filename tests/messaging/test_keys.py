from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaos.messaging.keys import Key, credentials_text, read_token
from metaos.messaging.subjects import device, from_devices, matches, said_by, to_device, topic, word

ROOT = bytes(32)


def test_keys_are_written_as_nats_writes_them() -> None:
    key = Key("user", bytes.fromhex("00" * 31 + "01"))
    # What NATS' own library (PyPI nkeys 0.2.1) makes of the same 32 bytes.
    assert key.seed == "SUAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAJBGQ"
    assert key.public == "UBGLLK7WVV47X5NLXTFPZQTJ3BONEZI62S4ILNMGT4SBV3PQUW5CSWW2"


@pytest.mark.parametrize(("kind", "letter"), [("operator", "O"), ("account", "A"), ("user", "U")])
def test_kinds_show(kind: str, letter: str) -> None:
    assert Key.derive(kind, ROOT, "x").public[0] == letter


WORDS = st.lists(st.text("ab", max_size=2), max_size=3)


@settings(max_examples=30)
@given(WORDS, WORDS)
def test_each_path_has_a_key_of_its_own(one: list[str], other: list[str]) -> None:
    assert (Key.derive("user", ROOT, *one) == Key.derive("user", ROOT, *other)) == (one == other)


def test_a_root_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="has 5 bytes: it must have 32"):
        Key.derive("user", b"short")


def test_a_token_says_what_it_was_told_and_is_signed() -> None:
    signer, subject = Key.derive("account", ROOT, "a"), Key.derive("user", ROOT, "u")
    token = signer.token(subject.public, "lamp", {"type": "user"}, 5.9, 7)
    found = read_token(token)
    assert (found["sub"], found["iss"], found["name"]) == (subject.public, signer.public, "lamp")
    assert (found["iat"], found["exp"], found["nats"]) == (5, 7, {"type": "user"})
    head, body, signature = token.split(".")
    assert base64.urlsafe_b64decode(signature + "==") == signer.sign(f"{head}.{body}".encode())
    assert subject.seed in credentials_text(token, subject)


@given(st.text(max_size=30))
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no token of the bus"):
        read_token(text)


@given(
    st.lists(st.sampled_from(["a", "b", "*", ">"]), min_size=1, max_size=4),
    st.lists(st.sampled_from("ab"), min_size=1, max_size=4),
)
def test_patterns(pattern: list[str], subject: list[str]) -> None:
    import re

    if ">" in pattern[:-1]:
        return
    wanted = r"\.".join({"*": "[^.]+", ">": ".+"}.get(part, part) for part in pattern)
    assert matches(".".join(pattern), ".".join(subject)) == bool(re.fullmatch(wanted, ".".join(subject)))


def test_subjects() -> None:
    assert topic(device("shop", "lamp", "command.*")) == "nemo/shop/lamp/command/+"
    assert to_device("shop", "lamp", "twin.desired") == "down.shop.lamp.twin.desired"
    assert from_devices("telemetry.>") == "up.*.*.telemetry.>"
    assert said_by("up.shop.lamp.telemetry.a.b") == ("shop", "lamp", "telemetry.a.b")
    for wrong in ("", "a.b", "a b", "ä", "x" * 129, "a\n", ">"):
        with pytest.raises(ValueError, match="cannot be part of a subject"):
            word(wrong)
    with pytest.raises(ValueError, match="no subject of a device"):
        said_by("down.shop.lamp.status")
