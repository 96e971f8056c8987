"""A disk under a process that dies: every call that changes something is counted, and one of them can be the last."""

from __future__ import annotations

import builtins
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from mfd_cli.store import files

#: calls by which something on the disk changes, besides writing into an open file
CALLS = ("mkdir", "fsync", "replace", "rename", "unlink", "rmdir")


class Died(BaseException):
    """The process is dead; nothing catches it, and what it still tries reaches no disk."""


class Disk:
    """Counts the moments before and after each call, and in the middle of each write.

    Args:
        folder: whose files' names are recorded.
        at: the moment, from 1, at which the process dies; None to let it live.
        error: raised instead at that moment, after which the process goes on.
        power: whether the power goes too: files lose what was not synced.

    Attributes:
        moments: how many there were.
        calls: the calls that were made, such as "replace state.json".
    """

    def __init__(
        self,
        folder: Path,
        at: int | None = None,
        *,
        error: Callable[[], BaseException] | None = None,
        power: bool = False,
    ) -> None:
        self.folder, self.at, self.error, self.power = folder, at, error, power
        self.moments, self.calls, self.dead = 0, [], False
        self._unsynced: set[int] = set()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Disk:
        for name in CALLS:
            self._patch.setattr(os, name, self._counted(name, getattr(os, name)))
        self._patch.setattr(files, "open", self._open, raising=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._patch.undo()
        if self.dead and self.power:
            for path in self.folder.rglob("*"):
                if path.is_file() and path.stat().st_ino in self._unsynced:
                    path.write_bytes(b"")
        return kind is Died

    def _moment(self) -> None:
        if self.dead:
            raise Died
        self.moments += 1
        if self.moments == self.at:
            if self.error is not None:
                raise self.error()
            self.dead = True
            raise Died

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *rest: Any, **more: Any) -> Any:
            self._moment()
            self.calls.append(f"{name} {self._name(target, *rest[:1])}")
            result = original(target, *rest, **more)
            if name == "fsync":
                self._unsynced.discard(os.fstat(target).st_ino)
            self._moment()
            return result

        return call

    def _name(self, target: Any, second: Any = None) -> str:
        """Name of what a call is about: the final one of what is moved, without what makes a name unique."""
        if isinstance(target, int):
            number = os.fstat(target).st_ino
            everything = [self.folder, *self.folder.rglob("*")]
            target = next((path for path in everything if path.stat().st_ino == number), "?")
        elif isinstance(second, (str, Path)):
            target = second
        return re.sub(r"^\.(.+)\.[0-9a-f]{8}$", r"(\1)", Path(target).name)

    def _open(self, path: Any, mode: str = "r", **more: Any) -> Any:
        file = builtins.open(path, mode, **more)  # noqa: SIM115 (the caller closes it)
        return _Writing(file, self) if "w" in mode else file


class _Writing:
    """A file that is being written; a write is in the middle of itself for a moment."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk
        self.flush, self.fileno = file.flush, file.fileno

    def write(self, content: bytes) -> None:
        self._disk._moment()
        self._disk.calls.append(f"write {self._disk._name(self._file.name)}")
        self._disk._unsynced.add(os.fstat(self._file.fileno()).st_ino)
        self._file.write(content[: len(content) // 2])
        self._disk._moment()
        self._file.write(content[len(content) // 2 :])
        self._disk._moment()

    def __enter__(self) -> _Writing:
        return self

    def __exit__(self, *about: Any) -> None:
        self._file.close()
