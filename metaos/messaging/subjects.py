"""Every subject of the bus, as a function.

A subject is made of words between dots (MQTT has ``/`` where NATS has ``.``). Namespaces and names of devices are DNS labels, so
they are words; whatever else becomes part of a subject is looked at here.
"""

from __future__ import annotations

import re

#: What a device may say, and what it hears: the ends of its own subjects.
DEVICE_SAYS = ("twin.reported", "twin.get", "telemetry.>", "result.*", "status", "app.want")
DEVICE_HEARS = ("twin.desired", "command.*", "app.desired", "app.chunk")

_WORD = re.compile(r"[A-Za-z0-9_-]{1,128}")


def word(text: str) -> str:
    """``text``, where it can be one word of a subject. Raises ``ValueError``."""
    if not _WORD.fullmatch(text):
        raise ValueError(f"{text[:130]!r} cannot be part of a subject: use 1 to 128 letters, digits, '-' and '_'")
    return text


def device(namespace: str, name: str, end: str) -> str:
    """As it is called in the tenant's account, and with ``/`` by the device: ``nemo/NAMESPACE/DEVICE/twin/desired``."""
    return f"nemo.{word(namespace)}.{word(name)}.{end}"


def topic(subject: str) -> str:
    """The name that MQTT has for a subject; wildcards too."""
    return subject.replace(".", "/").replace("*", "+").replace(">", "#")


def to_device(namespace: str, name: str, end: str) -> str:
    """Where the hub says something to a device: ``end`` is one of ``DEVICE_HEARS``, with its wildcard filled in."""
    return f"down.{word(namespace)}.{word(name)}.{end}"


def from_devices(end: str, namespace: str = "*", name: str = "*") -> str:
    """Where the hub hears devices: of all tenants, of one, or one device. ``end`` is one of ``DEVICE_SAYS``."""
    parts = (p if p == "*" else word(p) for p in (namespace, name))
    return f"up.{'.'.join(parts)}.{end}"


def said_by(subject: str) -> tuple[str, str, str]:
    """Namespace, device and end of a subject on which the hub heard something. Raises ``ValueError``."""
    parts = subject.split(".", 3)
    if len(parts) != 4 or parts[0] != "up":
        raise ValueError(f"{subject!r} is no subject of a device")
    return parts[1], parts[2], parts[3]


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject is one of those that a pattern stands for."""
    wanted, found = pattern.split("."), subject.split(".")
    for at, part in enumerate(wanted):
        if part == ">":
            return len(found) > at
        if at >= len(found) or part not in ("*", found[at]):
            return False
    return len(wanted) == len(found)
