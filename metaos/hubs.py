"""Several hubs on one database: how a hub opens it, and what one of them does for all.

Every hub serves reads, watches and writes. The controllers, the ledger's signatures and the store's upkeep run in one of them,
the leader (``reconcile.election``); each leader begins with a fencing token in the store, so that what a former one still has in
hand does not count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaos.clock import Clock
from metaos.config import HubConfig
from metaos.files import write_private
from metaos.reconcile.election import Taken
from metaos.store.file import lock_file
from metaos.store.keyfiles import KeyFiles
from metaos.store.log import GUARD, Conflict, Guard, Store, StoreFailed

if TYPE_CHECKING:
    from metaos.store.postgres import PostgresStore

TOKEN = "terms//controllers"  # noqa: S105  (a store key)
#: Says in a data directory where the state is that belongs to it.
MARK = "store"


class StoreToken:
    """The fencing token, in the store; see :class:`~metaos.reconcile.election.Token`."""

    def __init__(self, store: Store, identity: str) -> None:
        self._store, self._identity = store, identity

    async def look(self) -> int:
        found = await self._store.get(TOKEN)
        return found.revision if found else 0

    async def take(self, seen: int) -> None:
        value = json.dumps({"metadata": {"name": "controllers"}, "holder": self._identity}).encode()
        try:
            taken = await (self._store.update(TOKEN, value, expected=seen) if seen else self._store.create(TOKEN, value))
        except Conflict:
            raise Taken from None
        GUARD.set(Guard(TOKEN, taken))


def check_place(data: Path, store: str) -> None:
    """Raises ``StoreFailed`` where a data directory belongs to another state than the one that is asked for."""
    mark, own = data / MARK, data / "state.db"
    if not store and mark.exists():
        raise StoreFailed(f"the state of {data} is in {mark.read_text().strip()}: say so with --store, or choose another --data")
    if store and own.exists():
        raise StoreFailed(f"{data} has a state of its own: move it with 'nemo migrate-store', or choose another --data directory")


async def move_store(data: Path, store: str, clock: Clock, tell: Callable[[str], None], *, back: bool) -> dict[str, Any]:
    """Moves the state of a data directory into a database, or ``back``; see ``store.migration``. Raises ``ValueError``."""
    from metaos.store.database import Database
    from metaos.store.migration import PostgresSide, Side, SqliteSide, move

    try:
        database = Database.read(store)
        file = SqliteSide(data / "state.db", target=back)
        try:
            shared: Side = await PostgresSide.open(database, target=not back)
            try:
                source, target = (shared, file) if back else (file, shared)
                told = await move(source, target, clock, tell)
            finally:
                await shared.close()
        finally:
            await file.close()
        if back:
            (data / MARK).unlink(missing_ok=True)
        else:
            write_private(data / MARK, database.shown + "\n")
        return told
    except StoreFailed as failed:
        raise ValueError(str(failed)) from failed
    except OSError as error:
        raise ValueError(f"the database cannot be reached: {error.strerror or error}") from error


async def copy_shared(store: str, target: Path) -> None:
    """Makes a state file of a database, as of one revision, while hubs use it. Raises ``StoreFailed``."""
    from metaos.store.database import Database, failure
    from metaos.store.migration import UNFINISHED, PostgresSide, SqliteSide, copy

    unfinished = target.with_name(target.name + UNFINISHED)
    unfinished.unlink(missing_ok=True)
    database = Database.read(store)
    try:
        source = await PostgresSide.open(database, target=False)
        try:
            file = SqliteSide(target, target=True)
            try:
                await copy(source, file)
            finally:
                await file.close()
        finally:
            await source.close()
    except Exception as error:
        told = failure(error, database)
        if told is error:
            raise
        raise told from error
    finally:
        unfinished.unlink(missing_ok=True)


async def open_shared(config: HubConfig, clock: Clock, stack: AsyncExitStack) -> tuple[PostgresStore, KeyFiles]:
    """The database, and the keys of its hubs. ``stack`` closes it. Raises ``StoreFailed``, ``ValueError``."""
    try:
        from metaos.store.database import Database
        from metaos.store.postgres import PostgresStore
    except ImportError:
        raise StoreFailed("a store in PostgreSQL needs the driver: pip install 'nemo-metaos[postgres]'") from None
    database = Database.read(config.store)
    lock = lock_file(config.data / "state.db")
    stack.callback(os.close, lock)
    store = await PostgresStore.open(database, clock)
    stack.push_async_callback(store.close)
    keys = await KeyFiles.open(store, config.data, config.hub_key or config.data / "hub.key")
    write_private(config.data / MARK, database.shown + "\n")
    return store, keys
