"""What a user of the operator ``visits.py`` sees: every handler did its part, and the finalizer holds it to the end."""

import sys
import time
from collections.abc import Callable
from typing import Any

from kubernetes import client, config

NAMESPACE = sys.argv[1]
config.load_kube_config()
core = client.CoreV1Api()


def until(what: str, test: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 40
    while not (found := test()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)
    return found


def notes() -> dict[str, str]:
    return core.read_namespaced_config_map("first", NAMESPACE).metadata.annotations or {}


visit = {"metadata": {"name": "first", "labels": {"kind": "visit"}}, "data": {"wish": "tea"}}
core.create_namespaced_config_map(NAMESPACE, visit)
until("the greeting", lambda: notes().get("example/greeted") == "yes")
made = core.read_namespaced_config_map("first", NAMESPACE)
assert made.metadata.finalizers == ["ecosystem.example/finalizer"]
child = core.read_namespaced_secret("first-child", NAMESPACE)
assert child.metadata.owner_references[0].uid == made.metadata.uid
until("the wish", lambda: notes().get("example/wish") == "tea")
core.patch_namespaced_config_map("first", NAMESPACE, {"data": {"wish": "coffee"}})
until("the other wish", lambda: notes().get("example/wish") == "coffee")
until("the timer", lambda: notes().get("example/ticks") == "3")
until("the event", lambda: [e for e in core.list_namespaced_event(NAMESPACE).items if e.involved_object.name == "first"])
core.delete_namespaced_config_map("first", NAMESPACE)
until("the farewell", lambda: [m for m in core.list_namespaced_config_map(NAMESPACE).items if m.metadata.name == "first-gone"])
until("the end", lambda: not [m for m in core.list_namespaced_config_map(NAMESPACE).items if m.metadata.name == "first"])
until("the end of what it owned", lambda: not core.list_namespaced_secret(NAMESPACE).items)

# -- a kind of its own, with defaults and a status apart -------------------------------------------------------
custom = client.CustomObjectsApi()
kind = ("ecosystem.example", "v1", NAMESPACE, "visits")
custom.create_namespaced_custom_object(
    *kind, {"apiVersion": "ecosystem.example/v1", "kind": "Visit", "metadata": {"name": "a"}, "spec": {}}
)


def seen() -> str:
    return (custom.get_namespaced_custom_object(*kind, "a").get("status") or {}).get("served", "")


until("the default to be served", lambda: seen() == "water")
custom.patch_namespaced_custom_object(*kind, "a", {"spec": {"wish": "tea"}})
until("the wish to be served", lambda: seen() == "tea")
print("kopf: all passed")
