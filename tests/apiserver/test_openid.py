"""ID tokens: what counts, what does not, and what becomes of a provider that changes its keys, hangs, lies or is gone."""

from __future__ import annotations

import asyncio
import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from metaos.apiserver.authn import Identity, people
from metaos.apiserver.openid import AGAIN_SECONDS, KEEP_SECONDS, MOST_KEYS, STALE_SECONDS, OpenId
from metaos.plugins.points import Person
from metaos.security.openid import LEEWAY_SECONDS, issuers
from tests.clock import FakeClock

URL = "https://id.example.org"


@cache
def key(name: str) -> Any:
    return ec.generate_private_key(ec.SECP256R1()) if name.startswith("ec") else rsa.generate_private_key(65537, 2048)


def config(**issuer: Any) -> dict[str, Any]:
    entry = {
        "issuer": {"url": URL, "audiences": ["nemo"]} | issuer,
        "claimMappings": {
            "username": {"claim": "sub", "prefix": "oidc:"},
            "groups": {"claim": "groups", "prefix": "oidc:"},
            "uid": {"claim": "uid"},
        },
        "claimValidationRules": [{"claim": "tenant", "requiredValue": "shop"}],
    }
    return {"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration", "jwt": [entry]}


class Provider:
    """Answers of an issuer; ``asked`` counts what was asked for."""

    def __init__(self, clock: FakeClock, *keys: str) -> None:
        self.clock, self.keys, self.asked, self.about = clock, list(keys), 0, {"issuer": URL, "jwks_uri": f"{URL}/keys"}
        self.gone = False

    async def fetch(self, url: str, authorities: str) -> tuple[int, bytes]:
        self.asked += 1
        if self.gone:
            return 0, b"no answer within 10 s"
        if url.endswith("/keys"):
            return 200, json.dumps({"keys": [self.jwk(name) for name in self.keys]}).encode()
        return 200, json.dumps(self.about).encode()

    @staticmethod
    def jwk(name: str) -> dict[str, Any]:
        algorithm = jwt.algorithms.ECAlgorithm if name.startswith("ec") else jwt.algorithms.RSAAlgorithm
        return json.loads(algorithm.to_jwk(key(name).public_key())) | {"kid": name, "use": "sig"}

    def token(self, name: str = "rsa", header: dict[str, Any] | None = None, **claims: Any) -> str:
        now = int(self.clock.now())
        said = {"iss": URL, "aud": "nemo", "sub": "ann", "groups": ["dev"], "uid": "7", "tenant": "shop"}
        said |= {"iat": now, "exp": now + 300} | claims
        said = {k: v for k, v in said.items() if v is not None}
        algorithm = "ES256" if name.startswith("ec") else "RS256"
        return jwt.encode(said, key(name), algorithm=algorithm, headers={"kid": name} | (header or {}))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def provider(clock: FakeClock) -> Provider:
    return Provider(clock, "rsa", "ec")


@pytest.fixture
def openid(tmp_path: Path, clock: FakeClock, provider: Provider) -> OpenId:
    file = tmp_path / "auth.yaml"
    file.write_text(yaml.safe_dump(config()))
    return OpenId(str(file), now=clock.now, fetch=provider.fetch)


@pytest.mark.parametrize("name", ["rsa", "ec"])
async def test_a_token_says_who_it_is_and_until_when(openid: OpenId, provider: Provider, name: str) -> None:
    until = int(provider.clock.now()) + 300 + LEEWAY_SECONDS
    assert await openid.person(provider.token(name)) == Person("oidc:ann", ("oidc:dev",), "7", (), until)


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "other"},
        {"aud": None},
        {"aud": ["other", 7]},
        {"iss": "https://evil.example.org"},
        {"exp": None},
        {"exp": 1},
        {"exp": "soon"},
        {"exp": 1e300},
        {"nbf": 1 << 40},
        {"iat": 9_999_999_999},
        {"tenant": "other"},
        {"tenant": None},
        {"sub": ""},
        {"sub": None},
        {"groups": [7]},
        {"groups": ["g"] * 257},
        {"uid": {}},
    ],
    ids=str,
)
async def test_what_does_not_count(openid: OpenId, provider: Provider, claims: dict[str, Any]) -> None:
    assert await openid.person(provider.token(**claims)) is None


async def test_clocks_may_differ_by_a_minute(openid: OpenId, provider: Provider) -> None:
    now = int(provider.clock.now())
    assert await openid.person(provider.token(exp=now - 59)) is not None
    assert await openid.person(provider.token(exp=now - 61)) is None
    assert await openid.person(provider.token(iat=now + 59, nbf=now + 59)) is not None
    assert await openid.person(provider.token(nbf=now + 61)) is None


def segment(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_no_signature_and_shared_secrets_are_refused(openid: OpenId, provider: Provider) -> None:
    """The public key as a shared secret is the classic: an algorithm that the token chooses."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.hmac import HMAC
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    body = provider.token().split(".")[1]
    for algorithm in ("none", "None", "", None, 7):
        assert await openid.person(f"{segment({'alg': algorithm, 'kid': 'rsa'})}.{body}.") is None
    for secret in (
        key("rsa").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(Provider.jwk("rsa")).encode(),
        b"",
    ):
        signed = f"{segment({'alg': 'HS256', 'kid': 'rsa'})}.{body}"
        mac = HMAC(secret or b"\0", SHA256())
        mac.update(signed.encode())
        assert await openid.person(f"{signed}.{base64.urlsafe_b64encode(mac.finalize()).rstrip(b'=').decode()}") is None
    # Another's key, and a key of the issuer that is of another kind than the token says.
    assert await openid.person(provider.token("rsa-other", {"kid": "rsa"})) is None
    assert await openid.person(provider.token("ec", {"kid": "rsa"})) is None
    assert await openid.person(provider.token("rsa", {"crit": ["exp"], "exp": 1})) is None


async def test_nobody_becomes_a_user_of_the_system(tmp_path: Path, clock: FakeClock, provider: Provider) -> None:
    made = config()
    for word in ("username", "groups"):
        made["jwt"][0]["claimMappings"][word]["prefix"] = ""
    (tmp_path / "a").write_text(yaml.safe_dump(made))
    openid = OpenId(str(tmp_path / "a"), now=clock.now, fetch=provider.fetch)
    assert (await openid.person(provider.token())).name == "ann"  # type: ignore[union-attr]
    assert await openid.person(provider.token(sub="system:admin")) is None
    assert await openid.person(provider.token(groups=["dev", "system:masters"])) is None


async def test_keys_are_replaced_and_asked_for_no_more_often_than_that(
    openid: OpenId, provider: Provider, clock: FakeClock
) -> None:
    assert await openid.person(provider.token()) is not None and provider.asked == 2
    for _ in range(20):
        assert await openid.person(provider.token("rsa-next")) is None
    assert provider.asked == 2  # Whoever invents key ids makes us ask nobody.
    provider.keys = ["rsa-next"]
    await clock.advance(AGAIN_SECONDS + 1)
    assert await openid.person(provider.token("rsa-next")) is not None and provider.asked == 4
    assert await openid.person(provider.token("rsa")) is None
    await clock.advance(KEEP_SECONDS + 1)
    assert await openid.person(provider.token("rsa-next")) is not None and provider.asked == 6


async def test_who_has_a_known_key_waits_for_no_issuer_that_hangs(openid: OpenId, provider: Provider, clock: FakeClock) -> None:
    assert await openid.person(provider.token()) is not None
    await clock.advance(KEEP_SECONDS + 1)
    held, answer = asyncio.Event(), provider.fetch

    async def hanging(url: str, authorities: str) -> tuple[int, bytes]:
        await held.wait()
        return await answer(url, authorities)

    next(iter(openid._issuers.values()))._fetch = hanging
    first = asyncio.create_task(openid.person(provider.token()))
    await clock.settle()
    async with asyncio.timeout(5):
        assert await openid.person(provider.token()) is not None and not first.done()
    held.set()
    assert await first is not None


async def test_a_dead_issuer_leaves_its_keys_good_for_a_day(openid: OpenId, provider: Provider, clock: FakeClock) -> None:
    provider.gone = True
    assert await openid.person(provider.token()) is None and provider.asked == 1
    assert await openid.person(provider.token()) is None and provider.asked == 1
    provider.gone = False
    await clock.advance(AGAIN_SECONDS + 1)
    assert await openid.person(provider.token()) is not None
    provider.gone = True
    await clock.advance(KEEP_SECONDS + 1)
    assert await openid.person(provider.token()) is not None
    await clock.advance(STALE_SECONDS)
    assert await openid.person(provider.token()) is None


@pytest.mark.parametrize(
    "about", [{"issuer": "https://evil.example.org", "jwks_uri": f"{URL}/keys"}, {"issuer": URL, "jwks_uri": "http://x/keys"}, {}]
)
async def test_metadata_that_is_wrong_gives_no_keys(openid: OpenId, provider: Provider, about: dict[str, Any]) -> None:
    provider.about = about
    assert await openid.person(provider.token()) is None


async def test_keys_that_are_weak_too_many_or_secret_are_not_used(openid: OpenId, provider: Provider) -> None:
    provider.keys = ["rsa"] * (MOST_KEYS + 1)
    assert await openid.person(provider.token()) is None
    from metaos.apiserver.openid import _key

    weak = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key()))
    curve = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key()))
    assert [_key(each) for each in (weak, curve, {"kty": "oct", "k": "AAAA"}, {"kty": "RSA"}, 7, None)] == [None] * 6
    shown = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key("rsa")))
    assert "d" in shown and not hasattr(_key(shown)[2], "private_numbers")  # type: ignore[index]


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: f"{segment({'alg': 'RS256'})}.{segment(raw.hex())}.AA"))
async def test_any_text_is_a_person_or_nobody(text: str) -> None:
    made = OpenId.__new__(OpenId)
    made._issuers = {}
    assert await made.person(text) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "Other"}, "AuthenticationConfiguration"),
        ({"apiVersion": "v1"}, "apiVersion"),
        ({"jwt": []}, "jwt"),
        ({"anonymous": {}}, "anonymous"),
        ({"jwt": [config()["jwt"][0]] * 2}, "twice"),
    ],
)
def test_a_wrong_configuration_is_named_with_its_field(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        issuers(config() | change)


@pytest.mark.parametrize(
    ("issuer", "named"),
    [
        ({"url": "http://id.example.org"}, r"issuer.url: 'http://"),
        ({"url": 7}, "issuer.url"),
        ({"audiences": []}, "issuer.audiences"),
        ({"audienceMatchPolicy": "All"}, "audienceMatchPolicy"),
        ({"discoveryURL": "ftp://x"}, "discoveryURL"),
        ({"egressSelectorType": "x"}, "egressSelectorType"),
    ],
)
def test_a_wrong_issuer_is_named_with_its_field(issuer: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        issuers(config(**issuer))


def test_a_prefix_has_to_be_said() -> None:
    made = config()
    del made["jwt"][0]["claimMappings"]["username"]["prefix"]
    with pytest.raises(ValueError, match=r"username\.prefix"):
        issuers(made)
    made["jwt"][0]["claimMappings"]["username"] = {"expression": "claims.sub"}
    with pytest.raises(ValueError, match="CEL"):
        issuers(made)


async def test_no_authenticator_makes_a_user_of_the_system(clock: FakeClock) -> None:
    """Whatever a plugin says; and its failing is nobody's log-in."""

    class Plugin:
        def __init__(self, found: Person | Exception | None) -> None:
            self._found = found

        async def person(self, token: str) -> Person | None:
            if isinstance(self._found, Exception):
                raise self._found
            return self._found

    for found in (Person("system:admin"), Person("ann", ("system:masters",)), None, RuntimeError("broken")):
        assert await people("x", Plugin(found), clock)("t") is None
    held = await people("x", Plugin(Person("ann", ("dev",), until=clock.now() + 5)), clock)("t")
    assert isinstance(held, Identity) and held.user.name == "ann" and held.valid()
    await clock.advance(6)
    assert not held.valid()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: 1\n---\nb: 2", "it is not YAML: expected a single document"),
        ("a: [", "it is not YAML"),
        ("7", "AuthenticationConfiguration"),
    ],
)
def test_a_file_that_is_no_configuration_is_told_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "authentication.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=said) as wrong:
        OpenId(str(file), now=lambda: 0.0, fetch=None)  # type: ignore[arg-type]
    assert "authentication.yaml: " in str(wrong.value) and "\n" not in str(wrong.value)
