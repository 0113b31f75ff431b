"""Figures of the API server in Prometheus' text form (exposition format 0.0.4).

Labels take values from bounded sets only (verbs, served kinds, codes), so the number of series is bounded.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

#: Upper bounds of the latency histogram, in seconds.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """Counts of observations by upper bound, with their sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, labels: Mapping[str, str]) -> list[str]:
        """Its samples in text form."""
        lines, seen = [], 0
        for bound, count in zip((*(f"{b:g}" for b in BUCKETS), "+Inf"), self.counts, strict=True):
            seen += count
            lines.append(f"{name}_bucket{_labels({**labels, 'le': bound})} {seen}")
        return [*lines, f"{name}_sum{_labels(labels)} {self.total:.6f}", f"{name}_count{_labels(labels)} {seen}"]


class Metrics:
    """``gauges``: name → (help, function that measures now); asked at every scrape, as are ``parts``, which give lines."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, str, str, str, int], int] = {}
        self._latency: dict[tuple[str, str], Histogram] = {}
        self._running: dict[str, int] = {}
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self.parts: list[Callable[[], list[str]]] = []

    def request(self, verb: str, group: str, resource: str, code: int, seconds: float | None) -> None:
        """One request has ended. ``seconds`` is ``None`` for those that last as long as their caller likes."""
        key = verb, group, resource, "", code
        self._requests[key] = self._requests.get(key, 0) + 1
        if seconds is not None:
            found = self._latency.get((verb, resource))
            if found is None:
                found = self._latency[verb, resource] = Histogram()
            found.observe(seconds)

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        """Counts what lasts: watches, logs, connections."""
        self._running[what] = self._running.get(what, 0) + 1
        try:
            yield
        finally:
            self._running[what] -= 1

    def render(self) -> str:
        lines = ["# HELP apiserver_request_total Requests by verb, resource and code.", "# TYPE apiserver_request_total counter"]
        for (verb, group, resource, _, code), count in sorted(self._requests.items()):
            labels = _labels({"verb": verb, "group": group, "resource": resource, "code": str(code)})
            lines.append(f"apiserver_request_total{labels} {count}")
        lines += [
            "# HELP apiserver_request_duration_seconds Latency of requests that end by themselves.",
            "# TYPE apiserver_request_duration_seconds histogram",
        ]
        for (verb, resource), histogram in sorted(self._latency.items()):
            lines += histogram.lines("apiserver_request_duration_seconds", {"verb": verb, "resource": resource})
        lines += [
            "# HELP apiserver_longrunning_requests Watches and connections that are open now.",
            "# TYPE apiserver_longrunning_requests gauge",
        ]
        lines += [
            f"apiserver_longrunning_requests{_labels({'type': what})} {count}" for what, count in sorted(self._running.items())
        ]
        for name, (text, measure) in sorted(self.gauges.items()):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {measure():g}"]
        for render in self.parts:
            lines += render()
        return "\n".join(lines) + "\n"


def _labels(values: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{key}="{value}"' for key, value in values.items()) + "}"


def labelled(labels: Mapping[str, str], value: float) -> str:
    """One sample, without the name of its metric."""
    return f"{_labels(labels) if labels else ''} {value}"


def lines_of(name: str, kind: str, text: str, samples: list[str]) -> list[str]:
    """A metric (``kind``: counter or gauge) with its samples."""
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *(f"{name}{sample}" for sample in samples)]


def resident_bytes() -> float:
    """Memory of this process (Linux)."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
