"""People log in at a real OpenID provider by the device flow, and kubectl and nemo act as them."""

from __future__ import annotations

import html
import re
import shutil
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.cookiejar import CookieJar
from pathlib import Path
from random import Random

import pytest
import yaml

from metaos.security.identity import Authority
from metaos.twin.processes import free_port, wait_for
from tests.ecosystem.conftest import PROGRAMS, Up
from tests.ecosystem.tools import Tools

pytestmark = [pytest.mark.slow, pytest.mark.system]
#: Less than what remains of a token when it is renewed: every command renews it.
ID_SECONDS = 20


class Provider:
    def __init__(self, tools: Tools, folder: Path) -> None:
        import time

        authority = Authority.create(Random(7), time.time())
        pair = authority.issue_server(("127.0.0.1",), time.time())
        port = free_port()
        self.url, self.ca = f"https://127.0.0.1:{port}", folder / "provider-ca.pem"
        self.ca.write_bytes(authority.pair.certificate)
        (folder / "provider.pem").write_bytes(pair.certificate)
        (folder / "provider.key").write_bytes(pair.key)
        self.context = ssl.create_default_context(cafile=str(self.ca))
        self._log = (folder / "provider.log").open("wb")
        command = [
            "node",
            PROGRAMS / "provider.mjs",
            tools.folder,
            port,
            folder / "provider.key",
            folder / "provider.pem",
            ID_SECONDS,
        ]
        self.process = subprocess.Popen(list(map(str, command)), stdout=self._log, stderr=self._log)
        wait_for("the provider", lambda: b"listening" in (folder / "provider.log").read_bytes(), 30)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self._log.close()

    def approve(self, address: str, name: str) -> None:
        """What a person does in a browser: follow the address, fill in what is asked."""
        browser = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=self.context), urllib.request.HTTPCookieProcessor(CookieJar())
        )
        answer = browser.open(address, timeout=10)
        for _ in range(8):
            page, where = answer.read().decode(), answer.geturl()
            form = re.search(r"<form[^>]*action=\"([^\"]+)\"(.*?)</form>", page, re.S)
            if form is None:
                assert "success" in page.lower(), page
                return
            fields = {}
            for tag in re.findall(r"<input[^>]*>", form[2]):
                found = dict(re.findall(r"(\w+)=\"([^\"]*)\"", tag))
                if "name" in found:
                    fields[found["name"]] = html.unescape(found.get("value", ""))
            fields |= {word: name for word in ("login", "password") if word in fields}
            body = urllib.parse.urlencode(fields).encode()
            answer = browser.open(urllib.parse.urljoin(where, html.unescape(form[1])), body, timeout=10)
        raise AssertionError("the provider asks for ever")


@pytest.fixture
def provider(tools: Tools, tmp_path: Path) -> Iterator[Provider]:
    made = Provider(tools, tmp_path)
    yield made
    made.stop()


@pytest.fixture
def hub(provider: Provider, tmp_path: Path) -> Iterator[Up]:
    config = {
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        "jwt": [
            {
                "issuer": {"url": provider.url, "audiences": ["nemo"], "certificateAuthority": provider.ca.read_text()},
                "claimMappings": {
                    "username": {"claim": "sub", "prefix": "people:"},
                    "groups": {"claim": "groups", "prefix": "people:"},
                },
            }
        ],
    }
    (tmp_path / "authentication.yaml").write_text(yaml.safe_dump(config))
    running = Up(tmp_path, "--no-local", "--authenticator", f"openid={tmp_path}/authentication.yaml")
    try:
        running.ready()
        yield running
    finally:
        running.stop()


def log_in(hub: Up, provider: Provider, name: str, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "metaos", "login", "--issuer", provider.url, "--client-id", "nemo"]
    command += ["--issuer-ca", str(provider.ca), "--kubeconfig", str(hub.kubeconfig), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stderr is not None
    assert "enter the code" in process.stderr.readline()
    provider.approve(process.stderr.readline().split()[-1], name)
    return process


def test_a_person_logs_in_and_acts_by_kubectl_and_nemo(hub: Up, provider: Provider, tmp_path: Path) -> None:
    hub.kubectl("create", "rolebinding", "dev", "--clusterrole=edit", "--group=people:dev", "-n", "default")
    out = tmp_path / "ann.kubeconfig"
    process = log_in(hub, provider, "ann", out)
    said, wrong = process.communicate(timeout=60)
    assert process.returncode == 0 and "You are logged in" in said, wrong
    assert out.stat().st_mode & 0o77 == 0 and out.with_suffix(".session").stat().st_mode & 0o77 == 0
    path = f"{Path(sys.executable).parent}:{Path(shutil.which('node') or '/').parent}:/usr/bin:/bin"

    def kubectl(*arguments: str, check: bool = True) -> str:
        binary = Path(sys.executable).with_name("kubectl")
        return hub.run(binary, *arguments, check=check, KUBECONFIG=str(out), PATH=path)

    who = kubectl("auth", "whoami", "-o", "json")
    assert '"people:ann"' in who and '"people:dev"' in who and "system:authenticated" in who
    kubectl("create", "configmap", "of-ann", "-n", "default")
    assert "forbidden" in kubectl("get", "nodes", check=False)
    before = out.with_suffix(".session").read_text()
    kubectl("get", "configmap", "of-ann", "-n", "default")
    assert out.with_suffix(".session").read_text() != before, "the token was not renewed"
    nemo = Path(sys.executable).with_name("nemo")
    assert "forbidden" in hub.run(nemo, "status", "--kubeconfig", out, check=False, PATH=path).lower()
    # Nothing secret is in arguments, nor in the kubeconfig; and the audit log says who it was.
    assert "token" not in str(yaml.safe_load(out.read_text())["users"][0]["user"].get("token", ""))
    assert "people:ann" in (hub.data / "audit.log").read_text()
    assert yaml.safe_load(before)["id_token"] not in (tmp_path / "hub.log").read_text()
    provider.stop()
    assert "cannot reach the provider" in kubectl("get", "configmap", "of-ann", "-n", "default", check=False)


def test_a_personal_token_of_a_person_acts_with_less_and_is_revoked(hub: Up, provider: Provider, tmp_path: Path) -> None:
    hub.kubectl("create", "rolebinding", "dev", "--clusterrole=edit", "--group=people:dev", "-n", "default")
    out, nemo = tmp_path / "ann.kubeconfig", Path(sys.executable).with_name("nemo")
    process = log_in(hub, provider, "ann", out)
    assert process.communicate(timeout=60) and process.returncode == 0
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    made = hub.run(nemo, "token", "create", "--name", "ci", "--scopes", "read", "--kubeconfig", out, PATH=path).strip()
    (tmp_path / "ci.token").write_text(made)
    config = yaml.safe_load(out.read_text())
    config["users"][0]["user"] = {"tokenFile": str(tmp_path / "ci.token")}
    (tmp_path / "ci.kubeconfig").write_text(yaml.safe_dump(config))

    def kubectl(*arguments: str) -> str:
        binary = Path(sys.executable).with_name("kubectl")
        return hub.run(binary, *arguments, check=False, KUBECONFIG=str(tmp_path / "ci.kubeconfig"))

    assert '"people:ann"' in kubectl("auth", "whoami", "-o", "json")
    assert "No resources found" in kubectl("get", "pods", "-n", "default")
    assert "the personal token is for read only" in kubectl("create", "configmap", "a", "-n", "default")
    listed = hub.run(nemo, "token", "list", "--kubeconfig", out, PATH=path).splitlines()
    assert listed[1].split()[1:3] == ["ci", "read"] and "never" not in listed[1]
    hub.run(nemo, "token", "revoke", listed[1].split()[0], "--kubeconfig", out, PATH=path)
    assert "You must be logged in" in kubectl("get", "pods", "-n", "default") or "nauthorized" in kubectl("get", "pods")
    assert made not in (tmp_path / "hub.log").read_text() + (hub.data / "audit.log").read_text()
