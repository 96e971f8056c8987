"""Spread and mean of random vectors, unbiased, with jackknife standard errors.

Of M vectors each figure is computed once from all and M times with one left out; the spread of the latter gives the
standard error, also of quotients of figures that share their draws. Source: Efron 1979, "Bootstrap methods: another
look at the jackknife".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A number with its value when each minibatch in turn is left out."""

    value: float
    left_out: Tensor

    @property
    def error(self) -> float:
        """Jackknife standard error."""
        count = len(self.left_out)
        return ((count - 1) / count * (self.left_out - self.left_out.mean()).square().sum()).sqrt().item()

    def __truediv__(self, other: Estimate) -> Estimate:
        return Estimate(self.value / other.value, self.left_out / other.left_out)

    def cosine(self, first: Estimate, second: Estimate) -> Estimate:
        """This inner product over the root of two squared lengths; NaN where noise made one of them negative."""
        left_out = self.left_out / (first.left_out * second.left_out).sqrt()
        product = first.value * second.value
        return Estimate(self.value / math.sqrt(product) if product > 0 else math.nan, left_out)


def statistics(gradients: Tensor, reference: Tensor) -> dict[str, Estimate]:
    """Spread tr Cov, unbiased |mean|^2, NSR and unbiased cosine with a reference; all [M, P]."""
    squares = _inner(gradients, gradients)
    signal, length = squares["mean"], _inner(reference, reference)["mean"]
    return {
        "tr_cov": squares["spread"],
        "signal": signal,
        "nsr": squares["spread"] / signal,
        "cosine": _inner(gradients, reference)["mean"].cosine(signal, length),
    }


def _inner(a: Tensor, b: Tensor) -> dict[str, Estimate]:
    """For rows a_i, b_i [M, P] of paired gradients: the trace of their covariance, and <mean a, mean b> unbiased."""
    count = len(a)
    pairs = (a * b).sum(1).double()
    sum_a, sum_b = a.sum(0, dtype=torch.float64), b.sum(0, dtype=torch.float64)
    whole = torch.dot(sum_a, sum_b)
    others = whole - (a @ sum_b.to(a.dtype)).double() - (b @ sum_a.to(b.dtype)).double() + pairs

    def figures(product: Tensor, diagonal: Tensor, m: int) -> tuple[Tensor, Tensor]:
        return (diagonal - product / m) / (m - 1), (product - diagonal) / (m * (m - 1))

    spread, mean = figures(whole, pairs.sum(), count)
    spreads, means = figures(others, pairs.sum() - pairs, count - 1)
    return {"spread": Estimate(spread.item(), spreads), "mean": Estimate(mean.item(), means)}
