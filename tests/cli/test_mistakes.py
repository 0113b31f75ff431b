"""Every nemo command with every kind of mistake: a message that says what and what to do, an exit code, never a traceback."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from metaos.cli.main import main, nemo
from metaos.clock import SystemClock
from metaos.resources import scheme
from metaos.resources.errors import ApiError
from metaos.security.identity import Authority
from tests.apiserver.serving import ServedHub, served

#: What a command needs besides options, in its own words.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "agent": ("--hub", "https://127.0.0.1:1", "--site", "{folder}/site.yaml"),
    "backup": ("{folder}/backup",),
    "bus config": ("nats-1", "--listen", "127.0.0.1:4222", "--cluster", "127.0.0.1:6222"),
    "bus revoke": ("edge",),
    "bus leaf": ("edge", "default", "--hub", "127.0.0.1:7422"),
    "cluster add": ("edge", "--kubeconfig", "{folder}/away"),
    "cluster remove": ("edge",),
    "device add": ("lamp",),
    "device claim": ("line", "--count", "5"),
    "device command": ("lamp", "blink"),
    "device credentials": ("lamp",),
    "device import": ("{folder}/devices.csv", "--out", "{folder}/out.jsonl"),
    "device quarantine": ("lamp",),
    "device release": ("lamp",),
    "device remove": ("lamp",),
    "image import": ("{folder}/text.yaml",),
    "image remove": ("none:1",),
    "intent export": ("fast",),
    "intent import": ("{folder}/text.yaml",),
    "join-token": ("edge",),
    "ledger archive": ("{folder}/archive", "--before", "1d"),
    "ledger export": ("{folder}/export",),
    "ledger verify": ("{folder}/text.yaml",),
    "kubeconfig": ("--user", "ann"),
    "login": ("--issuer", "https://127.0.0.1:1", "--client-id", "nemo", "--out", "{folder}/out"),
    "migrate-store": ("--store", "{folder}/text.yaml"),
    "plan": ("--drain", "edge"),
    "restore": ("{folder}/text.yaml",),
    "revoke": ("ann",),
    "token create": ("--name", "ci", "--scopes", "read"),
    "token revoke": ("0123456789ab",),
    "token get": ("--session", "{folder}/text.yaml"),
    "twin from-live": ("{folder}/scenario.yaml",),
    "volume restore": ("data-db-0", "--wait", "0"),
    "why": ("deployment/web",),
}
#: Those that print for people only, or one format of their own.
ONE_FORM = {"agent", "up", "backup", "restore", "revoke", "kubeconfig", "intent export", "intent import", "twin from-live"}
ONE_FORM |= {"ledger receipts", "cluster add", "cluster remove"}
ONE_FORM |= {"bus config", "bus leaf"}
ONE_FORM |= {"login", "token get", "token revoke"}

CONFIG = """
apiVersion: v1
kind: Config
current-context: c
clusters: [{name: c, cluster: {server: "SERVER"}}]
users: [{name: u, user: USER}]
contexts: [{name: c, context: {cluster: c, user: u}}]
"""


def leaves(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, found in command.commands.items():
            yield from leaves(found, f"{path} {name}".strip())
    else:
        yield path, command


COMMANDS = dict(leaves(nemo))
#: Those that ask a hub. These commands' kubeconfigs are of another cluster.
_OTHERS = ("agent", "cluster add")
ASKING = sorted(path for path, c in COMMANDS.items() if path not in _OTHERS and any("--kubeconfig" in p.opts for p in c.params))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With files that are not what they should be."""
    monkeypatch.setattr("metaos.config.set_up_logging", lambda **_: None)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "broken.yaml").write_text("not: [valid")
    (tmp_path / "text.yaml").write_text('"a text"')
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0\1" * 40)
    (tmp_path / "devices.csv").write_text("name\nlamp\n")
    (tmp_path / "directory").mkdir()
    (tmp_path / "site.yaml").write_text("{apiVersion: meta-os.eu/v1alpha1, kind: Cluster, metadata: {name: x}, spec: {}}")
    kubeconfig(tmp_path, "away", "https://127.0.0.1:1")
    mask = os.umask(0o022)
    yield tmp_path
    os.umask(mask)


def kubeconfig(folder: Path, name: str, server: str, user: str = "{}") -> Path:
    path = folder / name
    path.write_text(CONFIG.replace("SERVER", server).replace("USER", user))
    return path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["nemo", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


class Said:
    """The outcome of a command."""

    def __init__(self, code: Any, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def refused(self, *parts: str, code: int = 1) -> None:
        assert self.code == code, (self.code, self.err)
        assert "Traceback" not in self.err and "[Errno" not in self.err and self.out == "", self.err
        for part in parts:
            assert part in self.err, self.err


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command by its path, with what it needs."""

    def go(path: str, *options: str, needs: bool = True) -> Said:
        arguments = [a.replace("{folder}", str(folder)) for a in (ARGUMENTS.get(path, ()) if needs else ())]
        code = call(monkeypatch, *path.split(), *arguments, *options)
        return Said(code, *capsys.readouterr())

    return go


@pytest.mark.parametrize("path", [*COMMANDS, "intent", "image", "keys", "ca", "ledger", "cluster", "token", "device", "volume"])
def test_help_has_an_example(path: str, run: Any) -> None:
    said = run(path, "--help", needs=False)
    assert said.code == 0 and "Example" in said.out and f"nemo {path.split()[0]}" in said.out.partition("Example")[2]


def test_what_prints_data_prints_it_for_programs(run: Any) -> None:
    for path, command in COMMANDS.items():
        assert (path in ONE_FORM) != any("--output" in p.opts for p in command.params), path
    assert run("version", "-o", "json").out.startswith('{\n  "version"') and "python:" in run("version", "-o", "yaml").out


@pytest.mark.parametrize("path", COMMANDS)
def test_a_wrong_command_line(path: str, run: Any) -> None:
    run(path, "--nothing").refused("No such option", "--help", code=2)
    if ARGUMENTS.get(path) and path != "kubeconfig":
        run(path, needs=False).refused("Missing", "--help", code=2)


@pytest.mark.parametrize("path", ASKING)
def test_a_kubeconfig_that_is_none(path: str, run: Any, folder: Path) -> None:
    for name, said in {
        "missing": "missing does not exist: print one with 'nemo kubeconfig",
        "broken.yaml": "is not YAML: line 1: expected ',' or ']'",
        "text.yaml": "is no kubeconfig: print one",
        "empty.yaml": "has no current-context: choose one with 'kubectl config use-context",
        "binary": "is no kubeconfig",
        "directory": "cannot be read: Is a directory",
    }.items():
        run(path, "--kubeconfig", str(folder / name)).refused(said)
    run(path, "--data", str(folder / "directory")).refused(f"no hub found at {folder / 'directory'}: start one with 'nemo up")


def test_a_data_directory_that_is_named_is_meant_whatever_the_environment_says(
    run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(folder / "broken.yaml"))
    run("status").refused("broken.yaml is not YAML")
    run("status", "--data", str(folder / "directory")).refused(f"no hub found at {folder / 'directory'}")
    run("status", "--data", str(folder), "--kubeconfig", str(folder / "text.yaml")).refused("text.yaml is no kubeconfig")


@pytest.mark.parametrize("path", ASKING)
def test_a_hub_that_is_not_there(path: str, run: Any, folder: Path) -> None:
    # Some pin the authority, or read a file, before they ask.
    authority = Authority.create(__import__("random").Random(1), SystemClock().now()).pair.certificate
    (folder / "ca.pem").write_bytes(authority)
    with_ca = (
        kubeconfig(folder, "ca", "https://127.0.0.1:1")
        .read_text()
        .replace('"}}]', f'", certificate-authority: {folder}/ca.pem}}}}]')
    )
    (folder / "ca").write_text(with_ca)
    run(path, "--kubeconfig", str(folder / "ca")).refused(
        f"cannot reach the {'provider' if path == 'login' else 'hub'} at https://127.0.0.1:1"
    )


def test_a_kubeconfig_with_a_mistake(run: Any, folder: Path) -> None:
    def refused(said: str, server: str = "https://127.0.0.1:1", user: str = "{}") -> None:
        run("status", "--kubeconfig", str(kubeconfig(folder, "wrong", server, user))).refused(said)

    refused("hub address 'nonsense' must be a URL such as https://", server="nonsense")
    refused("names no server", server="")
    refused("cannot reach the hub", server="https://no-such-host.invalid")
    refused("client-certificate is not PEM text in base64", user="{client-certificate-data: '!', client-key-data: '!'}")
    refused("client-key /nowhere cannot be read", user="{client-key: /nowhere}")
    refused("its certificates cannot be used", user=f"{{client-certificate: {folder}/text.yaml, client-key: {folder}/text.yaml}}")
    refused("its user acts as 'ann', which is kubectl's alone", user="{as: ann, token: t}")
    refused("its user comes by auth-provider, which is kubectl's alone", user="{auth-provider: {name: oidc}}")
    refused("exec plugin /nowhere cannot be run", user="{exec: {command: /nowhere}}")
    refused("tokenFile /nowhere cannot be read: No such file", user="{tokenFile: /nowhere}")
    refused("binary must hold one token, as 'nemo token create' prints it", user="{tokenFile: binary}")


def test_values_that_make_no_sense(run: Any, folder: Path) -> None:
    away = ("--kubeconfig", str(folder / "away"))
    run("why", "web", *away, needs=False).refused("must be KIND/NAME with one of deployment", code=2)
    run("why", "banana/web", *away, needs=False).refused("for example deployment/web", code=2)
    run("status", "--watch", "-o", "json").refused("repeat 'nemo status -o json'", code=2)
    run("join-token", "Not A Name", *away, needs=False).refused("must be lower-case letters", code=2)
    for senseless in ("nan", "inf", "1e12"):
        run("join-token", "edge", "--lifetime", senseless, *away, needs=False).refused("'--lifetime'", code=2)
    for option, path in (
        ("--lifetime", "join-token"),
        ("--autoscale-interval", "up"),
        ("--lease-duration", "up"),
        ("--heartbeat", "agent"),
    ):
        run(path, option, "-1").refused("is not in the range", code=2)
    run("version", "-o", "xml").refused("'xml' is not one of", code=2)
    # Credentials are shown once: where they cannot be written nothing is asked for.
    for path in ("device add", "device credentials", "device import"):
        for out in ("nowhere/x.json", "directory"):
            run(path, *away, "--out", str(folder / out)).refused(f"--out '{folder / out}' cannot be written")
        there = run(path, *away, "--out", str(folder / "text.yaml"))
        there.refused("--out", "text.yaml' is there already: name another file, or replace it with --force", code=2)
        run(path, *away, "--force", "--out", str(folder / "text.yaml")).refused("127.0.0.1:1")
    there = run("device claim", *away, "--certificate", str(folder / "text.yaml"))
    there.refused("--certificate", "is there already", code=2)
    assert (folder / "text.yaml").read_text() == '"a text"'
    for path, option, value in (
        ("device add", "--label", "floor"),
        ("device claim", "--label", "floor"),
        ("device claim", "--expires", "30x"),
        ("device command", "--arguments", "{x"),
    ):
        run(path, *away, option, value).refused(f"{option}: {value!r} must be", code=2)
    run("volume restore", "data-db-0", "--at", "noon", *away, needs=False).refused("--at 'noon' is no time")


def test_a_hub_that_cannot_start(run: Any, folder: Path) -> None:
    alone = ("--no-local", "--data", str(folder / "hub"))
    run("up", "--listen", "nonsense", *alone).refused("must be HOST:PORT", code=2)
    run("up", "--listen", "192.0.2.1:80", *alone).refused("cannot listen on 192.0.2.1:80", "choose another with --listen")
    run("up", "--carbon-trace", str(folder / "broken.yaml"), "--listen", "127.0.0.1:0", *alone).refused("must be 'hour_utc'")
    run("up", "--carbon-source", "tea=1", *alone).refused("'tea' in 'tea=1' is not installed", "static", code=2)
    run("up", "--carbon-source", "static", "--carbon-feed", "watttime", *alone).refused("a site has one source", code=2)
    run("up", "--price-source", "static=1", "--listen", "127.0.0.1:0", *alone).refused("it takes nothing")
    run("up", "--hub-key", str(folder / "binary"), *alone).refused(
        "--hub-key is of hubs that share a database: say --store", code=2
    )
    run("up", "--no-local", "--data", str(folder / "text.yaml")).refused(
        "cannot be used: File exists; choose another with --data"
    )
    (folder / "hub/version").write_text("999\n")
    run("up", *alone).refused("written by a newer release")


def test_a_device_that_does_not_answer(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any) -> None:
        raise ApiError(504, "Timeout", "device lamp is offline: say queueSeconds to have the command wait for it")

    monkeypatch.setattr("metaos.cli.devices._asked", asked)
    found = run("device command", "--wait", "--kubeconfig", str(folder / "away"))
    found.refused("device lamp is offline: without --wait the command waits for the device, up to 24 h")
    assert "queueSeconds" not in found.err


@pytest.mark.parametrize("data", ["edge", "./edge", "../edge"])
def test_an_agents_processes_find_its_data(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    given: list[Any] = []

    def ran(config: Any) -> int:
        given.append(config)
        return 0

    monkeypatch.setattr("metaos.agent.agent.main", ran)
    monkeypatch.chdir(folder / "directory")
    assert run("agent", "--hub", "https://h:1", "--site", str(folder / "site.yaml"), "--data", data, needs=False).code == 0
    assert given[0].data == folder / "directory" / data and given[0].data.is_absolute()


def test_an_agent_that_cannot_start(run: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file, said in (("broken.yaml", "is not YAML"), ("text.yaml", "must hold one Cluster"), ("empty.yaml", "Cluster")):
        caplog.clear()
        found = run(
            "agent", "--hub", "https://127.0.0.1:1", "--site", str(folder / file), "--data", str(folder / "a"), needs=False
        )
        assert found.code == 5 and said in caplog.text and file in caplog.text and "Traceback" not in caplog.text


def test_an_agent_of_a_cluster_that_cannot_start(run: Any, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = folder / "site.yaml"
    base = ["agent", "--hub", "https://127.0.0.1:1", "--site", str(site), "--data", str(folder / "k")]
    run(*base, "--kubeconfig", str(folder / "text.yaml"), needs=False).refused("say --runtime kubernetes", code=2)
    wrong = "apiVersion: meta-os.eu/v1alpha1\nkind: Cluster\nmetadata: {name: k}\nspec: {runtime: RUNTIME}\n"
    for runtime, file, code, said in (
        ("kubernetes", "broken.yaml", 5, "it is not YAML"),
        ("kubernetes", "text.yaml", 5, "it is no kubeconfig"),
        ("sandbox", "text.yaml", 5, "make them agree"),
    ):
        caplog.clear()
        site.write_text(wrong.replace("RUNTIME", runtime))
        found = run(*base, "--runtime", "kubernetes", "--kubeconfig", str(folder / file), needs=False)
        assert found.code == code and said in caplog.text and "Traceback" not in caplog.text
    caplog.clear()
    site.write_text(wrong.replace("RUNTIME", "kubernetes"))
    assert run(*base, needs=False).code == 5 and "start the agent with --runtime kubernetes" in caplog.text


def test_files_that_are_something_else(run: Any, folder: Path) -> None:
    for file, why in (
        ("text.yaml", "no archive"),
        ("binary", "no archive"),
        ("directory", "neither a docker archive nor an OCI"),
    ):
        said = run("image", "import", str(folder / file), "--data", str(folder / "site"), needs=False)
        said.refused(file, why)
    run("image import", "--data", str(folder / "text.yaml")).refused("text.yaml")
    run("image remove", "--data", str(folder / "site")).refused("none:1 is not on this site")
    assert "no image was imported" in run("image list", "--data", str(folder / "site")).out
    run("intent", "import", str(folder / "broken.yaml"), needs=False).refused("the file is not JSON")
    run("intent", "import", str(folder / "binary"), needs=False).refused("the file is not JSON")
    run("intent import").refused("must be a JSON object")
    run("intent", "import", str(folder / "missing"), needs=False).refused("No such file", code=2)


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[ServedHub]:
    (tmp_path / "served").mkdir()
    async with served(tmp_path / "served", SystemClock()) as running:
        yield running


async def test_a_hub_that_refuses(hub: ServedHub, run: Any, folder: Path) -> None:
    async def said(*arguments: str) -> Said:
        found: Said = await asyncio.to_thread(run, *arguments)
        return found

    admin = hub.kubeconfig(folder)
    for path, code in (("why", 3), ("intent export", 3), ("volume restore", 3), ("device remove", 3)):
        (await said(path, "--kubeconfig", str(admin))).refused(code=code)
    pod = {"runtimeClassName": "micropython", "containers": [{"name": "main", "image": "micropython"}]}
    labels = {"app": "blink"}
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    client = hub.client()
    await client.create({**scheme.DEPLOYMENT.empty("blink", "default"), "spec": spec})
    store = {"workload": {"kind": "StatefulSet", "name": "db"}, "storeRef": {"name": "eu"}}
    made = await client.create({**scheme.BACKUP_SCHEDULE.empty("db", "default"), "spec": store})
    problem = {"type": "BackedUp", "status": "False", "reason": "NotPlaced", "message": "it is placed nowhere yet"}
    problem["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    rows = [{"claim": "data-db-0", "backups": ["20261201T030405Z-east", "20261202T030405Z-east"]}]
    await client.update({**made, "status": {"conditions": [problem], "volumes": rows}}, subresource="status")
    nosuch = ("volume restore", "data-db-0", "--from", "nosuch", "-n", "default", "--kubeconfig", str(admin))
    found = await asyncio.to_thread(run, *nosuch, needs=False)
    found.refused("has no backup 'nosuch': the newest are 20261201T030405Z-east, 20261202T030405Z-east; take one", code=3)
    made = await client.get(scheme.BACKUP_SCHEDULE, "db", "default")
    assert "restores" not in made["spec"], "nothing waits for it"
    await client.update({**made, "status": {"conditions": [problem]}}, subresource="status")
    on_devices = ("deployment/blink", "-n", "default", "--kubeconfig", str(admin))
    found = await asyncio.to_thread(run, "why", *on_devices, needs=False)
    found.refused("runs on devices, not on sites: see 'kubectl describe deviceset deployment-blink -n default'", code=3)
    assert "\ndb: it is placed nowhere yet" in (await said("volume list", "--kubeconfig", str(admin))).out
    nowhere = ("bus", "leaf", "edge", "nowhere", "--hub", "127.0.0.1:7422", "--kubeconfig", str(admin))
    (await asyncio.to_thread(run, " ".join(nowhere))).refused("there is no namespace 'nowhere': make it first", code=3)
    assert (await said("status", "--kubeconfig", str(admin))).code == 0
    nobody = str(hub.kubeconfig(folder, "nobody"))
    for path in ("status", "intent list", "why", "join-token"):
        (await said(path, "--kubeconfig", nobody)).refused("nobody")
    text = admin.read_text()
    ca = next(line for line in text.splitlines() if "certificate-authority-data" in line)
    other = Authority.create(__import__("random").Random(9), SystemClock().now())
    import base64

    strange = folder / "strange"
    strange.write_text(text.replace(ca.split()[-1], base64.b64encode(other.pair.certificate).decode()))
    (await said("status", "--kubeconfig", str(strange))).refused("cannot reach the hub", "certificate")
    expired = hub.authority.issue_client("admin", ("system:masters",), hub.clock.now() - 7200, 3600)
    from metaos.pki import render_kubeconfig

    old = folder / "expired"
    old.write_text(render_kubeconfig(hub.url, hub.authority.pair.certificate, expired.certificate, expired.key, "admin"))
    (await said("status", "--kubeconfig", str(old))).refused("expired")
    anonymous = folder / "anonymous"
    anonymous.write_text("\n".join(line for line in text.splitlines() if "client-" not in line).replace("user:", "user: {}", 1))
    (await said("status", "--kubeconfig", str(anonymous))).refused()
    # A personal token in a file beside the kubeconfig.
    made = json.loads((await said("token create", "-o", "json", "--kubeconfig", str(admin))).out)
    (folder / "ci.token").write_text(made["token"] + "\n")
    script = folder / "script"
    script.write_text(anonymous.read_text().replace("user: {}", "user: {tokenFile: ci.token}", 1))
    assert (await said("status", "--kubeconfig", str(script))).code == 0
    (await said("join-token", "--kubeconfig", str(script))).refused("the personal token is for read only")
    (await said("token list", "--kubeconfig", str(script))).refused("/tokens", "the personal token is for read only")
    (await said("token revoke", "--kubeconfig", str(admin))).refused("you have no personal token", "'nemo token list'", code=3)
