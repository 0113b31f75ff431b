"""From a pod's containers to what a runtime starts: environment, arguments, volumes. Everything is resolved here.

Raises :class:`ConfigError` (``CreateContainerConfigError`` to users) where something that is referred to is missing.
"""

import base64
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metaos import trees
from metaos.plugins.points import ContainerConfig
from metaos.resources import quantity, workload
from metaos.resources.meta import Obj, ObjectRef, annotations, labels, name, namespace, uid

#: Gives the desired object that a reference means, or ``None``.
Find = Callable[[ObjectRef], Obj | None]
_VARIABLE = re.compile(r"\$(\$|\(([-._a-zA-Z][-._a-zA-Z0-9]*)\))")


class ConfigError(Exception):
    """A container cannot be started as its pod says; the message names what is missing."""


def expand(text: str, env: Mapping[str, str]) -> str:
    """``$(VAR)`` by the environment, ``$$`` as ``$``; what is not defined stays as it is."""

    def value(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return env.get(match[2], match[0])

    return _VARIABLE.sub(value, text)


def _data(kind: str, source: Mapping[str, Any], where: str, find: Find) -> dict[str, bytes] | None:
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
            return "\n".join(f'{k}="{v}"' for k, v in sorted(entries.items()))
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
    }
    if path not in known:
        raise ConfigError(
            f"fieldPath {path!r} is not supported: use one of {', '.join(known)}, metadata.labels, metadata.annotations"
        )
    return str(known[path])


def resource_field(pod: Obj, container: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """The downward API's ``resourceFieldRef``."""
    which, _, kind = str(reference.get("resource", "")).partition(".")
    wanted = reference.get("containerName")
    chosen = next((c for c in workload.containers(pod["spec"]) if c["name"] == wanted), container)
    amount = ((chosen.get("resources") or {}).get(which) or {}).get(kind, 0)
    divisor = quantity.parse(reference.get("divisor") or 1)
    value = quantity.parse(amount) / (divisor or 1)
    return str(-(-value.numerator // value.denominator))


def environment(pod: Obj, container: Mapping[str, Any], find: Find) -> dict[str, str]:
    """``envFrom`` first, then ``env``, later ones winning; ``$(VAR)`` refers to what came before."""
    where = namespace(pod)
    env: dict[str, str] = {"HOSTNAME": hostname(pod)}
    for source in container.get("envFrom") or ():
        for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            if source.get(key):
                for entry, raw in (_data(kind, source[key], where, find) or {}).items():
                    env[(source.get("prefix") or "") + entry] = raw.decode(errors="surrogateescape")
    for variable in container.get("env") or ():
        source = variable.get("valueFrom")
        if not source:
            env[variable["name"]] = expand(str(variable.get("value") or ""), env)
            continue
        value = _from_source(pod, container, source, where, find)
        if value is not None:
            env[variable["name"]] = value
    return env


def _from_source(pod: Obj, container: Mapping[str, Any], source: Mapping[str, Any], where: str, find: Find) -> str | None:
    if source.get("fieldRef"):
        return field(pod, source["fieldRef"].get("fieldPath", ""))
    if source.get("resourceFieldRef"):
        return resource_field(pod, container, source["resourceFieldRef"])
    for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        reference = source.get(key)
        if reference:
            entries = _data(kind, reference, where, find)
            if entries is None or reference.get("key") not in entries:
                if reference.get("optional"):
                    return None
                raise ConfigError(f"couldn't find key {reference.get('key')} in {kind} {where}/{reference.get('name')}")
            return entries[reference["key"]].decode(errors="surrogateescape")
    return None


def hostname(pod: Obj) -> str:
    """At most 63 characters, as the kernel and DNS want it."""
    return str((pod.get("spec") or {}).get("hostname") or name(pod))[:63].rstrip("-.")


class Volumes:
    """The directories behind volumes: ``pods/UID/volumes/NAME`` goes with the pod, ``claims/NS/NAME`` stays."""

    def __init__(self, directory: Path, host_paths: tuple[str, ...], find: Find) -> None:
        self._directory, self._host_paths, self._find = directory, host_paths, find

    def pod_directory(self, pod_uid: str) -> Path:
        return self._directory / "pods" / pod_uid

    def claim_directory(self, where: str, claim: str) -> Path:
        return self._directory / "claims" / where / claim

    def remove(self, pod_uid: str) -> None:
        trees.remove(str(self.pod_directory(pod_uid)))

    def mounts(self, pod: Obj, container: Mapping[str, Any]) -> tuple[tuple[str, str, bool], ...]:
        """(host path, path in the container, read-only), made and filled where they have to be."""
        sources = {v["name"]: v for v in (pod["spec"].get("volumes") or ())}
        result = []
        for mount in container.get("volumeMounts") or ():
            volume = sources.get(mount["name"])
            if volume is None:
                raise ConfigError(f"volume {mount['name']!r} is not defined in the pod")
            path, read_only = self._prepare(pod, container, volume)
            sub = expand(str(mount.get("subPathExpr") or mount.get("subPath") or ""), environment(pod, container, self._find))
            if sub:
                inner = (path / sub).resolve()
                if not inner.is_relative_to(path.resolve()):
                    raise ConfigError(f"subPath {sub!r} leads out of volume {mount['name']!r}")
                if not inner.exists() and not read_only:
                    try:
                        inner = Path(trees.make_below(str(path), str(inner.relative_to(path.resolve()))))
                    except OSError as error:
                        raise ConfigError(f"subPath {sub!r} of volume {mount['name']!r}: {error.strerror}") from error
                path = inner
            result.append((str(path), str(mount["mountPath"]), bool(mount.get("readOnly")) or read_only))
        return tuple(result)

    def _prepare(self, pod: Obj, container: Mapping[str, Any], volume: Mapping[str, Any]) -> tuple[Path, bool]:
        where = namespace(pod)
        if volume.get("persistentVolumeClaim"):
            claim = str(volume["persistentVolumeClaim"].get("claimName"))
            if self._find(ObjectRef("", "PersistentVolumeClaim", where, claim)) is None and not volume.get("template"):
                raise ConfigError(f'persistentvolumeclaim "{claim}" not found')
            return _made(self.claim_directory(where, claim)), bool(volume["persistentVolumeClaim"].get("readOnly"))
        if volume.get("hostPath"):
            path = os.path.realpath(str(volume["hostPath"].get("path")))
            if not any(path == allowed or path.startswith(allowed.rstrip("/") + "/") for allowed in self._host_paths):
                raise ConfigError(f"hostPath {path} is not allowed at this site: its owner lists allowed ones in spec.hostPaths")
            return Path(path), False
        directory = self.pod_directory(uid(pod)) / "volumes" / str(volume["name"])
        files: dict[str, tuple[bytes, int]] | None = None
        if volume.get("configMap"):
            files = _projected("ConfigMap", volume["configMap"], where, self._find, 0o644)
        elif volume.get("secret"):
            files = _projected("Secret", volume["secret"], where, self._find, 0o644)
        elif volume.get("downwardAPI"):
            files = _downward(pod, container, volume["downwardAPI"])
        elif volume.get("projected"):
            files = {}
            for source in volume["projected"].get("sources") or ():
                if source.get("configMap"):
                    files |= _projected("ConfigMap", source["configMap"], where, self._find, 0o644)
                if source.get("secret"):
                    files |= _projected("Secret", source["secret"], where, self._find, 0o644)
                if source.get("downwardAPI"):
                    files |= _downward(pod, container, source["downwardAPI"])
        elif "emptyDir" not in volume:
            kinds = sorted(set(volume) - {"name"})
            raise ConfigError(f"volume {volume['name']!r}: {', '.join(kinds) or 'no source'} is not supported at this site")
        _made(directory)
        if files is None:
            # Shared by containers of any user; the directories above it are private.
            os.chmod(directory, 0o777)  # noqa: S103
            return directory, False
        write_files(directory, files)
        return directory, True


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def write_files(directory: Path, files: Mapping[str, tuple[bytes, int]]) -> None:
    """Makes the directory hold exactly these files; each is replaced atomically."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_file() and str(path.relative_to(directory)) not in files:
            path.unlink()
    for relative, (content, mode) in files.items():
        target = directory / relative
        if not target.resolve().is_relative_to(directory.resolve()):
            raise ConfigError(f"path {relative!r} leads out of its volume")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.read_bytes() == content:
            continue
        temporary = target.with_name(f".{target.name}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, mode)
        temporary.replace(target)


def _projected(kind: str, source: Mapping[str, Any], where: str, find: Find, default: int) -> dict[str, tuple[bytes, int]]:
    entries = _data(kind, source, where, find)
    mode = int(source.get("defaultMode") or default)
    if entries is None:
        return {}
    items = source.get("items")
    if not items:
        return {key: (value, mode) for key, value in entries.items()}
    found = {}
    for item in items:
        if item["key"] not in entries:
            if source.get("optional"):
                continue
            raise ConfigError(f"references non-existent {kind.lower()} key: {item['key']}")
        found[str(item["path"])] = (entries[item["key"]], int(item.get("mode") or mode))
    return found


def _downward(pod: Obj, container: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, tuple[bytes, int]]:
    found = {}
    for item in source.get("items") or ():
        if item.get("fieldRef"):
            text = field(pod, item["fieldRef"].get("fieldPath", ""))
        else:
            text = resource_field(pod, container, item.get("resourceFieldRef") or {})
        found[str(item["path"])] = (text.encode(), int(item.get("mode") or source.get("defaultMode") or 0o644))
    return found


def container_config(pod: Obj, container: Mapping[str, Any], find: Find, volumes: Volumes, attempt: int) -> ContainerConfig:
    """What the runtime gets. Raises :class:`ConfigError`."""
    env = environment(pod, container, find)
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
    return ContainerConfig(
        name=str(container["name"]),
        image=str(container["image"]),
        command=tuple(expand(str(c), env) for c in container.get("command") or ()),
        args=tuple(expand(str(a), env) for a in container.get("args") or ()),
        env=tuple(env.items()),
        working_dir=str(container.get("workingDir") or ""),
        mounts=volumes.mounts(pod, container),
        cpu_limit=limit["cpu"],
        memory_limit=limit["memory"],
        read_only_root=bool(security.get("readOnlyRootFilesystem")),
        run_as_user=None if user is None else int(user),
        run_as_group=None if group is None else int(group),
        attempt=attempt,
    )
