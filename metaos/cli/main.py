"""The ``nemo`` command: its words, their options, and what happens to a user's mistakes.

Exit codes: 0 done; 1 it did not work (the message says why and what to do); 2 the command line was wrong;
3 asked for something that does not exist. Commands import what they need when they run, so ``nemo --help`` is quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from metaos import __version__
from metaos.cli.accounting import carbon, cost, ledger
from metaos.cli.devices import device
from metaos.cli.images import image
from metaos.cli.intents import intent
from metaos.cli.options import (
    ADDRESS,
    EXPOSE,
    HOST,
    NAMESPACE,
    OUTPUT,
    PERIOD,
    SECONDS,
    default_data,
    hub_options,
    kubeconfig_option,
)
from metaos.cli.people import login, token
from metaos.cli.scores import SCORE
from metaos.cli.sources import AUTHENTICATOR, CARBON_SOURCE, PRICE_SOURCE
from metaos.cli.trust import ca, keys_group
from metaos.cli.twin import twin

if TYPE_CHECKING:
    from metaos.config import Address, Exposure

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=CONTEXT)
def nemo() -> None:
    """NEMO, a meta operating system for the IoT-edge-cloud continuum.

    \b
    Example:
      nemo up &                                   # a hub with a local site
      export KUBECONFIG=$PWD/nemo.kubeconfig; nemo kubeconfig > $KUBECONFIG
      kubectl apply -f examples/shop/
      nemo why deployment/web -n shop

    \b
    Exit codes:
      0  done
      1  it did not work: the message says why and what to do
      2  the command line is wrong
      3  what was asked for is not there (of an agent: the hub has removed the site)
      4  the hub does not let the agent join
      5  the agent cannot run here: the machine, its data or the site file
    """


@nemo.command()
@OUTPUT
def version(output: str) -> None:
    """Print the version.

    \b
    Example: nemo version -o json
    """
    from metaos.cli.output import emit

    emit({"version": __version__, "python": sys.version.split()[0]}, output, text=f"nemo {__version__}")


@nemo.command()
@click.option("--data", type=click.Path(path_type=Path), help="Where state is kept.")
@click.option(
    "--listen", default="127.0.0.1:6443", show_default=True, help="HOST:PORT to serve the API on (port 0: any free one)."
)
@click.option("--name", "names", multiple=True, type=HOST, help="A further host name or address that clients may use.")
@click.option("--no-local", is_flag=True, help="Run the hub alone, without a site on this machine.")
@click.option(
    "--lease-duration",
    type=SECONDS,
    default=40.0,
    show_default=True,
    help="Seconds without a heartbeat until a site counts as lost.",
)
@click.option(
    "--drain",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Seconds that connections get to end when work moves.",
)
@click.option(
    "--autoscale-interval", type=SECONDS, default=15.0, show_default=True, help="Seconds between looks at the load of workloads."
)
@click.option(
    "--reoptimise-interval",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Seconds between placing all workloads at once, where some move so that all gain; 0: never.",
)
@click.option(
    "--carbon-trace", type=click.Path(exists=True, path_type=Path), help="Replay hourly carbon intensities from this CSV file."
)
@click.option(
    "--carbon-start-hour",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="The row of the trace to begin with.",
)
@click.option(
    "--carbon-speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Trace hours per hour: a replay, faster than life, and it says so.",
)
@click.option(
    "--carbon-feed",
    type=click.Choice(["electricity-maps", "watttime", "uk-carbon-intensity", "carbon-aware-sdk"]),
    help="Ask this API for carbon intensities; zones of sites are named as it names them.",
)
@click.option("--carbon-url", default="", help="Where that API answers, unless at its usual address.")
@click.option(
    "--carbon-token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with the token for it; read again for every request.",
)
@click.option(
    "--price-trace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Hourly prices of a CPU hour by site or zone, from this CSV file, from its first row on.",
)
@click.option(
    "--carbon-source",
    type=CARBON_SOURCE,
    metavar="NAME[=TEXT]",
    help="The carbon source of this name, a plugin for example, made of what TEXT says.",
)
@click.option(
    "--price-source", type=PRICE_SOURCE, metavar="NAME[=TEXT]", help="The price source of this name, made of what TEXT says."
)
@click.option(
    "--score",
    "scores",
    multiple=True,
    type=SCORE,
    metavar="NAME[:WEIGHT]=FILE",
    help="Let a learned policy, an ONNX model, earn sites points beside the other scores; a weight of 1 unless said.",
)
@click.option(
    "--checkpoint-interval",
    type=SECONDS,
    default=3600.0,
    show_default=True,
    help="Seconds that booked usage waits at most until the ledger is signed.",
)
@click.option(
    "--store",
    default="",
    metavar="URL|FILE",
    help="Keep state in this PostgreSQL database, which several hubs may share: a postgresql:// URL without a password, or a "
    "file of mode 0600 that holds the URL.",
)
@click.option(
    "--hub-key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The key that all hubs of a database have [default: DATA/hub.key, which the first one makes].",
)
@click.option("--advertise", default="", metavar="URL", help="How other hubs and agents reach this one [default: as it listens].")
@click.option(
    "--authenticator",
    "authenticators",
    multiple=True,
    type=AUTHENTICATOR,
    metavar="NAME=TEXT",
    help="Take bearer tokens that this authenticator knows: openid=FILE with an AuthenticationConfiguration, or a plugin.",
)
@click.option(
    "--mqtt",
    default="127.0.0.1:1883",
    show_default=True,
    metavar="HOST:PORT",
    help="Where devices connect (MQTT 3.1.1), once there are some; with TLS unless it is loopback.",
)
@click.option(
    "--mqtt5",
    default="",
    metavar="HOST:PORT",
    help="Where devices with MQTT 5 connect, and others may: a gateway in a process of its own [default: nowhere].",
)
@click.option("--leaf", default="", metavar="HOST:PORT", help="Where servers of the bus at sites connect; with TLS likewise.")
@click.option(
    "--bus",
    default="",
    metavar="URL|FILE",
    help="Use these NATS servers (URLs with commas between, or a file that holds them) instead of running one.",
)
@click.option(
    "--bus-ca",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Who has made the certificates of these servers, a PEM file [default: the hub's authority, and public ones].",
)
@click.option(
    "--device-images",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Fetch OCI artifacts for devices, as this file says: registries and imagePolicy of a site file [default: none are].",
)
@click.option("--no-bus", is_flag=True, help="Run without the message bus, and so without devices.")
@EXPOSE
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def up(
    data: Path | None, listen: str, names: tuple[str, ...], no_local: bool, lease_duration: float, drain: float, **more: Any
) -> None:
    """Run a hub, with a local site unless told otherwise.

    \b
    Example: nemo up --data ./hub --listen 127.0.0.1:6443 --no-local
    """
    from metaos.config import HubConfig, forbid_core_files, set_up_logging
    from metaos.server import run_hub

    address = _address(listen, "--listen")
    if more["bus"] and more["no_bus"]:
        raise click.UsageError("say either --bus or --no-bus")
    if more["bus_ca"] and not more["bus"]:
        raise click.UsageError("--bus-ca is of servers that are named with --bus")
    more["mqtt"] = _address(more["mqtt"], "--mqtt")
    for word in ("mqtt5", "leaf"):
        more[word] = _address(more[word], f"--{word}") if more[word] else None
    if sum(more[word] is not None for word in ("carbon_feed", "carbon_trace", "carbon_source")) > 1:
        raise click.UsageError("say one of --carbon-feed, --carbon-trace and --carbon-source: a site has one source")
    if more["price_trace"] and more["price_source"]:
        raise click.UsageError("say either --price-trace or --price-source: a site has one source")
    if more["expose"] and no_local:
        raise click.UsageError("--expose is of the local site: leave out --no-local, or say it to 'nemo agent'")
    if more["hub_key"] and not more["store"]:
        raise click.UsageError("--hub-key is of hubs that share a database: say --store with it, or leave it out")
    set_up_logging(verbose=bool(more.pop("verbose")))
    forbid_core_files()
    config = HubConfig(
        data=data or default_data("hub"),
        listen=address,
        names=names,
        lease_duration_seconds=lease_duration,
        drain_seconds=drain,
        autoscale_interval_seconds=more.pop("autoscale_interval"),
        reoptimise_interval_seconds=more.pop("reoptimise_interval"),
        checkpoint_seconds=more.pop("checkpoint_interval"),
        **more,
    )
    sys.exit(run_hub(config, local=not no_local))


def _address(text: str, option: str) -> Address:
    from metaos.config import Address

    try:
        return Address.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None


@nemo.command()
@click.option(
    "--hub",
    "hubs",
    required=True,
    multiple=True,
    help="The hub's URL, for example https://hub.example.org:6443; of several hubs of one store as many as are to be tried.",
)
@click.option("--token-file", type=click.Path(path_type=Path), help="File with a join token; needed for the first start only.")
@click.option("--data", type=click.Path(path_type=Path), help="Where this site keeps its state.")
@click.option("--site", type=click.Path(exists=True, path_type=Path), required=True, help="The site file: a Cluster manifest.")
@click.option(
    "--heartbeat",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    help="Seconds between heartbeats; below the hub's lease duration.",
)
@click.option(
    "--metering-period",
    "metering",
    type=PERIOD,
    default="300",
    show_default=True,
    help="Seconds of a period in which use and energy are metered and reported; they divide an hour.",
)
@click.option(
    "--runtime",
    type=click.Choice(["machine", "sandbox", "podman", "kubernetes"]),
    default="machine",
    show_default=True,
    help="What is joined: this machine, with the runtime of its site file or the one named here, or a Kubernetes cluster.",
)
@click.option(
    "--kubeconfig",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Of the Kubernetes cluster; without it, the service account of the pod that the agent runs in.",
)
@click.option("--context", default="", help="Context of the kubeconfig; its current one by default.")
@click.option(
    "--identities",
    type=click.Choice(["prefixed", "same", "agent"]),
    help="Who the hub's users are at the Kubernetes cluster in logs, exec, attach and port-forward: nemo:NAME (prefixed, the "
    "default), NAME (same), or the agent itself.",
)
@click.option(
    "--relay",
    type=ADDRESS,
    help="An IPv4 address of this machine or pod that the Kubernetes cluster's pods reach: there the agent listens (ports 20000 "
    "to 29999) for Services that the cluster imports. Nothing listens without it.",
)
@EXPOSE
@click.option(
    "--leaf",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run a server of the message bus here, for devices that talk also when the site is cut off: a file of 'nemo bus leaf'.",
)
@click.option("--mqtt", default="", metavar="HOST:PORT", help="Where devices connect to it [default: 127.0.0.1:1883].")
@click.option(
    "--mqtt-pair",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Its certificate and key, one PEM file; needed unless --mqtt is loopback.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def agent(
    hubs: tuple[str, ...],
    token_file: Path | None,
    data: Path | None,
    site: Path,
    heartbeat: float,
    metering: int,
    runtime: str,
    kubeconfig: Path | None,
    context: str,
    identities: str | None,
    relay: str | None,
    expose: Exposure | None,
    leaf: Path | None,
    mqtt: str,
    mqtt_pair: Path | None,
    verbose: bool,
) -> None:
    """Join this machine, or a Kubernetes cluster, to a hub as a site, and run its share.

    It only ever dials out; where --expose or --relay is said, it listens there.

    \b
    Example:
      nemo join-token edge-1 > token
      nemo agent --hub https://hub:6443 --token-file token --data ./edge-1 --site examples/sites/edge-paris.yaml
    """
    from metaos.agent.entry import AgentConfig
    from metaos.config import allow_files, forbid_core_files, set_up_logging

    if runtime != "kubernetes" and (kubeconfig or context or identities or relay):
        words = "--kubeconfig, --context, --identities and --relay"
        raise click.UsageError(f"{words} are of a Kubernetes cluster: say --runtime kubernetes with them")
    if runtime == "kubernetes" and expose:
        raise click.UsageError("--expose is of a machine: a Kubernetes cluster has load balancers of its own")
    if (mqtt or mqtt_pair) and not leaf:
        raise click.UsageError("--mqtt and --mqtt-pair are of a server of the bus: say --leaf with them")

    set_up_logging(verbose=verbose)
    forbid_core_files()
    allow_files()
    config = AgentConfig(
        hub=hubs[0],
        more_hubs=hubs[1:],
        # Processes that work for the agent (volumes, images) have another directory than it.
        data=(data or default_data("agent")).absolute(),
        site_file=site,
        token_file=token_file,
        heartbeat_seconds=heartbeat,
        metering_seconds=metering,
        runtime="" if runtime == "machine" else runtime,
        leaf=leaf,
        mqtt=_address(mqtt or "127.0.0.1:1883", "--mqtt"),
        mqtt_pair=mqtt_pair,
        expose=expose,
    )
    if runtime == "kubernetes":
        from metaos.members.agent import MemberConfig
        from metaos.members.agent import main as run_member
        from metaos.members.callers import Identities

        sys.exit(run_member(MemberConfig(config, kubeconfig, context, Identities(identities or "prefixed"), relay or "")))
    from metaos.agent.agent import main

    sys.exit(main(config))


@nemo.command("join-token")
@click.argument("name")
@click.option("--lifetime", type=SECONDS, default=3600.0, show_default=True, help="Seconds until it expires.")
@OUTPUT
@hub_options
def join_token(name: str, lifetime: float, output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Print a token with which site NAME can join once.

    \b
    Example: nemo join-token edge-1 > token
    """
    from metaos.cli.operations import checked_site, make_join_token
    from metaos.cli.output import emit

    try:
        checked_site(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'NAME'") from None
    token, expiration = make_join_token(name, lifetime, kubeconfig, data or default_data("hub"))
    emit({"cluster": name, "token": token, "expirationTime": expiration}, output, text=token)


@nemo.command()
@click.option("--user", help="Make one for this user, by a new certificate [default: print the administrator's].")
@click.option("--group", "groups", multiple=True, help="A group of the user's; with --user only.")
@click.option("--ttl", default="30d", show_default=True, help="How long the user's certificate lasts: 10m to 365d.")
@click.option("--server", help="The hub's URL as seen from the user [default: as it listens].")
@hub_options
def kubeconfig(
    user: str | None, groups: tuple[str, ...], ttl: str, server: str | None, kubeconfig: Path | None, data: Path | None
) -> None:
    """Print a kubeconfig: the administrator's, or another user's.

    A new user may do what roles are bound to the name or its groups, and nothing before.

    \b
    Example:
      nemo kubeconfig --data ./hub > admin.kubeconfig; kubectl --kubeconfig admin.kubeconfig get nodes
      nemo kubeconfig --user ann --group dev --ttl 12h > ann.kubeconfig
    """
    if user:
        from metaos.cli.credentials import user_kubeconfig

        click.echo(user_kubeconfig(user, groups, ttl, kubeconfig, data or default_data("hub"), server), nl=False)
        return
    if groups:
        raise click.UsageError("--group needs --user: the administrator's groups are given")
    from metaos.cli.operations import admin_kubeconfig

    click.echo(admin_kubeconfig(data or default_data("hub"), server), nl=False)


@nemo.command()
@click.argument("name")
@click.option("--site", is_flag=True, help="NAME is a site's.")
@hub_options
def revoke(name: str, site: bool, kubeconfig: Path | None, data: Path | None) -> None:
    """Withdraw a user's certificates, and cut its connections.

    Certificates that are made later count: a new kubeconfig lets a user back in, a new join token a site. The
    administrator's own (NAME admin) is made anew by the hub, in its data directory.

    \b
    Example: nemo revoke ann; nemo revoke --site edge-1
    """
    from metaos.cli.credentials import revoke as act

    click.echo(act(name, site=site, kubeconfig=kubeconfig, data=data or default_data("hub")))


@nemo.group("cluster")
def cluster_group() -> None:
    """Kubernetes clusters that the hub reaches by itself.

    \b
    Example: nemo cluster add madrid --kubeconfig madrid.kubeconfig
    """


@cluster_group.command("add")
@click.argument("name")
@click.option(
    "--kubeconfig",
    "given",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The cluster's, with a token or certificate; the hub keeps it, encrypted.",
)
@click.option("--context", default="", help="Context of the kubeconfig; its current one by default.")
@click.option("--site", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The site file: a Cluster manifest.")
@click.option(
    "--identities",
    type=click.Choice(["prefixed", "same", "agent"]),
    default="prefixed",
    show_default=True,
    help="Who the hub's users are at the cluster: nemo:NAME (prefixed), NAME (same), or the agent itself.",
)
@kubeconfig_option("--hub-kubeconfig")
@click.option("--data", type=click.Path(path_type=Path), help="The hub's data directory [default: that of 'nemo up'].")
def cluster_add(
    name: str, given: Path, context: str, site: Path | None, identities: str, hub_kubeconfig: Path | None, data: Path | None
) -> None:
    """Have the hub run the agent of cluster NAME, which it must reach.

    Where the hub cannot reach the cluster, the agent runs there and dials out: see 'nemo agent --runtime kubernetes'.

    \b
    Example: nemo cluster add madrid --kubeconfig madrid.kubeconfig --site madrid.yaml
    """
    from metaos.cli.clusters import add
    from metaos.cli.operations import checked_site
    from metaos.members.callers import Identities

    try:
        checked_site(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'NAME'") from None
    add(name, given, context, site, Identities(identities), hub_kubeconfig, data or default_data("hub"))
    click.echo(f"cluster {name} is being joined: see 'kubectl get cluster {name}'")


@cluster_group.command("remove")
@click.argument("name")
@hub_options
def cluster_remove(name: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Take back a cluster that the hub hosts: its work goes elsewhere, what was applied there is taken away.

    \b
    Example: nemo cluster remove madrid
    """
    from metaos.cli.clusters import remove

    click.echo(remove(name, kubeconfig, data or default_data("hub")))


@nemo.group()
def bus() -> None:
    """The message bus: servers of a cluster, and servers at sites.

    \b
    Example: nemo bus config nats-1 --listen 127.0.0.1:4222 --cluster 127.0.0.1:6222 > nats-1.conf
    """


@bus.command("config")
@click.argument("name")
@click.option("--listen", required=True, metavar="HOST:PORT", help="Where hubs connect.")
@click.option("--cluster", required=True, metavar="HOST:PORT", help="Where the other servers connect.")
@click.option("--route", "routes", multiple=True, metavar="HOST:PORT", help="Where another server listens for this one.")
@click.option("--mqtt", default="", metavar="HOST:PORT", help="Where devices connect.")
@click.option("--leaf", default="", metavar="HOST:PORT", help="Where servers at sites connect.")
@click.option("--folder", default="/data", show_default=True, help="Where the server keeps what it has to.")
@click.option("--cert", default="", help="The server's file with its certificate, needed beyond loopback; with --key and --ca.")
@click.option("--key", default="", help="The server's file with its key.")
@click.option("--ca", default="", help="The server's file with the authority of all servers.")
@hub_options
def bus_config(
    name: str, listen: str, cluster: str, routes: tuple[str, ...], kubeconfig: Path | None, data: Path | None, **more: Any
) -> None:
    """Print the configuration of server NAME of a NATS cluster, for hubs that are told of it with 'nemo up --bus'.

    \b
    Example: nemo bus config nats-1 --listen 127.0.0.1:4222 --cluster 127.0.0.1:6222 > nats-1.conf
    """
    from metaos.cli.bus import server_config

    files = [Path(more[word]) for word in ("cert", "key", "ca") if more[word]]
    if len(files) not in (0, 3):
        raise click.UsageError("--cert, --key and --ca go together")
    text = server_config(
        name,
        Path(more["folder"]),
        _address(listen, "--listen"),
        _address(more["mqtt"], "--mqtt") if more["mqtt"] else None,
        _address(more["leaf"], "--leaf") if more["leaf"] else None,
        _address(cluster, "--cluster"),
        [_address(route, "--route") for route in routes],
        (files[0], files[1]) if files else None,
        files[2] if files else None,
        kubeconfig,
        data or default_data("hub"),
    )
    click.echo(text, nl=False)


@bus.command("leaf")
@click.argument("site")
@click.argument("namespaces", nargs=-1, required=True)
@click.option("--hub", required=True, metavar="HOST:PORT", help="Where the hub listens for it: --leaf of 'nemo up'.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), default=365.0, show_default=True, help="How long it lasts.")
@hub_options
def bus_leaf(site: str, namespaces: tuple[str, ...], hub: str, days: float, kubeconfig: Path | None, data: Path | None) -> None:
    """Print what SITE needs for a server of the bus of its own, for devices of these NAMESPACES. It is a secret.

    \b
    Example: nemo bus leaf edge-1 default --hub hub.example.org:7422 > leaf.json
    """
    from metaos.cli.bus import leaf_text

    click.echo(leaf_text(site, namespaces, _address(hub, "--hub"), days, kubeconfig, data or default_data("hub")), nl=False)


@bus.command("revoke")
@click.argument("site")
@click.argument("namespaces", nargs=-1)
@OUTPUT
@hub_options
def bus_revoke(site: str, namespaces: tuple[str, ...], output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Have the hub refuse the server of the bus at SITE, with all that 'nemo bus leaf' has printed for it. NAMESPACES are needed
    only for what an older release printed.

    \b
    Example: nemo bus revoke edge-1
    """
    from metaos.cli.bus import revoke_leaf
    from metaos.cli.output import emit

    given = revoke_leaf(site, namespaces, kubeconfig, data or default_data("hub"))
    of = sorted(given.namespaces)
    said = f"site {site}: what its server has for {', '.join(of)} counts no more; 'nemo bus leaf' prints it anew"
    emit({"site": site, "namespaces": of, "generation": given.generation}, output, text=said)


@nemo.command()
@click.option("-w", "--watch", is_flag=True, help="Stay, and show changes as they come.")
@OUTPUT
@hub_options
def status(watch: bool, output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Sites, intents and what moved lately: the screen to keep open.

    \b
    Example: nemo status --watch
    """
    from metaos.cli.status import show_status

    if watch and output != "text":
        raise click.UsageError(f"--watch shows a screen for people: for programs, repeat 'nemo status -o {output}'")
    show_status(kubeconfig, data or default_data("hub"), output, watch=watch)


@nemo.command()
@click.argument("workload")
@NAMESPACE
@OUTPUT
@hub_options
def why(workload: str, namespace: str, output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Say why a workload is where it is, and why nowhere else.

    \b
    Example: nemo why deployment/web -n shop
    """
    from metaos.cli.objects import parse_workload, show_why

    try:
        parse_workload(workload)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="WORKLOAD") from None
    show_why(workload, namespace, output, kubeconfig, data or default_data("hub"))


@nemo.command()
@click.option(
    "-f", "--filename", "paths", multiple=True, type=click.Path(exists=True, path_type=Path), help="Manifests: files or folders."
)
@click.option("--drain", multiple=True, metavar="SITE", help="Suppose that this site is drained.")
@click.option("--lose", multiple=True, metavar="SITE", help="Suppose that this site is lost.")
@click.option("--price", multiple=True, metavar="SITE=AMOUNT", help="Suppose this price of a core for an hour, in EUR.")
@click.option("--carbon", multiple=True, metavar="ZONE=AMOUNT", help="Suppose these gCO2eq/kWh in a zone or at a site.")
@click.option("--reoptimise", is_flag=True, help="Also place all workloads at once: which ones would gain by a move.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw the alternatives: FILE.svg or FILE.png.")
@NAMESPACE
@OUTPUT
@hub_options
def plan(
    paths: tuple[Path, ...],
    drain: tuple[str, ...],
    lose: tuple[str, ...],
    price: tuple[str, ...],
    carbon: tuple[str, ...],
    reoptimise: bool,
    picture: Path | None,
    namespace: str,
    output: str,
    kubeconfig: Path | None,
    data: Path | None,
) -> None:
    """Show what would go where, and why, without doing it.

    For manifests as if they were applied, and for a world in which sites are lost or drained, prices or carbon differ.

    \b
    Example: nemo plan -f examples/shop/ -f examples/intents/
             nemo plan --lose edge-paris --carbon DE=450 --picture plan.svg
    """
    from metaos.cli.plan import show_plan, supposed

    changes = supposed(drain, lose, price, carbon) | ({"reoptimise": True} if reoptimise else {})
    if not paths and not changes:
        suppose = "or suppose something with --drain, --lose, --price, --carbon, --reoptimise"
        raise click.UsageError(f"Missing what to plan: name manifests with -f, {suppose}")
    show_plan(paths, changes, namespace, output, picture, kubeconfig, data or default_data("hub"))


PASSPHRASE = click.option(
    "--passphrase-file", type=click.Path(exists=True, path_type=Path), help="File with the passphrase that seals the keys."
)


@nemo.command("migrate-store")
@click.option("--data", type=click.Path(path_type=Path), help="The hub's data directory.")
@click.option(
    "--store", required=True, metavar="URL|FILE", help="The database: a URL without a password, or a file that holds it."
)
@click.option("--back", is_flag=True, help="From the database into the data directory.")
@OUTPUT
def migrate_store(data: Path | None, store: str, back: bool, output: str) -> None:
    """Move a hub's state into PostgreSQL, or back, while it serves.

    All is copied first; then this says that the hub is to be stopped, and completes the move. Nobody can write from the hub's
    stop until its start on the other store. It may be interrupted, and begun again.

    \b
    Example: nemo migrate-store --data ./hub --store ./store; nemo up --data ./hub --store ./store
    """
    from metaos.cli.upkeep import migrate_store as act

    act(data or default_data("hub"), store, output, back=back)


@nemo.command()
@click.argument("file", type=click.Path(path_type=Path))
@PASSPHRASE
@hub_options
def backup(file: Path, passphrase_file: Path | None, kubeconfig: Path | None, data: Path | None) -> None:
    """Write everything that a hub knows, as of one moment, to FILE. The hub goes on meanwhile.

    Secrets stay encrypted in it. With --passphrase-file the hub's keys go in too, sealed by the passphrase; without it
    they do not, and whoever restores the backup needs them.

    \b
    Example: nemo backup monday.nemo --passphrase-file passphrase
    """
    from metaos.cli.upkeep import take_backup

    click.echo(take_backup(file, passphrase_file, kubeconfig, data or default_data("hub")))


@nemo.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The hub's new data directory.")
@PASSPHRASE
@click.option(
    "--keys",
    type=click.Path(exists=True, path_type=Path),
    help="Directory with the hub's keys.json and pki/.",
)
def restore(file: Path, data: Path, passphrase_file: Path | None, keys: Path | None) -> None:
    """Make a hub's data directory of the backup in FILE.

    \b
    Example: nemo restore monday.nemo --data ./hub-2 --passphrase-file passphrase; nemo up --data ./hub-2
    """
    from metaos.cli.upkeep import restore

    click.echo(restore(file, data, passphrase_file, keys))


@nemo.group()
def volume() -> None:
    """Volumes that are backed up, and bringing one back.

    \b
    Example: nemo volume list -n shop
    """


@volume.command("list")
@NAMESPACE
@OUTPUT
@hub_options
def volume_list(namespace: str, output: str, kubeconfig: Path | None, data: Path | None) -> None:
    """Show to which moment each volume can be brought back, and what is wrong.

    \b
    Example: nemo volume list -n shop
    """
    from metaos.cli.volumes import show

    show(namespace, output, kubeconfig, data or default_data("hub"))


@volume.command("restore")
@click.argument("claim")
@click.option("--from", "backup", default="", metavar="BACKUP", help="Which backup [default: the newest].")
@click.option("--at", default="", metavar="TIME", help="The newest backup that is not younger, for example 2026-12-01T03:00:00Z.")
@click.option("--unlisted", is_flag=True, help="Ask for a backup that is not listed, as it is sealed with another key.")
@click.option(
    "--wait", type=click.FloatRange(0, 86400), default=60.0, show_default=True, help="So many seconds until it is done."
)
@NAMESPACE
@OUTPUT
@hub_options
def volume_restore(
    claim: str,
    backup: str,
    at: str,
    unlisted: bool,
    wait: float,
    namespace: str,
    output: str,
    kubeconfig: Path | None,
    data: Path | None,
) -> None:
    """Bring volume CLAIM back from a backup, at the site where its workload is. Scale that to 0 before.

    What lies there now is kept beside it, until the next time.

    \b
    Example: nemo volume restore data-db-0 -n shop --at 2026-12-01T03:00:00Z
    """
    from metaos.cli.volumes import bring_back

    bring_back(claim, backup, at, wait, namespace, output, kubeconfig, data or default_data("hub"), unlisted=unlisted)


@nemo.command()
@OUTPUT
def doctor(output: str) -> None:
    """Find what this machine lacks, and say what to do.

    \b
    Example: nemo doctor
    """
    from metaos.cli.doctor import examine

    sys.exit(examine(output))


for part in (twin, carbon, cost, ledger, login, token, device, ca, keys_group, intent, image):
    nemo.add_command(part)


def main() -> None:
    """Runs the command; a mistake of the user's is a message and an exit code, never a traceback."""
    from metaos.resources.errors import ApiError

    try:
        nemo(prog_name="kubectl nemo" if Path(sys.argv[0]).name == "kubectl-nemo" else "nemo")
    except ApiError as error:
        click.echo(f"error: {error.message}", err=True)
        sys.exit(3 if error.code == 404 else 1)
    except OSError as error:
        click.echo(f"error: {error.filename}: {error.strerror}" if error.filename else f"error: {error}", err=True)
        sys.exit(1)
    except ValueError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
