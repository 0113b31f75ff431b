"""Composition root of the hub: state, registry, controllers, HTTPS and, unless told otherwise, a local site.

The data directory is private to its owner and holds ``state.db`` (the store), ``keys.json`` (encryption at rest), ``pki/``
(authorities, server's and administrator's certificates), ``admin.kubeconfig``, ``audit.log`` and ``version``.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from random import Random, SystemRandom
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aiohttp import web

from metaos import fetching
from metaos.accounting.carbon import TraceCarbonSource
from metaos.apiserver.accounts import Accounts, Statements
from metaos.apiserver.addressing import sealed
from metaos.apiserver.app import make_app
from metaos.apiserver.audit import AuditLog
from metaos.apiserver.authn import Certificate, HubAuthenticator, Tokens, people
from metaos.apiserver.books import Books
from metaos.apiserver.claimants import Claimants
from metaos.apiserver.connect import Connections
from metaos.apiserver.credentials import CHECK_SECONDS, Credentials
from metaos.apiserver.credentials import RECORD as AUTHORITY
from metaos.apiserver.dialling import DialRule
from metaos.apiserver.jointokens import JoinTokens
from metaos.apiserver.ledgerkeys import LedgerKeys
from metaos.apiserver.listening import Room, Site, listeners
from metaos.apiserver.measured import Sites, sources
from metaos.apiserver.metrics import Metrics
from metaos.apiserver.peers import Peers
from metaos.apiserver.personaltokens import PersonalTokens
from metaos.apiserver.proxy import ServiceProxy, service_slices
from metaos.apiserver.registry import Registry
from metaos.apiserver.sessions import Sessions
from metaos.apiserver.tunnels import Tunnels
from metaos.apiserver.upkeep import Upkeep
from metaos.client import Client
from metaos.clock import Clock, SystemClock, sleep_or
from metaos.config import Address, HubConfig, open_data
from metaos.controllers import all_setups
from metaos.controllers.carbon import ensure_replay
from metaos.controllers.certificate import secret_text, take_over
from metaos.controllers.planning import Planner
from metaos.controllers.restored import hold
from metaos.controllers.settings import Settings
from metaos.controllers.sources import (
    CARBON_SOURCES,
    PRICE_SOURCES,
    feed_carbon,
    source,
    static_carbon,
    trace_carbon,
    trace_price,
)
from metaos.controllers.worker import WorkerProcess
from metaos.files import write_private
from metaos.fleet.apps import MOST_BYTES, Apps
from metaos.fleet.busgate import BusGate
from metaos.fleet.fleet import Fleet
from metaos.fleet.images import Images, fetching_by
from metaos.http import spare_memory, tls_context
from metaos.hubs import StoreToken, check_place, copy_shared, open_shared
from metaos.members.hosted import Hosted
from metaos.messaging.bus import Unavailable
from metaos.messaging.exchange import Exchange, ExchangeConfig, read_servers
from metaos.messaging.keys import Key
from metaos.messaging.root import root_secret
from metaos.pki import ADMIN, Pki
from metaos.plugins.points import CarbonSource, PriceSource
from metaos.plugins.registry import names, provision
from metaos.reconcile.election import DEADLINE_SECONDS, Election
from metaos.reconcile.informer import Informer
from metaos.reconcile.manager import Manager
from metaos.reconcile.precedence import Precedence
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.resources.meta import SYSTEM_NAMESPACE, Obj, format_time
from metaos.resources.meta import name as resource_name
from metaos.resources.services import API_NAMES
from metaos.scheduler.scores import Score
from metaos.security import revocation
from metaos.security.authz import CONTROLLER_MANAGER, MASTERS, Attributes, UserInfo
from metaos.security.identity import TOKEN_TYPE, JoinToken, token_hash
from metaos.store.keyfiles import Changed, KeyFiles
from metaos.store.log import StoreFailed
from metaos.store.seal import Keyring, SealedStore
from metaos.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from metaos.store.postgres import PostgresStore

log = logging.getLogger("nemo.hub")

CONTROLLERS = UserInfo(CONTROLLER_MANAGER, (MASTERS,))
#: Set aside on the disk, so that deletes and heartbeats go on when it is full.
RESERVE_BYTES = 16 << 20
LOCAL_SITE = "local"
#: Containers made before garbage is looked for (Python's default is 700): a request makes hundreds, and no cycles. After so many
#: such looks those that were spared are looked at again (10 by default, which takes 0.1 s at once where there are thousands of
#: devices), and after so many of these all.
GARBAGE_THRESHOLD = (10_000, 2, 50)
RESTART_SECONDS = (1.0, 60.0)
#: How soon a hub that begins to lead does what was asked of the authorities.
SHARED_CHECK_SECONDS = 5.0


class Hub:
    """One hub. Use as an asynchronous context manager; ``url`` is set once it serves."""

    def __init__(self, config: HubConfig, clock: Clock, random: SystemRandom) -> None:
        self.config, self._clock, self._random = config, clock, random
        self.url = ""
        self.client: Client | None = None
        self._stack = AsyncExitStack()
        self._metrics, self._precedence = Metrics(), Precedence(clock)
        self._ready = False
        #: Where several hubs share a store: which of them leads.
        self.election: Election | None = None

    async def __aenter__(self) -> Hub:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ready = False
        await self._stack.aclose()

    async def _start(self) -> None:
        data, clock, stack = self.config.data, self._clock, self._stack
        open_data(data)
        check_place(data, self.config.store)
        state: SqliteStore | PostgresStore
        keys: KeyFiles | None = None
        if self.config.store:
            state, keys = await open_shared(self.config, clock, stack)
        else:
            state = await SqliteStore.open(data / "state.db", reserve_bytes=RESERVE_BYTES, vital=vital)
            stack.push_async_callback(state.close)
        pki = self._pki = Pki(data / "pki", self._random, clock.now)
        ring = Keyring.open(data / "keys.json")
        store = SealedStore(state, ring, sealed, keys)
        ledger_keys = LedgerKeys(data / "pki", self._random.randbytes)
        if keys is not None:
            with suppress(Changed):  # Another hub was first.
                await keys.push()
            pki.reload()
            ring.reload()
        admission = [provision("metaos.admission", name) for name in names("metaos.admission")]
        # Names and ids have to be unique, not secret: a system call for each would cost more than all else about them.
        ids = Random(self._random.getrandbits(256))  # noqa: S311
        registry = Registry(store, clock, ids, admission=admission, shared=keys is not None)
        await registry.start()
        stack.push_async_callback(registry.stop)
        books = Books(
            state.ledger,
            clock,
            CONTROLLERS.name,
            ledger_keys,
            self.config.checkpoint_seconds,
        )
        registry.reviews |= {scheme.BOOKING: books.book, scheme.STATEMENT: Statements(books, registry.authorize).answer}
        client = self.client = registry.client(CONTROLLERS)
        await take_over(client)
        await hold(client)
        self.exchange = Exchange(
            exchange_config(self.config),
            clock,
            lambda: root_secret(client, self._random),
            lambda: (pki.path("server"), pki.path("server")),
            self._bus_context,
            lambda: pki.bundle.decode(),
        )
        stack.push_async_callback(self.exchange.stop)
        fleet = self._fleet = self._make_fleet(client, self.exchange)
        stack.push_async_callback(fleet.stop)
        registry.desk.fleet = fleet

        carbon = _carbon_source(self.config, clock.now())
        if isinstance(carbon, TraceCarbonSource):
            await ensure_replay(client, self.config.carbon_start_hour, self.config.carbon_speed)
        worker = WorkerProcess()
        stack.callback(worker.close)
        settings = Settings(
            decide=worker.decide,
            sign=lambda *request, **subject: pki.authority.sign_csr(*request, **subject),
            roots=lambda: pki.bundle,
            carbon=carbon,
            price=_price_source(self.config, clock.now()),
            get=fetching.get,
            lease_duration=self.config.lease_duration_seconds,
            drain=self.config.drain_seconds,
            autoscale_interval=self.config.autoscale_interval_seconds,
            reoptimise_interval=self.config.reoptimise_interval_seconds,
            scores=_learned(self.config.scores),
            fleet=fleet,
        )
        manager = self._working = Manager(client, clock, self._random, self._precedence)
        if keys is None:
            for setup in all_setups():
                setup(manager, client, clock, settings)
        else:
            books.share = keys.push
        stack.push_async_callback(manager.stop)
        planner = Planner(manager, clock, settings)
        await manager.start()

        async def review(user: UserInfo, obj: Obj) -> Obj:
            return await planner.review(obj, lambda where: registry.authorize(user, _placements_in(where)).allowed)

        registry.reviews[scheme.PLACEMENT_REVIEW] = review
        tunnels = Tunnels(DialRule(manager))
        stack.push_async_callback(tunnels.close)
        sites = Sites(tunnels, clock)
        stack.push_async_callback(sites.close)
        registry.sources.update(sources(registry.cache, sites))
        slices = manager.informer(scheme.ENDPOINT_SLICE)
        proxy = ServiceProxy(lambda where, name: service_slices(slices.list(where), name), clock)
        secrets = manager.informer(scheme.SECRET, SYSTEM_NAMESPACE)
        await secrets.synced()
        sessions = Sessions()
        revocations = _Revocations(secrets)
        listen = self.config.listen
        known = ("localhost", "127.0.0.1", "::1", _plain(listen.host), socket.gethostname())
        hosts = tuple(dict.fromkeys((*self.config.names, *_host(self.config.advertise), *known, *API_NAMES)))
        credentials = Credentials(pki, hosts, lambda: revocation.withdrawn_time(revocations.record, ADMIN))
        revocations.trusts = credentials.trusts

        async def copy(target: Path) -> None:
            """In this order: another hub may have changed the keys a moment ago."""
            assert keys is not None
            await copy_shared(self.config.store, target)
            await keys.pull()

        upkeep = Upkeep(data, store, clock, lambda: state.full, None if keys is None else copy)
        peers: Peers | None = None
        if keys is not None:
            peers = tunnels.elsewhere = Peers(client, clock, "", self._hub_context, tunnels)
            tunnels.greeting = peers.greeting
        audit = AuditLog(data / "audit.log")
        stack.callback(audit.close)
        tokens = JoinTokens(client, clock)
        _measure(self._metrics, lambda: self._working, tunnels)
        full = "Whether the store's disk is full, so that only deletes and heartbeats are accepted."
        self._metrics.gauges["nemo_store_full"] = (full, lambda: float(state.full))
        self._metrics.parts.append(books.lines)
        personal = PersonalTokens(
            client,
            clock,
            self._random,
            held=lambda name: secrets.get(name, SYSTEM_NAMESPACE),
            kinds=registry.kinds.all,
            withdrawn=lambda user, made: revocation.withdrawn_time(revocations.record, user) >= made,
        )
        claimants = Claimants(registry)
        bearers = (
            tokens.user_of,
            claimants.user_of,
            personal.identity,
            registry.account_of,
            *_authenticators(self.config, clock),
        )
        app = make_app(
            registry,
            authenticator=HubAuthenticator(clock, revoked=revocations, claimed=claimants.certified, tokens=bearers),
            clock=clock,
            random=ids,
            connect=Connections(registry, tunnels, proxy, clock),
            audit=audit,
            metrics=self._metrics,
            join_tokens=tokens,
            upkeep=upkeep,
            accounts=Accounts(books),
            personal=personal,
            ca=lambda: pki.bundle,
            sessions=sessions,
            peers=peers,
            precedence=self._precedence,
            ready=lambda: "" if self._ready else "the hub is starting",
        )
        await self._serve(app, credentials)
        if peers is not None:
            # The port was not known before, perhaps.
            peers.url = self.url
        news = asyncio.Event()
        orders = manager.informer(scheme.CONFIG_MAP, SYSTEM_NAMESPACE)
        orders.on_change(lambda old, new: news.set())

        def withdrawn() -> None:
            sessions.sweep()
            news.set()

        revocations.on_change(withdrawn)
        works = [
            ("credentials", self._keep_credentials(credentials, orders, news, sessions, tunnels, keys)),
            ("sessions", sessions.run(clock)),
        ]
        if peers is None or keys is None:
            works += [("upkeep", upkeep.run()), ("books", books.run()), ("hosted", self._hosted(manager, client).run())]
        else:

            def learned() -> None:
                pki.reload()
                news.set()

            async def term() -> None:
                await self._work(client, settings, upkeep, books)

            keys.on_change(learned)
            election = self.election = Election(client, clock, self.url, StoreToken(store, self.url), peers.gone)
            peers.desk = registry.desk.answer_here
            registry.desk.leader = lambda asked, given: peers.ask(election.leader, asked, given)
            leases = manager.informer(scheme.LEASE, SYSTEM_NAMESPACE)
            works += [("peers", peers.run(leases)), ("election", election.run(term))]
            self._metrics.gauges["nemo_leader"] = ("Whether this hub runs the controllers.", lambda: float(election.leading))
            self._metrics.gauges["nemo_hub_links"] = ("Other hubs that are linked.", lambda: float(len(peers.linked)))
        for name, work in works:
            stack.push_async_callback(_cancelled, asyncio.create_task(work, name=name))
        self._ready = True
        log.info("the hub serves on %s", self.url)

    async def _work(self, client: Client, settings: Settings, upkeep: Upkeep, books: Books) -> None:
        """What the leader does for all hubs, until it is cancelled."""
        before = self._working
        manager = self._working = Manager(client, self._clock, self._random, self._precedence)
        try:
            for setup in all_setups():
                setup(manager, client, self._clock, settings)
            await manager.start()
            await asyncio.gather(upkeep.run(), books.run(), self._hosted(manager, client).run())
        finally:
            self._working = before
            await manager.stop()
            await self._fleet.stop()

    def _make_fleet(self, client: Client, exchange: Exchange) -> Fleet:
        """Devices. They know applications by a key that is derived from the bus's secret."""

        async def key() -> Key:
            return Key.derive("user", await root_secret(client, self._random), "applications")

        def authorities() -> str:
            return self._pki.bundle.decode() if exchange.mqtt is not None else ""

        settings = self.config.device_images
        fetch = None if settings is None else fetching_by(settings, MOST_BYTES)
        apps = Apps(client, key, Images(client, self._clock, fetch))
        gate = BusGate(client, exchange, lambda: exchange.urls, authorities, apps.public_key)
        return Fleet(client, self._clock, exchange.bus, gate, apps)

    async def _serve(self, app: web.Application, credentials: Credentials) -> None:
        listen = self.config.listen
        runner = web.AppRunner(app, shutdown_timeout=2)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        room = Room.of_process()
        self._metrics.gauges["nemo_connections"] = ("Open connections.", lambda: float(room.open))
        self._metrics.gauges["nemo_connections_refused"] = (
            "Connections closed at once, of too many.",
            lambda: float(room.refused),
        )
        try:
            found = listeners(listen.host, listen.port, room)
        except OSError as error:
            # gaierror's text is its own, bind's has the address already.
            raise OSError(f"cannot listen on {listen}: {error.strerror or error}; choose another with --listen") from None
        for listener in found:
            await Site(runner, listener, credentials.context).start()
        port = runner.addresses[0][1]
        host = "127.0.0.1" if listen.host in ("0.0.0.0", "::") else listen.host
        self.url = self.config.advertise.rstrip("/") or f"https://{Address(host, port)}"
        credentials.write_kubeconfig(self.url)

    async def _keep_credentials(
        self,
        credentials: Credentials,
        orders: Informer,
        news: asyncio.Event,
        sessions: Sessions,
        tunnels: Tunnels,
        keys: KeyFiles | None,
    ) -> None:
        """Renews this hub's certificates in time, replaces its authority when told to, and says so to everybody."""
        await orders.synced()
        known = self._pki.trusted
        while True:
            news.clear()
            try:
                asked = (orders.get(AUTHORITY, SYSTEM_NAMESPACE) or {}).get("data") or {}
                leads = self.election is None or self.election.leading
                if leads and credentials.obey(asked) and keys is not None:
                    await keys.push()
                    self._pki.reload()
                replaced, known = self._pki.trusted != known, self._pki.trusted
                if credentials.refresh():
                    log.info("new connections get a renewed certificate")
                    self.exchange.renew()
                    sessions.sweep()
                credentials.write_kubeconfig(self.url)
                if leads and any(asked.get(key) != value for key, value in credentials.record().items()):
                    await self._tell(credentials.record())
                if replaced:
                    await tunnels.announce({"type": "renew"})
            except Exception:
                log.exception("the hub's certificates could not be looked after; it is tried again in a minute")
                await self._clock.sleep(60)
                continue
            # Who leads may have changed meanwhile.
            await sleep_or(self._clock, CHECK_SECONDS if self.election is None else SHARED_CHECK_SECONDS, news)

    def _hub_context(self) -> ssl.SSLContext:
        """To dial another hub with."""
        pair = self._pki.client(f"system:hub:{self.url}"[:64], (MASTERS,))
        return tls_context(self._pki.bundle.decode(), pair.certificate.decode(), pair.key.decode())

    def _bus_context(self) -> ssl.SSLContext:
        """To dial servers of the bus with, whose certificates the hub's authority or a public one has made."""
        context = ssl.create_default_context()
        try:
            context.load_verify_locations(self.config.bus_ca, cadata=self._pki.bundle.decode())
        except OSError as error:
            raise Unavailable(f"--bus-ca {self.config.bus_ca} cannot be used: {error.strerror or error}") from None
        return context

    async def _tell(self, record: dict[str, str]) -> None:
        """Writes what authorities there are where everybody with an interest may look."""
        assert self.client is not None
        try:
            await self.client.patch(scheme.CONFIG_MAP, AUTHORITY, SYSTEM_NAMESPACE, {"data": record})
        except ApiError as error:
            if error.code != 404:
                raise
            await self.client.create({**scheme.CONFIG_MAP.empty(AUTHORITY, SYSTEM_NAMESPACE), "data": record})

    def _hosted(self, manager: Manager, client: Client) -> Hosted:
        shared = DEADLINE_SECONDS if self.election is not None else 0.0
        return Hosted(manager, client, self._clock, self.config.data / "hosted", lambda: self.url, self.join_token, shared)

    async def join_token(self, site: str) -> str:
        """A token for a site whose agent this hub runs, made without the network."""
        assert self.client is not None
        token = JoinToken.create(self._random, self._pki.authority.fingerprint)
        secret: Obj = dict(scheme.SECRET.empty(token.secret_name, SYSTEM_NAMESPACE))
        secret["type"] = TOKEN_TYPE
        expiration = format_time(self._clock.now() + 3600)
        secret["stringData"] = {"cluster": site, "expiration": expiration, "hash": token_hash(token.secret)}
        await self.client.create(secret)
        return str(token)


class _Revocations:
    """Whether a certificate counts no more: its name was withdrawn, or the authority that made it was retired."""

    def __init__(self, secrets: Informer) -> None:
        self.record: dict[str, str] = {}
        self.trusts: Callable[[str], bool] = lambda issuer: True
        self._secrets = secrets
        self._listeners: list[Callable[[], None]] = []
        secrets.on_change(self._changed)
        self._read()

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def __call__(self, certificate: Certificate) -> bool:
        if not self.trusts(certificate.issuer):
            return True
        return revocation.is_withdrawn(self.record, certificate.name, certificate.not_before)

    def _changed(self, old: Obj | None, new: Obj | None) -> None:
        if resource_name(new or old or {}) == revocation.RECORD:
            self._read()
            for listener in self._listeners:
                listener()

    def _read(self) -> None:
        secret = self._secrets.get(revocation.RECORD, SYSTEM_NAMESPACE) or {}
        self.record = {key: secret_text(secret, key) for key in secret.get("data") or {}}


def _placements_in(where: str) -> Attributes:
    return Attributes("list", scheme.PLACEMENT.group, scheme.PLACEMENT.plural, "", where)


def vital(key: str) -> bool:
    """What is updated even when the disk is full: heartbeats, as a site must not seem lost, nor fence itself, for that."""
    return key.startswith(f"{scheme.LEASE.resource}/")


def _measure(metrics: Metrics, working: Callable[[], Manager], tunnels: Tunnels) -> None:
    """What this process counts beyond requests."""
    metrics.gauges["nemo_tunnels"] = ("Sites that are connected.", lambda: float(len(tunnels.connected())))

    def total(word: str) -> float:
        return float(sum(counts[word] for counts in working().metrics.values()))

    for word, text in (
        ("reconciles", "Reconciles since the start."),
        ("errors", "Reconciles that failed."),
        ("depth", "Keys that wait."),
    ):
        metrics.gauges[f"nemo_controllers_{word}"] = (text, lambda word=word: total(word))  # type: ignore[misc]


def exchange_config(config: HubConfig) -> ExchangeConfig:
    """Of the bus, as the hub was told. Raises ``ValueError``."""
    off = ""
    if config.no_bus:
        off = "this hub runs without the message bus: start it without --no-bus"
    elif config.store and not config.bus:
        off = "hubs that share a database share a bus: name its servers with --bus"
    servers = read_servers(config.bus) if config.bus else ()
    host = (urlsplit(config.advertise).hostname or "") if config.advertise else next(iter(config.names), socket.gethostname())
    return ExchangeConfig(config.data / "bus", servers, config.mqtt, config.mqtt5, config.leaf, off=off, host=host)


def _host(url: str) -> tuple[str, ...]:
    """Of a URL, where there is one. Raises ``ValueError``."""
    if not url:
        return ()
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.path.rstrip("/"):
        raise ValueError(f"--advertise must be a URL such as https://hub-1.example.org:6443, not {url!r}")
    return (parts.hostname,)


def _plain(host: str) -> str:
    return "localhost" if host in ("0.0.0.0", "::") else host


def _token(file: Path | None) -> Callable[[], str]:
    """Read again each time: a new one is taken up without a restart."""
    return lambda: file.read_text().strip() if file is not None else ""


def _learned(wanted: Sequence[tuple[str, float, Path]]) -> tuple[Score, ...]:
    """Raises ``ValueError`` saying what is wrong with which."""
    if not wanted:
        return ()
    # With numpy and the library that runs models, which other hubs do not load.
    from metaos.scheduler.learned import learned

    taken = set(names("metaos.score"))
    found = []
    for name, weight, file in wanted:
        if name in taken:
            raise ValueError(f"score {name!r}: there is one of that name already: choose another")
        taken.add(name)
        found.append(learned(name, file.read_bytes(), weight))
    return tuple(found)


def _carbon_source(config: HubConfig, now: float) -> CarbonSource:
    if config.carbon_source is not None:
        found: CarbonSource = source(CARBON_SOURCES, *config.carbon_source, now)
        return found
    if config.carbon_feed is not None:
        feed = feed_carbon(config.carbon_feed, now=now, base=config.carbon_url, token=_token(config.carbon_token_file))
        feed.validate()
        return feed
    if config.carbon_trace is None:
        return static_carbon("", now=now)
    start, speed = config.carbon_start_hour, config.carbon_speed
    return trace_carbon(str(config.carbon_trace), now=now, start_hour=start, speed=speed)


def _price_source(config: HubConfig, now: float) -> PriceSource | None:
    """``None``: what the sites state themselves."""
    if config.price_source is not None:
        found: PriceSource = source(PRICE_SOURCES, *config.price_source, now)
        return found
    return None if config.price_trace is None else trace_price(str(config.price_trace), now=now)


def _authenticators(config: HubConfig, clock: Clock) -> list[Tokens]:
    """Raises ``ValueError`` saying which is wrong, and in what."""

    async def fetch(url: str, authorities: str) -> tuple[int, bytes]:
        return await fetching.get(url, {}, authorities)

    made = []
    for name, text in config.authenticators:
        authenticator = provision("metaos.authenticator", name, text, now=clock.now, fetch=fetch)
        made.append(people(name, authenticator, clock))
    return made


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


# -- the local site ----------------------------------------------------------------------------------------


def local_site() -> Obj:
    """The site that ``nemo up`` makes of this machine."""
    return {
        **scheme.CLUSTER.empty(LOCAL_SITE),
        "spec": {"runtime": "sandbox", "tier": "edge", "trust": "high", "owner": "local"},
    }


async def run_local_site(hub: Hub, clock: Clock) -> None:
    """Keeps an agent process for this machine; started again with back-off when it ends."""
    import yaml

    data = hub.config.data / "local"
    data.mkdir(mode=0o700, exist_ok=True)
    site, token = data / "site.yaml", data / "token"
    if not site.exists():
        site.write_text(yaml.safe_dump(local_site()))
    if not token.exists():
        write_private(token, (await hub.join_token(LOCAL_SITE)).encode())
    wait = RESTART_SECONDS[0]
    while True:
        arguments = ["--hub", hub.url, "--site", str(site), "--token-file", str(token), "--data", str(data / "agent")]
        if hub.config.expose is not None:
            arguments += ["--expose", str(hub.config.expose)]
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "metaos", "agent", *arguments)
        started = clock.monotonic()
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            process.terminate()
            await process.wait()
            raise
        wait = RESTART_SECONDS[0] if clock.monotonic() - started > 60 else min(wait * 2, RESTART_SECONDS[1])
        log.error("the local site's agent ended with %d; it is started again in %g s", code, wait)
        await clock.sleep(wait)


def run_hub(config: HubConfig, *, local: bool) -> int:
    """Runs until interrupted. The exit code."""
    # Secrets are written with the process's own mask as a second line of defence.
    os.umask(0o077)
    clock, random = SystemClock(), SystemRandom()
    # Loading makes millions of containers and no garbage: looking for some would take as long as the loading itself.
    gc.disable()
    spare_memory()

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        async with Hub(config, clock, random) as hub:
            gc.freeze()
            gc.set_threshold(*GARBAGE_THRESHOLD)
            gc.enable()
            site = asyncio.create_task(run_local_site(hub, clock)) if local else None
            print(f"NEMO serves on {hub.url}\nkubeconfig: {Path(config.data / 'admin.kubeconfig').resolve()}", flush=True)
            await stop.wait()
            if site is not None:
                await _cancelled(site)
                print("The local site's containers run on; the next 'nemo up' finds them again.", flush=True)

    try:
        asyncio.run(run())
    except Exception as error:
        from metaos.config import DataVersionError

        if isinstance(error, DataVersionError | StoreFailed | OSError | ValueError):
            print(f"error: {error}", file=sys.stderr)
            return 1
        raise
    return 0
