"""The hub's key material on disk: made on the first start, read on the next ones."""

from __future__ import annotations

import base64
from pathlib import Path

from cryptography import x509

from metaos.files import make_private, write_private
from metaos.security.authz import MASTERS
from metaos.security.identity import SERVER_LIFETIME_SECONDS, Authority, KeyPair, Random

ADMIN = "admin"


class Pki:
    """Authority, server and administrator key pairs below one private directory."""

    def __init__(self, directory: Path, random: Random, now: float) -> None:
        make_private(directory)
        self.directory = directory
        self._now = now
        found = self._read("ca")
        self.authority = Authority(found, random) if found else Authority.create(random, now)
        if found is None:
            self._write("ca", self.authority.pair)

    def server(self, hosts: tuple[str, ...]) -> KeyPair:
        """The server's pair; renewed when its host names change or half its lifetime is over."""
        found = self._read("server")
        if found and self._remaining(found) > SERVER_LIFETIME_SECONDS / 2 and _names(found) == set(hosts):
            return found
        return self._write("server", self.authority.issue_server(hosts, self._now))

    def admin(self) -> KeyPair:
        """The administrator's pair; renewed when half its lifetime is over."""
        found = self._read(ADMIN)
        if found and self._remaining(found) > SERVER_LIFETIME_SECONDS / 2:
            return found
        return self._write(ADMIN, self.authority.issue_client(ADMIN, (MASTERS,), self._now))

    def path(self, name: str, part: str) -> Path:
        """Of a pair's ``crt`` or ``key`` file."""
        return self.directory / f"{name}.{part}"

    def _read(self, name: str) -> KeyPair | None:
        certificate, key = self.path(name, "crt"), self.path(name, "key")
        if not (certificate.exists() and key.exists()):
            return None
        return KeyPair(certificate.read_bytes(), key.read_bytes())

    def _write(self, name: str, pair: KeyPair) -> KeyPair:
        # The old certificate goes first and the new one comes last: a pair with only a key is made anew.
        self.path(name, "crt").unlink(missing_ok=True)
        write_private(self.path(name, "key"), pair.key)
        write_private(self.path(name, "crt"), pair.certificate)
        return pair

    def _remaining(self, pair: KeyPair) -> float:
        return x509.load_pem_x509_certificate(pair.certificate).not_valid_after_utc.timestamp() - self._now


def _names(pair: KeyPair) -> set[str]:
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
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
