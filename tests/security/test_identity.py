"""The authority, its certificates, and join tokens."""

import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from metaos.security.identity import Authority, JoinToken, KeyPair, token_hash, token_matches

NOW = 1_700_000_000.0


def request(common_name: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create(random.Random(1), NOW)


def test_a_request_gets_the_name_that_the_hub_decides(authority: Authority) -> None:
    pem = authority.sign_csr(
        request("admin"), common_name="system:cluster:a", organization="system:clusters", lifetime_seconds=60, now=NOW
    )
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.subject.rfc4514_string() == "CN=system:cluster:a,O=system:clusters"
    assert certificate.not_valid_after_utc.timestamp() == NOW + 60
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pair.certificate))


def test_a_server_certificate_names_hosts_and_addresses(authority: Authority) -> None:
    certificate = x509.load_pem_x509_certificate(authority.issue_server(("localhost", "127.0.0.1"), NOW).certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_an_authority_is_restored_from_its_texts(authority: Authority) -> None:
    again = Authority(KeyPair(authority.pair.certificate, authority.pair.key), random.Random(2))
    assert again.fingerprint == authority.fingerprint


def test_a_malformed_request_is_refused(authority: Authority) -> None:
    with pytest.raises(ValueError):
        authority.sign_csr(b"nonsense", common_name="x", organization="y", lifetime_seconds=1, now=NOW)


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
