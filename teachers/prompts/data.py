"""Data `prompts`: texts from a file. Each is encoded once, before training; after that no text encoder is needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from teachers.base import Data, Teacher
from teachers.conditions import Condition
from teachers.errors import TeacherError
from teachers.prompts.cache import EmbeddingCache, cache_home
from teachers.prompts.contract import PromptTeacher, Row
from teachers.prompts.files import DIGEST, Format, PromptFile, require_file, text_digest
from teachers.settings import Settings

_SHARD_ROWS = 256  # prompts that a killed process loses at most
_SHARD_BYTES = 1 << 27  # a shard is put together in memory
_DIRECT = 256  # rows kept of what is asked for without a cache
_EXAMPLES = 8  # prompts of a preview


class PromptDataSettings(Settings):
    """Settings of `prompts`."""

    path: str | None = Field(
        None, description="Prompt file, one item a line; null: 64 prompts that ship with mfd, to try things out."
    )
    format: Format = Field(
        "auto",
        description="text: a prompt a line; tsv: prompt in the 2nd of at least 4 fields, score in the 3rd; "
        "jsonl: an object a line; auto: by the file's suffix.",
    )
    field: str = Field("prompt", description="Key of the prompt in a line of jsonl.")
    malformed: Literal["refuse", "skip"] = Field(
        "refuse", description="Malformed lines: refuse the file and list them, or skip them with a warning."
    )
    cache: str | None = Field(
        None,
        description="Folder of computed embeddings, which later runs share; null: `embeddings` in $MFD_CACHE, else in "
        "mfd's folder in $XDG_CACHE_HOME or ~/.cache. About 0.2 MB a prompt for SANA.",
    )
    encode_batch: int = Field(
        16, ge=1, description="Prompts encoded at once, before training; more is faster and needs more memory."
    )


class PromptData(Data):
    """Prompts as conditions, without real samples.

    Args:
        prompts: the prompts.
        teacher: encodes them, and puts rows together.
        folder: of the embeddings of all encodings.
        encode_batch: prompts encoded at once.
    """

    Settings = PromptDataSettings

    def __init__(self, prompts: PromptFile, teacher: PromptTeacher, folder: Path, encode_batch: int) -> None:
        self._prompts, self._teacher, self._encode_batch = prompts, teacher, encode_batch
        self._cache = EmbeddingCache(folder, teacher.encoding())
        self._state: Literal["loaded", "indexed", "prepared"] = "loaded"
        self._direct: dict[int, Row] = {}

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses a prompt file that is not there."""
        if settings.path is not None:
            require_file(Path(settings.path).expanduser())

    @classmethod
    def load(cls, settings: Any, teacher: Teacher | None) -> PromptData:
        """The prompts of a file, scanned; nothing is encoded or written yet.

        Raises:
            TeacherError: the teacher is not asked with text, or the file is no prompt file (see `PromptFile`).
        """
        if not isinstance(teacher, PromptTeacher):
            found = "a teacher yet to be trained" if teacher is None else f"a teacher of type '{teacher.settings.type}'"
            raise TeacherError(f"prompts for {found}", allowed="a teacher that is asked with text")
        shipped = str(files("teachers.assets.prompts") / "everyday.txt")
        path = Path(settings.path or shipped).expanduser()
        prompts = PromptFile(path, settings.format, settings.field, settings.malformed)
        folder = cache_home() / "embeddings" if settings.cache is None else Path(settings.cache).expanduser()
        return cls(prompts, teacher, folder, settings.encode_batch)

    @property
    def size(self) -> int | None:
        """Number of prompts; one that stands in the file twice counts twice."""
        return len(self._prompts)

    def prepare(self, report: Callable[[int, int], None], process: int = 0, processes: int = 1) -> None:
        """Encodes this process's share of the prompts that are not in the cache, and lets the encoder go.

        Args:
            report: is told how many different prompts of the share are done, and of how many.
            process: index of this process.
            processes: number of processes.

        Raises:
            TeacherError: an embedding is not finite, or the cache cannot be written.
        """
        self._cache.open()
        self._state = "prepared"
        self._direct.clear()
        self._remember_texts()
        # by place in the file, not among the missing: the others are writing while this one looks
        share = self._distinct()[process::processes]
        missing = share[self._cache.missing(self._prompts.digests[share])]
        done = len(share) - len(missing)
        report(done, len(share))
        for count in self._encode_into_cache(missing):
            done += count
            report(done, len(share))
        self._teacher.release_encoder()

    def unprepared(self) -> int:
        """Different prompts that are not in the cache."""
        self._look()
        distinct = self._distinct()
        return len(self._cache.missing(self._prompts.digests[distinct]))

    def release(self) -> None:
        """Lets the text encoder go."""
        self._teacher.release_encoder()

    @classmethod
    def stand_in(cls, settings: Any, teacher: Teacher) -> PromptData:
        """The shipped prompts."""
        return cls.load(settings.model_copy(update={"path": None}), teacher)

    def condition(self, items: Tensor) -> Condition:
        """Embeddings of the items: from the cache, or, before `prepare`, computed if they are not there."""
        self._look()
        wanted = np.asarray(items.tolist(), dtype=np.int64)
        rows = self._cached(wanted)
        if self._state == "prepared" and len(rows) < len(set(wanted.tolist())):
            self._cache.open()  # another process may have written it
            rows = self._cached(wanted)
            if lost := set(wanted.tolist()) - rows.keys():
                self._restore(np.asarray(sorted(lost)))
                rows = self._cached(wanted)
        rows |= self._encode_directly([item for item in dict.fromkeys(wanted.tolist()) if item not in rows])
        return self._teacher.collate([rows[item] for item in wanted.tolist()])

    def texts(self, items: Tensor) -> list[str]:
        """The prompts themselves."""
        return self._prompts.texts(items.tolist())

    def _look(self) -> None:
        """Reads what is in the cache, and changes nothing in it, if that was not done before."""
        if self._state == "loaded":
            self._cache.open(repair=False)
            self._state = "indexed"

    def _cached(self, items: np.ndarray) -> dict[int, Row]:
        rows = {item: self._cache.read(self._prompts.digests[item]) for item in dict.fromkeys(items.tolist())}
        return {item: row for item, row in rows.items() if row is not None}

    def _distinct(self) -> np.ndarray:
        """The first item of each different prompt, in the order of the file."""
        return np.sort(np.unique(self._prompts.digests.view(f"S{DIGEST}")[:, 0], return_index=True)[1])

    def _remember_texts(self) -> None:
        """Gives the teacher the rows of what it is asked beside the file's prompts: its own texts and previews."""
        asked = [*self._teacher.own_texts(), *map(str, self._teacher.examples(_EXAMPLES))]
        texts = list(dict.fromkeys(asked))
        digests = np.frombuffer(b"".join(map(text_digest, texts)), dtype=np.uint8).reshape(-1, DIGEST)
        rows = {text: self._cache.read(digest) for text, digest in zip(texts, digests, strict=True)}
        known = {text: row for text, row in rows.items() if row is not None}
        missing = [index for index, text in enumerate(texts) if text not in known]
        if missing:
            new = self._encode([texts[index] for index in missing])
            self._cache.write(digests[missing], new)
            known |= {texts[index]: row for index, row in zip(missing, new, strict=True)}
        self._teacher.remember(texts, known)

    def _restore(self, lost: np.ndarray) -> None:
        """Encodes again what was in the cache when training began, and up to a shard of what else is gone."""
        distinct = self._distinct()
        gone = distinct[self._cache.missing(self._prompts.digests[distinct])]
        # `lost` first, by their first occurrence, so that no prompt is encoded twice
        keys = self._prompts.digests.view(f"S{DIGEST}")[:, 0]
        urgent = np.isin(keys[gone], keys[lost])
        again = np.concatenate([gone[urgent], gone[~urgent]])[: max(_SHARD_ROWS, int(urgent.sum()))]
        warnings.warn(f"{self._cache.folder}: {len(again)} embeddings are gone and are made again", stacklevel=3)
        for _ in self._encode_into_cache(again):
            pass
        self._teacher.release_encoder()

    def _encode_into_cache(self, items: np.ndarray) -> Iterator[int]:
        """Encodes items batch by batch and writes a shard now and then; yields the size of each batch."""
        pending: list[int] = []
        rows: list[Row] = []
        size = 0
        for batch, texts in self._batches(items):
            new = self._encode(texts)
            pending, rows, size = pending + batch, rows + new, size + sum(map(_bytes, new))
            if len(rows) >= _SHARD_ROWS or size >= _SHARD_BYTES:
                self._cache.write(self._prompts.digests[pending], rows)
                pending, rows, size = [], [], 0
            yield len(batch)
        if rows:
            self._cache.write(self._prompts.digests[pending], rows)

    def _batches(self, items: np.ndarray) -> Iterator[tuple[list[int], list[str]]]:
        """Items and their texts, some at a time; texts of similar length together, which saves padding."""
        for start in range(0, len(items), _SHARD_ROWS):
            window = items[start : start + _SHARD_ROWS].tolist()
            pairs = sorted(zip(self._prompts.texts(window), window, strict=True), key=lambda pair: len(pair[0]))
            for first in range(0, len(pairs), self._encode_batch):
                batch = pairs[first : first + self._encode_batch]
                yield [item for _, item in batch], [text for text, _ in batch]

    def _encode_directly(self, items: Sequence[int]) -> dict[int, Row]:
        """Rows that are kept in memory only: a dry run writes nothing."""
        new = [item for item in items if item not in self._direct]
        rows = {item: self._direct[item] for item in items if item in self._direct}
        rows |= zip(new, self._encode(self._prompts.texts(new)), strict=True)
        self._direct |= {item: rows[item] for item in new}
        for item in list(self._direct)[: max(0, len(self._direct) - _DIRECT)]:
            del self._direct[item]
        return rows

    def _encode(self, texts: Sequence[str]) -> list[Row]:
        rows: list[Row] = []
        for first in range(0, len(texts), self._encode_batch):
            rows += self._teacher.encode_rows(texts[first : first + self._encode_batch])
        for text, row in zip(texts, rows, strict=True):
            if any(value.is_floating_point() and not value.isfinite().all() for value in row.values()):
                raise TeacherError(
                    f"the embedding of {text!r} has NaN or infinite values",
                    do="use another dtype for the text encoder; bf16 or fp32 in place of fp16",
                )
        return rows


def _bytes(row: Row) -> int:
    return sum(value.numel() * value.element_size() for value in row.values())
