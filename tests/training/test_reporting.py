"""`reported`: a task's progress is told from its first item on, and ended whatever happens."""

from __future__ import annotations

from typing import Any

import pytest

from mfd_cli.training.reporting import Reporter, reported


class Log(Reporter):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def preparing(self, title: str, items: int, done: int) -> None:
        self.told.append(("preparing", title, items, done))

    def stepped(self, update: int, inside: float) -> None:
        self.told.append(update)

    def ended(self) -> None:
        self.told.append("ended")


def test_progress_begins_with_the_first_item_and_ends_with_the_task() -> None:
    log = Log()
    with reported(log, "encode") as report:
        assert log.told == []
        report(4, 10)
        report(10, 10)
    assert log.told == [("preparing", "encode", 10, 4), 4, 10, "ended"]


def test_a_task_without_items_is_not_spoken_of() -> None:
    log = Log()
    with reported(log, "nothing to do"):
        pass
    assert log.told == []


def test_a_task_that_fails_is_ended_and_its_error_goes_on() -> None:
    log = Log()
    with pytest.raises(ValueError, match="broken"), reported(log, "encode") as report:
        report(1, 2)
        raise ValueError("broken")
    assert log.told == [("preparing", "encode", 2, 1), 1, "ended"]
    with pytest.raises(ValueError, match="at once"), reported(log, "encode"):
        raise ValueError("at once")
    assert log.told[3:] == []
