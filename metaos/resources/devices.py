"""Extended resources: GPUs, whole and in thousandths, and any other device that Kubernetes counts by name.

A pod asks for them where it asks for CPU (``resources.limits``), by a name with a domain:

- ``nvidia.com/gpu: 2``: so many GPUs for itself;
- ``nvidia.com/gpu-milli: 300``: thousandths of ONE GPU, which others share. All containers of a pod share the same GPU;
- ``example.com/device: 1``: anything else, counted whole.

A site says how many it has in ``Cluster.spec.capacity`` (``nvidia.com/gpu: "4"``) and which model in its label
``nvidia.com/gpu.product``, as NVIDIA's GPU feature discovery names it; a node selector asks for a model.

No fraction spans two GPUs. Which pod is on which GPU is not fixed: what is counted is that every pod that was placed has a
GPU of its own to fit on, all together. Nothing here isolates pods that share a GPU from each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

GPU, GPU_MILLI = "nvidia.com/gpu", "nvidia.com/gpu-milli"
#: GPU feature discovery's label for the model.
MODEL = "nvidia.com/gpu.product"
#: Thousandths of one GPU.
WHOLE = 1000
#: Of one kind at one site.
MOST_DEVICES = 10_000
#: Steps of the search for a packing where the quick way finds none; above that the site counts as full.
MOST_STEPS = 20_000

#: What one pod asks for, by name, in the order of names.
Asked = tuple[tuple[str, int], ...]
#: How often which pods are asked for: thousandths of a core, bytes and devices of one, and a count.
Mix = tuple[tuple[tuple[int, int, Asked], int], ...]


def extended(resource: str) -> bool:
    """Whether a resource is a device: a name with a domain that is not Kubernetes' own."""
    domain, slash, _ = resource.partition("/")
    return bool(slash) and domain != "kubernetes.io" and not domain.endswith(".kubernetes.io")


def asked(amounts: Mapping[str, int]) -> Asked:
    return tuple(sorted((name, amount) for name, amount in amounts.items() if amount > 0))


def share(asks: Asked) -> tuple[int, int]:
    """(how many GPUs, thousandths of each) that one pod asks for; (0, 0) for none."""
    found = dict(asks)
    if GPU in found:
        return found[GPU], WHOLE
    return (1, found[GPU_MILLI]) if GPU_MILLI in found else (0, 0)


def taken(requested: Mapping[Asked, int], resource: str) -> int:
    """Of a resource that is counted whole."""
    return sum(dict(asks).get(resource, 0) * pods for asks, pods in requested.items())


def asking(requested: Mapping[Asked, int], asks: Asked, pods: int) -> Mapping[Asked, int]:
    """The same with so many pods more, or fewer, that ask for this."""
    if not asks or not pods:
        return requested
    found = dict(requested)
    found[asks] = found.get(asks, 0) + pods
    if not found[asks]:
        del found[asks]
    return found


def gpus_free(count: int, requested: Mapping[Asked, int]) -> tuple[int, ...]:
    """Of each of a site's GPUs the thousandths that are free, the freest first."""
    whole, parts = 0, []
    for asks, pods in requested.items():
        gpus, milli = share(asks)
        if milli == WHOLE:
            whole += gpus * pods
        elif gpus and pods > 0:
            parts += [milli] * pods
    return packed(max(0, count), whole, tuple(sorted(parts, reverse=True)))


@lru_cache(maxsize=50_000)
def packed(count: int, whole: int, parts: tuple[int, ...]) -> tuple[int, ...]:
    """The thousandths that are free of each of ``count`` GPUs, the freest first, once ``whole`` of them are given away and
    ``parts`` (the largest first) have a place each: best fit; where that leaves one out, a search. All are full where not
    everything fits, or none was found in ``MOST_STEPS``."""
    shared = count - whole
    if shared < 0:
        return (0,) * count
    free = _best_fit(shared, parts)
    if free is None:
        free = _search(shared, parts)
    if free is None:
        return (0,) * count
    return (*sorted(free, reverse=True), *(0,) * whole)


def _best_fit(count: int, parts: Iterable[int]) -> list[int] | None:
    free = [WHOLE] * count
    for part in parts:
        at = min((i for i, left in enumerate(free) if left >= part), key=lambda i: free[i], default=None)
        if at is None:
            return None
        free[at] -= part
    return free


def _search(count: int, parts: tuple[int, ...]) -> list[int] | None:
    """Depth first, the largest part first, alike GPUs tried once."""
    if sum(parts) > count * WHOLE or any(part > WHOLE for part in parts):
        return None
    free, chosen, tried = [WHOLE] * count, [0] * len(parts), 0
    waiting: list[list[int]] = [_places(free, parts[0])]
    while waiting:
        tried += 1
        depth = len(waiting) - 1
        if tried > MOST_STEPS:
            return None
        if not waiting[-1]:
            waiting.pop()
            if depth:
                free[chosen[depth - 1]] += parts[depth - 1]
            continue
        chosen[depth] = waiting[-1].pop()
        free[chosen[depth]] -= parts[depth]
        if depth + 1 == len(parts):
            return free
        waiting.append(_places(free, parts[depth + 1]))
    return None


def _places(free: list[int], part: int) -> list[int]:
    """One of each kind that has the room; the one that is left fullest comes last, to be tried first."""
    kinds = {left: i for i, left in enumerate(free) if left >= part}
    return [kinds[left] for left in sorted(kinds, reverse=True)]
