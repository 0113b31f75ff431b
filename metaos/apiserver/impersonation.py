"""Acting as somebody else (``kubectl --as``): which rights that takes, and who one is then. Pure.

Source: ``k8s.io/apiserver/pkg/endpoints/filters/impersonation.go``.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote

from metaos.apiserver.bodies import readable
from metaos.security.authz import AUTHENTICATED, UNAUTHENTICATED, Attributes, UserInfo

_ACCOUNT = "system:serviceaccount:"
_EXTRA = "impersonate-extra-"
_AUTHENTICATION = "authentication.k8s.io"
Extra = tuple[tuple[str, tuple[str, ...]], ...]


def extras(headers: Iterable[tuple[str, str]]) -> Extra:
    """What ``Impersonate-Extra-KEY`` headers say; keys are in lower case and may be percent-encoded."""
    found: dict[str, list[str]] = {}
    for key, value in headers:
        if key.lower().startswith(_EXTRA):
            found.setdefault(unquote(key.lower().removeprefix(_EXTRA)), []).append(readable(value))
    return tuple((key, tuple(values)) for key, values in found.items())


def _account(name: str) -> tuple[str, str] | None:
    where, colon, named = name.removeprefix(_ACCOUNT).partition(":")
    return (where, named) if name.startswith(_ACCOUNT) and colon else None


def rights(name: str, groups: Iterable[str], uid: str, extra: Extra) -> list[Attributes]:
    """What the caller must be allowed."""
    account = _account(name)
    if account is not None:
        found = [Attributes("impersonate", "", "serviceaccounts", "", *account)]
    else:
        found = [Attributes("impersonate", "", "users", "", "", name)]
    found += [Attributes("impersonate", "", "groups", "", "", group) for group in groups]
    if uid:
        found.append(Attributes("impersonate", _AUTHENTICATION, "uids", "", "", uid))
    found += [
        Attributes("impersonate", _AUTHENTICATION, "userextras", key, "", value) for key, values in extra for value in values
    ]
    return found


def user(name: str, groups: tuple[str, ...], uid: str, extra: Extra) -> UserInfo:
    """Who the caller is then."""
    account = _account(name)
    if account is not None and not groups:
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{account[0]}")
    anonymous = name == "system:anonymous" or UNAUTHENTICATED in groups
    more = (UNAUTHENTICATED,) if anonymous else (AUTHENTICATED,)
    return UserInfo(name, tuple(dict.fromkeys((*groups, *more))), uid, extra)
