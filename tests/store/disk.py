"""A disk between SQLite and the real one: every step that changes a file is seen, and may be recorded, refused or interrupted.

It is a shim in the very SQLite library that this Python uses: the default VFS with some of its functions replaced, and with
``os`` functions that the rest of the program writes files with. Nothing in the product knows of it.
Source: sqlite.org/vfs.html, ``sqlite3_vfs`` and ``sqlite3_io_methods`` in sqlite3.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

FULL, IOERR_WRITE, IOERR_FSYNC = 13, 10 | 3 << 8, 10 | 4 << 8
_OK, _OPEN_CREATE, _OPEN_DELETE_ON_CLOSE = 0, 0x4, 0x8

_Pointer = ctypes.c_void_p
_Open = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, _Pointer, _Pointer, ctypes.c_int, ctypes.POINTER(ctypes.c_int))
_Delete = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, ctypes.c_char_p, ctypes.c_int)
_Write = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, _Pointer, ctypes.c_int, ctypes.c_int64)
_Truncate = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, ctypes.c_int64)
_Sync = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, ctypes.c_int)
_SetCall = ctypes.CFUNCTYPE(ctypes.c_int, _Pointer, ctypes.c_char_p, _Pointer)
_GetCall = ctypes.CFUNCTYPE(_Pointer, _Pointer, ctypes.c_char_p)
_OpenDirectory = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int))


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", _Pointer),
        ("zName", ctypes.c_char_p),
        ("pAppData", _Pointer),
        ("xOpen", _Open),
        ("xDelete", _Delete),
        *((name, _Pointer) for name in ("xAccess", "xFullPathname", "xDlOpen", "xDlError", "xDlSym", "xDlClose")),
        *((name, _Pointer) for name in ("xRandomness", "xSleep", "xCurrentTime", "xGetLastError", "xCurrentTimeInt64")),
        ("xSetSystemCall", _SetCall),
        ("xGetSystemCall", _GetCall),
        ("xNextSystemCall", _Pointer),
    ]


class _Methods(ctypes.Structure):
    _fields_ = [
        ("iVersion", ctypes.c_int),
        ("xClose", _Pointer),
        ("xRead", _Pointer),
        ("xWrite", _Write),
        ("xTruncate", _Truncate),
        ("xSync", _Sync),
        *((name, _Pointer) for name in ("xFileSize", "xLock", "xUnlock", "xCheckReservedLock", "xFileControl")),
        *((name, _Pointer) for name in ("xSectorSize", "xDeviceCharacteristics", "xShmMap", "xShmLock", "xShmBarrier")),
        *((name, _Pointer) for name in ("xShmUnmap", "xFetch", "xUnfetch")),
    ]


class _File(ctypes.Structure):
    _fields_ = [("pMethods", ctypes.POINTER(_Methods))]


class Kind(StrEnum):
    CREATE = "create"
    WRITE = "write"
    TRUNCATE = "truncate"
    SYNC = "sync"
    RENAME = "rename"
    UNLINK = "unlink"
    SYNC_DIRECTORY = "sync directory"
    #: Not of the disk: something that the program told its user, put between the steps that it followed.
    SAID = "said"


@dataclass(frozen=True, slots=True)
class Step:
    """One change. ``offset`` is the size for a truncate; ``target`` the new name for a rename."""

    kind: Kind
    path: str
    offset: int = 0
    data: bytes = b""
    target: str = ""


#: Called before each step. Returns a SQLite error code to refuse it with, 0 to let it happen; may also not return.
Watch = Callable[[Step], int]


def _library() -> Any:
    import _sqlite3

    library = ctypes.CDLL(_sqlite3.__file__)
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    return library


@contextlib.contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Within it, SQLite connections that are opened, and files that ``os`` functions write, go by ``watch``."""
    library = _library()
    real = library.sqlite3_vfs_find(None)
    vfs = _Vfs.from_buffer_copy(real.contents)
    vfs.zName = b"watched"
    tables: dict[int, _Methods] = {}  # Kept for as long as SQLite may call them.
    names: dict[int, str] = {}

    def adopt(file: int) -> None:
        held = _File.from_address(file)
        original = ctypes.addressof(held.pMethods.contents)
        if original not in tables:
            table = tables[original] = _Methods.from_buffer_copy(held.pMethods.contents)
            write, truncate, sync = (
                kind(ctypes.cast(function, _Pointer).value)
                for kind, function in ((_Write, table.xWrite), (_Truncate, table.xTruncate), (_Sync, table.xSync))
            )

            def on_write(file: int, data: int, size: int, offset: int) -> int:
                code = watch(Step(Kind.WRITE, names[file], offset, ctypes.string_at(data, size)))
                return code or int(write(file, data, size, offset))

            def on_truncate(file: int, size: int) -> int:
                return watch(Step(Kind.TRUNCATE, names[file], size)) or int(truncate(file, size))

            def on_sync(file: int, flags: int) -> int:
                return watch(Step(Kind.SYNC, names[file])) or int(sync(file, flags))

            table.xWrite, table.xTruncate, table.xSync = _Write(on_write), _Truncate(on_truncate), _Sync(on_sync)
        held.pMethods = ctypes.pointer(tables[original])

    real_open, real_delete = real.contents.xOpen, real.contents.xDelete

    def on_open(vfs: int, name: int, file: int, flags: int, out: Any) -> int:
        path = ctypes.string_at(name).decode() if name else ""
        if path and flags & _OPEN_CREATE and not os.path.exists(path):
            code = watch(Step(Kind.CREATE, path))
            if code:
                return code
        code = int(real_open(vfs, name, file, flags, out))
        if code == _OK and path and not flags & _OPEN_DELETE_ON_CLOSE:
            names[file] = path
            adopt(file)
        return code

    def on_delete(vfs: int, name: bytes, sync: int) -> int:
        code = watch(Step(Kind.UNLINK, name.decode())) if os.path.exists(name) else 0
        return code or int(real_delete(vfs, name, sync))

    vfs.xOpen, vfs.xDelete = _Open(on_open), _Delete(on_delete)
    open_directory = _OpenDirectory(real.contents.xGetSystemCall(ctypes.addressof(real.contents), b"openDirectory"))

    def on_directory(name: bytes, out: Any) -> int:
        # SQLite opens the directory of a file for one purpose: to sync it.
        watch(Step(Kind.SYNC_DIRECTORY, os.path.dirname(name.decode())))
        return int(open_directory(name, out))

    directory_call = _OpenDirectory(on_directory)
    library.sqlite3_vfs_register(ctypes.byref(vfs), 1)
    real.contents.xSetSystemCall(ctypes.addressof(real.contents), b"openDirectory", ctypes.cast(directory_call, _Pointer))
    try:
        with _plain_files(watch):
            yield
    finally:
        real.contents.xSetSystemCall(ctypes.addressof(real.contents), b"openDirectory", None)
        library.sqlite3_vfs_register(real, 1)
        library.sqlite3_vfs_unregister(ctypes.byref(vfs))


@contextlib.contextmanager
def _plain_files(watch: Watch) -> Iterator[None]:
    """Files that the program itself writes. What is in one is seen when it is synced or renamed."""
    known = {name: getattr(os, name) for name in ("open", "fsync", "replace", "rename", "unlink", "mkdir")}
    written: dict[str, bytes] = {}

    def refuse(code: int) -> None:
        if code:
            raise OSError(28 if code == FULL else 5, os.strerror(28 if code == FULL else 5))

    def content(path: str) -> None:
        data = Path(path).read_bytes()
        if data != written.get(path):
            written[path] = data
            refuse(watch(Step(Kind.TRUNCATE, path, 0)))
            refuse(watch(Step(Kind.WRITE, path, 0, data)))

    def on_open(path: Any, flags: int, *more: Any, **named: Any) -> Any:
        if flags & os.O_CREAT and isinstance(path, str | os.PathLike) and not os.path.exists(path):
            written.pop(str(path), None)
            refuse(watch(Step(Kind.CREATE, str(path))))
        return known["open"](path, flags, *more, **named)

    def on_sync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isdir(path):
            refuse(watch(Step(Kind.SYNC_DIRECTORY, path)))
        else:
            content(path)
            refuse(watch(Step(Kind.SYNC, path)))
        known["fsync"](descriptor)

    def on_replace(source: Any, target: Any, **named: Any) -> None:
        if not os.path.isdir(source):
            content(str(source))
        refuse(watch(Step(Kind.RENAME, str(source), target=str(target))))
        if str(source) in written:
            written[str(target)] = written.pop(str(source))
        known["replace"](source, target, **named)

    def on_unlink(path: Any, **named: Any) -> None:
        if os.path.exists(path):
            refuse(watch(Step(Kind.UNLINK, str(path))))
        known["unlink"](path, **named)

    os.open, os.fsync, os.replace, os.rename, os.unlink = on_open, on_sync, on_replace, on_replace, on_unlink  # type: ignore[assignment]
    try:
        yield
    finally:
        for name, function in known.items():
            setattr(os, name, function)


def mark(revision: int) -> tuple[str, bytes]:
    """What a restored store is told to carry."""
    return "restored/", str(revision).encode()
