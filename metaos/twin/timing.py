"""How fast a world of the twin is, and how busy: settings of its operator and its sites' owners, and what real machines take.

The latter are assumed until ``nemo twin calibrate`` has measured them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, but for ``load`` and ``agent_cpu``. See ``SAID``."""

    heartbeat: float = 10.0
    lease: float = 40.0
    drain: float = 5.0
    fencing_after: float = 60.0
    fencing_margin: float = 5.0
    #: Length of the periods in which sites meter: whole seconds that divide an hour.
    metering: int = 300
    #: From a container's being wanted until it runs.
    pod_start: float = 1.0
    #: From a container's being told to stop until it has, at most: its grace period may be shorter.
    pod_stop: float = 1.0
    #: From a machine's start until its agent speaks, and from the hub's until it answers.
    agent_start: float = 0.0
    hub_start: float = 0.0
    #: How long the hub takes for a write, with all that it computes for it.
    write: float = 0.0
    #: The part of its CPU limit that a container uses.
    load: float = 0.3
    #: Cores that a site's agent uses itself, on average.
    agent_cpu: float = 0.0


#: What a scenario's ``timing`` calls each, and in which form it says it.
SAID = {
    "heartbeat": ("heartbeat", "seconds"),
    "lease": ("lease", "seconds"),
    "drain": ("drain", "seconds"),
    "fencing": ("fencing_after", "seconds"),
    "fencingMargin": ("fencing_margin", "seconds"),
    "metering": ("metering", "period"),
    "podStart": ("pod_start", "seconds"),
    "podStop": ("pod_stop", "seconds"),
    "agentStart": ("agent_start", "seconds"),
    "hubStart": ("hub_start", "seconds"),
    "write": ("write", "milliseconds"),
    "load": ("load", "share"),
    "agentCpu": ("agent_cpu", "cores"),
}
