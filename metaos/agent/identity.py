"""A site's key and certificate request, made in a process of its own: ``python -m metaos.agent.identity``.

The agent stays small by not importing ``cryptography`` itself. ``request KEY_FILE NAME`` writes a new private key
(0600, never shown) and prints a certificate signing request; ``describe`` reads certificates (PEM) on standard input and
prints what the first says, as JSON; ``measure`` prints the digest of the agent's software, ``attest NAME TIME`` a signed
statement of it, with certificate and key as JSON on standard input; ``site FILE`` prints a site file, and where its plugins
are, as JSON: the YAML parser and the search for entry points (5 MB together) stay out of the agent too. ``member FILE``
prints the site file of a Kubernetes cluster.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from metaos.security.authz import CLUSTER_USER_PREFIX, CLUSTERS


def request(key_file: Path, name: str) -> bytes:
    """Makes the key, returns the PEM request for ``CN=system:cluster:NAME, O=system:clusters`` (PKCS #10)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    key_file.unlink(missing_ok=True)
    descriptor = os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, CLUSTERS),
            x509.NameAttribute(NameOID.COMMON_NAME, CLUSTER_USER_PREFIX + name),
        ]
    )
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def describe(pem: bytes) -> dict[str, float | str]:
    """``notBefore`` and ``notAfter`` in seconds since the epoch, and the common names of subject and issuer."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    certificate = x509.load_pem_x509_certificate(pem)
    names, issuers = (each.get_attributes_for_oid(NameOID.COMMON_NAME) for each in (certificate.subject, certificate.issuer))
    return {
        "notBefore": certificate.not_valid_before_utc.timestamp(),
        "notAfter": certificate.not_valid_after_utc.timestamp(),
        "commonName": str(names[0].value) if names else "",
        "issuer": str(issuers[0].value) if issuers else "",
    }


def software() -> str:
    """The digest of the agent's files as they lie on this machine: names and contents of all of the package, in order."""
    import hashlib

    root, found = Path(__file__).parent.parent, hashlib.sha256()
    for file in sorted(root.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            found.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
    return f"sha256:{found.hexdigest()}"


def attest(name: str, now: float, certificate: str, key: str) -> dict[str, str]:
    """A statement about this machine's software, signed (ECDSA, SHA-256) with the site's key. See
    ``metaos.security.attestation``."""
    import base64
    import platform

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from metaos import __version__

    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    said = {"site": name, "time": now, "measurement": software(), "boot": boot, "agent": __version__}
    said["python"] = platform.python_version()
    statement = json.dumps(said, sort_keys=True, separators=(",", ":"))
    private = serialization.load_pem_private_key(key.encode(), None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ValueError("the site's key is no elliptic-curve key")
    signature = base64.b64encode(private.sign(statement.encode(), ec.ECDSA(hashes.SHA256()))).decode()
    # The first certificate is the site's own.
    end = "-----END CERTIFICATE-----"
    return {"statement": statement, "signature": signature, "certificate": certificate.partition(end)[0] + end + "\n"}


def with_runtime(site: dict[str, Any], runtime: str = "") -> dict[str, Any]:
    """The site with the runtime that was named on the command line. Raises ``ValueError`` where its file names another."""
    spec = site.get("spec") or {}
    if not runtime:
        return site
    if spec.get("runtime") not in (None, runtime):
        raise ValueError(f"spec.runtime is {spec['runtime']!r} in the site file, and --runtime is {runtime}: make them agree")
    return {**site, "spec": {**spec, "runtime": runtime}}


def runtime_of(site: dict[str, Any]) -> str:
    """``module:Class`` of the runtime plugin that a site file names. Raises ``LookupError`` listing those installed."""
    from metaos.plugins import registry

    wanted = str((site.get("spec") or {}).get("runtime") or "sandbox")
    if wanted == "kubernetes":
        raise LookupError("spec.runtime is 'kubernetes': start the agent with --runtime kubernetes and --kubeconfig FILE")
    found = registry.load("metaos.runtime", wanted)
    return f"{found.__module__}:{found.__qualname__}"


def member_site(site: dict[str, Any]) -> dict[str, Any]:
    """The site of a Kubernetes cluster. Raises ``ValueError`` where its file says that it is another."""
    spec = site.get("spec") or {}
    if spec.get("runtime") not in (None, "kubernetes"):
        raise ValueError(f"spec.runtime is {spec['runtime']!r} in the site file, and --runtime is kubernetes: make them agree")
    for key in ("hostPaths", "hostImages", "isolation"):
        if spec.get(key):
            raise ValueError(f"spec.{key} says nothing of a Kubernetes cluster: leave it out of the site file")
    return {**site, "spec": {**spec, "runtime": "kubernetes"}}


def meters_of(site: dict[str, Any]) -> dict[str, str]:
    """The meters that are tried, and the one that the site file names: name → ``module:Class``. Raises ``LookupError``."""
    from metaos.agent.energy import ACCELERATORS, AUTO, DETECTED, MODEL, NONE
    from metaos.plugins import registry

    power = (site.get("spec") or {}).get("power") or {}
    named = {str(power.get(key) or AUTO) for key in ("meter", "acceleratorMeter")} - {AUTO, MODEL, NONE}
    found = {name: registry.load("metaos.meter", name) for name in sorted({*DETECTED, *ACCELERATORS, *named})}
    return {name: f"{each.__module__}:{each.__qualname__}" for name, each in found.items()}


def main(arguments: list[str]) -> int:
    match arguments:
        case ["request", key_file, name]:
            sys.stdout.buffer.write(request(Path(key_file), name))
        case ["describe"]:
            json.dump(describe(sys.stdin.buffer.read()), sys.stdout)
        case ["measure"]:
            sys.stdout.write(f"{software()}\n")
        case ["attest", name, now]:
            said = json.load(sys.stdin)
            json.dump(attest(name, float(now), said["certificate"], said["key"]), sys.stdout)
        case ["site" | "member" as what, path, *rest]:
            try:
                from metaos.agent.sitefile import read_site

                site = with_runtime(read_site(Path(path)), *rest)
                if what == "member":
                    found = member_site(site)
                else:
                    found = {"site": site, "runtime": runtime_of(site), "meters": meters_of(site)}
                json.dump(found, sys.stdout, allow_nan=False)
            except (OSError, ValueError, LookupError) as error:
                sys.stderr.write(f"{error}\n")
                return 1
        case _:
            sys.stderr.write(
                "usage: python -m metaos.agent.identity request KEY_FILE NAME | describe | measure | attest NAME TIME | "
                "site FILE [RUNTIME] | member FILE\n"
            )
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
