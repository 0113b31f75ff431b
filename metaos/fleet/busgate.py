"""The gate of the bus: its tenants are the namespaces with devices, and who is barred is written down before it is acted on.

Revoked credentials of a namespace stand in the ConfigMap ``nemo-devices-NAMESPACE`` of ``nemo-system``: :data:`MOST_REVOKED` of
devices, as each of them goes to every server, and some more of sites' servers. They end with the namespace.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from metaos.client import Client
from metaos.fleet.gate import Address, Connection, Issued
from metaos.messaging import accounts
from metaos.messaging.accounts import MOST_REVOKED_SITES, Tenant
from metaos.messaging.bus import BusError
from metaos.messaging.exchange import Exchange
from metaos.messaging.site import LEAVES, Given
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, uid

log = logging.getLogger("nemo.fleet")

PREFIX = "nemo-devices-"
_KEY = "revoked"
MOST_REVOKED = accounts.MOST_REVOKED - MOST_REVOKED_SITES


@dataclass
class _Space:
    """A namespace: what is revoked, as it should be; and how often that was changed, and had been when it was held last."""

    uid: str
    revoked: set[str] = field(default_factory=set)
    changes: int = 1
    held: int = 0
    _made: tuple[int, Tenant] | None = None

    def tenant(self, name: str) -> Tenant:
        """The same until something changes: there may be many revoked."""
        if self._made is None or self._made[0] != self.changes:
            self._made = self.changes, Tenant(name, self.uid, frozenset(self.revoked))
        return self._made[1]


class BusGate:
    """``servers``: where devices connect; ``authorities``: PEM; ``app_key``: of applications, hexadecimal."""

    def __init__(
        self,
        client: Client,
        exchange: Exchange,
        servers: Callable[[], tuple[str, ...]],
        authorities: Callable[[], str],
        app_key: Callable[[], Awaitable[str]],
    ) -> None:
        self._client, self._exchange = client, exchange
        self._servers, self._authorities, self._app_key = servers, authorities, app_key
        self._spaces: dict[str, _Space] = {}
        self._sites: dict[str, Given] = {}
        self._turn = asyncio.Lock()

    async def open(self, namespace: str) -> None:
        if namespace not in self._spaces:
            await self._space(namespace)
            await self._hold(namespace)

    def close(self) -> None:
        self._spaces.clear()

    async def issue(self, device: Address, uid: str, generation: int) -> Issued:
        space = await self._space(device.namespace)
        await self._hold(device.namespace)
        user = await self._exchange.device(Tenant(device.namespace, space.uid), device.name, uid, generation=generation)
        return Issued(user.name, user.token, self._servers(), self._authorities(), await self._app_key())

    async def bar(self, device: Address, uid: str, generation: int) -> None:
        await self._set(device, uid, generation, True)

    async def admit(self, device: Address, uid: str, generation: int) -> None:
        await self._set(device, uid, generation, False)

    async def sites(self, told: Mapping[str, str]) -> None:
        found = {}
        for site, text in told.items():
            try:
                found[site] = Given.read(text)
            except ValueError:
                log.error("what the ConfigMap %s says of site %s is no generation and namespaces: %.200s", LEAVES, site, text)
        self._sites = found
        problem = None
        for where, space in list(self._spaces.items()):
            try:
                await self._shut_out(where, space)
            except BusError as error:
                problem = problem or error  # of one namespace: it keeps no stolen server in the others
        await self._hold()
        if problem is not None:
            raise problem

    async def connections(self) -> AsyncGenerator[Connection]:
        found = await self._exchange.connections()
        try:
            async for said in found:
                if (one := self._exchange.connected(said)) is not None:
                    yield Connection(Address(one.namespace, one.name), one.client_id, one.number, one.there)
        finally:
            await found.close()

    async def _set(self, device: Address, uid: str, generation: int, barred: bool) -> None:
        try:
            space = await self._space(device.namespace)
        except ApiError as error:
            if error.code != 404:
                raise
            return  # The namespace has gone, and all that counted in it.
        tenant = Tenant(device.namespace, space.uid)
        key = (await self._exchange.known()).device_key(tenant, device.name, uid, generation).public
        if barred:
            self._revoke(device.namespace, space, key)
        elif key in space.revoked:
            space.revoked.discard(key)
            space.changes += 1
        await self._hold(device.namespace)

    def _revoke(self, where: str, space: _Space, key: str, most: int = MOST_REVOKED) -> None:
        if key in space.revoked:
            return
        if len(space.revoked) >= most:
            raise BusError(
                f"namespace {where} has {most} revoked credentials, the most there may be: move its devices to another namespace"
            )
        space.revoked.add(key)
        space.changes += 1

    async def _space(self, where: str) -> _Space:
        found = self._spaces.get(where)
        if found is None:
            namespace = await self._client.get(scheme.NAMESPACE, where)
            made = _Space(uid(namespace), await self._kept(where, uid(namespace)))
            await self._shut_out(where, made)
            found = self._spaces.setdefault(where, made)
        return found

    async def _shut_out(self, where: str, space: _Space) -> None:
        """Sites' servers with credentials that count no more."""
        for site, given in self._sites.items():
            if where in given.namespaces:
                for old in range(1, given.generation):
                    tenant, known = Tenant(where, space.uid), await self._exchange.known()
                    for key in (known.site_key(site, tenant, old), known.opener_key(tenant, site, old)):
                        self._revoke(where, space, key.public, accounts.MOST_REVOKED)

    async def _kept(self, where: str, uid: str) -> set[str]:
        try:
            found = await self._client.get(scheme.CONFIG_MAP, PREFIX + where, SYSTEM_NAMESPACE)
        except ApiError as error:
            if error.code != 404:
                raise
            return set()
        data = found.get("data") or {}
        return set(str(data.get(_KEY) or "").split()) if data.get("uid") == uid else set()

    async def _hold(self, where: str = "") -> None:
        """Has what is revoked written down and in force; those who come meanwhile share the next turn."""
        async with self._turn:
            spaces = {n: s for n, s in self._spaces.items() if s.held != s.changes}
            if not spaces or (where and where not in spaces):
                return
            numbers = {n: s.changes for n, s in spaces.items()}
            for each, space in spaces.items():
                if space.revoked or space.held:
                    await self._keep(each, space)
            await self._exchange.hold([space.tenant(each) for each, space in self._spaces.items()])
            for each, number in numbers.items():
                self._spaces[each].held = number

    async def _keep(self, where: str, space: _Space) -> None:
        data = {"uid": space.uid, _KEY: " ".join(sorted(space.revoked))}
        body: Obj = {**scheme.CONFIG_MAP.empty(PREFIX + where, SYSTEM_NAMESPACE), "data": data}
        try:
            await self._client.update(body)
        except ApiError as error:
            if error.code != 404:
                raise
            await self._client.create(body)
