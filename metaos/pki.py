"""The hub's key material on disk: its authorities, its own and the administrator's certificates, whole after any crash."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from metaos.files import make_private, sync_directory, write_private
from metaos.security.authz import MASTERS
from metaos.security.identity import SERVER_LIFETIME_SECONDS, Authority, KeyPair, Random
from metaos.security.revocation import issued_time

ADMIN = "admin"


class Pki:
    """Authorities, server and administrator key pairs below one private directory.

    ``ca-N.pem`` are the authorities: the one with the highest number signs, all that are there are trusted, so one write
    begins a replacement and one removal ends it. Every pair is one file, certificates before the key, and changes at once.
    """

    def __init__(self, directory: Path, random: Random, now: Callable[[], float]) -> None:
        make_private(directory)
        self.directory = directory
        self._random, self._now = random, now
        self._adopt()
        self._authorities: list[Authority] = []
        self.reload()
        if not self._authorities:
            self._add(Authority.create(random, now()))

    def reload(self) -> None:
        """Takes the authorities as their files are now."""
        self._authorities = [self._authority(file) for file in self._files()]

    @property
    def authority(self) -> Authority:
        """The one that signs."""
        return self._authorities[0]

    @property
    def trusted(self) -> dict[str, str]:
        """Common names of the authorities that count, the signing one first, with their fingerprints."""
        return {authority.name: authority.fingerprint for authority in self._authorities}

    @property
    def bundle(self) -> bytes:
        """The certificates of all that are trusted, the signing one first."""
        return b"".join(authority.pair.certificate for authority in self._authorities)

    def rotate(self) -> None:
        """A new authority signs from now on; the older ones vouch for it, and are trusted until they are retired."""
        self._add(Authority.create(self._random, self._now()))

    def retire(self, fingerprint: str) -> bool:
        """Trust an older authority no more. Whether there was one to retire; the signing one stays."""
        for file, authority in list(zip(self._files(), self._authorities, strict=True))[1:]:
            if authority.fingerprint == fingerprint:
                file.unlink()
                sync_directory(self.directory)
                self._authorities.remove(authority)
                return True
        return False

    def server(self, hosts: tuple[str, ...]) -> KeyPair:
        """The server's pair; renewed when its host names or the authority change, or half its lifetime is over. Its certificate
        is followed by those by which older authorities vouch for the signing one."""
        found = self._read("server")
        chain = self._vouchers()
        if found and self._fresh(found) and _names(found) == set(hosts) and _chain(found) == chain:
            return found
        pair = self.authority.issue_server(hosts, self._now())
        return self._write("server", KeyPair(pair.certificate + chain, pair.key))

    def admin(self, withdrawn_time: float = float("-inf")) -> KeyPair:
        """The administrator's pair; renewed when the authority changes, half its lifetime is over, or it was withdrawn."""
        found = self._read(ADMIN)
        if found and self._fresh(found) and issued_time(_leaf(found).not_valid_before_utc.timestamp()) > withdrawn_time:
            return found
        now = max(self._now(), withdrawn_time + 1)
        return self._write(ADMIN, self.authority.issue_client(ADMIN, (MASTERS,), now))

    def client(self, name: str, groups: tuple[str, ...]) -> KeyPair:
        """A pair for something that this hub does itself; in memory alone."""
        return self.authority.issue_client(name, groups, self._now())

    def path(self, name: str) -> Path:
        """Of a pair's file."""
        return self.directory / f"{name}.pem"

    def _adopt(self) -> None:
        """The first layout had certificate and key in files of their own. The authority stays the same, so every member still
        trusts this hub; server and administrator get new pairs."""
        old = self.directory / "ca.crt"
        if old.exists() and not self._files():
            write_private(self.path("ca-1"), old.read_bytes() + (self.directory / "ca.key").read_bytes())
        if self._files():
            for name in ("ca", "server", ADMIN):
                for ending in ("crt", "key"):
                    (self.directory / f"{name}.{ending}").unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Of the authorities, the newest first."""
        return sorted(self.directory.glob("ca-*.pem"), key=lambda file: -int(file.stem.removeprefix("ca-")))

    def _authority(self, file: Path) -> Authority:
        certificate, key = _parts(file.read_bytes())
        return Authority(KeyPair(certificate[0], key), self._random)

    def _add(self, authority: Authority) -> None:
        files = self._files()
        number = int(files[0].stem.removeprefix("ca-")) + 1 if files else 1
        vouchers = b"".join(older.vouch(authority, self._now()) for older in self._authorities)
        write_private(self.path(f"ca-{number}"), authority.pair.certificate + vouchers + authority.pair.key)
        self._authorities.insert(0, authority)

    def _vouchers(self) -> bytes:
        certificates, _ = _parts(self._files()[0].read_bytes())
        issuers = {x509.load_pem_x509_certificate(older.pair.certificate).subject for older in self._authorities[1:]}
        return b"".join(pem for pem in certificates[1:] if x509.load_pem_x509_certificate(pem).issuer in issuers)

    def _read(self, name: str) -> KeyPair | None:
        try:
            certificates, key = _parts(self.path(name).read_bytes())
        except FileNotFoundError:
            return None
        return KeyPair(b"".join(certificates), key)

    def _write(self, name: str, pair: KeyPair) -> KeyPair:
        write_private(self.path(name), pair.certificate + pair.key)
        return pair

    def _fresh(self, pair: KeyPair) -> bool:
        certificate = _leaf(pair)
        remaining = certificate.not_valid_after_utc.timestamp() - self._now()
        signing = x509.load_pem_x509_certificate(self.authority.pair.certificate)
        return remaining > SERVER_LIFETIME_SECONDS / 2 and certificate.issuer == signing.subject


def _parts(pem: bytes) -> tuple[list[bytes], bytes]:
    """The certificates and the key in one file's content."""
    begin = b"-----BEGIN "
    blocks = [begin + block for block in pem.split(begin)[1:]]
    return [b for b in blocks if b.startswith(begin + b"CERTIFICATE")], b"".join(b for b in blocks if b"PRIVATE KEY" in b)


def _leaf(pair: KeyPair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate)


def _chain(pair: KeyPair) -> bytes:
    return b"".join(_parts(pair.certificate)[0][1:])


def _names(pair: KeyPair) -> set[str]:
    names = _leaf(pair).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}


def render_kubeconfig(server: str, ca: bytes, certificate: bytes, key: bytes, user: str = "admin") -> str:
    """A kubeconfig with everything inline."""
    import yaml

    def text(pem: bytes) -> str:
        return base64.b64encode(pem).decode()

    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "nemo",
            "clusters": [{"name": "nemo", "cluster": {"server": server, "certificate-authority-data": text(ca)}}],
            "users": [{"name": user, "user": {"client-certificate-data": text(certificate), "client-key-data": text(key)}}],
            "contexts": [{"name": "nemo", "context": {"cluster": "nemo", "user": user}}],
        },
        sort_keys=False,
    )
