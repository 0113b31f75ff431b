"""The client of S3-compatible stores: its signatures by the published examples, and stores that lie, hang up and are full."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import pytest

from metaos.volumes import s3
from metaos.volumes.s3 import Bucket, Credentials, StoreError, signed
from tests.backups.hostile import Hostile, answers, hung_up, serving, truncated

KNOWN = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
#: 20130524T000000Z
MOMENT = 1369353600.0
NOTHING = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def store() -> Iterator[Hostile]:
    with serving() as found:
        yield found


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "payload", "signature"),
    [
        (
            "GET",
            "/test.txt",
            [],
            {"Range": "bytes=0-9"},
            NOTHING,
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "PUT",
            "/test%24file.text",
            [],
            {"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
            hashlib.sha256(b"Welcome to Amazon S3.").hexdigest(),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        ("GET", "/", [("lifecycle", "")], {}, NOTHING, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        (
            "GET",
            "/",
            [("max-keys", "2"), ("prefix", "J")],
            {},
            NOTHING,
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
)
def test_signatures_of_the_published_examples(
    method: str, path: str, query: list[tuple[str, str]], headers: dict[str, str], payload: str, signature: str
) -> None:
    """Source: Amazon S3 API reference, "Signature Calculations for the Authorization Header"."""
    found = signed(KNOWN, method, "examplebucket.s3.amazonaws.com", path, query, headers, payload, MOMENT)
    assert found["Authorization"].endswith(f"Signature={signature}")


def test_put_get_list_delete(store: Hostile) -> None:
    bucket, store.page = store.bucket(), 2
    assert bucket.get("a/1") is None
    assert bucket.put("a/1", b"one", new=True)
    assert not bucket.put("a/1", b"two", new=True)
    assert bucket.put("a/2 ü&+", b"") and bucket.put("a/3", b"3") and bucket.put("b/1", b"other")
    assert bucket.get("a/1") == b"one"
    assert [(each.key, each.size) for each in bucket.list("a/")] == [("a/1", 3), ("a/2 ü&+", 0), ("a/3", 1)]
    bucket.delete("a/2 ü&+")
    assert [each.key for each in bucket.list("a/")] == ["a/1", "a/3"]
    bucket.delete("a/1")
    bucket.delete("a/1")
    assert [each.key for each in bucket.list("")] == ["a/3", "b/1"]


@pytest.mark.parametrize("trick", [answers(503), answers(429, headers={"Retry-After": "0"}), hung_up, truncated])
def test_what_passes_is_tried_again(store: Hostile, trick: object) -> None:
    bucket = store.bucket()
    store.objects["k"] = b"whole", 0.0
    store.tricks = [trick, trick]  # type: ignore[list-item]
    assert bucket.get("k") == b"whole"


@pytest.mark.parametrize(
    ("trick", "reason", "remedy"),
    [
        (answers(503, "SlowDown"), s3.UNREACHABLE, "tried again later"),
        (answers(404, "NoSuchBucket"), s3.MISSING, "make it, or correct spec.bucket"),
        (answers(403, "SignatureDoesNotMatch"), s3.FORBIDDEN, "secretAccessKey"),
        (answers(403, "RequestTimeTooSkewed"), s3.WRONG_CLOCK, "NTP"),
        (answers(507), s3.FULL, "keep fewer"),
        (answers(400, "QuotaExceeded"), s3.FULL, "keep fewer"),
        (answers(400, "KeyTooLong"), s3.REFUSED, "does not take"),
        (answers(301, headers={"Location": "http://127.0.0.1:1/elsewhere"}), s3.REFUSED, "does not take"),
        (hung_up, s3.UNREACHABLE, "spec.endpoint"),
        (truncated, s3.UNREACHABLE, "spec.endpoint"),
    ],
)
def test_what_does_not_pass_is_said_with_its_remedy(store: Hostile, trick: object, reason: str, remedy: str) -> None:
    store.tricks = [trick] * 20  # type: ignore[list-item]
    with pytest.raises(StoreError) as failed:
        store.bucket().put("k", b"data")
    assert failed.value.reason == reason
    assert remedy in failed.value.message
    assert len(store.requests) <= s3.TRIES**2
    assert "secret" not in failed.value.message.replace("secretAccessKey", "")


def test_a_store_that_says_nothing(store: Hostile) -> None:
    def silent(request: object) -> bool:
        time.sleep(0.3)
        return True

    store.tricks = [silent] * 20
    with pytest.raises(StoreError) as failed:
        store.bucket(silent_seconds=0.05, tries=2).get("k")
    assert failed.value.reason == s3.UNREACHABLE


def test_nobody_there() -> None:
    with pytest.raises(StoreError) as failed:
        Bucket("http://127.0.0.1:1", "b", KNOWN, now=lambda: MOMENT, tries=1).check()
    assert failed.value.reason == s3.UNREACHABLE


def test_more_than_was_asked_for_is_not_read(store: Hostile) -> None:
    store.objects["k"] = b"x" * 2000, 0.0
    with pytest.raises(StoreError, match="more than 1000 bytes"):
        store.bucket().get("k", most=1000)


@pytest.mark.parametrize(
    ("listing", "said"),
    [
        (b"<html>", "no XML"),
        (b"<R><Contents><Key>other/1</Key><Size>1</Size></Contents></R>", "not what was asked for"),
        (b"<R><Contents><Key>a/1</Key><Size>-1</Size></Contents></R>", "not what was asked for"),
        (
            b"<R><Contents><Key>a/2</Key><Size>1</Size></Contents><Contents><Key>a/1</Key><Size>1</Size></Contents></R>",
            "not what",
        ),
        (b"<R><IsTruncated>true</IsTruncated></R>", "not where"),
    ],
)
def test_listings_that_make_no_sense(store: Hostile, listing: bytes, said: str) -> None:
    from tests.backups.hostile import reply

    store.tricks = [lambda request: reply(request, 200, listing) is None]
    with pytest.raises(StoreError, match=said):
        list(store.bucket().list("a/"))


def test_a_listing_without_end(store: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MAX_PAGES", 3)
    store.objects = {f"a/{number}": (b"", 0.0) for number in range(9)}
    store.page = 2
    with pytest.raises(StoreError, match="more than 3 pages"):
        list(store.bucket().list("a/"))


@pytest.mark.parametrize("endpoint", ["s3.example.org", "ftp://x", "https://", "https://h/path", "https://h?x=1"])
def test_addresses_that_cannot_be_meant(endpoint: str) -> None:
    with pytest.raises(StoreError, match="no address of a store"):
        Bucket(endpoint, "b", KNOWN, now=lambda: MOMENT)


def test_authorities_that_are_none() -> None:
    with pytest.raises(StoreError, match="caBundle"):
        Bucket("https://h", "b", KNOWN, now=lambda: MOMENT, authorities="nothing")


def test_a_name_that_leads_to_where_machines_are_told_their_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at where it is connected: the address here stands for one that a name gives at the second asking."""
    monkeypatch.setattr(s3, "never_a_store", lambda host: "it is no store" if host == "127.0.0.1" else "")
    with serving() as found, pytest.raises(StoreError, match=r"it is no store.*correct spec.endpoint") as raised:
        Bucket(found.endpoint, "backups", KNOWN, now=time.time).check()
    assert raised.value.reason == s3.REFUSED and not found.objects
