"""Volumes as data that can be sent and stored: a directory tree is a manifest and content-addressed chunks.

For those who move volumes between sites (``metaos.agent``) and those who back them up to a store. In short::

    snapshot = scan(root, now)                          # what is there, block by block; reads every file once
    snapshot = scan(root, later, before=snapshot)       # reads only files that were touched since
    save(root, now, chunks, form, before=snapshot)      # the same, and every block that the store lacks is put there
    manifest = snapshot.manifest                        # .encode() → bytes, Manifest.decode(bytes) checks what strangers sent
    restore(manifest, fetcher(chunks, form), target)    # whole, verified, durable, at a path where nothing is yet

*Manifest* (:mod:`~metaos.volumes.manifest`, pure): entries (files, directories, symbolic and hard links, FIFOs) with modes,
owners, modification times, ``user.*`` attributes, and for files the size and one SHA-256 digest for each block of
``block_bytes``; a block of zeros is ``None`` and takes nothing anywhere. Its own ``digest`` names a state of a volume. A manifest
is stored whole by whoever makes it; it says everything but the content, so where it leaves the trust domain it is sealed too
(:meth:`Sealed.seal`).

*Chunks* (:mod:`~metaos.volumes.chunks`): a store of chunks by name (``has``, ``put``, ``get``, ``list``, ``delete``), blocking:
use it in a thread or in a process of its own. ``DirectoryChunks`` is one; every implementation passes
``tests/volumes/conformance.py``. A *form* says what is stored under which name: ``Plain`` compresses (Zstandard), ``Sealed``
encrypts as well and keys the names, so that a store outside learns sizes and equalities within one key, and nothing else.

*Rules*: every block is verified against its digest when it is read from a store, before it is written anywhere. A restored tree
appears under its name only when all of it is on disk. Nothing here follows a link that it finds in a tree or a manifest.
A file that changes while it is read is named in ``Snapshot.unsettled`` (``live=True``) or raises :class:`Unsettled`: only a
volume that nobody writes is whole. Who uses this in the agent does so in a process of its own, as images are fetched (ADR 13):
Zstandard, ``cryptography`` and what a large volume's manifest takes are not the agent's.
"""

from metaos.volumes.chunks import Chunks, DamagedChunk, DirectoryChunks, Form, MissingChunk, Plain, Sealed, fetcher
from metaos.volumes.manifest import Entry, HostileManifest, Manifest
from metaos.volumes.restoring import Assembly, restore
from metaos.volumes.scanning import Snapshot, Unsettled, Unsupported, save, scan

__all__ = [
    "Assembly",
    "Chunks",
    "DamagedChunk",
    "DirectoryChunks",
    "Entry",
    "Form",
    "HostileManifest",
    "Manifest",
    "MissingChunk",
    "Plain",
    "Sealed",
    "Snapshot",
    "Unsettled",
    "Unsupported",
    "fetcher",
    "restore",
    "save",
    "scan",
]
