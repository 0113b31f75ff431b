"""What fields of a pod do, each by a real container that looks for itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from metaos.agent import memoryvolumes
from metaos.agent.containers import hostname
from metaos.agent.memoryvolumes import size
from metaos.resources.meta import Obj
from tests.agent.machine import container, workload
from tests.agent.test_real_pods import RealSite, running, shell, state
from tests.agent.test_real_pods import folder as folder

VOLUME: dict[str, Any] = {"volumes": [{"name": "v", "emptyDir": {}}]}


def mounted(path: str, **more: Any) -> dict[str, Any]:
    return {"volumeMounts": [{"name": "v", "mountPath": path, **more}]}


#: What it is about: (of the pod, of the container, script, its output).
LOOKS: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "short": ({"subdomain": "db"}, {}, "hostname; echo $HOSTNAME", "short short"),
    "named": ({"hostname": "other"}, {}, "hostname", "other"),
    "full": ({"subdomain": "db", "setHostnameAsFQDN": True}, {}, "hostname", "full.db.shop.svc.cluster.local"),
    "directory": ({}, {"workingDir": "/tmp/deep"}, "pwd", "/tmp/deep"),
    "ids": ({"securityContext": {"runAsUser": 7, "runAsGroup": 8}}, {}, "id -u; id -g", "7 8"),
    "own-id": ({"securityContext": {"runAsUser": 7}}, {"securityContext": {"runAsUser": 9}}, "id -u", "9"),
    "not-root": ({"securityContext": {"runAsUser": 7, "runAsNonRoot": True}}, {}, "id -u", "7"),
    "read-only": ({}, {"securityContext": {"readOnlyRootFilesystem": True}}, "touch /x 2>/dev/null || echo refused", "refused"),
    "part": (VOLUME, mounted("/part", subPath="a/b"), "touch /part/x; ls /part", "x"),
    "part-of-variable": (
        VOLUME,
        {"env": [{"name": "ME", "value": "me"}], **mounted("/part", subPathExpr="for/$(ME)")},
        "grep -o 'for/me /part' /proc/self/mountinfo",
        "for/me /part",
    ),
    "not-to-be-written": (VOLUME, mounted("/v", readOnly=True), "touch /v/x 2>/dev/null || echo refused", "refused"),
    "limits": (
        {},
        {
            "resources": {"limits": {"memory": "32Mi"}},
            "env": [{"name": "M", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}],
        },
        "echo $M",
        "32",
    ),
}


@pytest.fixture
async def site(folder: Path) -> Any:
    async with running(folder) as found:
        found.supervisor.volumes.memory = True
        yield found


def pod(name: str, template: dict[str, Any], *containers: dict[str, Any]) -> Obj:
    return workload(
        "Pod",
        name,
        template={"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, **template, "containers": list(containers)},
    )


def why(found: Obj) -> dict[str, Any]:
    """Why its container waits, where it says more than that it begins."""
    waiting: dict[str, Any] = (state(found).get("state") or {}).get("waiting") or {}
    return waiting if waiting.get("message") else {}


def ended(site: RealSite, names: Iterable[str]) -> bool:
    return all((site.pods().get(n) or {"status": {}})["status"].get("phase") in ("Succeeded", "Failed") for n in names)


@pytest.mark.system
async def test_each_does_what_it_says(site: RealSite) -> None:
    site.supervisor.set_desired([pod(name, of, shell(script, **more)) for name, (of, more, script, _) in LOOKS.items()])
    await site.until(lambda: ended(site, LOOKS))
    said = {name: " ".join((await site.log(name)).split()) for name in LOOKS}
    assert said == {name: output for name, (_, _, _, output) in LOOKS.items()}


@pytest.mark.system
async def test_who_may_not_be_root_does_not_start_as_root(site: RealSite) -> None:
    site.supervisor.set_desired([pod("root", {"securityContext": {"runAsNonRoot": True}}, shell("id -u"))])
    found = await site.until(lambda: "root" in site.pods() and why(site.pods()["root"]))
    assert found["reason"] == "CreateContainerError" and "runAsNonRoot and image will run as root" in found["message"]


@pytest.mark.system
async def test_last_words_and_restarts_by_exit_code(site: RealSite) -> None:
    again = [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]
    script = "[ -e /v/again ] && exit 3; touch /v/again; exit 42"
    site.supervisor.set_desired(
        [
            pod("path", {}, shell("echo bye > /tmp/why; exit 1", terminationMessagePath="/tmp/why")),
            pod("log", {}, shell("echo out; exit 1", terminationMessagePolicy="FallbackToLogsOnError")),
            pod("rules", VOLUME, shell(script, restartPolicy="Never", restartPolicyRules=again, **mounted("/v"))),
        ]
    )
    await site.until(lambda: ended(site, ("path", "log", "rules")))
    words = {n: state(p)["state"]["terminated"] for n, p in site.pods().items()}
    assert words["path"]["message"] == "bye\n" and words["log"]["message"] == "out\n"
    assert words["rules"]["exitCode"] == 3 and state(site.pods()["rules"])["restartCount"] == 1


@pytest.mark.system
async def test_a_volume_in_memory(site: RealSite) -> None:
    """Shared, kept over restarts, bounded, counted to the container's memory, and gone with the pod or at its end."""
    if memoryvolumes.problem():
        pytest.skip(memoryvolumes.problem())
    fast = {"volumes": [{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}]}
    write = "head -c {}000000 /dev/zero >/v/data 2>/dev/null || echo full; echo done >&2"
    site.supervisor.set_desired(
        [
            pod(
                "shared",
                fast | {"restartPolicy": "OnFailure"},
                shell(
                    "stat -f -c %T /v; [ -e /v/before ] || { touch /v/before; exit 1; }; echo kept; touch /v/go; sleep 1000",
                    **mounted("/v"),
                ),
                shell("while [ ! -e /v/go ]; do sleep 0.05; done; echo seen; sleep 1000", name="other", **mounted("/v")),
            ),
            pod("full", fast, shell(write.format(80) + "; stat -c %s /v/data", **mounted("/v"))),
            pod("much", fast, shell(write.format(60), resources={"limits": {"memory": "24Mi"}}, **mounted("/v"))),
        ]
    )
    await site.until(lambda: ended(site, ("full", "much")))
    assert (await site.log("full")).split() == ["full", "done", str(64 << 20)]
    if not any(found["type"] == "ResourceLimits" for found in site.runtime.conditions()):
        # What it may hold is at most what its pod's containers may have.
        assert "full" in await site.log("much") or state(site.pods()["much"])["state"]["terminated"]["reason"] == "OOMKilled"

    await site.until(lambda: state(site.pods()["shared"])["restartCount"] == 1)
    await site.until(lambda: not any(site.supervisor.volumes.memory_directory(f"uid-{n}").exists() for n in ("full", "much")))
    volumes = site.supervisor.volumes.memory_directory("uid-shared")
    assert os.path.ismount(volumes / "v")
    await site.stop()
    site.start()  # as an agent that was restarted
    site.supervisor.volumes.memory = True
    await site.until(lambda: "shared" in site.pods() and site.pods()["shared"]["status"]["phase"] == "Running")
    assert os.path.exists(volumes / "v" / "before") and (await site.log("shared", "other")).split() == ["seen"]
    assert (await site.log("shared")).split() == ["tmpfs", "kept"]
    site.supervisor.set_desired([])
    await site.until(lambda: not site.pods())
    assert not volumes.exists() and str(volumes) not in Path("/proc/self/mountinfo").read_text()


def test_how_large_a_volume_in_memory_is() -> None:
    def of(limit: str | None, *memory: str | None, machine: str = "1Gi") -> int:
        containers = [container(resources={"limits": {"memory": m}} if m else {}) for m in memory]
        return size(pod("p", {}, *containers), {"emptyDir": {"sizeLimit": limit} if limit else {}}, {"memory": machine})

    assert of("64Mi", None) == 64 << 20
    assert of("64Mi", "16Mi", "16Mi") == 32 << 20
    assert of(None, "16Mi", None) == 1 << 30, "one without a limit may have all"
    assert of("2Gi", None) == 1 << 30
    assert of(None, None, machine="0") == 0


def test_a_name_that_is_too_long_is_refused() -> None:
    assert hostname(pod("x" * 63, {"subdomain": "db"})) == "x" * 63
    with pytest.raises(ValueError, match="shorten hostname or subdomain"):
        hostname(pod("x" * 63, {"subdomain": "db", "setHostnameAsFQDN": True}))
