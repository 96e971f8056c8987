"""Every process and part sees its rows of one batch that does not depend on how it is cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.training.batches import Batches
from teachers.base import Data
from teachers.conditions import Condition


class Numbered(Data):
    """Items whose condition is their number."""

    def __init__(self, size: int | None) -> None:
        self._size = size

    @classmethod
    def load(cls, settings: object, teacher: object) -> Numbered:
        raise NotImplementedError

    @property
    def size(self) -> int | None:
        return self._size

    def condition(self, items: Tensor) -> Condition:
        return {"label": items}


def cut(step: int, parts: int, processes: int, size: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Items, noise and times of one step, put together from all parts and processes."""
    pieces = []
    for part in range(parts):
        for process in range(processes):
            batches = Batches(Numbered(size), 3, 24, parts, process, processes, torch.device("cpu"))
            random, condition = batches.stream(step, part), batches.condition(step, part)
            pieces.append((condition["label"], random.normal("z", (5,)), random.uniform("t")))
            assert len(condition["label"]) == batches.rows == 24 // (parts * processes)
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("size", [None, 10, 24, 1000])
@pytest.mark.parametrize(("parts", "processes"), [(2, 1), (1, 2), (3, 2), (1, 24)])
def test_the_union_is_the_single_process_batch_exactly(size: int | None, parts: int, processes: int) -> None:
    for step in (0, 1, 7):
        for whole, joined in zip(cut(step, 1, 1, size), cut(step, parts, processes, size), strict=True):
            assert torch.equal(whole, joined)


def test_an_epoch_shows_every_item_once_and_steps_differ() -> None:
    items = torch.cat([cut(step, 1, 1, 48)[0] for step in range(4)])
    assert sorted(items[:48].tolist()) == list(range(48)) == sorted(items[48:].tolist())
    assert not torch.equal(items[:48], items[48:])
    assert not torch.equal(cut(0, 1, 1, 48)[1], cut(1, 1, 1, 48)[1])


def test_endless_data_is_never_repeated() -> None:
    items = torch.cat([cut(step, 2, 2, None)[0] for step in range(3)])
    assert items.tolist() == list(range(72))


@pytest.mark.parametrize(("parts", "processes", "allowed"), [(5, 1, 5), (2, 7, 14)])
def test_a_batch_that_cannot_be_shared_is_refused(parts: int, processes: int, allowed: int) -> None:
    with pytest.raises(MfdError, match=rf"a multiple of {allowed}"):
        Batches(Numbered(None), 0, 24, parts, 0, processes, torch.device("cpu"))
