"""The authority, its certificates, and join tokens."""

import base64
import random
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from metaos.security.identity import Authority, JoinToken, KeyPair, Request, token_hash, token_matches

NOW = 1_700_000_000.0


SITE: dict[str, Any] = {"common_name": "system:cluster:a", "organizations": ("system:clusters",)}


def request(
    common_name: str,
    *organizations: str,
    extension: x509.ExtensionType | None = None,
    curve: ec.EllipticCurve | None = None,
    country: str = "",
) -> bytes:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    parts = [(NameOID.ORGANIZATION_NAME, o) for o in organizations] + [(NameOID.COMMON_NAME, c) for c in common_name.split("|")]
    parts += [(NameOID.COUNTRY_NAME, country)] if country else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([x509.NameAttribute(*part) for part in parts]))
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create(random.Random(1), NOW)


def test_a_request_gets_a_client_certificate_of_its_name(authority: Authority) -> None:
    pem = authority.sign_csr(request("system:cluster:a", "system:clusters"), **SITE, lifetime_seconds=60, now=NOW)
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.subject.rfc4514_string() == "CN=system:cluster:a,O=system:clusters"
    assert certificate.not_valid_after_utc.timestamp() == NOW + 60
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pair.certificate))
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (request("admin", "system:clusters"), "subject names admin, and may only name system:cluster:a"),
        (request("system:cluster:b", "system:clusters"), "system:cluster:b"),
        (request("system:cluster:a|admin", "system:clusters"), "system:cluster:a and admin"),
        (request("system:cluster:a", "system:masters"), "organizations are system:masters"),
        (request("system:cluster:a", "system:clusters", "system:masters"), "organizations are"),
        (request("system:cluster:a"), "organizations are none"),
        (request("system:cluster:a", "system:clusters", country="ES"), "countryName"),
        (
            request(
                "system:cluster:a",
                "system:clusters",
                extension=x509.SubjectAlternativeName([x509.DNSName("hub.example.org")]),
            ),
            "subjectAltName",
        ),
        (request("system:cluster:a", "system:clusters", extension=x509.BasicConstraints(True, None)), "basicConstraints"),
        (
            request("system:cluster:a", "system:clusters", extension=x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])),
            "extendedKeyUsage",
        ),
        (request("system:cluster:a", "system:clusters", curve=ec.SECP192R1()), "elliptic-curve key of secp256r1"),
        (b"nonsense", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_a_request_for_anything_else_is_refused(authority: Authority, wrong: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        authority.sign_csr(wrong, **SITE, lifetime_seconds=60, now=NOW)


def test_a_request_that_another_key_signed_is_refused(authority: Authority) -> None:
    der = bytearray(
        x509.load_pem_x509_csr(request("system:cluster:a", "system:clusters")).public_bytes(serialization.Encoding.DER)
    )
    der[-1] ^= 1
    text = base64.encodebytes(bytes(der)).decode()
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(ValueError, match=r"not signed by its own key|cannot be read"):
        authority.sign_csr(pem.encode(), **SITE, lifetime_seconds=60, now=NOW)


@given(st.binary(max_size=300), st.integers(0, 2000))
def test_no_bytes_crash_the_reader_of_requests(noise: bytes, at: int) -> None:
    good = _GOOD
    for pem in (noise, good[: at % len(good)] + noise + good[at % len(good) :]):
        try:
            Request.read(pem)
        except ValueError as error:
            assert len(str(error)) < 400


_GOOD = request("system:cluster:a", "system:clusters")


def test_an_authority_vouches_for_the_next(authority: Authority) -> None:
    following = Authority.create(random.Random(3), NOW)
    assert following.name != authority.name
    voucher = x509.load_pem_x509_certificate(authority.vouch(following, NOW))
    voucher.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pair.certificate))
    leaf = x509.load_pem_x509_certificate(following.issue_server(("localhost",), NOW).certificate)
    leaf.verify_directly_issued_by(voucher)


def test_a_server_certificate_names_hosts_and_addresses(authority: Authority) -> None:
    certificate = x509.load_pem_x509_certificate(authority.issue_server(("localhost", "127.0.0.1"), NOW).certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_an_authority_is_restored_from_its_texts(authority: Authority) -> None:
    again = Authority(KeyPair(authority.pair.certificate, authority.pair.key), random.Random(2))
    assert again.fingerprint == authority.fingerprint


@given(st.integers())
def test_a_token_survives_its_text_form(seed: int) -> None:
    token = JoinToken.create(random.Random(seed), "ab" * 32)
    assert JoinToken.parse(str(token)) == token
    assert token_matches(token.secret, token_hash(token.secret))
    assert not token_matches(token.secret + "0", token_hash(token.secret))


@given(st.text())
def test_anything_else_is_refused_without_repeating_it(text: str) -> None:
    try:
        JoinToken.parse(text)
    except ValueError as error:
        assert len(text) < 4 or text not in str(error)
    else:
        assert text.strip().startswith("nemo1.")
