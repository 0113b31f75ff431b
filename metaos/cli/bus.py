"""Commands about the message bus: servers of a cluster, and servers at sites."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import SystemRandom

from metaos.cli.connection import authority_text, with_client
from metaos.clock import SystemClock
from metaos.config import Address
from metaos.http import HttpClient
from metaos.messaging.accounts import Accounts, Tenant
from metaos.messaging.embedded import Listener, ServerConfig, cluster_text
from metaos.messaging.keys import credentials_text
from metaos.messaging.leaf import Leaf, LeafTenant
from metaos.messaging.root import root_secret
from metaos.messaging.site import LEAVES, Given
from metaos.messaging.subjects import word
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, uid

#: Where others write at the same time.
_TRIES = 10


def server_config(
    name: str,
    folder: Path,
    listen: Address,
    mqtt: Address | None,
    leaf: Address | None,
    cluster: Address,
    routes: Sequence[Address],
    pair: tuple[Path, Path] | None,
    ca: Path | None,
    kubeconfig: Path | None,
    data: Path,
) -> str:
    """The configuration of one server of a cluster that trusts this hub; no secret. Raises ``ValueError``, ``ApiError``."""
    beyond = [a for a in (listen, mqtt, leaf, cluster) if a is not None and not _loopback(a)]
    if beyond and (pair is None or ca is None):
        raise ValueError(f"{beyond[0]} can be reached from elsewhere: say --cert, --key and --ca")

    async def ask(client: HttpClient) -> bytes:
        return await root_secret(client, SystemRandom())

    accounts = Accounts(with_client(kubeconfig, data, ask))

    def listener(address: Address | None) -> Listener | None:
        if address is None:
            return None
        return Listener(address.host, address.port, *(pair if pair and not _loopback(address) else (None, None)))

    at = listener(listen)
    assert at is not None
    return ServerConfig(
        name=_named("NAME", name),
        folder=folder,
        listen=at,
        operator=accounts.operator_token(),
        system=accounts.system.public,
        accounts={accounts.system.public: accounts.system_token(), accounts.hub.public: accounts.hub_token()},
        mqtt=listener(mqtt),
        leaf=listener(leaf),
        more=cluster_text(cluster, routes, pair if not _loopback(cluster) else None, ca),
    ).text()


def leaf_text(site: str, namespaces: Sequence[str], hub: Address, days: float, kubeconfig: Path | None, data: Path) -> str:
    """What a site needs for a server of its own, for devices of these namespaces. Raises ``ValueError``, ``ApiError``."""

    async def ask(client: HttpClient) -> tuple[bytes, list[Tenant], int]:
        tenants = []
        for namespace in namespaces:
            try:
                found = await client.get(scheme.NAMESPACE, namespace)
            except ApiError as error:
                if error.code == 404:
                    raise ApiError(
                        404, "NotFound", f"there is no namespace {namespace!r}: make it first, or name another"
                    ) from None
                raise
            tenants.append(Tenant(namespace, uid(found)))
        generation = (await _given(client, _named("SITE", site), namespaces)).generation
        return await root_secret(client, SystemRandom()), tenants, generation

    root, tenants, generation = with_client(kubeconfig, data, ask)
    now = SystemClock().now()
    ca = authority_text(kubeconfig, data)
    return leaf_of(Accounts(root), site, tenants, hub, ca, now, now + days * 86400, generation).text()


def revoke_leaf(site: str, namespaces: Sequence[str], kubeconfig: Path | None, data: Path) -> Given:
    """Has the hub take no more of the credentials that a site's server was given. Raises ``ValueError``, ``ApiError``."""
    return with_client(kubeconfig, data, lambda client: _given(client, _named("SITE", site), namespaces, anew=True))


async def _given(client: HttpClient, site: str, namespaces: Sequence[str], *, anew: bool = False) -> Given:
    """Writes down that a site's server is given credentials for namespaces, or, ``anew``, that those it has count no more."""
    for _ in range(_TRIES):
        try:
            held: Obj | None = await client.get(scheme.CONFIG_MAP, LEAVES, SYSTEM_NAMESPACE)
        except ApiError as error:
            if error.code != 404:
                raise
            held = None
        text = ((held or {}).get("data") or {}).get(site)
        if anew and not text and not namespaces:
            raise ValueError(f"SITE: nothing is known of {site!r}: name the namespaces that its server has credentials for, too")
        old = Given.read(text) if text else Given(1, frozenset())
        new = Given(old.generation + anew, old.namespaces | set(namespaces))
        if new == old:
            return new
        body: Obj = held or scheme.CONFIG_MAP.empty(LEAVES, SYSTEM_NAMESPACE)
        body = {**body, "data": {**(body.get("data") or {}), site: new.text()}}
        try:
            await (client.create(body) if held is None else client.update(body))
        except ApiError as error:
            if error.code != 409:
                raise
            continue
        return new
    raise ApiError(409, "Conflict", f"others change the ConfigMap {LEAVES} in {SYSTEM_NAMESPACE} at the same time: try again")


def leaf_of(
    accounts: Accounts,
    site: str,
    tenants: Sequence[Tenant],
    hub: Address,
    ca: str,
    now: float,
    expires: float,
    generation: int = 1,
) -> Leaf:
    key, token = accounts.site_user(site, None, now, expires, generation)
    of_tenants = []
    for tenant in tenants:
        user, credentials = accounts.site_user(site, tenant, now, expires, generation)
        account = accounts.account(tenant.namespace, tenant.uid).public
        opener = accounts.opener(tenant, now, expires - now, site, generation)
        of_tenants.append(LeafTenant(tenant.namespace, account, credentials_text(credentials, user), opener))
    return Leaf(
        site=_named("SITE", site),
        hub=str(hub),
        ca="" if _loopback(hub) else ca,
        operator=accounts.operator_token(),
        system=accounts.system.public,
        system_token=accounts.system_token(),
        system_credentials=credentials_text(token, key),
        tenants=tuple(of_tenants),
    )


def _named(argument: str, text: str) -> str:
    try:
        return word(text)
    except ValueError as error:
        raise ValueError(f"{argument}: {error}") from None


def _loopback(address: Address) -> bool:
    return address.host in ("localhost", "::1") or address.host.startswith("127.")
