"""Prompt files of one item a line, read on demand, so that millions of lines take 24 bytes each.

Torch-free. A line is either a prompt or malformed; nothing is left out silently.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from teachers.errors import TeacherError

Format = Literal["auto", "tsv", "text", "jsonl"]

#: bytes of a digest
DIGEST = 16

_LONGEST_PROMPT = 10_000  # characters; beyond this it is no prompt but a wrong file
_LONGEST_LINE = 1 << 20  # bytes; a binary file may have no line ends at all
_BOM = b"\xef\xbb\xbf"
_SUFFIXES: dict[str, Literal["tsv", "jsonl"]] = {".tsv": "tsv", ".jsonl": "jsonl"}
_LISTED = 5  # malformed lines that a message spells out
_ALLOWED = {
    "text": "UTF-8 text, one prompt a line",
    "tsv": "UTF-8, at least 4 fields a line with tabs between them: the 2nd is the prompt, the 3rd a number",
    "jsonl": "UTF-8, one JSON object a line with the prompt under '{field}'",
}


class _Malformed(ValueError):
    """What is wrong with a line."""


def text_digest(text: str) -> bytes:
    """16 bytes that stand for a text wherever texts are compared or looked up."""
    return hashlib.blake2b(text.encode(), digest_size=DIGEST).digest()


class PromptFile:
    """The prompts of a file, 0 .. len - 1, in its order.

    Prompts are stripped of surrounding white space. Only where they begin and their digests stay in memory.

    Args:
        path: a UTF-8 file; a byte order mark and CRLF line ends are accepted.
        format: `text`, `tsv` (the prompt file of LAION-Aesthetics), `jsonl`, or `auto`, which goes by the suffix.
        field: key of the prompt in a line of `jsonl`.
        malformed: `refuse` the file, or `skip` its malformed lines with a warning that counts them.

    Raises:
        TeacherError: the file is missing, unreadable, holds no prompt, or holds malformed lines to be refused.
    """

    def __init__(
        self,
        path: Path,
        format: Format = "auto",
        field: str = "prompt",
        malformed: Literal["refuse", "skip"] = "refuse",
    ) -> None:
        self.path = path
        self.format = _SUFFIXES.get(path.suffix.lower(), "text") if format == "auto" else format
        self._parse = _parser(self.format, field)
        self._allowed = _ALLOWED[self.format].replace("{field}", field)
        starts, digests, wrong, wrong_count, lines = self._scan()
        if wrong_count:
            self._complain(wrong, wrong_count, lines, malformed)
        if not starts:
            raise TeacherError(f"{path}: no prompts in {lines} lines", allowed=self._allowed)
        self._starts = np.frombuffer(starts, dtype=np.int64)
        #: what stands for each prompt: uint8 [len, 16]
        self.digests = np.frombuffer(digests, dtype=np.uint8).reshape(-1, DIGEST)

    def __len__(self) -> int:
        return len(self._starts)

    def texts(self, items: Sequence[int] | np.ndarray) -> list[str]:
        """The prompts of some items, read from the file.

        Raises:
            TeacherError: the file has changed since it was scanned.
        """
        found = []
        with self._opened() as file:
            for item in items:
                file.seek(int(self._starts[item]))
                try:
                    text = self._parse(file.readline(_LONGEST_LINE + 1))
                except _Malformed:
                    text = None
                if text is None or text_digest(text) != self.digests[item].tobytes():
                    raise TeacherError(f"{self.path}: the file has changed since it was opened", do="start again")
                found.append(text)
        return found

    def _scan(self) -> tuple[array[int], bytearray, list[str], int, int]:
        """Starts and digests of the prompts, the first malformed lines, how many there are, and the line count."""
        starts, digests = array("q"), bytearray()
        wrong: list[str] = []
        wrong_count = number = 0
        with self._opened() as file:
            for number, start, line in _lines(file):
                try:
                    if number == 1 and self.format == "tsv" and _is_header(line):
                        warnings.warn(f"{self.path}: line 1 is taken for a header: {_excerpt(line)}", stacklevel=4)
                        continue
                    text = self._parse(line)
                except _Malformed as error:
                    wrong_count += 1
                    if len(wrong) < _LISTED:
                        wrong.append(f"line {number}: {error}")
                    continue
                if text is not None:
                    starts.append(start)
                    digests += text_digest(text)
        return starts, digests, wrong, wrong_count, number

    def _complain(self, wrong: list[str], count: int, lines: int, malformed: Literal["refuse", "skip"]) -> None:
        more = f"; and {count - len(wrong)} more" if count > len(wrong) else ""
        found = f"{self.path}: {count} of {lines} lines malformed: {'; '.join(wrong)}{more}"
        if malformed == "refuse":
            raise TeacherError(
                found, allowed=self._allowed, do="mend them, or leave them out with data.malformed: skip"
            )
        warnings.warn(f"{found}. They are left out.", stacklevel=4)

    def _opened(self) -> BinaryIO:
        return _opened(self.path, self._allowed)


def require_file(path: Path) -> None:
    """Raises TeacherError unless there is a file that can be read; nothing of it is looked at."""
    _opened(path, "a file of prompts, one item a line").close()


def _opened(path: Path, allowed: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        found = {FileNotFoundError: "no such file", IsADirectoryError: "is a folder"}
        reason = found.get(type(error), error.strerror)
        raise TeacherError(f"{path}: {reason}", allowed=allowed, do="check data.path") from error


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Line numbers from 1, offsets, and bytes; the end of a line that is too long is passed over."""
    start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    file.seek(start)
    number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        yield number, start, line
        start += len(line)
        while len(line) > _LONGEST_LINE and not line.endswith(b"\n"):
            line = file.readline(_LONGEST_LINE + 1)
            start += len(line)


def _parser(format: str, field: str) -> Callable[[bytes], str | None]:
    """A function from the bytes of a line to its prompt, or None for a blank line. Raises _Malformed."""
    pick = {"text": _pick_text, "tsv": _pick_tsv, "jsonl": lambda line: _pick_jsonl(line, field)}[format]

    def parse(line: bytes) -> str | None:
        text = _decoded(line)
        if not text or (text.isspace() and format != "tsv"):
            return None
        prompt = pick(text).strip()
        if not prompt:
            raise _Malformed("empty prompt")
        if len(prompt) > _LONGEST_PROMPT:
            raise _Malformed(f"a prompt of {len(prompt)} characters, more than {_LONGEST_PROMPT}")
        return prompt

    return parse


def _decoded(line: bytes) -> str:
    if len(line) > _LONGEST_LINE:
        raise _Malformed(f"longer than {_LONGEST_LINE} bytes")
    try:
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise _Malformed(f"no UTF-8 (byte {error.start + 1} of the line)") from error


def _pick_text(line: str) -> str:
    return line


def _pick_tsv(line: str) -> str:
    # not stripped before: an empty first or last field is a field
    fields = line.split("\t")
    if len(fields) < 4:
        raise _Malformed(f"too few fields ({len(fields)} of at least 4)")
    if not _is_number(fields[2]):
        raise _Malformed(f"third field {_quoted(fields[2])} is no number")
    return fields[1]


def _pick_jsonl(line: str, field: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _Malformed("no JSON") from error
    if not isinstance(entry, dict):
        raise _Malformed("JSON, but no object")
    if field not in entry:
        raise _Malformed(f"no key {_quoted(field)}")
    prompt = entry[field]
    if not isinstance(prompt, str):
        raise _Malformed(f"{_quoted(field)} is no text")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise _Malformed("half of a surrogate pair, which is no character")
    return prompt


def _is_header(line: bytes) -> bool:
    fields = _decoded(line).split("\t")
    return len(fields) >= 4 and bool(fields[2].strip()) and not _is_number(fields[2])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _excerpt(line: bytes) -> str:
    return _quoted(" | ".join(_decoded(line).split("\t")))


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
