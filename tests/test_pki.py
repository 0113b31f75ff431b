"""Key material is made once, private, and read again; the authority is replaced without a gap, whenever the hub is killed."""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509

from metaos import files
from metaos.pki import Pki
from metaos.security.identity import KeyPair

HOSTS = ("localhost", "127.0.0.1")


def opened(folder: Path, now: float = 1e9, seed: int = 1) -> Pki:
    return Pki(folder / "pki", random.Random(seed), lambda: now)


def issuer(pair: KeyPair) -> str:
    return x509.load_pem_x509_certificate(pair.certificate).issuer.rfc4514_string().removeprefix("CN=")


def test_a_second_start_finds_what_the_first_one_made(tmp_path: Path) -> None:
    first = opened(tmp_path)
    server, admin = first.server(HOSTS), first.admin()
    again = opened(tmp_path, 1e9 + 60, 2)
    assert again.trusted == first.trusted and again.bundle == first.bundle
    assert again.server(HOSTS) == server and again.admin() == admin
    assert {oct(p.stat().st_mode & 0o777) for p in (tmp_path / "pki").iterdir()} == {"0o600"}
    assert (tmp_path / "pki").stat().st_mode & 0o077 == 0


def test_another_name_an_old_or_a_withdrawn_certificate_is_renewed(tmp_path: Path) -> None:
    first = opened(tmp_path)
    server, admin = first.server(("localhost",)), first.admin()
    assert first.server(("localhost", "hub.example.org")) != server
    assert opened(tmp_path, 1e9 + 300 * 86400).server(("localhost", "hub.example.org")) != server
    assert first.admin(1e9 - 1) == admin
    renewed = first.admin(1e9)
    assert renewed != admin and first.admin(1e9) == renewed, "once, not again and again"


def test_an_authority_is_replaced_and_the_older_one_retired(tmp_path: Path) -> None:
    pki = opened(tmp_path)
    server, admin, old = pki.server(HOSTS), pki.admin(), pki.authority
    pki.rotate()
    assert list(pki.trusted) == [pki.authority.name, old.name]
    assert issuer(pki.server(HOSTS)) == issuer(pki.admin()) == pki.authority.name
    assert pki.server(HOSTS) != server and pki.admin() != admin
    assert opened(tmp_path).trusted == pki.trusted
    assert not pki.retire(pki.authority.fingerprint), "the signing one stays"
    assert pki.retire(old.fingerprint) and not pki.retire(old.fingerprint)
    assert list(opened(tmp_path).trusted) == [pki.authority.name]
    assert len(x509.load_pem_x509_certificates(pki.server(HOSTS).certificate)) == 1, "nobody vouches any more"


class Killed(BaseException):
    """Where the process ended."""


@pytest.mark.parametrize("step", range(33))
def test_it_may_be_killed_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Before every call that touches the disk: what is found afterwards is whole, and the order is carried out once."""
    pki = opened(tmp_path)
    pki.server(HOSTS), pki.admin()
    ordered, calls = pki.authority.fingerprint, 0

    def fragile(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **more: object) -> object:
            nonlocal calls
            calls += 1
            if calls == step + 1:
                raise Killed
            return real(*arguments, **more)

        return call

    def carry_out(found: Pki) -> None:
        """As the hub does it: level-triggered."""
        if found.authority.fingerprint == ordered:
            found.rotate()
        found.server(HOSTS), found.admin()
        found.retire(ordered)
        found.server(HOSTS), found.admin()

    with monkeypatch.context() as patch:
        for name in ("open", "fsync", "close", "replace"):
            patch.setattr(files.os, name, fragile(getattr(files.os, name)))
        patch.setattr(Path, "unlink", fragile(Path.unlink))
        with suppress(Killed):
            carry_out(pki)
    found = opened(tmp_path, seed=5)
    assert found.trusted and set(found.trusted.values()) <= {ordered, *found.trusted.values()}
    assert issuer(found.server(HOSTS)) in found.trusted and issuer(found.admin()) in found.trusted
    carry_out(found)
    assert len(found.trusted) == 1 and ordered not in found.trusted.values()
    assert len(list((tmp_path / "pki").glob("ca-*.pem"))) == 1
    if step > calls:
        pytest.skip("fewer steps than that")
