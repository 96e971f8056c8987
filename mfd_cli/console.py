"""What the user sees: results on stdout, everything else on stderr; colour and boxes only on a terminal.

`out` and `err` are Rich consoles made on first use. They take text literally (no markup), because it may hold prompts,
paths and names that others wrote.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mfd_cli.errors import MfdError

if TYPE_CHECKING:
    from rich.console import Console

    out: Console
    err: Console


def __getattr__(name: str) -> Any:
    """Makes `out` and `err` on first use, so that importing this module costs no Rich."""
    if name not in ("out", "err"):
        raise AttributeError(f"module 'mfd_cli.console' has no attribute '{name}'")
    return _console(name)


@functools.cache
def _console(name: str) -> Console:
    from rich.console import Console

    return Console(stderr=name == "err", markup=False, emoji=False, highlight=False, soft_wrap=True)


def plain(stream: TextIO) -> bool:
    """Whether to write bare lines: no terminal, or one whose user asked for no colour (NO_COLOR)."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb" or not stream.isatty()


def literal(text: str) -> str:
    """The text with control characters written out as escapes, so that it cannot steer the terminal; lines are kept."""
    return "".join(
        mark if mark == "\n" or mark.isprintable() else mark.encode("unicode_escape").decode() for mark in text
    )


def error(problem: BaseException) -> None:
    """Prints an error to stderr: what was found, what is allowed, what to do, a line each.

    Args:
        problem: an error with the parts `found`, `allowed` and `do`, or any other exception.
    """
    found = getattr(problem, "found", None) or str(problem) or type(problem).__name__
    _line("error", found, "bold red")
    for label, part in (("allowed", getattr(problem, "allowed", None)), ("do", getattr(problem, "do", None))):
        if part:
            _line(label, part, "bold")


def note(text: str) -> None:
    """Prints something worth knowing to stderr."""
    _line("note", text, "bold")


def warn(text: str) -> None:
    """Prints something that is legal but likely not meant to stderr."""
    _line("warning", text, "bold yellow")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, below: Sequence[str] = ()) -> None:
    """Prints a table to stdout: boxed on a terminal, else aligned lines. Numbers stand to the right.

    Args:
        title: line above the table.
        columns: their names.
        rows: a cell for each column.
        below: lines of text under the table.
    """
    _table(title, columns, rows)
    for line in below:
        print(literal(line))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    cells = [[literal(_cell(value)).replace("\n", " ") for value in row] for row in rows]
    right = [bool(rows) and all(_number(row[index]) for row in rows) for index in range(len(columns))]
    if plain(sys.stdout):
        _plain_table(title, columns, cells, right)
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(literal(title)), title_justify="left")
    for name, numeric in zip(columns, right, strict=True):
        grid.add_column(Text(literal(name)), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        grid.add_row(*(Text(cell) for cell in row))
    _console("out").print(grid, soft_wrap=False)


def check_json_target(target: str | None) -> None:
    """Refuses a `--json` target that cannot be written, before the work whose result it is to hold.

    Raises:
        MfdError: its folder does not exist, or it is a folder itself.
    """
    if target in (None, "-"):
        return
    path = Path(str(target))
    if path.is_dir():
        raise MfdError(f"--json {target} is a folder", allowed="a file to write, or - for stdout")
    if not path.parent.is_dir():
        raise MfdError(f"--json {target}: the folder {path.parent} does not exist", do=f"mkdir -p {path.parent}")


def emit_json(obj: Any, target: str | None) -> None:
    """Writes an object as JSON to stdout ("-") or whole to a file; None writes nothing. NaN and infinity become null.

    Raises:
        MfdError: the file cannot be written.
    """
    if target is None:
        return
    text = json.dumps(_finite(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    check_json_target(target)
    write_text(Path(target), text)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole: a reader, or a crash, never sees half of it.

    Raises:
        MfdError: the file cannot be written.
    """
    try:
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            # mkstemp's files are for their owner only; a result has the permissions of any other new file
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(aside, 0o666 & ~mask)
            os.replace(aside, path)
        except BaseException:
            os.unlink(aside)
            raise
    except OSError as problem:
        raise MfdError(f"{path} cannot be written: {problem.strerror}") from problem


def _line(label: str, text: str, style: str) -> None:
    text = literal(text)
    if plain(sys.stderr):
        print(f"{label}: {text}", file=sys.stderr)
        return
    from rich.text import Text

    _console("err").print(Text.assemble((f"{label}: ", style), text))


def _plain_table(title: str, columns: Sequence[str], cells: list[list[str]], right: list[bool]) -> None:
    if title:
        print(literal(title))
    lines = [[literal(name) for name in columns], *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        padded = [
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, right, strict=True)
        ]
        print("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _finite(obj: Any) -> Any:
    if isinstance(obj, Mapping):
        return {key: _finite(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_finite(value) for value in obj]
    return None if isinstance(obj, float) and not math.isfinite(obj) else obj
