"""A client that asks for far too much: hundreds of connections, expensive lists, at once again whatever the answer.

``python -m tests.e2e.hostile PORT CERTIFICATE CONNECTIONS SECONDS`` prints its answers by code as JSON.
"""

import asyncio
import json
import ssl
import sys
import time
from collections import Counter

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
#: What each connection asks for, in turn.
ASKED = (
    ("/api/v1/configmaps", "application/json"),
    ("/api/v1/configmaps", TABLE),
    ("/api/v1/configmaps?labelSelector=a%21%3Db", TABLE),
    ("/api/v1/configmaps?limit=500", "application/yaml"),
    ("/api/v1/configmaps?watch=1&timeoutSeconds=1", "application/json"),
)


async def ask(port: int, context: ssl.SSLContext, number: int, deadline: float, counts: Counter[str]) -> None:
    writer = None
    while time.monotonic() < deadline:
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            path, accept = ASKED[number % len(ASKED)]
            number += 1
            writer.write(f"GET {path} HTTP/1.1\r\nHost: hub\r\nAccept: {accept}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if b"watch=1" in path.encode() and b" 200 " in head[:20]:
                while (chunk := int(await reader.readline(), 16)) or await reader.readline() != b"\r\n":
                    await reader.readexactly(chunk + 2)
            else:
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                while length:
                    length -= len(await reader.read(min(length, 1 << 18)) or b"x" * length)
            counts[head.split()[1].decode()] += 1
            if number % 50 == 0:
                writer.close()
                writer = None
        except (OSError, asyncio.IncompleteReadError, IndexError, ValueError):
            counts["broken"] += 1
            writer = None
    if writer is not None:
        writer.transport.abort()


async def main(port: int, certificate: str, connections: int, seconds: float) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(certificate)
    counts: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    print("started", flush=True)
    tasks = [asyncio.create_task(ask(port, context, number, deadline, counts)) for number in range(connections)]
    await asyncio.wait(tasks, timeout=seconds + 20)
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
