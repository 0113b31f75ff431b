"""Who may say what on the bus: the operator, the hub's account, one account for each tenant (namespace), a user for each device.

Accounts are apart as if they had servers of their own. What a device says under ``nemo.NAMESPACE`` in its account is seen by the
hub under ``up.NAMESPACE``, and what the hub says under ``down.NAMESPACE`` is heard there under ``nemo.NAMESPACE``: nothing else
passes, and nothing from tenant to tenant. Everything here is a function of the root secret, the time and what is told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from metaos.messaging.bus import PAYLOAD_BYTES
from metaos.messaging.keys import Key
from metaos.messaging.subjects import DEVICE_HEARS, DEVICE_SAYS, device, word

VERSION = 2
#: What may be connected of a tenant at once, and kept for it on the servers' disks, unless told otherwise.
CONNECTIONS = 20_000
DISK_BYTES = 1 << 30
#: Credentials of one tenant that are revoked: each is a line in its account's token, of which servers take 1 MiB.
MOST_REVOKED = 10_600
#: Of them these are kept for sites' servers, so that nobody fills with devices the place by which a stolen one is shut out.
MOST_REVOKED_SITES = 600
#: Consumers of a tenant for each of its connections, as a server keeps track of each in memory: one is a lasting subscription.
CONSUMERS_EACH = 6
#: Tenants whose accounts' keys are held: making one, and its public form, costs as much as a device's.
TENANTS_HELD = 1000
#: Who makes the first connection of a tenant's over MQTT, and how long its token counts, in seconds.
OPENER, OPENER_SECONDS = "OPENER", 3600.0
#: On which servers tell of clients that come and go.
CONNECTIONS_SUBJECT = "$SYS.ACCOUNT.*.*"
#: A time that is after any other, in seconds since the epoch.
_ALWAYS = 1 << 40

_FREE: Mapping[str, Any] = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True}
_STORED: Mapping[str, Any] = {"mem_storage": 0, "disk_storage": -1, "streams": -1, "consumer": -1}


@dataclass(frozen=True)
class Tenant:
    """A namespace on the bus. ``uid`` is the namespace's: one of the same name that is made later is another tenant.
    ``revoked``: keys of users that count no more, whenever their tokens were issued: who gets new credentials gets a new key.
    Raises ``ValueError`` for more of them than ``MOST_REVOKED``."""

    namespace: str
    uid: str
    revoked: frozenset[str] = frozenset()
    connections: int = CONNECTIONS
    disk_bytes: int = DISK_BYTES

    def __post_init__(self) -> None:
        word(self.namespace)
        if len(self.revoked) > MOST_REVOKED:
            raise ValueError(
                f"namespace {self.namespace} has {len(self.revoked)} revoked credentials of devices, {MOST_REVOKED} is the most: "
                "move its devices to a namespace that is made anew, whose old credentials count nowhere"
            )


@dataclass(frozen=True)
class DeviceUser:
    """What a device logs in with: ``name`` as MQTT's user name, ``token`` as its password (a secret)."""

    name: str
    key: str
    token: str


class Accounts:
    """All that follows from the root secret: see the module."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self.operator = Key.derive("operator", root)
        self.system = Key.derive("account", root, "system")
        self.hub = Key.derive("account", root, "hub")
        self._tenants = lru_cache(TENANTS_HELD)(partial(Key.derive, "account", root, "tenant"))

    def account(self, namespace: str, uid: str) -> Key:
        return self._tenants(namespace, uid)

    # -- tokens of accounts ------------------------------------------------------------------------------------

    def operator_token(self) -> str:
        """Says who the operator is: what a server is made to trust. The same at any time, and no secret."""
        claims = {"type": "operator", "version": VERSION, "system_account": self.system.public}
        return self.operator.token(self.operator.public, "nemo", claims, 0)

    def system_token(self) -> str:
        """Of the account in which servers tell of themselves and take accounts."""
        limits = {**_FREE, "conn": -1, "leaf": -1}
        return self.operator.token(self.system.public, "system", _account(limits), 0)

    def hub_token(self) -> str:
        """Of the account of all hubs. It names no tenant, so it is the same at any time."""
        exports = [
            {"name": "down", "subject": "down.>", "type": "stream"},
            {"name": "up", "subject": "up.>", "type": "service"},
        ]
        limits = {**_FREE, **_STORED, "conn": -1, "leaf": -1}
        return self.operator.token(self.hub.public, "hub", _account(limits, (), exports), 0)

    def tenant_token(self, tenant: Tenant, now: float) -> str:
        namespace = tenant.namespace
        ends = [("stream", "down", end) for end in DEVICE_HEARS] + [("service", "up", end) for end in DEVICE_SAYS]
        imports = [_import(kind, self.hub, f"{way}.{namespace}.*.{end}", f"nemo.{namespace}.*.{end}") for kind, way, end in ends]
        limits = {
            **_FREE,
            **_STORED,
            "conn": tenant.connections,
            "leaf": tenant.connections,
            "payload": PAYLOAD_BYTES,
            "disk_storage": tenant.disk_bytes,
            "consumer": CONSUMERS_EACH * tenant.connections,
        }
        claims = _account(limits, imports)
        if tenant.revoked:
            claims["revocations"] = dict.fromkeys(sorted(tenant.revoked), _ALWAYS)
        return self.operator.token(self.account(namespace, tenant.uid).public, namespace, claims, now)

    def removal_token(self, accounts: Collection[str], now: float) -> str:
        """Asks servers to forget accounts, by their public keys."""
        return self.operator.token(
            self.operator.public, "remove", {"type": "generic", "version": VERSION, "accounts": [*accounts]}, now
        )

    # -- users ---------------------------------------------------------------------------------------------------

    def hub_user(self, now: float, *, system: bool = False) -> tuple[Key, str]:
        """A hub's own key and token, for its account or for that of the servers."""
        key = Key.derive("user", self._root, "system" if system else "hub")
        claims = {**_ANYTHING, "type": "user", "version": VERSION}
        return key, (self.system if system else self.hub).token(key.public, "hub", claims, now)

    def site_user(self, site: str, tenant: Tenant | None, now: float, expires: float, generation: int = 1) -> tuple[Key, str]:
        """A site's key and token, for its server to be a leaf node: in a tenant's account, all of which it may say and hear; or,
        without a tenant, to learn of accounts and tell of its clients, and nothing else of what servers tell each other.
        ``generation`` counts a site's credentials."""
        account = self.system if tenant is None else self.account(tenant.namespace, tenant.uid)
        key = self._site_key(site, account, generation)
        claims = {**_ANYTHING, "type": "user", "version": VERSION, "allowed_connection_types": ["LEAFNODE", "STANDARD"]}
        if tenant is None:
            claims["allowed_connection_types"] = ["LEAFNODE"]
            claims["pub"] = {"allow": ["$SYS.REQ.ACCOUNT.*.CLAIMS.LOOKUP", CONNECTIONS_SUBJECT]}
            told = ("$SYS.REQ.ACCOUNT.*.CLAIMS.UPDATE", "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.CLAIMS.DELETE")
            claims["sub"] = {"allow": [*told, "_INBOX.>", "$SYS._INBOX.>", "_R_.>"]}
        return key, account.token(key.public, site, claims, now, expires)

    def site_key(self, site: str, tenant: Tenant, generation: int) -> Key:
        """By which a site's credentials for a tenant are revoked; see ``site_user``."""
        return self._site_key(site, self.account(tenant.namespace, tenant.uid), generation)

    def _site_key(self, site: str, account: Key, generation: int) -> Key:
        # The first are as they were before they were counted.
        return Key.derive("user", self._root, "site", site, account.public, *([str(generation)] if generation > 1 else []))

    def opener_key(self, tenant: Tenant, site: str = "", generation: int = 1) -> Key:
        """By which the ``opener`` that a site was given is revoked; without one, the hub's own."""
        account = self.account(tenant.namespace, tenant.uid)
        return Key.derive("user", self._root, "opener", account.public, *([site, str(generation)] if site else []))

    def opener(self, tenant: Tenant, now: float, lasts: float = OPENER_SECONDS, site: str = "", generation: int = 1) -> str:
        """A token with which one may connect over MQTT in a tenant's account, and say and hear nothing. Who has it can still
        hold connections and cut off others by their client IDs: a site's counts as long as its other credentials."""
        account, key = self.account(tenant.namespace, tenant.uid), self.opener_key(tenant, site, generation)
        nothing = {"deny": [">"]}
        claims = {**_ANYTHING, "type": "user", "version": VERSION, "pub": nothing, "sub": nothing, "bearer_token": True}
        claims["allowed_connection_types"] = ["MQTT"]
        return account.token(key.public, OPENER, claims, now, now + lasts)

    def tenant_user(self, tenant: Tenant, now: float) -> tuple[Key, str]:
        """A hub's own key and token in a tenant's account, to read its streams."""
        account = self.account(tenant.namespace, tenant.uid)
        key = Key.derive("user", self._root, "hub", account.public)
        return key, account.token(key.public, "hub", {**_ANYTHING, "type": "user", "version": VERSION}, now)

    def device(
        self, tenant: Tenant, name: str, uid: str, now: float, *, generation: int = 1, expires: float | None = None
    ) -> DeviceUser:
        """What one device logs in with: it may say and hear what is under its own name, in its tenant's account, over MQTT.
        ``uid`` is the Device's and ``generation`` counts its credentials: each is a key of its own, to be revoked alone."""
        key = self.device_key(tenant, name, uid, generation)
        claims = {
            **_ANYTHING,
            "type": "user",
            "version": VERSION,
            # The token is the password: nothing else is shown. A client of MQTT cannot sign what the server asks.
            "bearer_token": True,
            "allowed_connection_types": ["MQTT", "MQTT_WS"],
            "pub": {"allow": [device(tenant.namespace, name, part) for part in DEVICE_SAYS]},
            "sub": {"allow": [device(tenant.namespace, name, part) for part in DEVICE_HEARS]},
        }
        account = self.account(tenant.namespace, tenant.uid)
        return DeviceUser(name, key.public, account.token(key.public, name, claims, now, expires))

    def device_key(self, tenant: Tenant, name: str, uid: str, generation: int) -> Key:
        """By which a device's credentials are revoked; see ``device``."""
        return Key.derive("user", self._root, "device", tenant.namespace, tenant.uid, name, uid, str(generation))


_ANYTHING: Mapping[str, Any] = {"subs": -1, "data": -1, "payload": -1}


def _import(kind: str, exporter: Key, subject: str, local: str) -> dict[str, Any]:
    """What the exporter calls ``subject`` is here ``local``: a stream is heard, a service is spoken to."""
    # A local subject names each wildcard of the other by its number.
    numbers = iter(range(1, 9))
    local = ".".join(f"${next(numbers)}" if part == "*" else part for part in local.split("."))
    return {"name": local, "subject": subject, "local_subject": local, "account": exporter.public, "type": kind}


def _account(limits: Mapping[str, Any], imports: Any = (), exports: Any = ()) -> dict[str, Any]:
    claims: dict[str, Any] = {"type": "account", "version": VERSION, "limits": dict(limits)}
    if imports:
        claims["imports"] = list(imports)
    if exports:
        claims["exports"] = list(exports)
    return claims
