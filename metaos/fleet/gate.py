"""Who lets devices onto the bus: the part of its accounts that the fleet needs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Address(NamedTuple):
    """A device."""

    namespace: str
    name: str


class Connection(NamedTuple):
    """One that a device made, or, where it is not ``there``, that is over. ``number``: no other connection has it."""

    device: Address
    client_id: str
    number: str = ""
    there: bool = True


@dataclass(frozen=True, slots=True)
class Issued:
    """What a device logs in with over MQTT: both are shown once. ``servers``: where, as ``mqtts://HOST:PORT``; ``authorities``:
    PEM, for TLS; ``app_key``: the public key (hexadecimal) by which it knows the hub's applications."""

    username: str
    password: str
    servers: tuple[str, ...] = ()
    authorities: str = ""
    app_key: str = ""

    def shown(self) -> dict[str, Any]:
        found = {"username": self.username, "password": self.password, "servers": list(self.servers)}
        return found | {"authorities": self.authorities, "appKey": self.app_key}


class Gate(Protocol):
    """``generation`` counts a device's credentials; ``uid`` is the Device's, so that one of the same name is another one."""

    async def open(self, namespace: str) -> None:
        """Lets the devices of a namespace in that were given credentials. Any number of times; raises ``BusError``."""
        ...

    async def issue(self, device: Address, uid: str, generation: int) -> Issued:
        """The same for the same arguments. Raises ``BusError`` where the bus is away."""
        ...

    async def bar(self, device: Address, uid: str, generation: int) -> None:
        """Cuts its connection and refuses it from now on, after restarts too, until it is admitted. Any number of times."""
        ...

    async def admit(self, device: Address, uid: str, generation: int) -> None:
        """Takes ``bar`` back."""
        ...

    async def sites(self, told: Mapping[str, str]) -> None:
        """Which credentials of sites' servers count: see :data:`metaos.messaging.site.LEAVES`. Any number of times."""
        ...

    def connections(self) -> AsyncGenerator[Connection]:
        """Devices as they come and go, from now on. Ends or raises ``BusError`` where the bus is away."""
        ...

    def close(self) -> None:
        """Forgets what it knows: another hub may act now."""
        ...
