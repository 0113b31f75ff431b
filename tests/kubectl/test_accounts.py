"""The real kubectl: tokens of ServiceAccounts, and acting as somebody else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metaos.resources import scheme
from tests.apiserver.serving import ServedHub
from tests.kubectl.conftest import Kubectl

pytestmark = pytest.mark.system
READER = ["--verb=get,list", "--resource=configmaps"]


async def test_a_token_does_what_its_account_may(hub: ServedHub, kubectl: Kubectl, tmp_path: Path) -> None:
    await hub.make(scheme.SERVICE_ACCOUNT.empty("robot", "default"))
    await kubectl("create", "role", "reader", *READER)
    await kubectl("create", "rolebinding", "reader", "--role=reader", "--serviceaccount=default:robot")
    token = (await kubectl("create", "token", "robot", "--duration=20m")).strip()
    bare = tmp_path / "robot.kubeconfig"
    bare.write_text((tmp_path / "admin.kubeconfig").read_text())
    robot = Kubectl(bare, tmp_path)
    await kubectl("config", "view", "--raw", "-o", "json")
    config = json.loads(await robot("config", "view", "--raw", "-o", "json"))
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    bare.write_text(json.dumps(config))
    assert "system:serviceaccount:default:robot" in await robot("auth", "whoami")
    assert "No resources found" in (await robot.run("get", "configmaps"))[2]
    code, _, err = await robot.run("get", "secrets")
    assert code and 'User "system:serviceaccount:default:robot" cannot list resource "secrets"' in err
    await kubectl("delete", "serviceaccount", "robot")
    code, _, err = await robot.run("get", "configmaps")
    assert code and "logged in" in err


@pytest.mark.slow
async def test_acting_as_somebody_else(hub: ServedHub, kubectl: Kubectl, tmp_path: Path) -> None:
    await kubectl("create", "role", "reader", *READER)
    await kubectl("create", "rolebinding", "reader", "--role=reader", "--user=jane", "--group=readers")
    assert "no" in (await kubectl.run("auth", "can-i", "list", "secrets", "--as=jane"))[1]
    assert "yes" in await kubectl("auth", "can-i", "list", "configmaps", "--as=jane")
    assert "yes" in await kubectl("auth", "can-i", "list", "configmaps", "--as=x", "--as-group=readers")
    shown = json.loads(await kubectl("auth", "whoami", "-o", "json", "--as=jane", "--as-uid=7", "--as-user-extra=team=blue"))
    assert shown["status"]["userInfo"] == {
        "username": "jane",
        "uid": "7",
        "groups": ["system:authenticated"],
        "extra": {"team": ["blue"]},
    }
    await kubectl("create", "clusterrole", "as-jane", "--verb=impersonate", "--resource=users", "--resource-name=jane")
    await kubectl("create", "clusterrolebinding", "as-jane", "--clusterrole=as-jane", "--user=bob")
    bob = Kubectl(hub.kubeconfig(tmp_path, "bob", "people"), tmp_path)
    assert "No resources" in (await bob.run("get", "configmaps", "--as=jane"))[2]
    code, _, err = await bob.run("get", "configmaps", "--as=jane", "--as-group=admins")
    assert code and 'cannot impersonate resource "groups"' in err
    code, _, err = await bob.run("get", "configmaps", "--as=jane", "--as-uid=7")
    assert code and 'cannot impersonate resource "uids" in API group "authentication.k8s.io"' in err
    made = [e for e in hub.audit if e.get("impersonated") == "jane"]
    assert not made  # Reads are not noted.
    await bob.run("create", "configmap", "x", "--as=jane")
    assert [e["user"] for e in hub.audit if e.get("impersonated") == "jane"] == ["bob"]
