from pathlib import Path

import pytest

from metaos.volumes import DirectoryChunks
from tests.volumes.conformance import *  # noqa: F403


@pytest.fixture
def chunks(tmp_path: Path) -> DirectoryChunks:
    return DirectoryChunks(tmp_path / "chunks")


def test_what_a_crash_left_is_not_listed(chunks: DirectoryChunks, tmp_path: Path) -> None:
    chunks.put("ab" * 32, b"x")
    (tmp_path / "chunks" / "ab" / f".{'ab' * 32}.1").write_bytes(b"half")
    assert list(chunks.list()) == ["ab" * 32]
