"""A real registry on loopback (Debian's ``docker-registry``) with TLS and basic authentication, and what is pushed to it."""

from __future__ import annotations

import base64
import contextlib
import datetime
import gzip
import hashlib
import ipaddress
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

MANIFEST, INDEX = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
USER, PASSWORD = "maria", "s3cret:with colon"
_CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {place}/data}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}", tls: {{certificate: {place}/cert.pem, key: {place}/key.pem}}}}
auth: {{htpasswd: {{realm: test, path: {place}/htpasswd}}}}
"""


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def certificate(place: Path) -> None:
    """``cert.pem`` (its own authority) and ``key.pem`` for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    (place / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    (place / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))


@dataclass(frozen=True)
class Registry:
    host: str
    ca_file: str
    place: Path

    @property
    def settings(self) -> dict[str, Any]:
        return {"host": self.host, "caFile": self.ca_file}

    @property
    def credentials(self) -> tuple[tuple[str, str, str], ...]:
        return ((self.host, USER, PASSWORD),)

    def docker_config(self) -> bytes:
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        return json.dumps({"auths": {self.host: {"auth": auth}}}).encode()

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> urllib3.BaseHTTPResponse:
        url = path if path.startswith("http") else f"https://{self.host}/v2/{path}"
        signed = urllib3.make_headers(basic_auth=f"{USER}:{PASSWORD}") | {k.replace("_", "-"): v for k, v in headers.items()}
        with urllib3.PoolManager(ca_certs=self.ca_file) as pool:
            answer = pool.request(method, url, body=body, headers=signed, timeout=20)
        assert answer.status < 300, (method, url, answer.status, answer.data)
        return answer

    def blob(self, name: str, data: bytes, kind: str = "application/octet-stream") -> dict[str, Any]:
        where = self.call("POST", f"{name}/blobs/uploads/").headers["Location"]
        self.call("PUT", f"{where}{'&' if '?' in where else '?'}digest={digest_of(data)}", data, Content_Type=kind)
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}

    def manifest(self, name: str, tag: str, document: dict[str, Any]) -> str:
        data = json.dumps({"schemaVersion": 2, **document}).encode()
        self.call("PUT", f"{name}/manifests/{tag or digest_of(data)}", data, Content_Type=document["mediaType"])
        return digest_of(data)

    def push(self, name: str, tag: str, layers: Sequence[bytes], config: bytes) -> str:
        """An image; its digest."""
        rows = [self.blob(name, gzip.compress(each, 1, mtime=0), f"{_LAYER}+gzip") for each in layers]
        settings = self.blob(name, config, "application/vnd.oci.image.config.v1+json")
        return self.manifest(name, tag, {"mediaType": MANIFEST, "config": settings, "layers": rows})

    def index(self, name: str, tag: str, entries: Sequence[tuple[str, str, str]]) -> str:
        """Of (os, architecture, digest)."""
        rows = []
        for system, machine, digest in entries:
            size = len(self.call("GET", f"{name}/manifests/{digest}", Accept=MANIFEST).data)
            where = {"os": system, "architecture": machine}
            rows.append({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": where})
        return self.manifest(name, tag, {"mediaType": INDEX, "manifests": rows})

    def sign(self, name: str, digest: str, key: ec.EllipticCurvePrivateKey) -> None:
        """As ``cosign sign --key`` does."""
        payload = json.dumps(
            {
                "critical": {
                    "identity": {"docker-reference": f"{self.host}/{name}"},
                    "image": {"docker-manifest-digest": digest},
                    "type": "cosign container image signature",
                },
                "optional": None,
            }
        ).encode()
        signature = base64.b64encode(key.sign(payload, ec.ECDSA(hashes.SHA256()))).decode()
        row = self.blob(name, payload, "application/vnd.dev.cosign.simplesigning.v1+json")
        row["annotations"] = {"dev.cosignproject.cosign/signature": signature}
        config = json.dumps(
            {"architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": [row["digest"]]}}
        )
        settings = self.blob(name, config.encode(), "application/vnd.oci.image.config.v1+json")
        self.manifest(name, f"{digest.replace(':', '-')}.sig", {"mediaType": MANIFEST, "config": settings, "layers": [row]})


_LAYER = "application/vnd.oci.image.layer.v1.tar"


@contextlib.contextmanager
def running(place: Path) -> Iterator[Registry]:
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed: 'apt-get install docker-registry'")
    certificate(place)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # perl-base is on every Debian, and its crypt knows bcrypt.
    script = "print crypt($ARGV[0], q($2y$04$abcdefghijklmnopqrstuu))"
    hashed = subprocess.run(["perl", "-e", script, PASSWORD], check=True, capture_output=True, text=True).stdout
    (place / "htpasswd").write_text(f"{USER}:{hashed}\n")
    (place / "config.yml").write_text(_CONFIG.format(place=place, port=port))
    with (place / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(place / "config.yml")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (place / "registry.log").read_text()
                time.sleep(0.02)
        yield Registry(f"127.0.0.1:{port}", str(place / "cert.pem"), place)
    finally:
        process.terminate()
        process.wait(20)
