"""Asking a container something: what probes and lifecycle hooks have in common (exec, httpGet, tcpSocket, grpc, sleep)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from metaos.clock import Clock
from metaos.plugins.points import Runtime

OUTPUT_LIMIT = 10 * 1024
#: A container that was started a moment ago may not be there to be entered yet; its hook is tried again so often, so long.
ENTER_ROUNDS, ENTER_SECONDS = 200, 0.02


class Caller:
    """Calls to one container of a pod."""

    def __init__(self, runtime: Runtime, clock: Clock, pod_uid: str, container: Mapping[str, Any]) -> None:
        self._runtime, self._clock, self._uid, self._container = runtime, clock, pod_uid, container

    async def hook(self, what: Mapping[str, Any]) -> str | None:
        """As :meth:`call`, to a container that is just coming up."""
        for _ in range(ENTER_ROUNDS):
            try:
                return await self._call(what)
            except LookupError:
                await self._clock.sleep(ENTER_SECONDS)
            except (OSError, ValueError) as error:
                return str(error) or type(error).__name__
        return "the container cannot be entered"

    async def call(self, what: Mapping[str, Any], seconds: float | None = None) -> str | None:
        """Why it failed, or nothing. Without ``seconds`` it takes as long as it takes."""
        try:
            async with asyncio.timeout(seconds):
                return await self._call(what)
        except TimeoutError:
            return f"no answer within {seconds:g} s" if seconds is not None else "no answer"
        except (OSError, LookupError, ValueError) as error:
            return str(error) or type(error).__name__

    async def _call(self, what: Mapping[str, Any]) -> str | None:
        if what.get("exec"):
            return await self._command([str(c) for c in what["exec"].get("command") or ()])
        if what.get("httpGet"):
            return await self._http(what["httpGet"])
        if what.get("tcpSocket"):
            (await self._runtime.connect(self._uid, self._port(what["tcpSocket"].get("port")))).close()
            return None
        if what.get("grpc"):
            from metaos.agent import grpc

            asked = what["grpc"]
            port = self._port(asked.get("port"))
            sock = await self._runtime.connect(self._uid, port)
            return await grpc.check(sock, port, str(asked.get("service") or ""), _tls() if asked.get("mode") == "TLS" else None)
        if what.get("sleep"):
            await self._clock.sleep(float(what["sleep"].get("seconds") or 0))
            return None
        return "there is none of exec, httpGet, tcpSocket, grpc, sleep"

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
        scheme = str(get.get("scheme") or "HTTP").upper()
        sock = await self._runtime.connect(self._uid, self._port(get.get("port")))
        headers = {"Host": get.get("host") or "localhost", "User-Agent": "nemo-probe", "Accept": "*/*", "Connection": "close"}
        headers |= {h["name"]: h["value"] for h in get.get("httpHeaders") or ()}
        lines = [f"GET {get.get('path') or '/'} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        request = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        answer = await (_over_tls(sock, request) if scheme == "HTTPS" else _plain(sock, request))
        parts = answer.split(b"\r\n", 1)[0].split()
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/") or not parts[1].isdigit():
            return "the answer is not HTTP"
        code = int(parts[1])
        return None if 200 <= code < 400 else f"HTTP probe failed with statuscode: {code}"


async def _plain(sock: Any, request: bytes) -> bytes:
    """The beginning of the answer, with its first line."""
    try:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, request)
        answer = b""
        while b"\r\n" not in answer and len(answer) < OUTPUT_LIMIT:
            data = await loop.sock_recv(sock, 4096)
            if not data:
                break
            answer += data
        return answer
    finally:
        sock.close()


def _tls() -> Any:
    """Nobody's certificate is checked, as a kubelet does not: it asks whether someone is there."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _over_tls(sock: Any, request: bytes) -> bytes:
    """As :func:`_plain`."""
    try:
        reader, writer = await asyncio.open_connection(sock=sock, ssl=_tls(), server_hostname="localhost")
    except BaseException:
        sock.close()
        raise
    try:
        writer.write(request)
        await writer.drain()
        return await reader.readline()
    finally:
        writer.transport.abort()
