"""Room in extended resources, of one site in words. What is said of all sites at once is in ``columns``."""

from __future__ import annotations

from metaos.resources.devices import GPU, GPU_MILLI, MODEL, WHOLE, gpus_free, share, taken
from metaos.resources.snapshot import ClusterInfo, WorkloadInfo


def room(workload: WorkloadInfo, cluster: ClusterInfo) -> int:
    """How many replicas' devices fit beside what is decided for others. A fraction fits one GPU or none."""
    gpus, milli = share(workload.devices)
    fits = []
    if gpus:
        free = gpus_free(cluster.devices.get(GPU, 0), cluster.devices_requested)
        fits.append(sum(left // milli for left in free) if milli < WHOLE else free.count(WHOLE) // gpus)
    for resource, amount in workload.devices:
        if resource not in (GPU, GPU_MILLI):
            fits.append(left(cluster, resource) // amount)
    return min(fits)


def left(cluster: ClusterInfo, resource: str) -> int:
    """Of a resource that is counted whole."""
    return max(0, cluster.devices.get(resource, 0) - taken(cluster.devices_requested, resource))


def reason(workload: WorkloadInfo, cluster: ClusterInfo) -> str:
    """Why not one replica's devices fit."""
    gpus, milli = share(workload.devices)
    count = cluster.devices.get(GPU, 0)
    if gpus:
        free = gpus_free(count, cluster.devices_requested)
        model = cluster.labels.get(MODEL, "GPU")
        if not count:
            return f"needs {_words(gpus, milli)}, and the site has no {GPU}"
        if milli < WHOLE and not any(part >= milli for part in free):
            return f"needs {_words(gpus, milli)}, and no {model} of {count} has more than {max(free)} thousandths free"
        if milli == WHOLE and free.count(WHOLE) < gpus:
            whole, shared = free.count(WHOLE), sum(1 for part in free if 0 < part < WHOLE)
            also = f" ({shared} more are shared)" if shared else ""
            return f"needs {_words(gpus, milli)}, and {whole} of {count} {model} {'is' if whole == 1 else 'are'} free{also}"
    for resource, amount in workload.devices:
        if resource not in (GPU, GPU_MILLI) and left(cluster, resource) < amount:
            return f"needs {amount} {resource}, and {left(cluster, resource)} of {cluster.devices.get(resource, 0)} is free"
    return "has no room"


def _words(gpus: int, milli: int) -> str:
    return f"{gpus} {GPU}" if milli == WHOLE else f"{milli} of {WHOLE} thousandths of one {GPU}"
