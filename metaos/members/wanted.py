"""What the Works want at a cluster: an entry for each manifest, with what is sent for it, in the order in which it is applied."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from metaos.agent.sync import Works
from metaos.members.exports import Exports
from metaos.members.manifests import is_export, is_import, is_skipped, phase, prepared
from metaos.members.relaying import Relays
from metaos.resources.meta import Obj, ObjectRef, generation, name, namespace, ref, uid


@dataclass(frozen=True, slots=True)
class Wanted:
    """One manifest of one Work, and what is sent for it."""

    manifest: Obj
    body: Obj
    work: str
    digest: str
    phase: int


class WantedObjects:
    """Bounded by what the Works name."""

    def __init__(self, works: Works, membership: str, relays: Relays | None = None, exports: Exports | None = None) -> None:
        self._works, self._id, self._relays, self._exports = works, membership, relays, exports
        self._wanted: dict[ObjectRef, Wanted] = {}
        #: What each Work names, and by whom each object is named.
        self._named: dict[str, list[ObjectRef]] = {}
        self._claims: dict[ObjectRef, dict[str, Wanted]] = {}
        self._by_work: dict[str, tuple[object, list[tuple[ObjectRef, Wanted]]]] = {}
        #: Works with imported or exported Services: what is sent for an import follows from other Works, too.
        self._shared: set[str] = set()

    def take_up(self, works: Iterable[str]) -> list[ObjectRef]:
        """See what these Works want now; which objects that is news of, in order."""
        touched: set[ObjectRef] = set()
        for work in {*works, *self._shared}:
            for each in self._named.pop(work, ()):
                self._claims[each].pop(work, None)
                touched.add(each)
            if self._works.get(work) is None:
                self._by_work.pop(work, None)
                self._shared.discard(work)
                continue
            found = self.of_work(work)
            self._named[work] = [each for each, _ in found]
            for each, wanted in found:
                self._claims.setdefault(each, {}).setdefault(work, wanted)
                touched.add(each)
            shared = any(is_import(each) or is_export(each) for each in self._manifests(work))
            (self._shared.add if shared else self._shared.discard)(work)
        said = [(each, work) for work in sorted(self._shared) for each in self._manifests(work)]
        if self._exports is not None:
            self._exports.keep({(namespace(each), name(each)): work for each, work in said if is_export(each)})
        if self._relays is not None:
            self._relays.keep((namespace(each), name(each)) for each, _ in said if is_import(each))
        return self.ordered(each for each in touched if self._settle(each))

    def _settle(self, each: ObjectRef) -> bool:
        """Whether something else is wanted of an object than before. Of Works that name one object the first has it."""
        claims = self._claims.get(each)
        before = self._wanted.get(each)
        if claims:
            self._wanted[each] = claims[min(claims)]
        else:
            self._claims.pop(each, None)
            self._wanted.pop(each, None)
        return self._wanted.get(each) is not before

    def of_work(self, work: str) -> list[tuple[ObjectRef, Wanted]]:
        """Its manifests as far as they are carried to clusters, whoever has their objects."""
        obj = self._works.get(work) or {}
        imported = next((each for each in self._manifests(work) if is_import(each)), None)
        # Who is there to be relayed to is another Work's.
        relayed = self._relays is not None and imported is not None and self._relays.reaches(namespace(imported), name(imported))
        key = uid(obj), generation(obj), relayed
        cached = self._by_work.get(work)
        if cached is not None and cached[0] == key:
            return cached[1]
        found = []
        for said in self._manifests(work):
            manifest = self.native(said)
            if manifest is not None:
                each = ref(manifest)
                text = json.dumps([uid(obj), manifest], sort_keys=True, separators=(",", ":"))
                digest = hashlib.sha256(text.encode()).hexdigest()
                body = prepared(manifest, self._id, uid(obj))
                found.append((each, Wanted(manifest, body, work, digest, phase(each.group, each.kind))))
        self._by_work[work] = key, found
        return found

    def native(self, manifest: Obj) -> Obj | None:
        """What the cluster gets for a manifest, if anything."""
        if is_import(manifest):
            return None if self._relays is None else self._relays.slice(manifest)
        return None if is_skipped(manifest) or is_export(manifest) else manifest

    def _manifests(self, work: str) -> Sequence[Obj]:
        found: Sequence[Obj] = ((self._works.get(work) or {}).get("spec") or {}).get("manifests") or ()
        return found

    def get(self, each: ObjectRef) -> Wanted | None:
        return self._wanted.get(each)

    def __contains__(self, each: ObjectRef) -> bool:
        return each in self._wanted

    def __iter__(self) -> Iterator[ObjectRef]:
        return iter(self._wanted)

    def of_kind(self, group: str, kind: str) -> list[tuple[ObjectRef, Wanted]]:
        return [(each, wanted) for each, wanted in self._wanted.items() if (each.group, each.kind) == (group, kind)]

    def ordered(self, refs: Iterable[ObjectRef]) -> list[ObjectRef]:
        """What is wanted in the order of phases, then what is to go in the opposite order."""
        keep: list[tuple[int, ObjectRef]] = []
        drop: list[tuple[int, ObjectRef]] = []
        for each in refs:
            wanted = self._wanted.get(each)
            if wanted is not None:
                keep.append((wanted.phase, each))
            else:
                drop.append((-phase(each.group, each.kind), each))
        return [each for _, each in (*sorted(keep), *sorted(drop))]

    def defines(self, group: str) -> bool:
        """Whether a Work has the definition of a kind of this group."""
        definitions = self.of_kind("apiextensions.k8s.io", "CustomResourceDefinition")
        return any((wanted.manifest.get("spec") or {}).get("group") == group for _, wanted in definitions)
