"""The device flow's decisions, and sessions: what is wrong is said with its remedy, and nothing is renewed twice."""

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaos.cli import login
from metaos.cli.login import Session, credential, judge


@given(st.floats(1, 60), st.integers(100, 599), st.dictionaries(st.sampled_from(["error", "id_token", "x"]), st.text(max_size=9)))
def test_whatever_a_provider_says_is_a_wait_tokens_or_words(interval: float, status: int, said: dict[str, Any]) -> None:
    try:
        wait = judge(status, said, interval)
    except ValueError as wrong:
        assert str(wrong)
        return
    assert (wait is None) == (status == 200) and (wait is None or interval <= wait <= interval + 5)


def test_a_provider_that_asks_for_patience_gets_it() -> None:
    assert judge(400, {"error": "authorization_pending"}, 5) == 5
    assert judge(400, {"error": "slow_down"}, 5) == 10
    for error in ("access_denied", "expired_token", "invalid_grant"):
        with pytest.raises(ValueError, match="you are not logged in"):
            judge(400, {"error": error}, 5)


def token(until: float) -> str:
    return f"e30.{base64.urlsafe_b64encode(json.dumps({'exp': until}).encode()).decode()}.x"


def test_a_token_is_renewed_once_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, renewals = tmp_path / "ann.session", []

    async def renewed(session: Session) -> Session:
        renewals.append(session.refresh_token)
        return Session("i", "c", "", token(time.time() + 600), "next")

    monkeypatch.setattr(login, "_renewed", renewed)
    Session("i", "c", "", token(time.time() + 10), "first").write(file)
    assert file.stat().st_mode & 0o77 == 0
    found = [credential(file) for _ in range(3)]
    assert renewals == ["first"] and found[0] == found[2] and found[0]["kind"] == "ExecCredential"


def test_a_session_that_cannot_be_renewed_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "ann.session"
    with pytest.raises(ValueError, match="log in again"):
        credential(file)
    file.write_text("[]")
    with pytest.raises(ValueError, match="log in again"):
        credential(file)
    with pytest.raises(ValueError, match="run 'nemo login' again"):
        asyncio.run(login._renewed(Session("https://i", "c", "", "", "")))
    with pytest.raises(ValueError, match="must begin with https"):
        asyncio.run(login._ask("http://i", ""))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"issuer": "id.example.org"}, "--issuer 'id.example.org' must begin with https://"),
        ({"client_id": ""}, "--client-id is empty"),
        ({"issuer_ca": "nowhere"}, "nowhere cannot be read: No such file or directory"),
        ({"issuer_ca": "binary"}, "binary holds no PEM certificate"),
        ({"out": "hub.kubeconfig"}, "hub.kubeconfig is there and not of 'nemo login', so it is left alone"),
        ({"out": "binary"}, "binary is there and not of 'nemo login'"),
        ({"out": "ann.session"}, "is where the session would lie"),
        ({"out": "binary/ann.kubeconfig"}, "cannot be written: "),
        ({"out": "ann.kubeconfig"}, "cannot reach the provider .* Connection refused; .* --issuer-ca"),
    ],
)
def test_what_cannot_end_well_is_refused_before_anybody_logs_in(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    hub = tmp_path / "hub.kubeconfig"
    admin = hub_config()
    hub.write_text(admin)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    asked: dict[str, Any] = {"issuer": "https://127.0.0.1:1", "client_id": "nemo", "issuer_ca": None, "out": "ann.kubeconfig"}
    asked |= changed
    for name in ("issuer_ca", "out"):
        asked[name] = asked[name] and tmp_path / asked[name]
    with pytest.raises(ValueError, match=said):
        login.login(**asked, scope="openid", kubeconfig=hub, data=tmp_path, show=print)
    assert hub.read_text() == admin


def hub_config() -> str:
    ca = base64.b64encode(b"-----BEGIN CERTIFICATE-----").decode()
    named = {"name": "nemo"}
    config = {
        "current-context": "nemo",
        "clusters": [named | {"cluster": {"server": "https://hub", "certificate-authority-data": ca}}],
        "users": [named | {"user": {"token": "t"}}],
        "contexts": [named | {"context": {"cluster": "nemo", "user": "nemo"}}],
    }
    return json.dumps(config)
