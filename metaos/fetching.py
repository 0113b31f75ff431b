"""A GET to a server on the Internet that is not trusted: bounded in time and size, without redirects."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping

import aiohttp

TIMEOUT_SECONDS, MOST_BYTES = 10.0, 2 << 20


async def get(url: str, headers: Mapping[str, str], authorities: str = "") -> tuple[int, bytes]:
    """(Status, body); status 0 and why, where there is no answer. ``headers`` go to this address only, and into no message.
    ``authorities`` (PEM): they alone count, instead of the machine's."""
    try:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(url, headers=dict(headers), allow_redirects=False, ssl=_trusted(authorities)) as answer,
        ):
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > MOST_BYTES:
                    return 0, f"the answer has more than {MOST_BYTES} bytes".encode()
            return answer.status, bytes(body)
    except TimeoutError:
        return 0, f"no answer within {TIMEOUT_SECONDS:g} s".encode()
    except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError, ValueError) as error:
        return 0, f"{type(error).__name__}: it cannot be reached or does not speak HTTP".encode()


def _trusted(authorities: str) -> ssl.SSLContext | bool:
    return ssl.create_default_context(cadata=authorities) if authorities else True
