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
    ("/apis/apps/v1/namespaces/default/deployments?dryRun=All", "application/json"),
)
#: What is sent to be created: a container with 20,000 variables, 1 MB.
VARIABLES = [{"name": f"E{i}", "value": "x" * 20} for i in range(20_000)]
LARGE = json.dumps(
    {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "large"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "python:3", "env": VARIABLES}]},
            },
        },
    }
).encode()


async def ask(port: int, context: ssl.SSLContext, number: int, deadline: float, counts: Counter[str]) -> None:
    writer = None
    while time.monotonic() < deadline:
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            path, accept = ASKED[number % len(ASKED)]
            number += 1
            body = LARGE if "dryRun" in path else b""
            head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: hub\r\nAccept: {accept}\r\nContent-Length: {len(body)}"
            writer.write(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if b"watch=1" in path.encode() and b" 200 " in answer[:20]:
                while (chunk := int(await reader.readline(), 16)) or await reader.readline() != b"\r\n":
                    await reader.readexactly(chunk + 2)
            else:
                length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                while length:
                    length -= len(await reader.read(min(length, 1 << 18)) or b"x" * length)
            counts[answer.split()[1].decode()] += 1
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
