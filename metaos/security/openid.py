"""What an ID token of an OpenID provider says of a person, by the issuer's settings. Pure: signatures and keys are elsewhere.

The settings are Kubernetes' ``AuthenticationConfiguration`` (apiserver.config.k8s.io), without CEL expressions.
Sources: OpenID Connect Core 1.0, section 3.1.3.7; RFC 7519; Kubernetes, "Authenticating", structured authentication.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaos.plugins.points import Person

VERSIONS = ("apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1")
#: How far clocks may differ.
LEEWAY_SECONDS = 60.0
MOST_ISSUERS, MOST_GROUPS = 64, 256
_SYSTEM = "system:"


class Refused(Exception):
    """Why a token does not count: for the hub's log, without anything secret."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """One entry of ``jwt``. ``discovery``: where its metadata is; ``authorities``: PEM, empty: the machine's."""

    url: str
    audiences: tuple[str, ...]
    discovery: str
    authorities: str
    username: str
    username_prefix: str
    groups: str = ""
    groups_prefix: str = ""
    uid: str = ""
    #: Claim → the value that it must have.
    required: tuple[tuple[str, str], ...] = ()


def issuers(config: Any) -> list[Issuer]:
    """Of an AuthenticationConfiguration. Raises ``ValueError`` naming the field, the value and the remedy."""
    if not isinstance(config, dict) or config.get("kind") != "AuthenticationConfiguration":
        raise ValueError("it must be one AuthenticationConfiguration (apiVersion: apiserver.config.k8s.io/v1)")
    if config.get("apiVersion") not in VERSIONS:
        raise ValueError(f"apiVersion: {config.get('apiVersion')!r} must be one of {', '.join(VERSIONS)}")
    _known(config, ("apiVersion", "kind", "jwt"), "")
    entries = config.get("jwt") or []
    if not isinstance(entries, list) or not 0 < len(entries) <= MOST_ISSUERS:
        raise ValueError(f"jwt: there must be 1 to {MOST_ISSUERS} issuers")
    found = [_issuer(entry, f"jwt[{i}]") for i, entry in enumerate(entries)]
    for i, each in enumerate(found):
        if each.url in {other.url for other in found[:i]}:
            raise ValueError(f"jwt[{i}].issuer.url: {each.url!r} stands there twice: join the audiences in one entry")
    return found


def _known(section: Mapping[str, Any], words: Sequence[str], path: str) -> None:
    for key in section:
        if key not in words:
            where = f"{path}.{key}" if path else key
            raise ValueError(f"{where}: it is not known here: leave it out (known: {', '.join(words)}; CEL expressions are not)")


def _section(parent: Mapping[str, Any], key: str, path: str, words: Sequence[str]) -> Mapping[str, Any]:
    found = parent.get(key) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{path}.{key}: {found!r} must be a mapping of {', '.join(words)}")
    _known(found, words, f"{path}.{key}")
    return found


def _text(section: Mapping[str, Any], key: str, path: str, remedy: str, *, needed: bool = True) -> str:
    found = section.get(key, "")
    if not isinstance(found, str) or (needed and not found):
        raise ValueError(f"{path}.{key}: {found!r} must be a text: {remedy}")
    return found


def _issuer(entry: Any, path: str) -> Issuer:
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: it must be a mapping with issuer and claimMappings")
    _known(entry, ("issuer", "claimMappings", "claimValidationRules"), path)
    issuer = _section(entry, "issuer", path, ("url", "audiences", "audienceMatchPolicy", "certificateAuthority", "discoveryURL"))
    url = _text(issuer, "url", f"{path}.issuer", "the provider's address, as its tokens say it in 'iss'")
    discovery = _text(issuer, "discoveryURL", f"{path}.issuer", "leave it out", needed=False)
    for key, each in (("url", url), ("discoveryURL", discovery)):
        if each and (not each.startswith("https://") or "?" in each or "#" in each or "@" in each):
            raise ValueError(f"{path}.issuer.{key}: {each!r} must begin with https:// and have no user, query or fragment")
    audiences = issuer.get("audiences")
    if not isinstance(audiences, list) or not audiences or not all(isinstance(a, str) and a for a in audiences):
        raise ValueError(f"{path}.issuer.audiences: {audiences!r} must list the client ids whose tokens count")
    policy = issuer.get("audienceMatchPolicy") or "MatchAny"
    if policy != "MatchAny":
        raise ValueError(f"{path}.issuer.audienceMatchPolicy: {policy!r} must be MatchAny")
    mappings = _section(entry, "claimMappings", path, ("username", "groups", "uid"))
    claims: dict[str, tuple[str, str]] = {}
    for word in ("username", "groups", "uid"):
        where = f"{path}.claimMappings"
        mapping = _section(mappings, word, where, ("claim",) if word == "uid" else ("claim", "prefix"))
        if word == "username" or mapping:
            claim = _text(mapping, "claim", f"{where}.{word}", "the claim that says it, for example sub")
            if word != "uid" and "prefix" not in mapping:
                raise ValueError(f"{where}.{word}.prefix: say what such names begin with, for example 'oidc:'; '' for nothing")
            claims[word] = claim, _text(mapping, "prefix", f"{where}.{word}", "what names begin with", needed=False)
    required = []
    for i, rule in enumerate(entry.get("claimValidationRules") or ()):
        where = f"{path}.claimValidationRules[{i}]"
        if not isinstance(rule, dict):
            raise ValueError(f"{where}: it must be a mapping of claim and requiredValue")
        _known(rule, ("claim", "requiredValue"), where)
        value = _text(rule, "requiredValue", where, "what it must be", needed=False)
        required.append((_text(rule, "claim", where, "the claim"), value))
    return Issuer(
        url,
        tuple(audiences),
        discovery or url.rstrip("/") + "/.well-known/openid-configuration",
        _text(issuer, "certificateAuthority", f"{path}.issuer", "PEM of the authority of its certificate", needed=False),
        *claims["username"],
        *claims.get("groups", ("", "")),
        claims.get("uid", ("", ""))[0],
        tuple(required),
    )


def person(issuer: Issuer, claims: Mapping[str, Any], now: float) -> Person:
    """Who shows a token whose signature holds. Raises :class:`Refused`."""
    if claims.get("iss") != issuer.url:
        raise Refused("iss is another issuer's")
    audience = claims.get("aud")
    meant = audience if isinstance(audience, list) else [audience]
    if not any(each in issuer.audiences for each in meant if isinstance(each, str)):
        raise Refused("aud names none of the audiences")
    until = _moment(claims, "exp")
    if until is None:
        raise Refused("it has no exp")
    if now >= until + LEEWAY_SECONDS:
        raise Refused("it has expired")
    for key in ("nbf", "iat"):
        since = _moment(claims, key)
        if since is not None and now < since - LEEWAY_SECONDS:
            raise Refused(f"{key} lies in the future: is a clock wrong?")
    for claim, value in issuer.required:
        if claims.get(claim) != value:
            raise Refused(f"claim {claim} is not as required")
    name = claims.get(issuer.username)
    if not isinstance(name, str) or not name:
        raise Refused(f"claim {issuer.username} is no name")
    if issuer.username == "email" and claims.get("email_verified", True) is not True:
        raise Refused("email is not verified")
    groups = tuple(issuer.groups_prefix + group for group in _groups(issuer, claims))
    uid = claims.get(issuer.uid) if issuer.uid else ""
    if not isinstance(uid, str):
        raise Refused(f"claim {issuer.uid} is no text")
    found = Person(issuer.username_prefix + name, groups, uid, (), until + LEEWAY_SECONDS)
    for each in (found.name, *found.groups):
        if each.startswith(_SYSTEM):
            raise Refused("it names a user or group of the system")
    return found


def _moment(claims: Mapping[str, Any], key: str) -> float | None:
    value = claims.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        raise Refused(f"{key} is no time")
    return float(value)


def _groups(issuer: Issuer, claims: Mapping[str, Any]) -> Iterator[str]:
    value = claims.get(issuer.groups) if issuer.groups else None
    if value is None:
        return
    listed = value if isinstance(value, list) else [value]
    if len(listed) > MOST_GROUPS or not all(isinstance(each, str) and each for each in listed):
        raise Refused(f"claim {issuer.groups} is no list of at most {MOST_GROUPS} names")
    yield from listed
