"""Data directories of earlier releases are taken over on start: nobody is locked out, nothing is lost."""

from __future__ import annotations

import asyncio
import json
import ssl
import tarfile
from pathlib import Path
from random import SystemRandom

import pytest

from metaos.agent.cache import Cache
from metaos.agent.join import Identity
from metaos.clock import SystemClock
from metaos.config import DATA_VERSION, Address, DataVersionError, HubConfig, open_data
from metaos.http import HttpClient, tls_context
from metaos.pki import Pki
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.security.authz import CLUSTERS
from metaos.security.identity import BACKDATE_SECONDS
from metaos.server import Hub

LAYOUTS = sorted(Path(__file__).parent.glob("layout-*.tar.gz"))


@pytest.fixture(params=LAYOUTS, ids=lambda file: file.name.partition(".")[0])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as archive:
        # By attribute: 3.11.2, which Debian 12 has, does not know the argument.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path)
    found = tmp_path / "hub"
    for path in (found, *found.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return found


async def test_the_hub_takes_over_what_there_is(data: Path) -> None:
    for _ in range(2):  # The second start finds what the first has made of it.
        async with Hub(HubConfig(data, Address("127.0.0.1", 0)), SystemClock(), SystemRandom()) as hub:
            client = hub.client
            assert client is not None
            secret = await client.get(scheme.SECRET, "word", "default")
            assert secret["data"] == {"word": "c2VzYW1l"}
            deployment = await client.get(scheme.DEPLOYMENT, "quiet", "default")
            assert deployment["status"]["availableReplicas"] == 1
            assert (await client.get(scheme.CLUSTER, "local"))["status"]["capacity"]
            # Its sites still know it: by the authority that they were given.
            context = ssl.create_default_context(cafile=str(data / "local/agent/identity/ca.pem"))
            host, _, port = hub.url.removeprefix("https://").rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port), ssl=context)
            writer.close()
            await writer.wait_closed()
    assert (data / "version").read_text().strip() == str(DATA_VERSION)


@pytest.mark.parametrize("stamp", ["", str(DATA_VERSION)], ids=["as it was", "taken over by a release that forgot this"])
async def test_who_was_removed_stays_out(data: Path, stamp: str) -> None:
    if stamp:
        (data / "version").write_text(f"{stamp}\n")
    for _ in range(2):
        async with Hub(HubConfig(data, Address("127.0.0.1", 0)), SystemClock(), SystemRandom()) as hub:
            # The fixture's own certificates live for a week; these are as old, and live on.
            identity = json.loads((data / "local/agent/identity/identity.json").read_text())
            issued = identity["notBefore"] + BACKDATE_SECONDS
            authority = Pki(data / "pki", SystemRandom(), SystemClock().now).authority
            said = {}
            for site in ("gone-1", "local"):
                pair = authority.issue_client(f"system:cluster:{site}", (CLUSTERS,), issued)
                context = tls_context(
                    (data / "local/agent/identity/ca.pem").read_text(), pair.certificate.decode(), pair.key.decode()
                )
                client = HttpClient(hub.url, context=context, clock=SystemClock(), random=SystemRandom())
                try:
                    await client.get(scheme.CLUSTER, site)
                    said[site] = "let in"
                except ApiError as error:
                    said[site] = error.message
                finally:
                    await client.close()
            assert said == {"gone-1": "the certificate of system:cluster:gone-1 has been revoked", "local": "let in"}


def test_a_site_takes_over_what_there_is(data: Path) -> None:
    agent = data / "local/agent"
    open_data(agent)
    identity = Identity.load(agent / "identity")
    assert identity is not None and identity.name == "local" and identity.certificate and identity.key
    cache = Cache(agent / "records.db")
    assert len(list(cache.items("pods"))) == 1
    cache.close()


def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    open_data(tmp_path)
    (tmp_path / "version").write_text(f"{DATA_VERSION + 1}\n")
    with pytest.raises(DataVersionError, match="newer release"):
        open_data(tmp_path)
