"""Typed settings and logging set-up. Settings are values: nothing here reads the environment by itself."""

from __future__ import annotations

import logging
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from metaos.files import make_private, write_private

#: Layout of the hub's and the agent's data directories. Older ones are migrated on start, by whoever keeps what has changed;
#: newer ones are refused. 2: authorities and pairs are one file each (``pki``).
DATA_VERSION = 2


@dataclass(frozen=True, slots=True)
class Address:
    """``HOST:PORT``."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises ``ValueError`` naming the text and the remedy."""
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"address {text!r} must be HOST:PORT with a port of at most 65535, for example 127.0.0.1:6443")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


#: Ports on which a site answers where its owner names an address alone: those of the web, and those that no privilege guards. So
#: no Service takes the place of ssh or mail, though that be down.
USUAL_PORTS = ((80, 80), (443, 443), (1024, 65535))
#: Ranges that an owner may name.
MOST_RANGES = 32


@dataclass(frozen=True, slots=True)
class Exposure:
    """``ADDRESS[:PORTS]``: an IPv4 address of a site's machine, and the ports on which it may answer there for Services: ranges
    (first, last)."""

    address: str
    ports: tuple[tuple[int, int], ...] = USUAL_PORTS

    @classmethod
    def parse(cls, text: str) -> Exposure:
        """Raises ``ValueError`` naming the text and the remedy."""
        from ipaddress import IPv4Address

        address, _, ports = text.partition(":")
        try:
            found = IPv4Address(address)
        except ValueError:
            raise ValueError(f"{address!r} is no IPv4 address, such as 192.0.2.7 or 127.0.0.1") from None
        if found.is_unspecified or found.is_multicast:
            raise ValueError(f"{address} is not one address: name that of one card, so that users are told where to go")
        return cls(address, tuple(_ports(each) for each in ports.split(",", MOST_RANGES))) if ports else cls(address)

    def holds(self, port: int) -> bool:
        return any(first <= port <= last for first, last in self.ports)

    def __str__(self) -> str:
        return f"{self.address}:{','.join(f'{first}-{last}' for first, last in self.ports)}"


def _ports(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    numbers = [int(each) if each.isascii() and each.isdigit() else 0 for each in (first, last if dash else first)]
    if not 0 < numbers[0] <= numbers[1] < 65536:
        raise ValueError(
            f"ports {text!r} must be FIRST-LAST within 1 to 65535, for example 8000-32767, with commas between several"
        )
    return numbers[0], numbers[1]


@dataclass(frozen=True, slots=True)
class HubConfig:
    """What ``nemo up`` was asked to do. Durations in seconds."""

    data: Path
    listen: Address
    #: Further host names and addresses for the server certificate.
    names: tuple[str, ...] = ()
    lease_duration_seconds: float = 40.0
    drain_seconds: float = 5.0
    autoscale_interval_seconds: float = 15.0
    #: 0: never.
    reoptimise_interval_seconds: float = 0.0
    #: A CSV file of hourly carbon intensity by zone, replayed from ``carbon_start_hour`` at ``carbon_speed`` hours an hour.
    carbon_trace: Path | None = None
    carbon_start_hour: float = 0.0
    carbon_speed: float = 1.0
    #: A public carbon API, where it answers unless at its usual address, and a file with the token for it.
    carbon_feed: str | None = None
    carbon_url: str = ""
    carbon_token_file: Path | None = None
    #: A CSV file of hourly prices of a CPU hour by site or zone; its first row is the hour of the start.
    price_trace: Path | None = None
    #: A carbon and a price source by name, and what it is made of; they go before the settings above.
    carbon_source: tuple[str, str] | None = None
    price_source: tuple[str, str] | None = None
    #: Authenticators of bearer tokens by name, and what each is made of.
    authenticators: tuple[tuple[str, str], ...] = ()
    #: Learned policies: name, weight, ONNX file.
    scores: tuple[tuple[str, float, Path], ...] = ()
    #: Longest time that entries of the ledger wait to be signed.
    checkpoint_seconds: float = 3600.0
    #: A database that several hubs share: its URL, or a file that holds the URL; empty: the hub's own file.
    store: str = ""
    #: What the hubs of a database have in common and it does not hold; ``data/hub.key`` unless said.
    hub_key: Path | None = None
    #: The URL at which other hubs and agents reach this one; as it listens, unless said.
    advertise: str = ""
    #: NATS servers that are there already (URLs with commas between, or a file that holds them); empty: one is run here.
    bus: str = ""
    #: A file with the authorities of these servers' certificates, beside the hub's own and the public ones.
    bus_ca: Path | None = None
    #: Run without a bus: there are no devices then.
    no_bus: bool = False
    #: Where the hub's own server listens for devices (MQTT 3.1.1, and 5), and for servers at sites; ``None``: nowhere.
    mqtt: Address | None = None
    mqtt5: Address | None = None
    leaf: Address | None = None
    #: Where the local site answers for Services of the world outside; ``None``: nowhere.
    expose: Exposure | None = None
    #: A file with ``registries`` and ``imagePolicy``, as in a site file, for what devices run; ``None``: no images are fetched.
    device_images: Path | None = None
    verbose: bool = False


class DataVersionError(Exception):
    """A data directory that this release cannot use."""

    def __init__(self, path: Path, found: int) -> None:
        super().__init__(
            f"{path} was written by a newer release (layout {found}, this one knows {DATA_VERSION}): "
            "install that release or newer, or choose another --data directory"
        )


def open_data(path: Path) -> None:
    """Makes a private data directory, or checks and migrates an existing one. Raises ``DataVersionError``."""
    try:
        make_private(path)
    except OSError as error:
        raise OSError(f"the data directory {path} cannot be used: {error.strerror}; choose another with --data") from None
    stamp = path / "version"
    if stamp.exists():
        found = int(stamp.read_text() or 0)
        if found > DATA_VERSION:
            raise DataVersionError(path, found)
        if found == DATA_VERSION:
            return
    write_private(stamp, f"{DATA_VERSION}\n")


def forbid_core_files() -> None:
    """A core file would hold every secret that the process knows. Containers may have theirs: the hard limit stays."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def allow_files() -> None:
    """As many open files as the administrator allows. An agent needs them: descriptors that are on their way between processes
    count by user, its containers' too, and up to this limit it may still pass some on."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def set_up_logging(*, verbose: bool = False) -> None:
    """One line per record on standard error: time, level, logger, message."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    for noisy in ("asyncio", "websockets", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
