"""What an agent does with volumes that come or go, without the processes that carry them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metaos.agent.moving import Moves, patterns
from metaos.resources.errors import ApiError
from metaos.resources.meta import Obj
from tests.clock import FakeClock

KEY = "statefulset.shop.db"


def work(**volumes: Any) -> Obj:
    spec = {"replicas": 1, "volumeClaimTemplates": [{"metadata": {"name": "data"}}], "template": {"spec": {}}}
    metadata = {"name": "db", "namespace": "shop", "uid": "u"}
    manifest = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec}
    return {"metadata": {"name": KEY}, "spec": {"manifests": [manifest], "volumes": volumes}}


class Site:
    def __init__(self, directory: Path) -> None:
        self.directory, self.works, self.pods = directory, dict[str, Obj](), list[Obj]()
        self.listed = True

        async def dial(header: dict[str, Any]) -> Any:
            raise ConnectionError("not here")

        self.moves = Moves(
            directory,
            directory,
            "b",
            dial,
            FakeClock(),
            lambda: self.works,
            lambda: self.pods,
            lambda: None,
            lambda key: None,
            lambda: self.listed,
        )

    def came(self, attempt: int, content: str) -> None:
        claim = self.directory / "arriving" / KEY / "data-db-0"
        claim.mkdir(parents=True)
        (claim / "file").write_text(content)
        mark = {"attempt": attempt, "claims": ["data-db-0"], "said": {"rounds": 2}}
        (self.directory / "moves" / f"{KEY}.json").write_text(json.dumps(mark))

    async def look(self) -> None:
        for key, each in self.works.items():
            await self.moves._see_to(key, each)
        await self.moves._forget(self.works)

    @property
    def claim(self) -> Path:
        return self.directory / "claims" / "shop" / "data-db-0"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_nothing_runs_before_what_came_is_in_its_place(site: Site) -> None:
    told = work(receive={"from": "a", "attempt": 3, "adopt": True})
    site.works[KEY] = told
    assert site.moves.withheld(told)
    await site.look()
    assert site.moves.withheld(told) and not site.claim.exists(), "nothing came"
    assert site.moves.status(told)["phase"] == "Failed"
    site.came(2, "old")
    await site.look()
    assert site.moves.withheld(told) and not site.claim.exists(), "of another attempt"
    (site.directory / "arriving" / KEY / "data-db-0" / "file").unlink()
    (site.directory / "arriving" / KEY / "data-db-0").rmdir()
    site.came(3, "new")
    site.claim.mkdir(parents=True)
    (site.claim / "file").write_text("of an earlier stay")
    await site.look()
    assert not site.moves.withheld(told)
    assert (site.claim / "file").read_text() == "new"
    assert site.moves.status(told) == {"phase": "Adopted", "attempt": 3, "rounds": 2}
    assert not (site.directory / "arriving" / KEY).exists()
    (site.claim / "file").write_text("written since")
    await Site(site.directory).look()
    await site.look()
    assert (site.claim / "file").read_text() == "written since"


async def test_an_interrupted_adoption_is_gone_on_with(site: Site) -> None:
    site.came(1, "new")
    mark = json.loads((site.directory / "moves" / f"{KEY}.json").read_text())
    (site.directory / "moves" / f"{KEY}.json").write_text(json.dumps(mark | {"claims": ["data-db-0", "data-db-1"]}))
    (site.directory / "claims" / "shop" / "data-db-1").mkdir(parents=True)
    (site.directory / "claims" / "shop" / "data-db-1" / "file").write_text("renamed before the crash")
    site.works[KEY] = work(receive={"from": "a", "attempt": 1, "adopt": True})
    await site.look()
    assert (site.claim / "file").read_text() == "new"
    assert (site.claim.with_name("data-db-1") / "file").read_text() == "renamed before the crash"


async def test_what_is_whole_is_said_of_its_attempt_alone(site: Site) -> None:
    site.came(1, "x")
    assert site.moves.status(work(receive={"from": "a", "attempt": 1}))["phase"] == "Complete"
    assert site.moves.status(work(receive={"from": "a", "attempt": 2})) == {"phase": "Receiving", "attempt": 2}
    assert site.moves.status(work(send={"to": "c", "attempt": 2})) == {}


async def test_a_new_attempt_forgets_that_the_last_was_whole(site: Site) -> None:
    site.came(1, "x")
    site.works[KEY] = work(receive={"from": "a", "attempt": 2})
    await site.look()
    assert not (site.directory / "moves" / f"{KEY}.json").exists()
    assert (site.directory / "arriving" / KEY).exists(), "what is there need not be sent again"
    await site.moves._stop_receiving(KEY)


async def test_what_is_given_up_goes_only_when_nothing_runs(site: Site) -> None:
    site.claim.mkdir(parents=True)
    other = site.claim.with_name("data-other-0")
    other.mkdir()
    told = work(send={"to": "c", "attempt": 1, "discard": True}, stop=True)
    site.works[KEY] = told
    site.pods = [{"metadata": {"name": "db-0", "ownerReferences": [{"uid": "u", "controller": True}]}}]
    await site.look()
    assert site.claim.exists() and site.moves.status(told)["phase"] == "Sending"
    site.pods = []
    await site.look()
    assert not site.claim.exists() and other.exists()
    assert site.moves.status(told)["phase"] == "Discarded"


async def test_what_came_for_a_work_that_is_gone_goes(site: Site) -> None:
    site.came(1, "x")
    await site.look()
    assert not (site.directory / "arriving" / KEY).exists()
    assert list((site.directory / "moves").iterdir()) == []


async def test_only_the_site_that_is_named_is_served(site: Site) -> None:
    site.works[KEY] = work(send={"to": "c", "attempt": 2})
    for header in (
        {"work": KEY, "attempt": 2, "source": {"site": "d"}},
        {"work": KEY, "attempt": 1, "source": {"site": "c"}},
        {"work": "other", "attempt": 2, "source": {"site": "c"}},
        {"work": KEY, "attempt": 2},
    ):
        with pytest.raises(ApiError, match="not told to send"):
            await site.moves.send(header, None)  # type: ignore[arg-type]


def test_claims_of_a_workload() -> None:
    (manifest,) = work()["spec"]["manifests"]
    assert patterns(manifest) == ["data-db-*"]
    manifest["spec"]["template"]["spec"]["volumes"] = [{"persistentVolumeClaim": {"claimName": "www"}}, {"emptyDir": {}}]
    assert patterns(manifest) == ["www", "data-db-*"]


async def test_a_work_that_could_not_be_read_after_a_start_is_not_gone(site: Site) -> None:
    site.came(1, "x")
    site.listed = False
    await site.look()
    site.listed = True
    site.works[KEY] = work(receive={"from": "a", "attempt": 1, "adopt": True})
    await site.look()
    assert (site.claim / "file").read_text() == "x"


async def test_what_left_does_not_begin_again_with_nothing(site: Site, tmp_path: Path) -> None:
    """A hub that was restored from an older backup tells it to run here."""
    site.claim.mkdir(parents=True)
    site.works[KEY] = work(send={"to": "c", "attempt": 5}, stop=True)
    await site.look()
    assert site.moves.status(site.works[KEY]) == {"left": {"attempt": 5, "to": "c"}}
    for told in (work(), work(send={"to": "c", "attempt": 5}), work(receive={"from": "x", "attempt": 4, "adopt": True})):
        assert site.moves.withheld(told)
    assert not site.moves.withheld(work(kept=5)) and not site.moves.withheld(work(send={"to": "c", "attempt": 6}))
    site.works[KEY] = work(send={"to": "c", "attempt": 5, "discard": True}, stop=True)
    await site.look()
    del site.works[KEY]
    await site.look()
    again = Site(tmp_path)
    again.works[KEY] = work()
    await again.look()
    assert again.moves.withheld(work()) and not site.claim.exists()
    assert again.moves.status(work())["left"] == {"attempt": 5, "to": "c", "discarded": True}
    another = work()
    another["spec"]["manifests"][0]["metadata"]["uid"] = "another"
    assert not again.moves.withheld(another), "of the same name"
    restored = work()
    restored["spec"]["restore"] = {"id": "c@later"}
    assert not again.moves.withheld(restored), "its data comes from a backup"
    again.works[KEY] = another
    await again.look()
    assert list((tmp_path / "left").iterdir()) == []


async def test_what_went_on_after_a_stop_is_remembered_too(site: Site) -> None:
    site.works[KEY] = work(send={"to": "c", "attempt": 5}, stop=True)
    await site.look()
    site.works[KEY] = work(kept=5)
    await site.look()
    assert site.moves.status(work())["left"] == {"attempt": 5, "to": "c", "kept": True}
    assert not site.moves.withheld(work())
    site.works[KEY] = work(send={"to": "c", "attempt": 5}, stop=True)
    await site.look()
    assert site.moves.status(work())["left"].get("kept"), "an older hub says it again"


async def test_what_it_has_is_not_written_over_nor_deleted_for_a_hub_that_knows_less(site: Site) -> None:
    site.came(7, "of the last move")
    site.works[KEY] = work(receive={"from": "a", "attempt": 7, "adopt": True})
    await site.look()
    for told in (
        work(receive={"from": "a", "attempt": 9}),
        work(),
        work(send={"to": "a", "attempt": 6, "discard": True}, stop=True),
    ):
        site.works[KEY] = told
        await site.look()
        assert site.moves.status(told)["holds"] == 7
        assert (site.claim / "file").read_text() == "of the last move"
    assert not site.moves._receiving
    assert "holds" not in site.moves.status(work(receive={"from": "a", "attempt": 7, "adopt": True}))
