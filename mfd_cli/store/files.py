"""Files that are whole or absent: written aside, synced to disk, renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mfd_cli.errors import RunStopped

_ASIDE = re.compile(r"\.(?P<name>.+)\.(?:[0-9a-f]{8}|(?P<old>old))")
#: files by which processes find out about each other and about the disk
_MARKS = (".lock", ".writable")
#: what a system says that cannot sync a folder, which is no failure of the disk
_NO_SYNC = (errno.EINVAL, errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR, errno.ENOTSUP, errno.ENOSYS)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces or creates a file in one step; a crash leaves the old content or the new, nothing between.

    Raises:
        RunStopped: the disk is full or refuses the write; what stood there before still does.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with disk_errors(path, len(content)):
        try:
            with open(aside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            sync_folder(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON document, as `write_bytes` does."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def whole_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Gives a hidden folder to write into, and renames it to `path` when the block ends without an exception.

    Args:
        path: the final folder.
        replace: whether a folder that stands there may be exchanged for the new one.

    Raises:
        RunStopped: the disk is full or refuses the write; nothing of the new folder remains.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with disk_errors(path):
        aside.mkdir(parents=True)
        try:
            yield aside
            for file in aside.iterdir():
                _sync_file(file)
            sync_folder(aside)
            if replace and path.exists():
                old = path.with_name(f".{path.name}.old")
                remove(old)
                os.rename(path, old)
                os.rename(aside, path)
                sync_folder(path.parent)
                remove(old)
            else:
                os.rename(aside, path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def remove(path: Path) -> None:
    """Removes a file or a folder with all that is in it, if it is there; a link goes itself, never what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Undoes what a killed process left unfinished; only for a folder that nobody else is writing to.

    What was aside to be replaced, and was not, comes back to its place.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if found := _ASIDE.fullmatch(path.name):
            place = path.with_name(found["name"])
            if found["old"] and not os.path.lexists(place):
                os.rename(path, place)
            else:
                remove(path)


def is_unused(folder: Path) -> bool:
    """Whether a folder holds nothing but what a process leaves that was killed before it wrote anything."""
    return all(path.name in _MARKS or _ASIDE.fullmatch(path.name) for path in folder.iterdir())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or holds anything else.
    """
    if path.exists() and not path.is_file():
        raise ValueError("no regular file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def sync_folder(path: Path) -> None:
    """Makes a rename inside a folder survive a power cut, where the system can.

    Raises:
        OSError: the disk fails.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(file)


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that holds `path` (or its nearest existing parent)."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def human(size: float) -> str:
    """A number of bytes for people: 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _slow(file: Any) -> str:  # Python 3.10 has no file_digest
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _sync_file(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def disk_errors(path: Path, size: int | None = None) -> Iterator[None]:
    """Turns a full, read-only or failing disk inside the block into RunStopped.

    Args:
        path: what is being written.
        size: bytes it needs, if known.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (*_NO_ROOM, errno.EROFS, errno.EIO):
            raise
        mend = "make room" if error.errno in _NO_ROOM else "see to the disk"
        needed = f", {human(size)} needed" if size is not None else ""
        raise RunStopped(
            f"{path}: {error.strerror}{needed}, {human(free_bytes(path.parent))} free",
            do=f"{mend}; what was saved before is unharmed, and `--resume` continues from it",
        ) from error
