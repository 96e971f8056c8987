"""How a run shows on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfd_cli import console
from mfd_cli.training.reporting import Reporter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINES_EVERY = 10.0  # seconds between plain lines


class ConsoleReporter(Reporter):
    """Shows update, loss, rate and time left."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._title, self._unit, self._total = "", "updates", 0
        self._began = self._last_line = 0.0
        self._first = 0
        self._loss = ""

    def note(self, text: str) -> None:
        """A line on stderr."""
        console.note(text)

    def warned(self, text: str) -> None:
        """A warning on stderr."""
        console.warn(text)

    def preparing(self, title: str, items: int, done: int) -> None:
        """Opens a bar of its own; without a terminal, a line every ten seconds."""
        self._open(title, "items", items, done)

    def started(self, title: str, updates: int, done: int) -> None:
        """Names the run and opens the bar."""
        console.note(title)
        self._open("distill", "updates", updates, done)

    def _open(self, title: str, unit: str, total: int, done: int) -> None:
        self._title, self._unit, self._total, self._first = title, unit, total, done
        self._began = self._last_line = time.monotonic()
        self._loss = ""
        if not console.plain(sys.stderr):
            self._bar = _bar()
            self._task = self._bar.add_task(title, total=total, completed=done, loss="", rate="")
            self._bar.start()

    def stepped(self, update: int, inside: float) -> None:
        """Moves the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=update + inside, rate=self._rate(update + inside))
        elif self._unit == "items":  # updates have lines of their own, with their losses
            self._line(update)

    def logged(self, numbers: dict[str, Any]) -> None:
        """Shows the loss; without a terminal, a line every ten seconds."""
        self._loss = " ".join(
            f"{name} {numbers[name]:.4g}" for name in ("loss", "aux_loss", "grad_norm") if name in numbers
        )
        update = numbers["update"]
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, loss=self._loss)
            return
        self._line(update)

    def _line(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last_line >= _LINES_EVERY or done == self._total:
            self._last_line = now
            left = (now - self._began) / max(done - self._first, 1) * (self._total - done)
            what = "update" if self._unit == "updates" else self._title
            parts = [f"{what} {done}/{self._total}", self._loss, self._rate(done), f"{left:.0f} s left"]
            print("  ".join(part for part in parts if part), file=sys.stderr, flush=True)

    def saved(self, what: str, path: Path) -> None:
        """Names a file that was written, but for checkpoints, which come often."""
        if what != "checkpoint":
            console.note(f"{what}: {path}")

    def ended(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _rate(self, done: float) -> str:
        seconds = time.monotonic() - self._began
        return f"{(done - self._first) / seconds:.2f} {self._unit}/s" if seconds > 0 else ""


def _bar() -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        console=console.err, transient=False,
    )  # fmt: skip
