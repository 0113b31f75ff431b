"""Probes: startup, readiness and liveness of one container, as a kubelet does them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from metaos.agent.podstatus import Live
from metaos.clock import Clock
from metaos.plugins.points import Runtime

OUTPUT_LIMIT = 10 * 1024


class Probes:
    """Watches one running container: sets ``live.ready`` and ``live.started``, calls ``changed`` when they change, and
    ``fail`` (with the reason) when startup or liveness has failed for good."""

    def __init__(
        self,
        runtime: Runtime,
        clock: Clock,
        pod_uid: str,
        container: Mapping[str, Any],
        live: Live,
        changed: Callable[[], None],
        fail: Callable[[str], Awaitable[None]],
        unhealthy: Callable[[str], None],
    ) -> None:
        self._runtime, self._clock, self._uid = runtime, clock, pod_uid
        self._container, self._live = container, live
        self._changed, self._fail, self._unhealthy = changed, fail, unhealthy

    async def run(self) -> None:
        """Until cancelled, or until the container is to be restarted."""
        startup = self._container.get("startupProbe")
        if startup and not await self._startup(startup):
            return
        self._live.started = True
        readiness, liveness = self._container.get("readinessProbe"), self._container.get("livenessProbe")
        if not readiness:
            self._live.ready = True
        self._changed()
        parts = []
        if readiness:
            parts.append(self._readiness(readiness))
        if liveness:
            parts.append(self._liveness(liveness))
        if parts:
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(part)

    async def _startup(self, probe: Mapping[str, Any]) -> bool:
        failures = 0
        await self._delay(probe)
        while True:
            problem = await self.attempt(probe)
            if problem is None:
                return True
            failures += 1
            self._unhealthy(f"Startup probe failed: {problem}")
            if failures >= int(probe.get("failureThreshold") or 3):
                await self._fail(f"Container {self._container['name']} failed startup probe, will be restarted")
                return False
            await self._clock.sleep(self._period(probe))

    async def _readiness(self, probe: Mapping[str, Any]) -> None:
        failures = successes = 0
        await self._delay(probe)
        while True:
            problem = await self.attempt(probe)
            if problem is None:
                failures, successes = 0, successes + 1
                if not self._live.ready and successes >= int(probe.get("successThreshold") or 1):
                    self._live.ready = True
                    self._changed()
            else:
                failures, successes = failures + 1, 0
                if self._live.ready and failures >= int(probe.get("failureThreshold") or 3):
                    self._live.ready = False
                    self._changed()
                if failures <= 3 or failures % 60 == 0:
                    self._unhealthy(f"Readiness probe failed: {problem}")
            # Until it is ready for the first time, and early in its life, it is asked often: a kubelet asks on every sync too.
            quick = not self._live.ready and failures <= 50
            await self._clock.sleep(min(0.1, self._period(probe)) if quick else self._period(probe))

    async def _liveness(self, probe: Mapping[str, Any]) -> None:
        failures = 0
        await self._delay(probe)
        while True:
            problem = await self.attempt(probe)
            failures = 0 if problem is None else failures + 1
            if problem is not None:
                self._unhealthy(f"Liveness probe failed: {problem}")
                if failures >= int(probe.get("failureThreshold") or 3):
                    await self._fail(f"Container {self._container['name']} failed liveness probe, will be restarted")
                    return
            await self._clock.sleep(self._period(probe))

    async def _delay(self, probe: Mapping[str, Any]) -> None:
        if probe.get("initialDelaySeconds"):
            await self._clock.sleep(float(probe["initialDelaySeconds"]))

    @staticmethod
    def _period(probe: Mapping[str, Any]) -> float:
        return float(probe.get("periodSeconds") or 10)

    async def attempt(self, probe: Mapping[str, Any]) -> str | None:
        """Why one attempt failed, or nothing."""
        seconds = float(probe.get("timeoutSeconds") or 1)
        try:
            async with asyncio.timeout(seconds):
                if probe.get("exec"):
                    return await self._command([str(c) for c in probe["exec"].get("command") or ()])
                if probe.get("httpGet"):
                    return await self._http(probe["httpGet"])
                if probe.get("tcpSocket"):
                    (await self._runtime.connect(self._uid, self._port(probe["tcpSocket"].get("port")))).close()
                    return None
                return "the probe has none of exec, httpGet, tcpSocket"
        except TimeoutError:
            return f"no answer within {seconds:g} s"
        except (OSError, LookupError, ValueError) as error:
            return str(error) or type(error).__name__

    def _port(self, port: Any) -> int:
        if isinstance(port, int) or str(port).isdigit():
            return int(port)
        for found in self._container.get("ports") or ():
            if found.get("name") == port:
                return int(found["containerPort"])
        raise ValueError(f"port {port!r} is not a port of the container")

    async def _command(self, command: list[str]) -> str | None:
        process = await self._runtime.exec(self._uid, str(self._container["name"]), command)
        output = b""
        try:
            async for _, data in process.output():
                output = (output + data)[:OUTPUT_LIMIT]
            code = await process.wait()
        except asyncio.CancelledError:
            with suppress(OSError):
                await process.kill()
            raise
        return None if code == 0 else (output.decode(errors="replace").strip() or f"exit code {code}")

    async def _http(self, get: Mapping[str, Any]) -> str | None:
        if str(get.get("scheme") or "HTTP").upper() != "HTTP":
            return "only HTTP probes are supported at this site, not HTTPS"
        sock = await self._runtime.connect(self._uid, self._port(get.get("port")))
        try:
            loop = asyncio.get_running_loop()
            headers = {"Host": get.get("host") or "localhost", "User-Agent": "nemo-probe", "Accept": "*/*", "Connection": "close"}
            headers |= {h["name"]: h["value"] for h in get.get("httpHeaders") or ()}
            lines = [f"GET {get.get('path') or '/'} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
            await loop.sock_sendall(sock, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            answer = b""
            while b"\r\n" not in answer and len(answer) < OUTPUT_LIMIT:
                data = await loop.sock_recv(sock, 4096)
                if not data:
                    break
                answer += data
        finally:
            sock.close()
        parts = answer.split(b"\r\n", 1)[0].split()
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/") or not parts[1].isdigit():
            return "the answer is not HTTP"
        code = int(parts[1])
        return None if 200 <= code < 400 else f"HTTP probe failed with statuscode: {code}"
