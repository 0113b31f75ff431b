"""The same on a real S3 server: SeaweedFS as PyPI has it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metaos.volumes import Chunks, s3
from metaos.volumes.backing import run
from metaos.volumes.s3 import StoreError
from metaos.volumes.vault import StoredChunks
from tests.backups import seaweed
from tests.backups.seaweed import KEY_ID, SECRET, Seaweed
from tests.backups.test_backing import KEY, contents, same_clock  # noqa: F401  (a fixture)
from tests.volumes.conformance import *  # noqa: F403

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with seaweed.running(tmp_path_factory.mktemp("seaweed")) as found:
        yield found


@pytest.fixture
def chunks(server: Seaweed, request: pytest.FixtureRequest) -> Chunks:
    return StoredChunks(server.bucket(), f"conformance/{abs(hash(request.node.name))}/")


def asked(server: Seaweed, root: Path, do: str, **more: Any) -> dict[str, Any]:
    return {
        "do": do,
        "store": {"endpoint": server.endpoint, "bucket": seaweed.BUCKET},
        "credentials": {"accessKeyId": KEY_ID, "secretAccessKey": SECRET, "encryptionKey": KEY},
        "namespace": "shop",
        "claim": root.name,
        "site": "west",
        "directory": str(root / "volume"),
        "state": str(root / "state"),
        **more,
    }


@pytest.mark.usefixtures("same_clock")
def test_there_and_back(server: Seaweed, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "sub").mkdir(parents=True)
    for number in range(30):
        (volume / "sub" / str(number)).write_bytes(str(number).encode() * 100_000)
    was = contents(volume)
    first = run(asked(server, tmp_path, "backUp"), time.time)
    assert first["sentChunks"] >= 30, first
    again = run(asked(server, tmp_path, "backUp"), lambda: time.time() + 1)
    assert again["sentChunks"] == 0, again
    shutil.rmtree(volume)
    assert "digest" in run(asked(server, tmp_path, "bringBack"), time.time)
    assert contents(volume) == was


def test_conditional_writes_and_listing(server: Seaweed) -> None:
    bucket = server.bucket()
    assert bucket.put("new/one", b"1", new=True) and not bucket.put("new/one", b"2", new=True)
    assert bucket.get("new/one") == b"1"
    names = [f"many/{number:04d}" for number in range(1100)]
    for name in names:
        bucket.put(name, b"")
    assert [each.key for each in bucket.list("many/")] == names, "over more than one page"
    assert abs(bucket.check() - time.time()) < 30


@pytest.mark.parametrize(
    ("more", "reason"),
    [({"name": "nobody-made-it"}, s3.MISSING), ({"secret": "wrong"}, s3.FORBIDDEN), ({"key_id": "nobody"}, s3.FORBIDDEN)],
)
def test_mistakes_are_told(server: Seaweed, more: dict[str, str], reason: str) -> None:
    with pytest.raises(StoreError) as failed:
        server.bucket(**more).check()
    assert failed.value.reason == reason


def test_a_server_that_dies_and_comes_back(server: Seaweed, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_text("content")
    request = asked(server, tmp_path, "backUp")
    request["store"]["endpoint"] = "http://127.0.0.1:1"
    said = run(request, time.time)
    assert said["reason"] == s3.UNREACHABLE
    assert "backup" in run(asked(server, tmp_path, "backUp"), time.time)
