"""What ``bench.scale`` stands on: a store that was filled from beside is as one that was written to."""

from __future__ import annotations

from pathlib import Path

from bench.scalestore import config_map, fill, measure
from metaos.store.sqlite import SqliteStore


async def test_a_file_that_was_filled_from_beside_is_a_store(tmp_path: Path) -> None:
    state = tmp_path / "state.db"
    store = await SqliteStore.open(state)
    await store.create("configmaps/default/mine", b"{}")
    await store.close()
    assert fill(state, 1500) == 1499 and fill(state, 1500) == 0
    store = await SqliteStore.open(state)
    assert await store.revision() == 1500 and len((await store.list("")).entries) == 1500
    assert len((await store.list("namespaces/")).entries) == 2
    key, value = config_map(1200)
    entry = await store.get(key)
    assert entry is not None and entry.value == value
    assert await store.update(key, b"{}", expected=entry.revision) == 1501
    figures = {f.name.rpartition(": ")[2]: f.value for f in await measure("SQLite", store, 1499, state)}
    assert figures["size of the file"] > 0.5 and figures["creates, 512 at a time"] > 0
