"""A pod's spec, of Pods and of templates. Source: ``pkg/apis/core/validation`` of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from metaos.apiserver.metadata import DNS_SUBDOMAIN, dns_label_causes, label_causes
from metaos.apiserver.rules.affinity import affinity_causes
from metaos.apiserver.schema import duplicate, forbidden, invalid, required, unsupported
from metaos.resources import quantity
from metaos.resources.devices import GPU, GPU_MILLI, WHOLE, extended
from metaos.resources.errors import Cause
from metaos.resources.meta import Obj
from metaos.resources.workload import device_requests

PORT_RANGE = "must be between 1 and 65535, inclusive"
NOT_NEGATIVE = "must be greater than or equal to 0"
BACKSTEPS = "must not contain '..'"
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")
_REFERENCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")
_FIELD_PATHS = re.compile(
    r"(metadata\.(name|namespace|uid|labels|annotations)|metadata\.(labels|annotations)\['[^']+'\]"
    r"|spec\.(nodeName|serviceAccountName)|status\.(hostIPs?|podIPs?))\Z"
)
_RESOURCES = frozenset(("cpu", "memory", "ephemeral-storage"))


def port_name_causes(name: str, path: str) -> Iterator[Cause]:
    if len(name) > 15:
        yield invalid(path, name, "must be no more than 15 characters")
    if not re.match(r"[-a-z0-9]+\Z", name):
        yield invalid(path, name, "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search(r"[a-z]", name):
        yield invalid(path, name, "must contain at least one letter (a-z)")
    if "--" in name:
        yield invalid(path, name, "must not contain consecutive hyphens")
    if name[:1] == "-" or name[-1:] == "-":
        yield invalid(path, name, "must not begin or end with a hyphen")


def pod_causes(spec: Obj, path: str, claims: Iterable[str] = ()) -> Iterator[Cause]:
    """Containers, volumes and what refers to what. ``claims``: volumes that a StatefulSet's templates add."""
    if not spec.get("containers"):
        yield required(f"{path}.containers")
    volumes: set[Any] = set()
    for i, volume in enumerate(spec.get("volumes") or ()):
        found = list(_volume(volume, f"{path}.volumes[{i}]"))
        yield from found
        if volume.get("name") in volumes:
            yield duplicate(f"{path}.volumes[{i}].name", volume.get("name"))
        elif not found:
            volumes.add(volume.get("name"))
    volumes |= set(claims)
    names: set[str] = set()
    for field in ("containers", "initContainers"):
        for i, container in enumerate(spec.get(field) or ()):
            where = f"{path}.{field}[{i}]"
            if container.get("name") and container["name"] in names:
                yield duplicate(f"{where}.name", container["name"])
            names.add(container.get("name") or "")
            yield from _container(container, where, volumes)
    yield from _shares(spec, path)
    grace, deadline = spec.get("terminationGracePeriodSeconds"), spec.get("activeDeadlineSeconds")
    if grace is not None and grace < 0:
        yield invalid(f"{path}.terminationGracePeriodSeconds", grace, NOT_NEGATIVE)
    if deadline is not None and not 0 < deadline < 2**31:
        yield invalid(f"{path}.activeDeadlineSeconds", deadline, "must be between 1 and 2147483647, inclusive")
    yield from label_causes(spec.get("nodeSelector"), f"{path}.nodeSelector")
    for field in ("hostname", "subdomain"):
        if spec.get(field):
            yield from dns_label_causes(spec[field], f"{path}.{field}")
    yield from _user(spec.get("securityContext") or {}, f"{path}.securityContext")
    for i, toleration in enumerate(spec.get("tolerations") or ()):
        yield from _toleration(toleration, f"{path}.tolerations[{i}]")
    yield from affinity_causes(spec, path)


def _volume(volume: Obj, path: str) -> Iterator[Cause]:
    name = volume.get("name") or ""
    if not name:
        yield required(f"{path}.name")
    else:
        yield from dns_label_causes(name, f"{path}.name")
    sources = [field for field in volume if field != "name"]
    if not sources:
        yield required(path, "must specify a volume type")
    for extra in sources[1:]:
        yield forbidden(f"{path}.{extra}", "may not specify more than 1 volume type")
    for field, key in (
        ("secret", "secretName"),
        ("configMap", "name"),
        ("persistentVolumeClaim", "claimName"),
        ("hostPath", "path"),
    ):
        source = volume.get(field)
        if source is not None and not source.get(key):
            yield required(f"{path}.{field}.{key}")
    for field in ("secret", "configMap", "downwardAPI", "projected"):
        mode = (volume.get(field) or {}).get("defaultMode")
        if mode is not None and not 0 <= mode <= 0o777:
            text = "must be a number between 0 and 0777 (octal), both inclusive"
            yield invalid(f"{path}.{field}.defaultMode", mode, text)
    for field in ("secret", "configMap"):
        for i, item in enumerate((volume.get(field) or {}).get("items") or ()):
            where = f"{path}.{field}.items[{i}]"
            yield from (required(f"{where}.{key}") for key in ("key", "path") if not item.get(key))
            if ".." in (item.get("path") or "").split("/"):
                yield invalid(f"{where}.path", item["path"], BACKSTEPS)
    if ".." in ((volume.get("hostPath") or {}).get("path") or "").split("/"):
        yield invalid(f"{path}.hostPath.path", volume["hostPath"]["path"], BACKSTEPS)


def _container(container: Obj, path: str, volumes: set[Any]) -> Iterator[Cause]:
    name, image = container.get("name") or "", container.get("image") or ""
    if not name:
        yield required(f"{path}.name")
    else:
        yield from dns_label_causes(name, f"{path}.name")
    if not image.strip():
        yield required(f"{path}.image")
    elif image != image.strip():
        yield invalid(f"{path}.image", image, "must not have leading or trailing whitespace")
    yield from _ports(container.get("ports") or (), f"{path}.ports")
    for i, env in enumerate(container.get("env") or ()):
        yield from _env(env, f"{path}.env[{i}]")
    for i, source in enumerate(container.get("envFrom") or ()):
        refs = [field for field in ("configMapRef", "secretRef") if source.get(field) is not None]
        if not refs:
            yield invalid(f"{path}.envFrom", "", "must specify one of: `configMapRef` or `secretRef`")
        yield from (required(f"{path}.envFrom[{i}].{field}.name") for field in refs if not source[field].get("name"))
    seen: set[str] = set()
    for i, mount in enumerate(container.get("volumeMounts") or ()):
        where = f"{path}.volumeMounts[{i}]"
        if not mount.get("name"):
            yield required(f"{where}.name")
        if mount.get("name") not in volumes:
            yield Cause("FieldValueNotFound", f"{where}.name", f'Not found: "{mount.get("name") or ""}"')
        if not mount.get("mountPath"):
            yield required(f"{where}.mountPath")
        elif mount["mountPath"] in seen:
            yield invalid(f"{where}.mountPath", mount["mountPath"], "must be unique")
        seen.add(mount.get("mountPath") or "")
        if ".." in (mount.get("subPath") or "").split("/"):
            yield invalid(f"{path}.volumeMounts.subPath", mount["subPath"], BACKSTEPS)
    yield from _amounts(container.get("resources") or {}, f"{path}.resources")
    for field in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(field) is not None:
            yield from _probe(container[field], f"{path}.{field}", field)
    for field in ("postStart", "preStop"):
        handler = (container.get("lifecycle") or {}).get(field)
        if handler is not None:
            yield from _handler(handler, f"{path}.lifecycle.{field}")
    yield from _user(container.get("securityContext") or {}, f"{path}.securityContext")
    policy = container.get("terminationMessagePolicy")
    if policy not in (None, "File", "FallbackToLogsOnError"):
        yield unsupported(f"{path}.terminationMessagePolicy", policy, ("File", "FallbackToLogsOnError"))


def _ports(ports: Iterable[Obj], path: str) -> Iterator[Cause]:
    names: set[str] = set()
    for i, port in enumerate(ports):
        where, number = f"{path}[{i}]", port.get("containerPort")
        if not number:
            yield required(f"{where}.containerPort")
        elif not 0 < number < 65536:
            yield invalid(f"{where}.containerPort", number, PORT_RANGE)
        if port.get("name"):
            found = list(port_name_causes(port["name"], f"{where}.name"))
            yield from found
            if not found and port["name"] in names:
                yield duplicate(f"{where}.name", port["name"])
            names.add(port["name"])


def _env(env: Obj, path: str) -> Iterator[Cause]:
    if not env.get("name"):
        yield required(f"{path}.name")
    elif "=" in env["name"] or not env["name"].isascii() or not env["name"].isprintable():
        text = "a valid environment variable name must consist only of printable ASCII characters other than '='"
        yield invalid(f"{path}.name", env["name"], text)
    source = env.get("valueFrom")
    if source is None:
        return
    found = [field for field in _REFERENCES if source.get(field) is not None]
    if not found:
        listed = "`fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
        yield invalid(f"{path}.valueFrom", "", f"must specify one of: {listed}")
    elif len(found) > 1:
        yield invalid(f"{path}.valueFrom", "", "may not have more than one field specified at a time")
    if env.get("value"):
        yield invalid(f"{path}.valueFrom", "", "may not be specified when `value` is not empty")
    for field in ("configMapKeyRef", "secretKeyRef"):
        if source.get(field) is not None:
            if not source[field].get("name"):
                yield invalid(f"{path}.valueFrom.{field}.name", "", DNS_SUBDOMAIN)
            if not source[field].get("key"):
                yield required(f"{path}.valueFrom.{field}.key")
    if source.get("fieldRef") is not None:
        asked = source["fieldRef"].get("fieldPath") or ""
        where = f"{path}.valueFrom.fieldRef.fieldPath"
        if not asked:
            yield required(where)
        elif not _FIELD_PATHS.match(asked):
            yield invalid(where, asked, f"error converting fieldPath: field label not supported: {asked}")


def _shares(spec: Obj, path: str) -> Iterator[Cause]:
    """Thousandths of a GPU, which only NEMO knows: all containers of a pod share one GPU."""
    try:
        asks = dict(device_requests(spec))
    except ValueError:
        # No quantity: said elsewhere.
        return
    milli = asks.get(GPU_MILLI, 0)
    where = f"{path}.containers.resources.limits[{GPU_MILLI}]"
    if milli and GPU in asks:
        yield invalid(where, milli, f"a pod has whole GPUs ({GPU}) or a part of one ({GPU_MILLI}): leave one of them out")
    elif milli >= WHOLE:
        text = f"must be below {WHOLE} for all containers of the pod together, as it is a part of one GPU; ask for {GPU} instead"
        yield invalid(where, milli, text)


def _amounts(wanted: Obj, path: str) -> Iterator[Cause]:
    limits = wanted.get("limits") or {}
    for field in ("limits", "requests"):
        for key, value in (wanted.get(field) or {}).items():
            where, amount = f"{path}.{field}[{key}]", quantity.parse(value)
            if "/" not in key and key not in _RESOURCES and not key.startswith("hugepages-"):
                yield invalid(where, key, "must be a standard resource type or fully qualified")
                yield invalid(where, key, "must be a standard resource for containers")
            if amount < 0:
                yield invalid(where, value, NOT_NEGATIVE)
            elif extended(key):
                if amount.denominator != 1:
                    yield invalid(where, value, "must be an integer")
                elif field == "requests" and key not in limits:
                    yield required(f"{path}.limits", "Limit must be set for non overcommitable resources")
                elif field == "requests" and amount != quantity.parse(limits[key]):
                    yield invalid(f"{path}.requests", value, f"must be equal to {key} limit of {limits[key]}")
            elif field == "requests" and key in limits and amount > quantity.parse(limits[key]):
                yield invalid(f"{path}.requests", value, f"must be less than or equal to {key} limit of {limits[key]}")


def _handler(handler: Obj, path: str) -> Iterator[Cause]:
    actions = [field for field in _HANDLERS if handler.get(field) is not None]
    if not actions:
        yield required(path, "must specify a handler type")
    for extra in actions[1:]:
        yield forbidden(f"{path}.{extra}", "may not specify more than 1 handler type")
    if handler.get("exec") is not None and not handler["exec"].get("command"):
        yield required(f"{path}.exec.command")
    for field in ("httpGet", "tcpSocket"):
        target = handler.get(field)
        if target is None:
            continue
        port = target.get("port")
        if isinstance(port, str):
            yield from port_name_causes(port, f"{path}.{field}.port")
        elif port is None or not 0 < port < 65536:
            yield invalid(f"{path}.{field}.port", port or 0, PORT_RANGE)


def _probe(probe: Obj, path: str, field: str) -> Iterator[Cause]:
    yield from _handler({k: v for k, v in probe.items() if k != "sleep"}, path)
    for key in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        if (probe.get(key) or 0) < 0:
            yield invalid(f"{path}.{key}", probe[key], NOT_NEGATIVE)
    if field != "readinessProbe" and probe.get("successThreshold", 1) not in (0, 1):
        yield invalid(f"{path}.successThreshold", probe["successThreshold"], "must be 1")


def _user(context: Obj, path: str) -> Iterator[Cause]:
    for field in ("runAsUser", "runAsGroup", "fsGroup"):
        if context.get(field) is not None and not 0 <= context[field] < 2**31:
            yield invalid(f"{path}.{field}", context[field], "must be between 0 and 2147483647, inclusive")


def _toleration(toleration: Obj, path: str) -> Iterator[Cause]:
    key, operator, effect = (toleration.get(field) or "" for field in ("key", "operator", "effect"))
    if key:
        yield from label_causes({key: ""}, f"{path}.key")
    elif operator != "Exists":
        text = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
        yield invalid(f"{path}.operator", operator, text)
    if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
        yield invalid(f"{path}.effect", effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")
    if operator == "Exists" and toleration.get("value"):
        yield invalid(f"{path}.operator", toleration["value"], "value must be empty when `operator` is 'Exists'")
    if operator not in ("", "Equal", "Exists", "Lt", "Gt"):
        yield unsupported(f"{path}.operator", operator, ("Equal", "Exists"))
    if effect not in ("", "NoSchedule", "PreferNoSchedule", "NoExecute"):
        yield unsupported(f"{path}.effect", effect, ("NoSchedule", "PreferNoSchedule", "NoExecute"))
