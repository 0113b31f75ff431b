"""The hub's certificates over real TLS: renewed while it serves, the authority replaced, and whoever is not ours refused."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from metaos.apiserver.credentials import Credentials
from metaos.clock import SystemClock
from metaos.http import HttpClient, tls_context
from metaos.pki import Pki
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.security.identity import BACKDATE_SECONDS, Authority, KeyPair
from tests.apiserver.serving import ServedHub, served

DAY = 86400.0


class Listening:
    """A socket with the hub's credentials; ``now`` may be moved. Answers every connection with the peer's common name."""

    def __init__(self, folder: Path) -> None:
        self.now = SystemClock().now() - 200 * DAY
        self.pki = Pki(folder / "pki", random.Random(1), lambda: self.now)
        self.credentials = Credentials(self.pki, ("localhost", "127.0.0.1"))
        self.port = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peercert") or {}
        name = dict(part[0] for part in peer.get("subject", ())).get("commonName", "nobody")
        try:
            while True:
                writer.write(f"{name}\n".encode())
                if not await reader.readline():
                    break
        except OSError:
            pass
        finally:
            writer.close()

    async def connect(self, ca: bytes, pair: KeyPair | None = None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        texts = (pair.certificate.decode(), pair.key.decode()) if pair else ()
        context = tls_context(ca.decode(), *texts)
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname="localhost")

    async def ask(self, ca: bytes, pair: KeyPair | None = None) -> tuple[str, int]:
        """Who the server takes us for, and the serial number of its certificate. Raises ``OSError``."""
        reader, writer = await self.connect(ca, pair)
        try:
            line = await reader.readline()
            if not line:
                raise ConnectionResetError("refused")
            der = writer.get_extra_info("ssl_object").getpeercert(True)
            return line.decode().strip(), x509.load_der_x509_certificate(der).serial_number
        finally:
            writer.close()


@pytest.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Listening]:
    found = Listening(tmp_path)
    server = await asyncio.start_server(found.answer, "127.0.0.1", 0, ssl=found.credentials.context)
    found.port = server.sockets[0].getsockname()[1]
    yield found
    server.close()


async def test_the_servers_certificate_is_renewed_while_it_serves_and_connections_stand(listening: Listening) -> None:
    ca = listening.pki.bundle
    reader, writer = await listening.connect(ca)
    assert await reader.readline() == b"nobody\n"
    _, before = await listening.ask(ca)
    assert not listening.credentials.refresh(), "nothing is due"
    listening.now += 200 * DAY
    assert listening.credentials.refresh()
    _, after = await listening.ask(ca)
    assert after != before
    writer.write(b"still there?\n")
    assert await reader.readline() == b"nobody\n"
    writer.close()
    await writer.wait_closed()


async def test_the_administrators_kubeconfig_is_renewed(listening: Listening) -> None:
    path = listening.pki.directory.parent / "admin.kubeconfig"
    listening.credentials.write_kubeconfig("https://localhost:1")
    first, stamp = path.read_text(), path.stat().st_mtime_ns
    listening.credentials.write_kubeconfig("https://localhost:1")
    assert path.stat().st_mtime_ns == stamp, "written where it changed only"
    listening.now += 200 * DAY
    listening.credentials.write_kubeconfig("https://localhost:1")
    assert path.read_text() != first and path.stat().st_mode & 0o077 == 0


async def test_the_authority_is_replaced_without_a_gap(listening: Listening) -> None:
    pki = listening.pki
    old_ca, old = pki.bundle, pki.authority.issue_client("ann", (), SystemClock().now())
    fingerprint = pki.authority.fingerprint
    assert listening.credentials.obey({"rotate": fingerprint}) and not listening.credentials.obey({"rotate": fingerprint})
    assert listening.credentials.refresh()
    new_ca, new = pki.authority.pair.certificate, pki.authority.issue_client("ann", (), SystemClock().now())
    for ca in (old_ca, new_ca, pki.bundle):
        for pair in (old, new):
            assert (await listening.ask(ca, pair))[0] == "ann"
    record = listening.credentials.record()
    assert record["current"] == pki.authority.fingerprint and record["trusted"].split() == list(pki.trusted.values())
    assert listening.credentials.obey({"rotate": fingerprint, "retire": fingerprint})
    assert listening.credentials.refresh() and not listening.credentials.trusts(Authority(pki.authority.pair, random).name + "x")
    assert (await listening.ask(new_ca, new))[0] == "ann"
    with pytest.raises(OSError):
        await listening.ask(new_ca, old)
    with pytest.raises(OSError):
        await listening.ask(old_ca, new)


# -- who is refused ----------------------------------------------------------------------------------------


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    async with served(tmp_path, SystemClock()) as running:
        yield running


async def refused(hub: ServedHub, pair: KeyPair) -> ApiError:
    """The error that a client with this certificate gets."""
    try:
        context = tls_context(hub.authority.pair.certificate.decode(), pair.certificate.decode(), pair.key.decode())
    except ssl.SSLError as error:
        raise AssertionError(error) from error
    client = HttpClient(hub.url, context=context, clock=hub.clock, random=random.Random(1))
    try:
        with pytest.raises(ApiError) as caught:
            await client.list(scheme.CONFIG_MAP, "default")
    finally:
        await client.close()
    return caught.value


async def test_an_expired_certificate_is_refused(hub: ServedHub) -> None:
    error = await refused(hub, hub.authority.issue_client("admin", ("system:masters",), hub.clock.now() - 100, 50))
    assert error.code == 503 and "refuses the certificate" in error.message


async def test_a_certificate_that_is_not_valid_yet_is_refused(hub: ServedHub) -> None:
    begins = hub.clock.now() + BACKDATE_SECONDS + 3600
    error = await refused(hub, hub.authority.issue_client("admin", ("system:masters",), begins, 3600))
    assert error.code == 503


async def test_a_certificate_of_another_authority_is_refused(hub: ServedHub) -> None:
    other = Authority.create(random.Random(9), hub.clock.now())
    assert (await refused(hub, other.issue_client("admin", ("system:masters",), hub.clock.now()))).code == 503


async def test_an_authority_of_the_same_name_is_refused(hub: ServedHub) -> None:
    """The name says which authority it was; only the signature proves it."""
    twin = Authority.create(random.Random(2), hub.clock.now())
    assert twin.name == hub.authority.name and twin.fingerprint != hub.authority.fingerprint
    assert (await refused(hub, twin.issue_client("admin", ("system:masters",), hub.clock.now()))).code == 503


async def test_a_servers_certificate_is_no_clients(hub: ServedHub) -> None:
    assert (await refused(hub, hub.authority.issue_server(("admin",), hub.clock.now()))).code == 503


async def test_a_certificate_that_a_client_signed_is_refused(hub: ServedHub) -> None:
    """A member cannot play authority: its certificate says CA:FALSE."""
    member = hub.pair("system:cluster:a", "system:clusters")
    forger = Authority(member, random.Random(4))
    forged = forger.issue_client("admin", ("system:masters",), hub.clock.now())
    chain = KeyPair(forged.certificate + member.certificate, forged.key)
    assert (await refused(hub, chain)).code == 503


async def test_a_client_certificate_is_no_servers(tmp_path: Path) -> None:
    """A stolen agent's certificate cannot stand in for the hub."""
    authority = Authority.create(random.Random(2), SystemClock().now())
    pair = authority.issue_client("localhost", (), SystemClock().now())
    usage = x509.load_pem_x509_certificate(pair.certificate).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    (tmp_path / "pair.pem").write_bytes(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair.pem")
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0, ssl=context)
    client = HttpClient(
        f"https://localhost:{server.sockets[0].getsockname()[1]}",
        ca=authority.pair.certificate.decode(),
        clock=SystemClock(),
        random=random.Random(1),
    )
    async with server:
        with pytest.raises(ApiError, match="unsuitable certificate purpose"):
            await client.request("GET", "/version")
    await client.close()


async def test_a_members_certificate_is_nobody_else(hub: ServedHub) -> None:
    """The group alone, the name alone, or a name that only looks like one: no rights of a site."""
    for name, groups in (("system:cluster:a", ()), ("a", ("system:clusters",)), ("system:cluster:", ("system:clusters",))):
        client = hub.client(name, *groups)
        with pytest.raises(ApiError) as caught:
            await client.list(scheme.WORK, "nemo-cluster-a")
        assert caught.value.code == 403
        await client.close()
