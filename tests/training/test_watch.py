"""Warnings and the stop at a collapse, from made-up updates."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch

from mfd_cli.config.schema import Guards
from mfd_cli.errors import RunStopped
from mfd_cli.training.watch import Memory, Seen, Watch


def watch(**settings: Any) -> Watch:
    return Watch(Guards(**{"after": 5, **settings}), Memory())


def student(update: int, **more: Any) -> Seen:
    return Seen("student", update, 2, 1.0, {"student": 1.0}, **more)


def auxiliary(update: int, ratio: float) -> Seen:
    times = torch.tensor([0.25, 0.75])
    return Seen("aux", update, 1, ratio * 0.5, {"aux": 1.0}, times, variance=1.0, gaussian=0.5)


def test_an_auxiliary_that_knows_less_than_the_variance_is_warned_of() -> None:
    seen = watch()
    for update in range(5):
        seen.look(auxiliary(update, 8.0))
    assert seen.news() == [], "the first updates are not judged"
    seen.look(auxiliary(5, 8.0))
    (text,) = seen.news()
    assert text == (
        "aux: has lost track of the student: its flow-matching loss is 8 times that of a Gaussian with the variance of "
        "the student's samples (limit 2) at update 5, auxiliary update 1; t from 0.2500 to 0.7500. "
        "Try: raise method.aux_updates or optim.aux.lr, or lower optim.student.lr"
    )
    (warning,) = seen.pending()
    assert warning == {"guard": "lag", "role": "aux", "update": 5, "value": pytest.approx(8.0), "threshold": 2.0}
    assert seen.pending() == []


def test_an_auxiliary_that_follows_is_not() -> None:
    seen = watch()
    for update in range(100):
        seen.look(auxiliary(update, 0.95))
    assert seen.news() == [] and seen.record() == []


def test_one_wild_update_is_no_lost_track() -> None:
    seen = watch()
    for update in range(50):
        seen.look(auxiliary(update, 1e4 if update == 30 else 0.9))
    assert seen.news() == []


def test_a_warning_is_repeated_only_after_a_while_and_counted_always() -> None:
    seen = watch(repeat=20)
    for update in range(60):
        seen.look(auxiliary(update, 8.0))
    assert [each["update"] for each in seen.pending()] == [5, 25, 45] and len(seen.news()) == 3
    (record,) = seen.record()
    assert (record["first"], record["last"], record["steps"]) == (5, 59, 55) and "told" not in record


def test_a_gradient_is_held_against_its_own_median() -> None:
    seen = watch(gradient=10.0)
    for update in range(40):
        size = 60.0 if update in (10, 30) else 2.0
        seen.look(Seen("aux", update, 0, 1.0, {"aux": size, "critic": 1.0}))
    (text,) = seen.news()
    assert text.startswith(
        "aux: gradient norm 60 is 30 times its median 2 (limit 10) at update 30, auxiliary update 0."
    )
    assert "optim.aux.lr" in text and "optim.aux.clip=1" in text
    assert len(seen.memory.norms["aux"]) == 40 and len(seen.memory.norms["critic"]) == 40


def test_a_spread_that_shrinks_is_warned_of_and_one_that_grows_is_not() -> None:
    seen = watch()
    for update in range(80):
        seen.look(student(update, variance=0.01 * 1.2 ** min(update, 40)))
    assert seen.news() == [], "students start narrow where the teacher's first step is the mean"
    for update in range(80, 160):
        seen.look(student(update, variance=0.5))
    (text,) = seen.news()
    assert text.startswith("student: variance of its samples is 0.0") and "of the largest it had (limit 0.1)" in text


def test_a_collapse_that_lasts_stops_the_run() -> None:
    seen = watch(spread=None)
    for update in range(30):
        seen.look(student(update, variance=4.0))
    for update in range(30, 49):
        seen.look(student(update, variance=1e-3))
    seen.look(student(49, variance=1.0))  # it recovers
    with pytest.raises(RunStopped) as caught:
        for update in range(50, 100):
            seen.look(student(update, variance=1e-3))
    assert caught.value.found == (
        "student: collapsed at update 69: the variance of its samples, 0.001, has been under 0.001 of the largest it "
        "had, 4, for 20 student updates"
    )
    assert caught.value.exit_code == 3 and "guards.collapse=null" in str(caught.value.do)


def test_equal_samples_from_different_noise_are_warned_of() -> None:
    seen = watch(duplicates=0.25)
    for update in range(12):
        seen.look(student(update, variance=1.0, duplicates=0.4))
    (text,) = seen.news()
    assert "40% of its samples equal another one's, from other noise (limit 25%) at update 5" in text


def test_a_guard_that_is_off_says_nothing() -> None:
    seen = Watch(Guards(lag=False, spread=None, collapse=None, duplicates=None, gradient=None, after=1), Memory())
    for update in range(60):
        seen.look(auxiliary(update, 1e6))
        seen.look(
            Seen("student", update, 2, 1.0, {"student": 10.0**update}, variance=0.1**update, duplicates=1.0)
        )  # fmt: skip
    assert seen.record() == [] and seen.news() == []


def test_memory_survives_a_checkpoint() -> None:
    updates = [
        each
        for update in range(90)
        for each in (auxiliary(update, 3.0), student(update, variance=0.97**update, duplicates=0.7))
    ]
    whole = watch(repeat=7)
    for each in updates:
        whole.look(each)
    first = watch(repeat=7)
    for each in updates[:75]:
        first.look(each)
    second = Watch(first.settings, Memory(**json.loads(json.dumps(asdict(first.memory)))))
    for each in updates[75:]:
        second.look(each)
    assert asdict(second.memory) == asdict(whole.memory)
    assert whole.news() == first.news() + second.news()
