"""What a run tells while it works. The library's default is silence; the command line shows progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Reporter:
    """Receives news of a run; subclasses show them."""

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def warned(self, text: str) -> None:
        """Something that is likely not meant; training goes on."""
        self.note(text)

    def preparing(self, title: str, items: int, done: int) -> None:
        """Work before training begins, or continues after `done` of `items`; `stepped` and `ended` follow."""

    def started(self, title: str, updates: int, done: int) -> None:
        """Training begins, or continues after `done` updates."""

    def stepped(self, update: int, inside: float) -> None:
        """Progress: student updates done, and the share of the next one's cycle that is done."""

    def logged(self, numbers: dict[str, Any]) -> None:
        """A line of metrics."""

    def saved(self, what: str, path: Path) -> None:
        """A preview, checkpoint or student was written."""

    def ended(self) -> None:
        """Training is over, for whatever reason."""


@contextlib.contextmanager
def reported(reporter: Reporter, task: str) -> Iterator[Callable[[int, int], None]]:
    """A function (items done, items in all) that shows a task's progress from its first call to the block's end."""
    began = False

    def report(done: int, total: int) -> None:
        nonlocal began
        if not began:
            reporter.preparing(task, total, done)
            began = True
        reporter.stepped(done, 0.0)

    try:
        yield report
    finally:
        if began:
            reporter.ended()
