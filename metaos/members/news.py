"""Events of the cluster about what is ours, told again at the hub about the objects that the hub knows.

They are followed in the namespaces whose pods are. What was told before this agent began is not told again. Bound: a watch a
namespace; nothing is held.
"""

from __future__ import annotations

from collections.abc import Callable

from metaos.agent.contact import Follower
from metaos.client import WatchEvent
from metaos.clock import Clock
from metaos.members.member import Member
from metaos.resources.meta import Obj
from metaos.resources.scheme import EVENT

#: An involved object (``kind``, ``namespace``, ``name``, ``uid``, ``apiVersion``) → the hub's, where it is ours.
Known = Callable[[Obj], Obj | None]
#: (object at the hub, ``Normal`` or ``Warning``, reason, message)
Record = Callable[[Obj, str, str, str], None]


class MemberNews:
    """``known`` says whose an object is."""

    def __init__(self, member: Member, clock: Clock, known: Known, record: Record) -> None:
        self._member, self._clock, self._known, self._record = member, clock, known, record

    def follower(self, where: str) -> Follower:
        return Follower(
            self._member.client, self._member.contact, self._clock, EVENT, where, on_list=lambda found: None, on_event=self._hear
        )

    def _hear(self, event: WatchEvent) -> None:
        if event.type == "DELETED":
            return
        said = event.object
        about = self._known(said.get("involvedObject") or {})
        if about is not None:
            kind = "Warning" if said.get("type") == "Warning" else "Normal"
            self._record(about, kind, str(said.get("reason") or ""), str(said.get("message") or ""))
