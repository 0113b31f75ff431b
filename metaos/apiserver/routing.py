"""What a request is about: a URL and a method as a verb on a kind. Pure.

Source: Kubernetes API concepts, "Resource URIs", and ``k8s.io/apiserver/pkg/endpoints/request/requestinfo.go``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from metaos.resources import errors, scheme
from metaos.resources.scheme import Kind
from metaos.security.authz import Attributes

_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
#: Subresources that connect to something that runs; the verb is ``create`` unless the method itself says more.
CONNECT = frozenset({"exec", "attach", "portforward"})
#: Verbs of subresources, where they are others than ``create``.
_OFFERED: dict[str, tuple[str, ...]] = {part: ("get", "update", "patch") for part in ("status", "scale", "approval", "finalize")}
_OFFERED |= {"log": ("get",), "tunnel": ("get",), "live": ("get",)}
#: Subresources that are there to say why they cannot be used.
_REFUSED = {
    "ephemeralcontainers": "sites add no container to a running pod, so 'kubectl debug POD' cannot: "
    "use 'kubectl exec -it POD -- sh', or 'kubectl debug POD --copy-to=NAME'"
}
#: A part of the URL below these belongs to what is connected to.
PROXY = "proxy"


@dataclass(frozen=True, slots=True)
class Target:
    """One request on a kind. ``rest`` is what follows ``…/proxy``, as it was sent (with its leading slash)."""

    verb: str
    kind: Kind
    namespace: str = ""
    name: str = ""
    subresource: str = ""
    rest: str = ""

    @property
    def attributes(self) -> Attributes:
        """As authorisation sees it. A Service's name stands there without scheme and port."""
        name = self.name
        if self.subresource == PROXY:
            name = proxied_name(name)[1]
        return Attributes(self.verb, self.kind.group, self.kind.plural, self.subresource, self.namespace, name)

    @property
    def long_running(self) -> bool:
        """Whether it lasts as long as its caller likes."""
        return self.verb == "watch" or self.subresource in CONNECT or self.subresource in ("log", PROXY, "tunnel")


def proxied_name(name: str) -> tuple[str, str, str]:
    """``[SCHEME:]NAME[:PORT]`` as (scheme, name, port); what is left out is empty."""
    parts = name.split(":")
    if len(parts) == 1:
        return "", parts[0], ""
    if len(parts) == 2:
        return "", parts[0], parts[1]
    if len(parts) == 3:
        return parts[0], parts[1], parts[2]
    raise errors.bad_request(f"invalid name {name!r}: must be NAME, NAME:PORT or SCHEME:NAME:PORT")


#: The served kind for a group, a version and a plural name.
Lookup = Callable[[str, str, str], Kind | None]


def parse(method: str, raw_path: str, *, watch: bool = False, by_plural: Lookup = scheme.by_plural) -> Target | None:
    """The target of a URL path (percent-encoded, without query); ``None`` where it is not below a group and version.
    Raises ``ApiError`` 404 for a kind that is not served, 405 for a verb that it does not have."""
    parts = raw_path.split("/")[1:]
    if parts[0] == "api" and len(parts) > 2 and parts[2]:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 3 and parts[3]:
        group, version, rest = unquote(parts[1]), parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] and rest[2] not in ("status", "finalize"):
        namespace, rest = unquote(rest[1]), rest[2:]
    kind = by_plural(group, version, unquote(rest[0]))
    if kind is None:
        raise errors.ApiError(404, "NotFound", "the server could not find the requested resource")
    name = unquote(rest[1]) if len(rest) > 1 else ""
    subresource = unquote(rest[2]) if len(rest) > 2 else ""
    if subresource and subresource not in kind.subresources:
        raise errors.ApiError(404, "NotFound", "the server could not find the requested resource")
    below = rest[3:]
    if (below and subresource != PROXY) or (namespace and not kind.namespaced):
        raise errors.ApiError(404, "NotFound", "the server could not find the requested resource")
    verb = _verb(method, kind, name, subresource, watch)
    if kind.namespaced and not namespace and (name or verb in ("create", "deletecollection")):
        why = f"{kind.plural} are in namespaces: ask at …/namespaces/NAMESPACE/{kind.plural}"
        raise errors.ApiError(404, "NotFound", why) if name else errors.method_not_allowed(why)
    return Target(verb, kind, namespace, name, subresource, "/" + "/".join(below) if below else "")


def _verb(method: str, kind: Kind, name: str, subresource: str, watch: bool) -> str:
    verb = _VERBS.get(method, "")
    if subresource in CONNECT and verb in ("get", "create"):
        return "create"
    if verb == "get" and not name:
        verb = "list"
    if verb in ("get", "list") and watch and not subresource:
        verb = "watch"
    if verb == "delete" and not name:
        verb = "deletecollection"
    if subresource == PROXY and verb:
        return verb
    if subresource and verb not in _OFFERED.get(subresource, ("create",)):
        verb = ""  # Not least: to delete a part is not to delete the object.
    on_one = verb in ("get", "update", "patch", "delete")
    fits = bool(verb) and (verb in kind.verbs or bool(subresource)) and (bool(name) or not on_one)
    if subresource in _REFUSED:
        raise errors.method_not_allowed(_REFUSED[subresource])
    if not fits or (verb == "create" and name and not subresource):
        raise errors.method_not_allowed("the server does not allow this method on the requested resource")
    return verb
