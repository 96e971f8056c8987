"""Distributions of training times, every sample with times of its own."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.seeds import Stream
from teachers.settings import Strict

_ATTEMPTS = 1000


class Times(Strict):
    """How an interval s < t is drawn for each sample."""

    type: Literal["uniform", "logit-normal", "uniform-start"] = Field(
        "uniform",
        description="uniform: two uniform numbers, sorted (the paper's); logit-normal: two of those, sorted; "
        "uniform-start: s uniform, then t uniform between s and 1.",
    )
    mean: float = Field(0.4, description="Mean of the logit (logit-normal); above 0 is nearer to data.")
    std: float = Field(1.0, gt=0, description="Standard deviation of the logit (logit-normal).")
    spread: Literal["random", "even"] = Field(
        "random", description="even: the batch's pairs are spread evenly before they are sorted, each still uniform."
    )
    min_interval: float = Field(
        0.0, ge=0, lt=1, description="Smallest t - s; also keeps s below 1 minus this. The paper's form is 0."
    )
    interval_share: float = Field(
        1.0, ge=0, le=1, description="Share of samples with s < t; the others have t = s, which is VSD. 0 is all VSD."
    )


def draw(random: Stream, purpose: str, kind: str, mean: float, std: float) -> Tensor:
    """One time per sample, float32 [B] in (0, 1): uniform, or sigmoid(N(mean, std))."""
    if kind != "logit-normal":
        return random.uniform(purpose)
    return torch.sigmoid(mean + std * random.normal(purpose, ()))


def intervals(random: Stream, times: Times) -> tuple[Tensor, Tensor]:
    """Start and end times s <= t, float32 [B] each.

    Uniform pairs with t - s >= m are exactly sorted uniform pairs on [0, 1 - m] whose end is moved up by m, so nothing
    is rejected, and a uniform start leaves room for it; logit-normal pairs are drawn again, row by row, until the
    interval is long enough.

    Raises:
        ValueError: no such interval in a thousand draws.
    """
    gap = times.min_interval
    if times.type == "uniform":
        low, high = _sorted_pair(random, times, "")
        s, t = low * (1 - gap), high * (1 - gap) + gap
    elif times.type == "uniform-start":
        first, second = _pair(random, times, "")
        s = first * (1 - gap)
        t = s + gap + second * (1 - gap - s)
    else:
        s, t = _long_enough(random, times)
    if times.interval_share < 1:
        t = torch.where(random.uniform("interval") < times.interval_share, t, s)
    return s, t


def _long_enough(random: Stream, times: Times) -> tuple[Tensor, Tensor]:
    """Sorted pairs, drawn again where they are too close."""
    s, t = _sorted_pair(random, times, "")
    attempt = 0
    while bool((short := t - s < times.min_interval).any()):
        attempt += 1
        if attempt > _ATTEMPTS:
            raise ValueError(f"no interval of at least {times.min_interval} found under {times.type} times")
        again = _sorted_pair(random, times, f".{attempt}")
        s, t = torch.where(short, again[0], s), torch.where(short, again[1], t)
    return s, t


def _sorted_pair(random: Stream, times: Times, attempt: str) -> tuple[Tensor, Tensor]:
    first, second = _pair(random, times, attempt)
    return torch.minimum(first, second), torch.maximum(first, second)


def _pair(random: Stream, times: Times, attempt: str) -> tuple[Tensor, Tensor]:
    """Two independent times of the law, float32 [B] each."""
    if times.spread == "even":
        first, second = (_law(column, times) for column in random.even(f"st{attempt}", 2).unbind(1))
        return first, second
    first = draw(random, f"s{attempt}", times.type, times.mean, times.std)
    return first, draw(random, f"t{attempt}", times.type, times.mean, times.std)


def _law(uniform: Tensor, times: Times) -> Tensor:
    """Uniform numbers [B] as numbers of the law that `times` names."""
    if times.type != "logit-normal":
        return uniform
    return torch.sigmoid(times.mean + times.std * torch.special.ndtri(uniform))
