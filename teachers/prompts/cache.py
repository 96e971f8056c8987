"""Embeddings on disk, each computed once: `<folder>/<digest of the encoding>/<digest of the content>.safetensors`.

A file, a shard, holds some hundred prompts: `digests` uint8 [n, 16], and for each name of their rows either all rows
concatenated along their first axis, `rows/<name>`, with `offsets/<name>` int64 [n + 1], or, where rows have no axis,
`scalars/<name>` [n]. It appears under its name only when whole, so a killed process leaves nothing that counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from teachers.errors import TeacherError
from teachers.files import ASIDE, sha256, write_whole
from teachers.prompts.contract import Row
from teachers.prompts.files import DIGEST

_SHARD = re.compile(r"[0-9a-f]{32}\.safetensors")
_STALE = 24 * 3600  # seconds after which an unfinished file belongs to nobody
_OPEN = 32  # shards kept open; opening one costs far less than encoding one prompt
_VERIFIED = "verified.json"


def cache_home() -> Path:
    """Where mfd keeps what it can make again: $MFD_CACHE, else mfd in $XDG_CACHE_HOME, else ~/.cache/mfd."""
    if own := os.environ.get("MFD_CACHE"):
        return Path(own).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "mfd"


class EmbeddingCache:
    """Rows by digest of their text, for one encoding. Empty until `open`.

    Several processes may write at once: what one adds, another sees after it opens the cache again.

    Args:
        folder: the folder of all encodings.
        encoding: everything that an embedding depends on besides its text.
    """

    def __init__(self, folder: Path, encoding: Mapping[str, str]) -> None:
        self._encoding = dict(encoding)
        #: the folder of this encoding
        self.folder = folder / hashlib.sha256(json.dumps(self._encoding, sort_keys=True).encode()).hexdigest()[:16]
        self._repair = False
        self._shards: list[Path] = []
        self._index = _Index()
        self._opened: OrderedDict[int, _Shard] = OrderedDict()

    def open(self, *, repair: bool = True) -> EmbeddingCache:
        """Indexes what is there, and leaves out shards that are damaged.

        A shard's content is hashed when it is first seen and whenever its size or time has changed since.

        Args:
            repair: whether to remove damaged shards and old leftovers; False writes nothing at all.
        """
        self._shards, self._index, self._opened = [], _Index(), OrderedDict()
        self._repair = repair
        verified = self._read_verified()
        seen, damaged = {}, []
        for path in sorted(path for path in self.folder.glob("*") if _SHARD.fullmatch(path.name)):
            try:
                stamp = _stamp(path)
                if verified.get(path.name) != stamp and _digest(path) != path.stem:
                    raise ValueError("its content is not what its name says")
                self._add(path, _Shard(path).digests)
                seen[path.name] = stamp
            except FileNotFoundError:
                continue  # another process has just removed it
            except (OSError, ValueError, KeyError, SafetensorError):
                damaged.append(path)
        if damaged:
            fate = "removed" if repair else "left out"
            warnings.warn(f"{self.folder}: {len(damaged)} damaged files of embeddings {fate}", stacklevel=2)
        if repair:
            self._tidy(damaged)
            if seen != verified:
                self._write_verified(seen)
        return self

    def __len__(self) -> int:
        """Number of entries; a text that two processes encoded at once counts twice."""
        return len(self._index)

    def missing(self, digests: np.ndarray) -> np.ndarray:
        """Indices int64 of the digests, uint8 [n, 16], that have no entry."""
        return np.flatnonzero(self._index.find(digests)[0] < 0)

    def read(self, digest: np.ndarray) -> Row | None:
        """The row of a digest, uint8 [16]; None if there is none.

        A shard that turns out unreadable is given up with all of its entries and a warning; repair removes it too.
        """
        while True:
            shards, rows = self._index.find(digest[None])
            number, row = int(shards[0]), int(rows[0])
            if number < 0:
                return None
            try:
                return self._shard(number).row(row)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                self._drop(number, error)

    def write(self, digests: np.ndarray, rows: Sequence[Row]) -> None:
        """Adds one shard.

        Args:
            digests: uint8 [n, 16].
            rows: n rows with the same names, dtypes, and shapes but for the first axis.

        Raises:
            TeacherError: the rows differ in more than their length, or the disk is full or refuses the write.
        """
        content = _pack(digests, rows)
        path = self.folder / f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
        with _disk_errors(path, len(content)):
            self.folder.mkdir(parents=True, exist_ok=True)
            about = self.folder / "encoding.json"
            if not about.exists():
                write_whole(about, (json.dumps(self._encoding, indent=2, ensure_ascii=False) + "\n").encode())
            write_whole(path, content)
        self._add(path, digests)

    def _add(self, path: Path, digests: np.ndarray) -> None:
        self._index.add(digests, len(self._shards))
        self._shards.append(path)

    def _shard(self, number: int) -> _Shard:
        if number not in self._opened:
            self._opened[number] = _Shard(self._shards[number])
        self._opened.move_to_end(number)
        while len(self._opened) > _OPEN:
            self._opened.popitem(last=False)
        return self._opened[number]

    def _drop(self, number: int, error: Exception) -> None:
        lost = self._index.drop(number)
        self._opened.pop(number, None)
        path = self._shards[number]
        warnings.warn(f"{path}: cannot be read ({error}); its {lost} embeddings are given up", stacklevel=3)
        if self._repair:
            with contextlib.suppress(OSError):
                path.unlink()

    def _tidy(self, damaged: Sequence[Path]) -> None:
        # a folder that cannot be written to can still be read from
        with contextlib.suppress(OSError):
            for path in damaged:
                path.unlink(missing_ok=True)
            for path in self.folder.glob(f".*{ASIDE}"):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink(missing_ok=True)

    def _read_verified(self) -> dict[str, list[int]]:
        try:
            content = json.loads((self.folder / _VERIFIED).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def _write_verified(self, stamps: Mapping[str, list[int]]) -> None:
        with contextlib.suppress(OSError):  # costs the next run some hashing, no more
            write_whole(self.folder / _VERIFIED, json.dumps(stamps).encode())


class _Index:
    """Sorted digests with their shard and row: 24 bytes an entry."""

    def __init__(self) -> None:
        self._keys, self._shards, self._rows = np.empty(0, "S16"), np.empty(0, np.int32), np.empty(0, np.int32)
        self._new: list[tuple[np.ndarray, int]] = []

    def __len__(self) -> int:
        return len(self._keys) + sum(len(keys) for keys, _ in self._new)

    def add(self, digests: np.ndarray, shard: int) -> None:
        """Takes up the rows of a shard; they are sorted in at the next look-up, all at once."""
        self._new.append((_keys(digests), shard))

    def find(self, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shards and rows int64 [n] of digests uint8 [n, 16]; -1 where there is none."""
        self._sort()
        wanted = _keys(digests)
        places = np.searchsorted(self._keys, wanted)
        found = places < len(self._keys)
        found[found] = self._keys[places[found]] == wanted[found]
        shards, rows = np.full((2, len(wanted)), -1, dtype=np.int64)
        shards[found], rows[found] = self._shards[places[found]], self._rows[places[found]]
        return shards, rows

    def drop(self, shard: int) -> int:
        """Forgets the rows of a shard, and says how many there were."""
        self._sort()
        kept = self._shards != shard
        lost = len(kept) - int(kept.sum())
        self._keys, self._shards, self._rows = self._keys[kept], self._shards[kept], self._rows[kept]
        return lost

    def _sort(self) -> None:
        if not self._new:
            return
        keys = np.concatenate([self._keys, *(keys for keys, _ in self._new)])
        shards = [self._shards, *(np.full(len(keys), shard, np.int32) for keys, shard in self._new)]
        rows = [self._rows, *(np.arange(len(keys), dtype=np.int32) for keys, _ in self._new)]
        order = np.argsort(keys, kind="stable")
        self._keys, self._shards, self._rows = keys[order], np.concatenate(shards)[order], np.concatenate(rows)[order]
        self._new = []


class _Shard:
    """One open file; its rows are read one by one."""

    def __init__(self, path: Path) -> None:
        path.stat()  # so that a file that is gone is told from a damaged one
        self._file: Any = safe_open(path, framework="pt")
        names = list(self._file.keys())
        self.digests: np.ndarray = self._file.get_tensor("digests").numpy().copy()
        if self.digests.dtype != np.uint8 or self.digests.ndim != 2 or self.digests.shape[1] != DIGEST:
            raise ValueError(f"digests of shape {list(self.digests.shape)}")
        self._offsets = {
            name.partition("/")[2]: self._file.get_tensor(name).tolist()
            for name in names
            if name.startswith("offsets/")
        }
        self._scalars = [name.partition("/")[2] for name in names if name.startswith("scalars/")]

    def row(self, index: int) -> dict[str, Tensor]:
        """One row, in memory of its own."""
        row = {
            name: self._file.get_slice(f"rows/{name}")[offsets[index] : offsets[index + 1]].clone()
            for name, offsets in self._offsets.items()
        }
        return row | {name: self._file.get_slice(f"scalars/{name}")[index : index + 1][0] for name in self._scalars}


def _pack(digests: np.ndarray, rows: Sequence[Row]) -> bytes:
    if digests.shape != (len(rows), DIGEST) or not rows:
        raise ValueError(f"digests of shape {list(digests.shape)} for {len(rows)} rows")
    forms = {_form(row) for row in rows}
    if len(forms) > 1:
        raise TeacherError(
            f"embeddings of different kinds: {' and '.join(sorted(forms)[:2])}",
            allowed="rows with the same names, dtypes, and shapes but for the first axis",
        )
    tensors = {"digests": torch.from_numpy(np.array(digests))}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if first.ndim == 0:
            tensors[f"scalars/{name}"] = torch.stack(values).cpu()
            continue
        lengths = torch.tensor([0, *(len(value) for value in values)])
        tensors[f"offsets/{name}"] = lengths.cumsum(0)
        tensors[f"rows/{name}"] = torch.cat(values).contiguous().cpu()
    return save(tensors)


def _form(row: Row) -> str:
    parts = [f"{name} {value.dtype} {['n', *value.shape[1:]] if value.ndim else []}" for name, value in row.items()]
    return ", ".join(sorted(parts))


def _keys(digests: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digests).view("S16")[:, 0]


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _digest(path: Path) -> str:
    """The first 32 digits of the SHA-256 of a file's content."""
    return sha256(path)[:32]


@contextlib.contextmanager
def _disk_errors(path: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        parent = next(folder for folder in path.parents if folder.exists())
        raise TeacherError(
            f"{path}: cannot be written ({error.strerror or error}); "
            f"{size:,} bytes needed, {shutil.disk_usage(parent).free:,} free",
            do="make room, or name a folder on another disk in data.cache; what was encoded so far is kept",
        ) from error
