"""The whole idea: a reconciler compares what is wanted with what is, and moves one step.

It is *level-triggered*: it is told which object to look at, never what happened. It reads the present state from
informers, computes, writes through the client, and returns. It may be called at any time, any number of times, and may
crash at any line and be run again. Three outcomes:

- return :class:`Result`: done for now; ``requeue_after`` asks for another look after that many seconds;
- raise :class:`TerminalError`: retrying the same state cannot help, so wait for the next change;
- raise anything else: logged, and retried with exponential back-off.

One object is never reconciled twice at the same time. Source: controller-runtime, ``pkg/reconcile``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from metaos.resources.meta import ObjectRef


@dataclass(frozen=True, slots=True)
class Result:
    """What is to happen next. ``requeue_after``: seconds until the next look; ``None`` waits for a change."""

    requeue_after: float | None = None


#: Nothing more to do until something changes.
DONE = Result()


class TerminalError(Exception):
    """This state cannot be reconciled and retrying does not help; the next change of the object tries again."""


class Reconciler(Protocol):
    """``name`` is unique within a process: in logs, metrics and ``Manager.enqueue``."""

    name: str

    async def reconcile(self, ref: ObjectRef) -> Result:
        """One step for the object ``ref``, which may be gone by now. The kind of ``ref`` is the mapper's choice."""
        ...
