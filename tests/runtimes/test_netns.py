"""The descriptors of a pod's sockets: none is left open when the pod has ended."""

from __future__ import annotations

import os
import socket
from typing import cast

import pytest

from metaos.runtimes import process
from metaos.runtimes.forks import Forks
from metaos.runtimes.netns import Sockets


async def test_sockets_that_come_when_the_pod_has_ended_are_closed() -> None:
    made = [socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach() for _ in range(3)]

    class Slow:
        async def sockets(self, *_: object) -> list[int]:
            sockets.close()
            return list(made)

    holder = process.identity(os.getpid())
    assert holder is not None
    sockets = Sockets(cast(Forks, Slow()), holder, "")
    with pytest.raises(ConnectionRefusedError, match="has ended"):
        await sockets.connect(80)
    for fd in made:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
