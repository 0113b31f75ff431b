"""Many objects at once: their names are asked for together, and what somebody else has is found all the same."""

from __future__ import annotations

from typing import Any

import pytest

from metaos.members import names
from metaos.resources import scheme
from tests.members.conftest import Applying

COUNT = 16


async def test_many_cost_one_look_and_a_name_that_is_taken_is_not_touched(
    applying: Applying, monkeypatch: pytest.MonkeyPatch
) -> None:
    await applying.client.create(
        scheme.NAMESPACE.empty(applying.namespace)
        | {"metadata": {"name": applying.namespace, "labels": {"meta-os.eu/use": "true"}}}
    )
    theirs = applying.config("c9", k="theirs")
    del theirs["metadata"]["uid"]
    await applying.client.create(theirs)
    looks: list[str] = []
    request = applying.member.client.request

    async def counted(method: str, path: str, *arguments: Any, **more: Any) -> Any:
        if method == "GET" and "/configmaps/c" in path:
            looks.append(path)
        return await request(method, path, *arguments, **more)

    monkeypatch.setattr(applying.member.client, "request", counted)
    applying.give(*(applying.work(f"w{n}", applying.config(f"c{n}", k="ours")) for n in range(COUNT)))
    await applying.applied(*(f"w{n}" for n in range(COUNT) if n != 9))
    await applying.refused("w9", "NameTaken")
    found = await applying.client.list(scheme.CONFIG_MAP, applying.namespace, labels="meta-os.eu/member")
    assert len(found.items) == COUNT - 1
    kept = await applying.get(scheme.CONFIG_MAP, "c9")
    assert kept is not None and kept["data"] == {"k": "theirs"}
    assert len(set(looks)) <= names.FEW + 1, "the first few, and the one that is there"


async def test_what_cannot_be_listed_whole_is_looked_up_one_by_one(applying: Applying, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_NAMES", 2)
    applying.give(*(applying.work(f"w{n}", applying.config(f"c{n}", k="v")) for n in range(COUNT)))
    await applying.applied(*(f"w{n}" for n in range(COUNT)))
