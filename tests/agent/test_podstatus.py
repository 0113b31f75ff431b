"""The status of a pod, from what is recorded."""

from metaos.agent.podstatus import Live, PodFacts, Waiting, pod_status
from metaos.plugins.points import ContainerState


def test_a_pod_that_is_over_waits_for_nothing() -> None:
    """Its deadline may come while a container is held back after a crash."""
    pod = {"spec": {"containers": [{"name": "c", "image": "i"}]}}
    states = {"c": ContainerState("c", "id", False, 100.0, 3, 110.0)}
    live = {"c": Live(waiting=Waiting("CrashLoopBackOff", "back-off 10s"))}
    facts = PodFacts(states, live, {"c": 1}, {})
    (shown,) = pod_status(pod, facts, 120.0)["containerStatuses"]
    assert shown["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    over = PodFacts(states, live, {"c": 1}, {}, phase="Failed", reason="DeadlineExceeded")
    (shown,) = pod_status(pod, over, 120.0)["containerStatuses"]
    assert shown["state"]["terminated"]["exitCode"] == 3 and "waiting" not in shown["state"]
