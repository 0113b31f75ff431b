"""Kubeconfigs: every way to say who one is, and what is wrong with those that cannot be used."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from aiohttp import web

from metaos.clock import SystemClock
from metaos.members.credentials import ExecPlugin, Oidc, TokenFile, token_end
from metaos.members.kubeconfig import Access, KubeconfigError, in_cluster, read
from metaos.members.member import Member, read_access
from metaos.resources.errors import ApiError
from metaos.resources.meta import format_time
from metaos.security.identity import Authority
from tests.apiserver.serving import served
from tests.clock import FakeClock


def document(user: dict[str, Any], **cluster: Any) -> dict[str, Any]:
    return {
        "clusters": [{"name": "c", "cluster": {"server": "https://k:6443/", **cluster}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "one",
    }


def test_each_way_is_read(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("KEY")
    pem = base64.b64encode(b"CERT").decode()
    certified = read(document({"client-certificate-data": pem, "client-key": "key.pem"}), "", tmp_path)
    assert (certified.server, certified.certificate, certified.key) == ("https://k:6443", "CERT", "KEY")
    assert read(document({"token": "t"}), "one", tmp_path).token == "t"
    assert read(document({"tokenFile": "t"}), "", tmp_path).token_file == str(tmp_path / "t")
    assert read(document({"exec": {"command": "./plugin"}}), "", tmp_path).exec["command"] == str(tmp_path / "plugin")
    assert read(document({"exec": {"command": "aws"}}), "", tmp_path).exec["command"] == "aws"
    oidc = {"auth-provider": {"name": "oidc", "config": {"idp-issuer-url": "https://i"}}}
    assert read(document(oidc), "", tmp_path).oidc == {"idp-issuer-url": "https://i"}
    assert read(document({}, **{"tls-server-name": "n", "insecure-skip-tls-verify": True}), "", tmp_path) == Access(
        "https://k:6443", insecure=True, server_name="n"
    )


@pytest.mark.parametrize(
    ("user", "cluster", "context", "said"),
    [
        ({}, {}, "two", "no context 'two'; there are: one"),
        ({}, {"server": "k:6443"}, "", "must be a URL"),
        ({}, {"proxy-url": "http://p"}, "", "proxy-url is not supported"),
        ({"as": "admin"}, {}, "", "users[].user.as is not supported (impersonation)"),
        ({"username": "u", "password": "p"}, {}, "", "since 1.19"),
        ({"auth-provider": {"name": "gcp"}}, {}, "", "'gcp' is not supported"),
        ({"client-certificate-data": "!"}, {}, "", "is not PEM in base64"),
        ({"client-key": "nowhere"}, {}, "", "client-key cannot be read"),
        ({"client-key-data": "eA=="}, {}, "", "belong together"),
        ({"exec": {"args": ["x"]}}, {}, "", "exec.command is missing"),
        ({"exec": {"command": "x", "provideClusterInfo": True}}, {}, "", "provideClusterInfo is not supported"),
        ({"exec": {"command": "x", "env": [{"value": "v"}]}}, {}, "", "exec.env must be a list"),
        ({}, {"certificate-authority": "/dev/null"}, "", "is empty"),
        ({}, {"certificate-authority-data": "eA==", "insecure-skip-tls-verify": True}, "", "exclude each other"),
    ],
)
def test_what_cannot_be_used_says_which_field_and_why(
    user: dict[str, Any], cluster: dict[str, Any], context: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(KubeconfigError) as caught:
        read(document(user, **cluster), context, tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize("wrong", [None, [], {}, {"clusters": []}, "text"])
def test_other_files_are_no_kubeconfig(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(KubeconfigError):
        read(wrong, "", tmp_path)


def test_a_pod_finds_its_own_account(tmp_path: Path) -> None:
    with pytest.raises(KubeconfigError, match="--kubeconfig"):
        in_cluster({}, tmp_path)
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_text("CA")
    found = in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, tmp_path)
    assert (found.server, found.ca, found.token_file) == ("https://[fd00::1]:6443", "CA", str(tmp_path / "token"))


async def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("a: [")
    with pytest.raises(KubeconfigError, match="it is not YAML"):
        await read_access(path, "")


async def test_a_token_file_is_read_again(tmp_path: Path) -> None:
    clock, path = FakeClock(), tmp_path / "token"
    found = TokenFile(path, clock)
    with pytest.raises(ApiError, match="cannot be read"):
        await found.token()
    path.write_text("one\n")
    assert await found.token() == "one"
    path.write_text("two")
    assert await found.token() == "one"
    found.refused()
    assert await found.token() == "two"


def plugin(folder: Path, status: dict[str, Any]) -> dict[str, Any]:
    """A real one, which counts how often it was run."""
    code = (
        "import json, os, pathlib; p = pathlib.Path(os.environ['COUNT']); n = p.read_text() + 'x'; p.write_text(n);"
        "assert json.loads(os.environ['KUBERNETES_EXEC_INFO'])['kind'] == 'ExecCredential';"
        f"print(json.dumps({{'kind': 'ExecCredential', 'status': {status!r}}}))"
    )
    (folder / "count").write_text("")
    return {"command": sys.executable, "args": ["-c", code], "env": [{"name": "COUNT", "value": str(folder / "count")}]}


async def test_an_exec_plugin_is_asked_again_when_its_token_ends_or_is_refused(tmp_path: Path) -> None:
    clock = FakeClock()
    certified: list[tuple[str, str]] = []
    status = {
        "token": "t",
        "expirationTimestamp": format_time(clock.now() + 100),
        "clientCertificateData": "C",
        "clientKeyData": "K",
    }
    found = ExecPlugin(plugin(tmp_path, status), clock, lambda c, k: certified.append((c, k)))
    assert await asyncio.gather(found.token(), found.token()) == ["t", "t"] and certified == [("C", "K")]
    assert (tmp_path / "count").read_text() == "x"
    found.refused()
    for _ in range(3):
        await found.token()
    assert (tmp_path / "count").read_text() == "x", "many watches find out at once that it is refused"
    await clock.advance(10)
    await found.token()
    await found.token()
    assert (tmp_path / "count").read_text() == "xx"
    await clock.advance(90)
    await found.token()
    assert (tmp_path / "count").read_text() == "xxx"


async def test_an_exec_plugin_that_fails_is_not_run_for_everybody_who_asks(tmp_path: Path) -> None:
    clock, count = FakeClock(), tmp_path / "count"
    code = f"import pathlib; p = pathlib.Path({str(count)!r}); p.write_text(p.read_text() + 'x'); raise SystemExit('no login')"
    count.write_text("")
    found = ExecPlugin({"command": sys.executable, "args": ["-c", code]}, clock, lambda c, k: None)
    for expected in ("x", "x", "xx"):
        if expected == "xx":
            await clock.advance(10)
        with pytest.raises(ApiError, match="no login"):
            await found.token()
        assert count.read_text() == expected


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"command": "/nowhere/plugin", "installHint": "install it"}, "install it"),
        ({"command": sys.executable, "args": ["-c", "raise SystemExit('no login')"]}, "ended with 1: no login"),
        ({"command": sys.executable, "args": ["-c", "print('hello')"]}, "has not answered with an ExecCredential"),
        ({"command": "x", "apiVersion": "client.authentication.k8s.io/v1alpha1"}, "must be one of"),
    ],
)
async def test_an_exec_plugin_that_fails_says_how(stated: dict[str, Any], said: str) -> None:
    with pytest.raises(ApiError) as caught:
        await ExecPlugin(stated, FakeClock(), lambda c, k: None).token()
    assert said in caught.value.message and caught.value.code == 401


def jwt(ends: float) -> str:
    part = base64.urlsafe_b64encode(json.dumps({"exp": ends}).encode()).decode().rstrip("=")
    return f"h.{part}.s"


async def test_an_oidc_token_is_used_until_it_ends(tmp_path: Path) -> None:
    clock = FakeClock()
    found = Oidc({"id-token": jwt(clock.now() + 100)}, tmp_path / "kept", clock, Random(1))
    assert token_end(await found.token()) == clock.now() + 100
    await clock.advance(90)
    with pytest.raises(ApiError, match="no refresh-token"):
        await found.token()
    assert token_end("not one") == float("-inf")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"idp-issuer-url": "http://i"}, "must be an https URL"),
        ({"idp-issuer-url": "https://i", "idp-certificate-authority": "/nowhere"}, "cannot be renewed"),
        ({"idp-issuer-url": "https://i", "idp-certificate-authority-data": "!"}, "cannot be renewed"),
        ({"idp-issuer-url": "https://i", "idp-certificate-authority-data": "eA=="}, "cannot be renewed"),
    ],
)
async def test_an_oidc_provider_that_cannot_be_used_is_told_as_that(config: dict[str, str], said: str, tmp_path: Path) -> None:
    with pytest.raises(ApiError, match=said) as caught:
        await Oidc(config | {"refresh-token": "r"}, tmp_path / "kept", FakeClock(), Random(1)).token()
    assert caught.value.code == 401


async def test_a_server_that_is_no_kubernetes_is_told_as_that(tmp_path: Path) -> None:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>log in first</html>", content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    member = Member(Access(f"http://127.0.0.1:{runner.addresses[0][1]}"), None, "", tmp_path, SystemClock(), Random(1))
    try:
        await member.look()
        assert "something that is not JSON" in member.problem
    finally:
        await member.client.close()
        await runner.cleanup()


async def test_credentials_that_ended_are_told_as_that_and_new_ones_taken_up(tmp_path: Path) -> None:
    clock = SystemClock()
    async with served(tmp_path, clock) as hub:
        good = hub.kubeconfig(tmp_path)
        path = tmp_path / "config"
        pair = hub.pair("admin", "system:masters", lifetime=-1.0)
        text = yaml.safe_load(good.read_text())
        text["users"][0]["user"] = {
            "client-certificate-data": base64.b64encode(pair.certificate).decode(),
            "client-key-data": base64.b64encode(pair.key).decode(),
        }
        path.write_text(json.dumps(text))
        member = Member(await read_access(path, ""), path, "", tmp_path, clock, Random(1))
        await member.look()
        assert "client certificate ended at" in member.problem and "put a new kubeconfig in its place" in member.problem
        path.write_text(good.read_text())
        await member._read_again()
        await member.look()
        assert member.problem == "" and member.version.startswith("v1.")
        await member.client.close()


async def test_an_oidc_token_is_renewed_with_what_the_provider_gave_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider over TLS whose refresh tokens are good once, as RFC 9700 wants them."""
    monkeypatch.setattr("metaos.members.credentials.AGAIN_SECONDS", 0.0)
    clock = SystemClock()
    authority = Authority.create(Random(2), clock.now())
    pair = authority.issue_server(("127.0.0.1",), clock.now())
    (tmp_path / "server.pem").write_bytes(pair.certificate + pair.key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.pem")
    good, given = {"first"}, 0

    async def token(request: web.Request) -> web.Response:
        nonlocal given
        form = await request.post()
        if form.get("refresh_token") not in good or form.get("client_id") != "kubernetes":
            return web.json_response({"error": "invalid_grant"}, status=400)
        given += 1
        good.clear()
        good.add(f"next-{given}")
        return web.json_response({"id_token": jwt(clock.now() + 1000), "refresh_token": f"next-{given}"})

    async def configuration(request: web.Request) -> web.Response:
        return web.json_response({"issuer": url, "token_endpoint": f"{url}/token"})

    app = web.Application()
    app.router.add_post("/realm/token", token)
    app.router.add_get("/realm/.well-known/openid-configuration", configuration)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}/realm"
    stated = {
        "idp-issuer-url": url,
        "client-id": "kubernetes",
        "refresh-token": "first",
        "id-token": jwt(clock.now() - 5),
        "idp-certificate-authority-data": base64.b64encode(authority.pair.certificate).decode(),
    }
    try:
        found = Oidc(stated, tmp_path / "kept", clock, Random(1))
        assert token_end(await found.token()) > clock.now() + 900 and given == 1
        await found.token()
        assert given == 1
        again = Oidc(stated, tmp_path / "kept", clock, Random(1))
        again.refused()
        await again.token()
        assert given == 2, "the second run goes on with what the first was given"
        good.clear()
        again.refused()
        with pytest.raises(ApiError, match="invalid_grant"):
            await again.token()
    finally:
        await runner.cleanup()
