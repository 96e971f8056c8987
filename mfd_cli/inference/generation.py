"""Samples that are judged: noise and conditions as functions of (seed, index), the same for every model."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mfd_cli.inference.sampler import Sampler
from mfd_cli.metrics.contract import Batch
from mfd_cli.seeds import order
from teachers.base import Data
from teachers.conditions import to as condition_to

#: the name under which a family that takes class indices hands them to its network
_LABEL = "label"


def generated(
    sampler: Sampler,
    data: Data,
    *,
    steps: int | None,
    num: int,
    seed: int,
    batch_size: int,
    noise_seed: int | None = None,
) -> Iterator[Batch]:
    """`num` samples, a batch at a time.

    Sample i has the noise of (seed, i) and the condition of the i-th item of the shuffled data, so that over whole
    epochs labels are as frequent as in the data. `noise_seed` names other noise for the same conditions.
    """
    noisy = seed if noise_seed is None else noise_seed
    for first in range(0, num, batch_size):
        count = min(batch_size, num - first)
        items = items_of(data, seed, first, count)
        condition = data.condition(items)
        noise, fresh = sampler.noise(count, seed=noisy, first=first), sampler.fresh(count, seed=noisy, first=first)
        states = sampler.generate(noise, condition_to(condition, sampler.device), steps=steps, fresh=fresh)
        labelled = sampler.teacher.condition_kind == "label" and _LABEL in condition
        asked = condition[_LABEL] if labelled else None
        yield Batch(sampler.decode(states).cpu(), items, asked, data.texts(items))


def items_of(data: Data, seed: int, first: int, count: int) -> Tensor:
    """Items of the samples `first` .. `first + count - 1`: of shuffled data, or simply counted if it is endless."""
    return torch.arange(first, first + count) if data.size is None else order(seed, data.size, first, count)
