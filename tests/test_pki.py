"""Key material is made once, private, and read again."""

import random
from pathlib import Path

from metaos.pki import Pki


def test_a_second_start_finds_what_the_first_one_made(tmp_path: Path) -> None:
    first = Pki(tmp_path / "pki", random.Random(1), 1e9)
    server, admin = first.server(("localhost", "127.0.0.1")), first.admin()
    again = Pki(tmp_path / "pki", random.Random(2), 1e9 + 60)
    assert again.authority.fingerprint == first.authority.fingerprint
    assert again.server(("localhost", "127.0.0.1")) == server
    assert again.admin() == admin
    assert {oct(p.stat().st_mode & 0o777) for p in (tmp_path / "pki").iterdir()} == {"0o600"}


def test_another_name_or_an_old_certificate_is_renewed(tmp_path: Path) -> None:
    first = Pki(tmp_path / "pki", random.Random(1), 1e9)
    server = first.server(("localhost",))
    assert first.server(("localhost", "hub.example.org")) != server
    later = Pki(tmp_path / "pki", random.Random(2), 1e9 + 300 * 86400)
    assert later.server(("localhost", "hub.example.org")) != server


def test_a_crash_between_key_and_certificate_is_survived(tmp_path: Path) -> None:
    first = Pki(tmp_path / "pki", random.Random(1), 1e9)
    first.path("admin", "key").write_bytes(b"half")
    assert b"BEGIN CERTIFICATE" in first.admin().certificate
