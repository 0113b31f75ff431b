"""A metrics server as a cluster's API server aggregates it: a stand-in that says the same of every pod, as the real one needs a
kubelet's figures. The way to it is the real one: an APIService, and a Service of the type ExternalName."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import yaml

from metaos.security.identity import Authority

GROUP = "metrics.k8s.io/v1beta1"
#: What each pod is said to use.
CPU, MEMORY = "250m", "64Mi"


def objects(port: int) -> str:
    """What registers it, as YAML."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "nemo-test-metrics", "namespace": "default"}}
    service["spec"] = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
    api: dict[str, Any] = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService"}
    api["metadata"] = {"name": "v1beta1.metrics.k8s.io"}
    where = {"name": "nemo-test-metrics", "namespace": "default", "port": port}
    api["spec"] = {"group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100}
    api["spec"] |= {"service": where, "insecureSkipTLSVerify": True}
    return yaml.safe_dump_all([service, api])


@contextmanager
def serving(folder: Path, pods: Callable[[str], list[str]]) -> Iterator[int]:
    """Its port. ``pods``: the names of a namespace's."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            body: dict[str, Any] = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP, "resources": RESOURCES}
            if parts[-1] == "pods":
                items = [_used(parts[-2], name) for name in pods(parts[-2])]
                body = {"kind": "PodMetricsList", "apiVersion": GROUP, "metadata": {}, "items": items}
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    pair = Authority.create(Random(1), time.time()).issue_server(("localhost",), time.time())
    file = folder / "metrics.pem"
    file.touch(0o600)
    file.write_bytes(pair.key + pair.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server = ThreadingHTTPServer(("localhost", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


RESOURCES = [{"name": "pods", "singularName": "", "namespaced": True, "kind": "PodMetrics", "verbs": ["get", "list"]}]


def _used(namespace: str, name: str) -> dict[str, Any]:
    usage = {"cpu": CPU, "memory": MEMORY}
    metadata = {"name": name, "namespace": namespace}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"metadata": metadata, "timestamp": now, "window": "30s", "containers": [{"name": "web", "usage": usage}]}
