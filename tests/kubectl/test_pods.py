"""kubectl and the containers of a real site: logs, exec, attach, cp, top, port-forward, run, expose, debug, events."""

import hashlib
import io
import json
import platform
import re
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kubectl.conftest import Real, deployment, until

pytestmark = pytest.mark.system

TICKS = "trap 'exit 0' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done"
TWO = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "two", "labels": {"app": "two"}},
    "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {"name": "fails", "image": "python:3", "command": ["sh", "-c", "echo attempt of fails; exit 3"]},
            {"name": "stays", "image": "python:3", "command": ["sh", "-c", "echo stays; exec sleep 3600"]},
        ],
    },
}
WEB = "cd /tmp && echo hello from $HOSTNAME > index.html && exec python3 -u -m http.server 8080"


@pytest.fixture(scope="module")
def web(real: Real) -> Real:
    serves = {"httpGet": {"port": 8080}, "periodSeconds": 1}
    real.apply(deployment("ticks", TICKS), deployment("web", WEB, 2, ports=[{"containerPort": 8080}], readinessProbe=serves), TWO)
    real.rolled_out("deploy/ticks", "deploy/web")
    return real


def test_logs(web: Real) -> None:
    pod = web.first("app=ticks")
    until("some lines", lambda: "line 8" in web("logs", pod))
    assert len(web("logs", "deploy/ticks", "--tail=3").splitlines()) == 3
    assert web("logs", pod, "--limit-bytes=9") == "line 1\nli"
    assert re.search(rf"\[pod/{pod}/main\] line \d", web("logs", "-l", "app=ticks", "--prefix", "--tail=1"))
    code, _, err = web.run("logs", pod, "--since-time=yesterday")
    assert code == 1 and "yesterday" in err
    follow = web.start("logs", "-f", pod, "--tail=1")
    try:
        assert follow.stdout is not None
        assert [follow.stdout.readline().startswith("line ") for _ in range(3)] == [True] * 3
    finally:
        follow.kill()
        follow.communicate()


def test_logs_of_a_time(web: Real) -> None:
    pod = web.first("app=ticks")
    assert web("logs", pod, "--since=1h").startswith("line 1\n")
    # What was measured once may be left out later; a site measures every few seconds.
    until("the first lines to be left out", lambda: not web("logs", pod, "--since=1s").startswith("line 1\n"))
    assert web("logs", pod, "--since=1s") and not web("logs", pod, "--since-time=2199-01-01T00:00:00Z").startswith("line 1\n")


def test_logs_of_the_start_before_and_of_each_container(web: Real) -> None:
    until("a restart", lambda: web.run("logs", "two", "-c", "fails", "--previous")[:2] == (0, "attempt of fails\n"))
    assert web("logs", "two", "-c", "stays") == "stays\n"
    assert "stays\n" in web("logs", "two", "--all-containers") and "Defaulted container" in web.run("logs", "two")[2]
    code, _, err = web.run("logs", "two", "-c", "stays", "--previous")
    assert code == 1 and 'previous terminated container "stays" in pod "two" not found' in err
    until("the back-off to show", lambda: "CrashLoopBackOff" in web("get", "pod", "two"))
    assert "Back-off restarting failed container" in web("events", "--for=pod/two")
    assert "Exit Code:    3" in web("describe", "pod", "two")


def test_exec(web: Real) -> None:
    pod = web.first("app=web")
    assert web("exec", pod, "--", "cat", "/tmp/index.html") == f"hello from {pod}\n"
    assert web.run("exec", "deploy/web", "--", "sh", "-c", "exit 7")[0] == 7
    assert web("exec", "-i", pod, "--", "cat", text="typed\n") == "typed\n"
    assert web("exec", "two", "-c", "stays", "--", "echo", "yes") == "yes\n"
    code, _, err = web.run("exec", pod, "--", "no-such-command")
    assert code != 0 and "no-such-command" in err


def test_exec_on_a_terminal(web: Real) -> None:
    pod = web.first("app=web")
    say = [("# ", "stty size\n"), ("33 101", "sleep 100; echo woken\n"), ("sleep 100", "\x03"), ("# ", "exit 5\n")]
    code, seen = web.terminal("exec", "-it", pod, "--", "sh", say=say, size=(33, 101))
    assert code == 5 and "33 101" in seen, seen


def test_attach(web: Real) -> None:
    attached = web.start("attach", web.first("app=ticks"))
    try:
        assert attached.stdout is not None and attached.stdout.readline().startswith("line ")
    finally:
        attached.kill()
        attached.communicate()


def test_attach_ends_with_its_pod(web: Real) -> None:
    """One that writes and ends, and one that never writes and is deleted, while the terminal that is attached stays open."""
    script = "until [ -e /tmp/end ]; do echo tick; sleep 0.1; done"
    web("run", "ticking", "--image=python:3", "--restart=Never", "--", "sh", "-c", script)
    web("run", "mute", "--image=python:3", "--restart=Never", "-i", "--attach=false", "--", "sh", "-c", "exec cat > /tmp/typed")
    web("wait", "pod/ticking", "pod/mute", "--for=condition=Ready", "--timeout=20s")
    attached = [web.start("attach", "ticking"), web.start("attach", "-i", "mute", stdin=subprocess.PIPE)]
    try:
        assert attached[0].stdout is not None and attached[0].stdout.readline() == "tick\n"
        assert attached[1].stdin is not None
        attached[1].stdin.write("here\n")
        attached[1].stdin.flush()
        until("what was typed", lambda: web.run("exec", "mute", "--", "cat", "/tmp/typed")[1] == "here\n")
        web("exec", "ticking", "--", "touch", "/tmp/end")
        assert attached[0].wait(20) == 0
        web("delete", "pod", "mute", "--grace-period=1")
        assert attached[1].wait(20) == 0
        code, _, err = web.run("attach", "ticking")
        assert code == 1 and "cannot attach a container in a completed pod" in err
    finally:
        for process in attached:
            process.kill()
            process.communicate()


def test_copies_both_ways(web: Real, tmp_path: Path) -> None:
    pod = web.first("app=web")
    (tmp_path / "out/deep").mkdir(parents=True)
    (tmp_path / "out/deep/file").write_bytes(bytes(range(256)) * 4000)
    (tmp_path / "out/script").write_text("#!/bin/sh\n")
    (tmp_path / "out/script").chmod(0o755)
    web("cp", str(tmp_path / "out"), f"{pod}:/tmp/in")
    assert web("exec", pod, "--", "sh", "-c", "stat -c %a /tmp/in/script; wc -c < /tmp/in/deep/file") == "755\n1024000\n"
    web("cp", f"{pod}:/tmp/in", str(tmp_path / "back"))
    assert (tmp_path / "back/deep/file").read_bytes() == (tmp_path / "out/deep/file").read_bytes()
    web("cp", f"{pod}:/tmp/index.html", str(tmp_path / "one"))
    assert (tmp_path / "one").read_text() == f"hello from {pod}\n"


def test_top(web: Real) -> None:
    pod = web.first("app=web")
    until("measurements", lambda: pod in web.run("top", "pod")[1])
    lines = web("top", "pod", "--containers", "-l", "app=web").splitlines()
    assert lines[0].split() == ["POD", "NAME", "CPU(cores)", "MEMORY(bytes)"]
    assert all(re.search(r" main +\d+m +[1-9]\d*Mi", line) for line in lines[1:]), lines
    assert {line.split()[0] for line in web("top", "node").splitlines()} == {"NAME", "edge-paris", "edge-london"}


@contextmanager
def forwarded(real: Real, *arguments: str) -> Iterator[int]:
    process = real.start("port-forward", *arguments)
    try:
        assert process.stdout is not None
        found = re.search(r"127\.0\.0\.1:(\d+) ->", process.stdout.readline())
        assert found is not None
        yield int(found[1])
    finally:
        process.kill()
        process.communicate()


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        return str(answer.read().decode())


def test_expose_and_port_forward(web: Real) -> None:
    pod = web.first("app=web")
    with forwarded(web, f"pod/{pod}", ":8080") as port:
        assert fetch(port) == f"hello from {pod}\n"
    assert "service/web exposed" in web("expose", "deploy", "web", "--port=80", "--target-port=8080")
    until("endpoints", lambda: web("get", "endpointslices", "-o", "jsonpath={.items[*].endpoints[*].targetRef.name}"))
    with forwarded(web, "service/web", ":80") as port:
        assert fetch(port).startswith("hello from web-")
    assert "hello from web-" in web("get", "--raw", f"/api/v1/namespaces/{web.namespace}/services/web:80/proxy/")
    reached = web(
        "exec", "deploy/ticks", "--", "python3", "-c", "import urllib.request as u; print(u.urlopen('http://web').read())"
    )
    assert "hello from web-" in reached


def test_run(web: Real) -> None:
    said = web(
        "run", "once", "--image=python:3", "--restart=Never", "--rm", "-i", "--quiet", "--", "sh", "-c", "echo one; sleep 1"
    )
    assert said == "one\n"
    assert "created" in web("run", "job", "--image=python:3", "--restart=Never", "--env=A=b", "--", "sh", "-c", "echo $A; exit 4")
    web("wait", "pod/job", "--for=jsonpath={.status.phase}=Failed", "--timeout=20s")
    assert web("logs", "job") == "b\n"
    assert web("get", "pods", "--field-selector=status.phase=Failed", "-o", "name") == "pod/job\n"
    assert web(
        "get", "pod", "job", "-o", "custom-columns=P:.status.phase,C:.status.containerStatuses[0].state.terminated.exitCode"
    ) == ("P        C\nFailed   4\n")
    site = web("get", "pod", "job", "-o", "jsonpath={.spec.nodeName}")
    ended = web("get", "pods", f"--field-selector=spec.nodeName={site},status.phase!=Running", "-o", "name").split()
    assert "pod/job" in ended and "pod/web" not in ended  # What another test has just removed may be there for a while.
    assert "deleted" in web("delete", "pod", "job", "--wait")


def test_run_and_attach_on_a_terminal(web: Real) -> None:
    say = [("rompt", "\n"), ("# ", "echo $((6*7)); sleep 100\n"), ("42", "\x03"), ("# ", "exit 3\n")]
    code, seen = web.terminal("run", "-it", "--rm", "shell", "--image=python:3", "--restart=Never", "--", "sh", say=say)
    assert code == 3 and "42" in seen and 'pod "shell" deleted' in seen, seen
    web("run", "stays", "--image=python:3", "--restart=Never", "-it", "--attach=false", "--command", "--", "sh")
    web("wait", "pod/stays", "--for=condition=Ready", "--timeout=20s")
    code, seen = web.terminal("attach", "-it", "stays", say=[("rompt", "\n"), ("# ", "stty size; exit\n")], size=(33, 101))
    assert code == 0 and "33 101" in seen, seen
    web("wait", "pod/stays", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=20s")
    assert "33 101" in web("logs", "stays")
    piped = web("run", "piped", "--image=python:3", "--restart=Never", "--rm", "-i", "--quiet", "--", "wc", "-c", text="12345\n")
    assert piped == "6\n"


def shell_archive(folder: Path) -> Path:
    """A docker archive with nothing in it but a shell, as ``podman save`` writes it."""
    shell = Path("/bin/sh").resolve()
    libraries = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", shell], capture_output=True, text=True, check=True).stdout)
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for source, target in ((str(shell), "bin/sh"), *((library, library.lstrip("/")) for library in libraries)):
            data = Path(source).read_bytes()
            info = tarfile.TarInfo(target)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    digest = f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"
    config = {"os": "linux", "architecture": "amd64" if platform.machine() == "x86_64" else "arm64"}
    config |= {
        "config": {"Cmd": ["/bin/sh", "-c", "echo hello from the image"]},
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    }
    manifest = [{"Config": "config.json", "RepoTags": ["shell:1"], "Layers": ["layer.tar"]}]
    path = folder / "shell.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (
            ("config.json", json.dumps(config).encode()),
            ("layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_an_imported_image_runs(web: Real, tmp_path: Path) -> None:
    archive = shell_archive(tmp_path)
    for site in web.continuum.sites.values():
        command = [sys.executable, "-m", "metaos", "image", "import", str(archive), "--data", str(site.data)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout) == (0, f"imported docker.io/library/shell:1 into {site.data}\n"), done.stderr
    web("run", "imported", "--image=shell:1", "--restart=Never")
    web("wait", "pod/imported", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=20s")
    assert web("logs", "imported") == "hello from the image\n"


def test_debug_is_refused_with_a_reason(web: Real) -> None:
    pod = web.first("app=web")
    code, _, err = web.run("debug", pod, "--image=python:3")
    assert code == 1 and "kubectl exec -it" in err
    code, _, err = web.run("debug", "node/edge-paris", "--image=python:3")
    assert code == 1 and "sites are chosen by placement" in err and "cannot be entered" in err
    web("debug", "two", "--copy-to=copied", "--image=python:3", "--container=stays", "--", "sleep", "3600")
    assert web("get", "pod", "copied", "-o", "jsonpath={.spec.containers[*].name}") == "fails stays"


def test_ends_are_seen(web: Real) -> None:
    pod = web.first("app=ticks")
    watched = web.start("get", "pod", pod, "-w", "--no-headers")
    waiting = web.start("wait", f"pod/{pod}", "--for=delete", "--timeout=30s")
    assert watched.stdout is not None
    try:
        assert watched.stdout.readline().split()[:3] == [pod, "1/1", "Running"]
        assert "deleted" in web("delete", "deploy", "ticks", "--cascade=foreground")
        # All its pods had ended by then.
        assert web("get", "pods,rs", "-l", "app=ticks", "-o", "name") == ""
        assert waiting.wait(30) == 0
        code, _, err = web.run("delete", "deploy", "web", "--cascade=orphan")
        assert code == 1 and "its pods cannot outlive it" in err
    finally:
        for process in (watched, waiting):
            process.kill()
            process.communicate()


def test_the_namespace_ends_with_all_that_runs_in_it(web: Real) -> None:
    web.continuum.kubectl("delete", "namespace", web.namespace, "--timeout=40s")
    assert web.namespace not in web.continuum.kubectl("get", "pods,works", "-A")
