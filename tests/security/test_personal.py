"""Personal tokens: their form and what scopes allow."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.security.authz import Attributes, UserInfo
from metaos.security.personal import PREFIX, SCOPES, Token, out_of_scope, salt, scope_problem


@given(st.integers(0, 2**64), st.integers(0, 60), st.characters(codec="ascii", categories=["L", "N"]))
def test_a_token_is_read_back_and_no_bent_one_is(seed: int, place: int, letter: str) -> None:
    token = Token.create(Random(seed))
    text = str(token)
    assert Token.parse(text) == token and text.startswith(PREFIX) and token.secret not in repr(token)
    bent = text[:place] + letter + text[place + 1 :]
    assert bent == text or Token.parse(bent) is None
    assert Token.parse(text + "0") is None and Token.parse(text[:-1]) is None


@given(st.text(max_size=80))
def test_any_text_is_a_token_or_none(text: str) -> None:
    found = Token.parse(text)
    assert found is None or str(found) == text


def test_what_is_kept_does_not_tell_the_secret_and_differs_by_salt() -> None:
    token, random = Token.create(Random(1)), Random(2)
    one, other = salt(random), salt(random)
    assert token.hashed(one) != token.hashed(other) and token.secret not in token.hashed(one)
    assert token.matches(one, token.hashed(one)) and not token.matches(other, token.hashed(one))
    assert not Token.create(Random(3)).matches(one, token.hashed(one))


def may(scopes: str, verb: str, resource: str, namespace: str = "shop", group: str = "", path: str = "") -> bool:
    user = UserInfo("ann", (), "", ((SCOPES, tuple(scopes.split())),))
    resource, _, subresource = resource.partition("/")
    return not out_of_scope(user, Attributes(verb, group, resource, subresource, namespace, "x", path))


@pytest.mark.parametrize(
    ("scopes", "asked", "allowed"),
    [
        ("read", ("list", "pods"), True),
        ("read", ("get", "pods/log"), True),
        ("read", ("create", "pods"), False),
        ("read", ("get", "secrets"), False),
        ("read", ("get", "pods/exec"), False),
        ("read:secrets", ("get", "secrets"), True),
        ("read:pods@shop", ("get", "pods"), True),
        ("read:pods@shop", ("get", "pods", "other"), False),
        ("read:pods@shop", ("list", "pods", ""), False),
        ("read:pods", ("list", "services"), False),
        ("write", ("delete", "pods"), True),
        ("write", ("create", "pods/exec"), False),
        ("write", ("create", "serviceaccounts/token"), False),
        ("write:serviceaccounts", ("create", "serviceaccounts/token"), False),
        ("write:serviceaccounts/token", ("create", "serviceaccounts/token"), True),
        ("write", ("create", "roles", "shop", "rbac.authorization.k8s.io"), False),
        ("write", ("create", "certificatesigningrequests", "", "certificates.k8s.io"), False),
        ("read", ("list", "works", "shop", "meta-os.eu"), False),
        ("write", ("create", "mutatingwebhookconfigurations", "", "admissionregistration.k8s.io"), False),
        ("write", ("impersonate", "users", ""), False),
        ("write:deployments.apps", ("update", "deployments", "shop", "apps"), True),
        ("write:deployments.apps", ("update", "deployments/scale", "shop", "apps"), True),
        ("write:deployments.apps", ("update", "deployments", "shop", "other"), False),
        ("connect", ("create", "pods/exec"), True),
        ("connect", ("get", "pods"), False),
        ("all", ("impersonate", "users", ""), True),
        ("all@shop", ("get", "secrets"), True),
        ("all@shop", ("get", "nodes", ""), False),
        ("nonsense", ("get", "pods"), False),
    ],
)
def test_scopes(scopes: str, asked: tuple[str, ...], allowed: bool) -> None:
    assert may(scopes, *asked) == allowed


def test_paths_that_are_no_objects() -> None:
    assert may("read:pods@shop", "get", "", "", path="/apis/apps/v1") and may("read", "get", "", "", path="/version")
    for path in ("/metrics", "/ledger", "/backup", "/tokens"):
        assert not may("read write connect all@shop", "get", "", "", path=path)
    assert may("all", "get", "", "", path="/metrics")
    assert may("read:pods", "create", "selfsubjectaccessreviews", "", "authorization.k8s.io")


_SCOPES = st.lists(
    st.from_regex(r"(read|write|connect|all)(:(pods|secrets|deployments\.apps))?(@(a|b))?", fullmatch=True), max_size=4
)
_ASKED = st.builds(
    Attributes,
    st.sampled_from(["get", "list", "create", "delete", "impersonate", "escalate"]),
    st.sampled_from(["", "apps", "rbac.authorization.k8s.io"]),
    st.sampled_from(["pods", "secrets", "deployments", "roles"]),
    st.sampled_from(["", "exec", "log"]),
    st.sampled_from(["", "a", "b"]),
)


@given(_SCOPES, _SCOPES, _ASKED)
def test_more_scopes_never_allow_less_and_none_allow_nothing(some: list[str], more: list[str], asked: Attributes) -> None:
    def fits(scopes: list[str]) -> bool:
        return not out_of_scope(UserInfo("ann", (), "", ((SCOPES, tuple(scopes)),)), asked)

    assert not fits([]) and not out_of_scope(UserInfo("ann"), asked)
    assert not fits(some) or fits([*some, *more])
    assert fits([*some, *more]) == (fits(some) or fits(more))


@pytest.mark.parametrize("scopes", [[], ["read"] * 33, ["Read"], ["read:"], ["read@"], ["read:pods@A"], ["repo"], ["read\n"]])
def test_wrong_scopes_are_named_with_the_remedy(scopes: list[str]) -> None:
    assert "scope" in scope_problem(scopes)
    assert scope_problem(["read", "write:deployments.apps@shop", "connect:pods/exec"]) == ""
