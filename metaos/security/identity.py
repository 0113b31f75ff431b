"""Certificates: the hub's own authority, server and client certificates, and join tokens.

X.509 (RFC 5280) with ECDSA P-256. A client's user is the certificate's common name, its groups the organisations,
as in Kubernetes. Serial numbers and validity come from the caller's seed and clock.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: Certificates are valid from two hours before now, so that members whose clock is an hour behind accept them.
BACKDATE_SECONDS = 7200.0
CA_LIFETIME_SECONDS = 10 * 365 * 86400.0
SERVER_LIFETIME_SECONDS = 365 * 86400.0
AGENT_LIFETIME_SECONDS = 7 * 86400.0

#: Kubernetes' own name for who signs certificates of users.
USER_SIGNER = "kubernetes.io/kube-apiserver-client"
#: Curves of keys that get a certificate.
CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})
TOKEN_TYPE = "meta-os.eu/join-token"  # noqa: S105 (a Secret's type, not a secret)
TOKEN_PREFIX = "nemo1"  # noqa: S105


class Random(Protocol):
    """Unpredictable bytes (``random.SystemRandom`` in a hub, a seeded source in the twin)."""

    def randbytes(self, n: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class KeyPair:
    """PEM texts. ``key`` is secret."""

    certificate: bytes
    key: bytes


def _new_key() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key, pem


def new_request(common_name: str, organizations: tuple[str, ...]) -> tuple[bytes, bytes]:
    """A certificate signing request for a client, and its new private key: PEM texts."""
    key, pem = _new_key()
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(common_name, organizations))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), pem


def _name(common_name: str, organizations: tuple[str, ...] = ()) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations]
        + [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


@dataclass(frozen=True, slots=True)
class Request:
    """What a certificate signing request (PKCS #10) asks for: a subject, and extensions by name."""

    key: ec.EllipticCurvePublicKey
    common_names: tuple[str, ...]
    organizations: tuple[str, ...]
    others: tuple[str, ...]

    @classmethod
    def read(cls, pem: bytes) -> Request:
        """Raises ``ValueError`` where it is malformed, or not signed by a key that is accepted."""
        try:
            request = x509.load_pem_x509_csr(pem)
            signed = request.is_signature_valid
            key = request.public_key()
            names = [(a.oid, str(a.value)) for a in request.subject]
            extensions = [e.oid for e in request.extensions]
        except Exception as error:
            # The parser has exceptions of several kinds for what an attacker may send; none of them is ours.
            raise ValueError(
                f"the certificate signing request cannot be read: {str(error)[:200] or type(error).__name__}"
            ) from error
        if not signed:
            raise ValueError("the certificate signing request is not signed by its own key")
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
            raise ValueError(f"the certificate signing request must have an elliptic-curve key of {', '.join(sorted(CURVES))}")
        known = (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)
        others = [oid for oid, _ in names if oid not in known] + extensions
        return cls(
            key,
            tuple(value for oid, value in names if oid == NameOID.COMMON_NAME),
            tuple(value for oid, value in names if oid == NameOID.ORGANIZATION_NAME),
            tuple(getattr(oid, "_name", oid.dotted_string) for oid in others),
        )

    def problem(self, common_name: str, organizations: tuple[str, ...]) -> str:
        """Why it asks for more than a client certificate of this name; empty where it does not."""
        if self.common_names != (common_name,):
            return f"the request's subject names {' and '.join(self.common_names) or 'nobody'}, and may only name {common_name}"
        if sorted(self.organizations) != sorted(organizations):
            asked, allowed = ", ".join(self.organizations) or "none", ", ".join(organizations) or "none"
            return f"the request's organizations are {asked}, and may only be {allowed}"
        if self.others:
            return f"the request asks for {', '.join(self.others)}: leave out everything but CN and O, nothing else is granted"
        return ""


class Authority:
    """A certificate authority held as two PEM texts."""

    def __init__(self, pair: KeyPair, random: Random) -> None:
        self.pair = pair
        self._random = random
        self._certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = serialization.load_pem_private_key(pair.key, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the authority's key must be an elliptic-curve key")
        self._key = key

    @classmethod
    def create(cls, random: Random, now: float) -> Authority:
        """A new self-signed authority, of a name that no other has: a certificate's issuer says which one made it."""
        key, pem = _new_key()
        name = _name(f"nemo-ca-{random.randbytes(4).hex()}")
        certificate = _authority(name, name, key.public_key(), random, now).sign(key, hashes.SHA256())
        return cls(KeyPair(certificate.public_bytes(serialization.Encoding.PEM), pem), random)

    @property
    def name(self) -> str:
        """Its common name."""
        return str(self._certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    def vouch(self, other: Authority, now: float) -> bytes:
        """A certificate (PEM) by which those who trust this authority trust ``other``: it stands in for a client that
        has not heard of the other one yet."""
        builder = _authority(other._certificate.subject, self._certificate.subject, other._key.public_key(), self._random, now)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
        )
        return self._signed(builder)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER form, in hex: what a join token pins."""
        return self._certificate.fingerprint(hashes.SHA256()).hex()

    def issue_server(self, hosts: tuple[str, ...], now: float) -> KeyPair:
        """A server certificate for host names and addresses."""
        key, pem = _new_key()
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        builder = self._leaf(_name(hosts[0], ()), key.public_key(), now, SERVER_LIFETIME_SECONDS)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        return KeyPair(self._signed(builder), pem)

    def issue_client(
        self, common_name: str, organizations: tuple[str, ...], now: float, lifetime_seconds: float = SERVER_LIFETIME_SECONDS
    ) -> KeyPair:
        """A client certificate together with a new key."""
        key, pem = _new_key()
        return KeyPair(self._client(common_name, organizations, key.public_key(), now, lifetime_seconds), pem)

    def sign_csr(
        self, pem: bytes, *, common_name: str, organizations: tuple[str, ...], lifetime_seconds: float, now: float
    ) -> bytes:
        """The PEM client certificate for a request. Who it is for is the caller's decision, not the request's: only its
        key is taken. Raises ``ValueError`` where the request is malformed, not signed by its key, or asks for more than
        a client certificate of exactly this name."""
        request = Request.read(pem)
        problem = request.problem(common_name, organizations)
        if problem:
            raise ValueError(problem)
        return self._client(common_name, organizations, request.key, now, lifetime_seconds)

    def _client(
        self, cn: str, organizations: tuple[str, ...], key: ec.EllipticCurvePublicKey, now: float, lifetime: float
    ) -> bytes:
        builder = self._leaf(_name(cn, organizations), key, now, lifetime)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        return self._signed(builder)

    def _leaf(self, name: x509.Name, key: ec.EllipticCurvePublicKey, now: float, lifetime: float) -> x509.CertificateBuilder:
        builder = _builder(name, self._certificate.subject, key, self._random, now, lifetime)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(sign=False), critical=True)
        return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)

    def _signed(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, random: Random, now: float, lifetime: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        # Positive and at most 20 octets (RFC 5280, 4.1.2.2).
        .serial_number((int.from_bytes(random.randbytes(19), "big") >> 1) + 1)
        .not_valid_before(_moment(now - BACKDATE_SECONDS))
        .not_valid_after(_moment(now + lifetime))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _authority(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, random: Random, now: float
) -> x509.CertificateBuilder:
    # One authority may stand between: the next one, while this one is being replaced.
    builder = _builder(subject, issuer, key, random, now, CA_LIFETIME_SECONDS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
    return builder.add_extension(_usage(sign=True), critical=True)


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


# -- join tokens -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JoinToken:
    """``nemo1.ID.SECRET.PIN``: who may join once, proven by SECRET; PIN is the authority's fingerprint."""

    id: str
    secret: str
    pin: str

    @classmethod
    def create(cls, random: Random, pin: str) -> JoinToken:
        return cls(random.randbytes(4).hex(), random.randbytes(16).hex(), pin)

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Raises ``ValueError`` without repeating the text, which may be a secret."""
        parts = text.strip().split(".")
        if len(parts) != 4 or parts[0] != TOKEN_PREFIX or not all(parts):
            raise ValueError(f"a join token has the form {TOKEN_PREFIX}.ID.SECRET.PIN: make one with 'nemo join-token NAME'")
        return cls(*parts[1:])

    def __str__(self) -> str:
        return ".".join((TOKEN_PREFIX, self.id, self.secret, self.pin))

    @property
    def bearer(self) -> str:
        """What is sent to the hub as a bearer token."""
        return ".".join((TOKEN_PREFIX, self.id, self.secret))

    @property
    def secret_name(self) -> str:
        """The Secret in ``nemo-system`` that stands for it."""
        return f"join-token-{self.id}"


def token_hash(secret: str) -> str:
    """What the hub keeps of a token's secret (which has 128 bits of entropy, so a plain hash is enough)."""
    return hashlib.sha256(secret.encode()).hexdigest()


def token_matches(secret: str, expected_hash: str) -> bool:
    """Constant-time comparison."""
    return hmac.compare_digest(token_hash(secret), expected_hash)
