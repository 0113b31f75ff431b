"""How a site reaches its hub: calls and watches over HTTPS, the tunnel, and the certificate that both show.

The agent knows the protocol alone, so that the twin can put an in-memory network in its place.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Callable, Coroutine, Mapping
from random import Random  # noqa: TID251  (the type of the seeded source that is handed in)
from typing import Any, Protocol
from urllib.parse import urlsplit

from metaos.agent.attestation import Attestor
from metaos.agent.contact import Contact
from metaos.agent.entry import AgentConfig
from metaos.agent.hubs import Hubs
from metaos.agent.join import Identity, Membership
from metaos.agent.remote import Remote, SiteAccess
from metaos.agent.rotation import Rotation
from metaos.client import Client
from metaos.clock import Clock
from metaos.http import HttpClient, json_of, path_of
from metaos.resources.scheme import SERVICE_ACCOUNT
from metaos.tunnel import Stream


class Connection(Protocol):
    """``parts`` run as long as the agent does."""

    client: Client

    def parts(self) -> list[Coroutine[Any, Any, Any]]: ...

    async def dial(self, header: dict[str, Any]) -> Stream:
        """A stream to another site's pod."""
        ...

    async def api(self) -> socket.socket:
        """A connection to the hub's API for a pod, which says itself who it is. Raises ``OSError``."""
        ...

    async def token(self, namespace: str, account: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """The status of a TokenRequest with this spec. Raises ``ApiError``."""
        ...

    def authorities(self) -> str:
        """Those that vouch for the hub, as PEM text."""
        ...

    def certificate(self) -> dict[str, Any]:
        """The part of ``Cluster.status`` that says which certificate this site has."""
        ...

    def attestation(self) -> dict[str, Any]:
        """The part of ``Cluster.status`` that shows what its software is; empty until there is a statement."""
        ...

    def renew(self) -> None:
        """The hub wants this site to have a new certificate."""
        ...

    async def close(self) -> None: ...


#: (contact, what the hub may do at this site)
Connect = Callable[[Contact, SiteAccess], Connection]


class HubConnection:
    """The real one."""

    def __init__(
        self,
        config: AgentConfig,
        site: str,
        identity: Identity,
        clock: Clock,
        random: Random,
        contact: Contact,
        access: SiteAccess,
    ) -> None:
        self._context: ssl.SSLContext = identity.context()
        self._contact = contact
        self.hubs = Hubs(config.hub, config.data / "hubs.json", config.more_hubs)
        self._client = HttpClient(self.hubs.url, context=self._context, clock=clock, random=random)
        self.client: Client = self._client
        self._client.on_answer = self._reached
        self._client.on_unreachable = self.hubs.failed
        self.hubs.on_move(lambda: self._client.move(self.hubs.url))
        # Heartbeats that are not answered, too: a hub that hangs still takes connections.
        self._answered = ""
        contact.on_loss(lambda: self.hubs.failed(self._answered))
        # What was under way when the hub was lost is done again, on new connections.
        contact.on_return(lambda: self._client.drop_older(contact.lost))
        self._remote = Remote(self.hubs, site, lambda: self._context, contact, clock, access)
        membership = Membership(config.hub, config.data / "identity", site, clock, random)
        self.rotation = Rotation(membership, identity, self._client, contact, clock, random, self._renewed)
        self._attestor = Attestor(lambda: self.rotation.identity, clock)

    def _reached(self) -> None:
        self._answered = self._client.url
        self._contact.reached()

    def parts(self) -> list[Coroutine[Any, Any, Any]]:
        return [self._remote.run(), self.rotation.run(), self._attestor.run()]

    async def dial(self, header: dict[str, Any]) -> Stream:
        return await self._remote.dial(header)

    async def api(self) -> socket.socket:
        hub = urlsplit(self.hubs.url)
        loop, refused = asyncio.get_running_loop(), OSError(f"the hub {hub.hostname} has no address")
        for family, kind, _, _, address in await loop.getaddrinfo(hub.hostname, hub.port or 443, type=socket.SOCK_STREAM):
            found = socket.socket(family, kind)
            found.setblocking(False)
            try:
                await loop.sock_connect(found, address)
            except BaseException as error:
                found.close()
                if not isinstance(error, OSError):
                    raise
                refused = error
            else:
                return found
        raise refused

    async def token(self, namespace: str, account: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        path = path_of(SERVICE_ACCOUNT, namespace, account, "token")
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = await self._client.request("POST", path, json.dumps(asked).encode(), content_type="application/json")
        found: Mapping[str, Any] = json_of(answer, path)["status"]
        return found

    def authorities(self) -> str:
        return self.rotation.identity.ca

    def certificate(self) -> dict[str, Any]:
        return self.rotation.status()

    def attestation(self) -> dict[str, Any]:
        return self._attestor.evidence

    def renew(self) -> None:
        self.rotation.ask()

    async def close(self) -> None:
        await self._client.close()

    def _renewed(self, identity: Identity) -> None:
        """New connections show the new certificate; what is under way ends on the old one."""
        self._attestor.renewed()
        self._context = identity.context()
        self._client.use(self._context)
        self._remote.redial()
