"""From a pod's containers to what a runtime starts: environment and arguments. Everything is resolved here.

Raises :class:`ConfigError` (``CreateContainerConfigError`` to users) where something that is referred to is missing.
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from metaos.agent.accounts import API_ENV, calls_api
from metaos.plugins.points import ContainerConfig
from metaos.resources import quantity, workload
from metaos.resources.meta import Obj, ObjectRef, annotations, labels, name, namespace, uid

if TYPE_CHECKING:
    from metaos.agent.volumes import Volumes

#: Gives the desired object that a reference means, or ``None``.
Find = Callable[[ObjectRef], Obj | None]
_VARIABLE = re.compile(r"\$(\$|\(([-._a-zA-Z][-._a-zA-Z0-9]*)\))")


#: Where a container may say why it ended.
TERMINATION_LOG = "/dev/termination-log"


#: What the kernel takes.
HOSTNAME_LIMIT = 64


class ConfigError(Exception):
    """A container cannot be started as its pod says; the message names what is missing."""


class MountError(ConfigError):
    """One of its volumes cannot be made (``FailedMount``)."""


class Pending(MountError):
    """One of its volumes is being made: nothing is wrong yet."""


def expand(text: str, env: Mapping[str, str]) -> str:
    """``$(VAR)`` by the environment, ``$$`` as ``$``; what is not defined stays as it is."""

    def value(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return env.get(match[2], match[0])

    return _VARIABLE.sub(value, text)


def data_of(kind: str, source: Mapping[str, Any], where: str, find: Find) -> dict[str, bytes] | None:
    """A ConfigMap's or Secret's entries; ``None`` where it is missing and may be."""
    wanted = str(source.get("name") or source.get("secretName") or "")
    found = find(ObjectRef("", kind, where, wanted))
    if found is None:
        if source.get("optional"):
            return None
        raise ConfigError(f'{kind.lower()} "{wanted}" not found')
    entries = {k: base64.b64decode(v) for k, v in (found.get("binaryData") or {}).items()}
    if kind == "Secret":
        return entries | {k: base64.b64decode(v or "") for k, v in (found.get("data") or {}).items()}
    return entries | {k: str(v).encode() for k, v in (found.get("data") or {}).items()}


def field(pod: Obj, path: str, host_ip: str = "127.0.0.1") -> str:
    """The downward API's ``fieldRef``."""
    for kind, entries in (("labels", labels(pod)), ("annotations", annotations(pod))):
        if path == f"metadata.{kind}":
            return "\n".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in sorted(entries.items()))
        if path.startswith(f"metadata.{kind}['"):
            return entries.get(path.split("'")[1], "")
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    known = {
        "metadata.name": name(pod),
        "metadata.namespace": namespace(pod),
        "metadata.uid": uid(pod),
        "spec.nodeName": spec.get("nodeName") or "",
        "spec.serviceAccountName": spec.get("serviceAccountName") or "default",
        "status.podIP": status.get("podIP") or "127.0.0.1",
        "status.podIPs": status.get("podIP") or "127.0.0.1",
        "status.hostIP": host_ip,
        "status.hostIPs": host_ip,
    }
    if path not in known:
        raise ConfigError(
            f"fieldPath {path!r} is not supported: use one of {', '.join(known)}, metadata.labels, metadata.annotations"
        )
    return str(known[path])


def resource_field(
    pod: Obj, container: Mapping[str, Any], reference: Mapping[str, Any], machine: Mapping[str, str] | None = None
) -> str:
    """The downward API's ``resourceFieldRef``. Where there is no limit, it is what the site has (``machine``)."""
    which, _, kind = str(reference.get("resource", "")).partition(".")
    wanted = reference.get("containerName")
    chosen = next((c for c in workload.containers(pod["spec"]) if c["name"] == wanted), container)
    amount = ((chosen.get("resources") or {}).get(which) or {}).get(kind)
    if amount is None:
        amount = (machine or {}).get(kind, 0) if which == "limits" else 0
    divisor = quantity.parse(reference.get("divisor") or 1)
    value = quantity.parse(amount) / (divisor or 1)
    return str(-(-value.numerator // value.denominator))


def environment(pod: Obj, container: Mapping[str, Any], find: Find, machine: Mapping[str, str] | None = None) -> dict[str, str]:
    """``envFrom`` first, then ``env``, later ones winning; ``$(VAR)`` refers to what came before."""
    where = namespace(pod)
    env: dict[str, str] = {"HOSTNAME": hostname(pod), **(API_ENV if calls_api(pod) else {})}
    for source in container.get("envFrom") or ():
        for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if source.get(key):
                for entry, raw in (data_of(kind, source[key], where, find) or {}).items():
                    env[(source.get("prefix") or "") + entry] = raw.decode(errors="surrogateescape")
    for variable in container.get("env") or ():
        source = variable.get("valueFrom")
        if not source:
            env[variable["name"]] = expand(str(variable.get("value") or ""), env)
            continue
        value = _from_source(pod, container, source, find, machine)
        if value is not None:
            env[variable["name"]] = value
    return env


def _from_source(
    pod: Obj, container: Mapping[str, Any], source: Mapping[str, Any], find: Find, machine: Mapping[str, str] | None
) -> str | None:
    where = namespace(pod)
    if source.get("fieldRef"):
        return field(pod, source["fieldRef"].get("fieldPath", ""))
    if source.get("resourceFieldRef"):
        return resource_field(pod, container, source["resourceFieldRef"], machine)
    if source.get("fileKeyRef"):
        raise ConfigError("fileKeyRef is not supported at this site: use a ConfigMap or a Secret")
    for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        reference = source.get(key)
        if reference:
            entries = data_of(kind, reference, where, find)
            if entries is None or reference.get("key") not in entries:
                if reference.get("optional"):
                    return None
                raise ConfigError(f"couldn't find key {reference.get('key')} in {kind} {where}/{reference.get('name')}")
            return entries[reference["key"]].decode(errors="surrogateescape")
    return None


def hostname(pod: Obj) -> str:
    """At most 63 characters, as the kernel and DNS want it; with ``setHostnameAsFQDN`` the whole name. Raises ``ValueError``."""
    spec = pod.get("spec") or {}
    short = str(spec.get("hostnameOverride") or spec.get("hostname") or name(pod))[:63].rstrip("-.")
    if not spec.get("setHostnameAsFQDN") or not spec.get("subdomain") or spec.get("hostnameOverride"):
        return short
    full = f"{short}.{spec['subdomain']}.{namespace(pod)}.svc.cluster.local"
    if len(full) > HOSTNAME_LIMIT:
        raise ValueError(
            f"the pod's name {full} has {len(full)} characters, and a hostname may have {HOSTNAME_LIMIT}: shorten hostname or "
            "subdomain, or leave setHostnameAsFQDN out"
        )
    return full


def container_config(pod: Obj, container: Mapping[str, Any], find: Find, volumes: "Volumes", attempt: int) -> ContainerConfig:
    """What the runtime gets. Raises :class:`ConfigError`."""
    env = environment(pod, container, find, volumes.machine)
    limit = workload.limits(dict(container))
    security = {**(pod["spec"].get("securityContext") or {}), **(container.get("securityContext") or {})}
    user, group = security.get("runAsUser"), security.get("runAsGroup")
    if security.get("runAsNonRoot") and user == 0:
        raise ConfigError("container has runAsNonRoot and the image or pod says user 0")
    profile = security.get("seccompProfile") or {}
    if profile.get("type") == "Localhost":
        raise ConfigError(
            f"seccompProfile Localhost {profile.get('localhostProfile')!r}: this site has no profiles; use RuntimeDefault"
        )
    fuel, seconds = wasm_limits(pod)
    said = str(container.get("terminationMessagePath") or TERMINATION_LOG)
    return ContainerConfig(
        name=str(container["name"]),
        image=str(container["image"]),
        command=tuple(expand(str(c), env) for c in container.get("command") or ()),
        args=tuple(expand(str(a), env) for a in container.get("args") or ()),
        env=tuple(env.items()),
        working_dir=str(container.get("workingDir") or ""),
        mounts=(*volumes.mounts(pod, container, env), (str(volumes.message_file(uid(pod), str(container["name"]))), said, False)),
        cpu_limit=limit["cpu"],
        memory_limit=limit["memory"],
        read_only_root=bool(security.get("readOnlyRootFilesystem")),
        run_as_user=None if user is None else int(user),
        run_as_non_root=bool(security.get("runAsNonRoot")),
        run_as_group=None if group is None else int(group),
        attempt=attempt,
        stdin=bool(container.get("stdin")),
        stdin_once=bool(container.get("stdinOnce")),
        tty=bool(container.get("tty")),
        runtime_class=str(pod["spec"].get("runtimeClassName") or ""),
        fuel=fuel,
        seconds=seconds,
    )


def wasm_limits(pod: Obj) -> tuple[int, int]:
    """(fuel, seconds) of its containers, as its annotations say. Raises :class:`ConfigError`."""
    try:
        found = [workload.guest_limit(annotations(pod), key) for key in workload.GUEST_LIMITS]
    except ValueError as error:
        raise ConfigError(f"annotation {error}") from None
    return found[0], found[1]
