"""What is wanted follows from the Works alone, whichever of them changed in whatever order."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from metaos.agent.sync import Works
from metaos.members.manifests import phase
from metaos.members.wanted import WantedObjects
from metaos.resources.meta import Obj, ref


class Held:
    """Works as the applier reads them."""

    def __init__(self) -> None:
        self.works: dict[str, Obj] = {}

    def get(self, work: str) -> Obj | None:
        return self.works.get(work)


def work(called: str, generation: int, objects: list[str]) -> Obj:
    found: list[Any] = [
        {"apiVersion": "v1", "kind": kind, "metadata": {"name": kind.lower(), "namespace": "shop", "uid": called}}
        for kind in objects
    ]
    return {"metadata": {"name": called, "uid": called, "generation": generation}, "spec": {"manifests": found}}


kinds = st.lists(st.sampled_from(["ConfigMap", "Secret", "Service", "ServiceAccount"]), max_size=4)
steps = st.lists(st.tuples(st.sampled_from("abc"), st.none() | kinds, st.booleans()), max_size=20)


@given(steps)
def test_it_is_as_if_it_were_worked_out_anew(changes: list[tuple[str, list[str] | None, bool]]) -> None:
    held, changed = Held(), set[str]()
    wanted = WantedObjects(cast(Works, held), "m-1")
    for generation, (called, objects, taken_up) in enumerate(changes):
        if objects is None:
            held.works.pop(called, None)
        else:
            held.works[called] = work(called, generation, objects)
        changed.add(called)
        if not taken_up:
            continue
        before = {each: wanted.get(each) for each in wanted}
        news = wanted.take_up(changed)
        changed.clear()
        now = {each: wanted.get(each) for each in wanted}
        assert set(news) == {each for each in before.keys() | now.keys() if before.get(each) is not now.get(each)}
        keep = [each for each in news if each in wanted]
        assert news[: len(keep)] == keep and keep == sorted(keep, key=lambda each: (phase(each.group, each.kind), each))
        expected: dict[Any, str] = {}
        for name in sorted(held.works):
            for manifest in held.works[name]["spec"]["manifests"]:
                expected.setdefault(ref(manifest), name)
        assert {each: found.work for each, found in now.items() if found is not None} == expected
        again = wanted.take_up(list(held.works))
        assert again == [], "nothing has changed"
