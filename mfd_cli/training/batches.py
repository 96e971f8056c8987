"""Which items and which noise a process works on, as a function of the step and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.seeds import Stream, order
from teachers import conditions
from teachers.base import Data
from teachers.conditions import Condition


@dataclass(frozen=True)
class Batches:
    """Cuts each step's batch into equal parts, one for every process and accumulation step.

    Attributes:
        data: where conditions come from.
        seed: the recipe's seed.
        batch_size: samples of one step over all processes and parts.
        parts: accumulation steps.
        process: index of this process.
        processes: number of processes.
        device: where tensors are put.
    """

    data: Data
    seed: int
    batch_size: int
    parts: int
    process: int
    processes: int
    device: torch.device

    def __post_init__(self) -> None:
        require_shares(self.batch_size, self.parts, self.processes)

    @property
    def rows(self) -> int:
        """Samples of one part."""
        return self.batch_size // (self.parts * self.processes)

    def stream(self, step: int, part: int) -> Stream:
        """Random stream of this process's rows in one part of one step."""
        return Stream(self.seed, step, self._first(part), self.rows, self.device)

    def condition(self, step: int, part: int) -> Condition:
        """Condition of the same rows."""
        return conditions.to(self.data.condition(self._items(step, part)), self.device)

    def states(self, step: int, part: int) -> Tensor:
        """Real states of the same items [B, ...]. Raises TeacherError if the data source has none."""
        return self.data.states(self._items(step, part)).to(self.device)

    def items(self, step: int) -> list[int]:
        """This process's items of one step, part after part."""
        return [item for part in range(self.parts) for item in self._items(step, part).tolist()]

    def _items(self, step: int, part: int) -> Tensor:
        position = step * self.batch_size + self._first(part)
        if self.data.size is None:
            return torch.arange(position, position + self.rows)
        return order(self.seed, self.data.size, position, self.rows)

    def _first(self, part: int) -> int:
        """Place in the step's batch of the first of this process's rows."""
        return (part * self.processes + self.process) * self.rows


def require_shares(batch_size: int, parts: int, processes: int) -> None:
    """Raises MfdError unless every process has as many samples as any other in each part of a batch."""
    if batch_size % (parts * processes):
        raise MfdError(
            f"train.batch_size {batch_size} cannot be shared by {processes} processes with train.accumulation {parts}",
            allowed=f"a multiple of {parts * processes}",
        )
