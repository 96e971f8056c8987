"""Figures with their standard errors, and how two models differ.

Models are judged on the same noise and conditions, so their figures move together, and the error of a difference is
less than that of its parts. Every figure therefore keeps, besides its standard error, a vector of *deviations* whose
norm that error is: of a mean, what each sample contributes; of a distance, how each bootstrap draw differs. A figure
that follows from others linearly has the same combination of their deviations, so differences and quotients get paired
errors with no rule of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mfd_cli.seeds import Stream

RESAMPLES = 20

#: a difference of less than this many standard errors is within error
CLEAR = 2.0


@dataclass(frozen=True)
class Measured:
    """One figure.

    Attributes:
        value: the metric.
        standard_error: over draws of the generated samples, the reference held fixed; of forecasts, over drives. 0
            where there is but one, which says nothing of others. docs/metrics.md says where it is something else.
        num: generated samples it was computed from.
        more_is_better: its direction.
        deviations: float64 [K] with the standard error as norm; None where nothing is known of them.
    """

    value: float
    standard_error: float
    num: int
    more_is_better: bool = False
    deviations: Tensor | None = field(default=None, compare=False, repr=False)


class Difference(NamedTuple):
    """By how much a figure of one model is above that of another."""

    value: float
    standard_error: float

    @property
    def within_error(self) -> bool:
        """Whether it is less than twice its standard error, so that nothing tells the two models apart."""
        return abs(self.value) < CLEAR * self.standard_error or self.value == 0


def from_deviations(value: float, deviations: Tensor, num: int, *, more_is_better: bool = False) -> Measured:
    """A figure whose standard error is the norm of its deviations [K]."""
    return Measured(value, deviations.norm().item(), num, more_is_better, deviations)


def mean_of(scores: Tensor, groups: Tensor | None = None, *, more_is_better: bool = False) -> Measured:
    """Mean of scores [N] with its standard error.

    Args:
        scores: one of each sample.
        groups: numbers int64 [N], equal for samples that are not independent, such as pictures of one prompt; whole
            groups then stand for single samples: sqrt(G / (G - 1) sum_g (sum_{i in g} (s_i - mean) / N)^2).
        more_is_better: direction of the figure.
    """
    wide = scores.double().cpu()
    centred = (wide - wide.mean()) / len(wide)
    if groups is not None:
        numbers, member = groups.cpu().unique(return_inverse=True)
        centred = centred.new_zeros(len(numbers)).index_add(0, member, centred)
    count = len(centred)
    scale = (count / (count - 1)) ** 0.5 if count > 1 else 0.0
    return from_deviations(wide.mean().item(), centred * scale, len(wide), more_is_better=more_is_better)


def share_of(inside: Tensor, *, more_is_better: bool = True) -> Measured:
    """Share of samples [N] for which something holds; its standard error is sqrt(s (1 - s) / N)."""
    wide = inside.double().cpu()
    share = wide.mean().item()
    return from_deviations(share, (wide - share) / len(wide), len(wide), more_is_better=more_is_better)


def bootstrapped(
    value: float, statistic: Callable[[Tensor], float], num: int, resamples: int = RESAMPLES, seed: int = 0
) -> Measured:
    """A figure of which less is better, with its bootstrap standard error; arguments as for `bootstrap`."""
    deviations = bootstrap(lambda drawn: {"": statistic(drawn)}, num, resamples, seed)[""]
    return from_deviations(value, deviations, num)


def standard_error(statistic: Callable[[Tensor], float], num: int, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Bootstrap standard error of one figure; see `bootstrap`."""
    return bootstrap(lambda drawn: {"": statistic(drawn)}, num, resamples, seed)[""].norm().item()


def bootstrap(
    statistics: Callable[[Tensor], dict[str, float]], num: int, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Tensor]:
    """Deviations [resamples] of figures computed from `num` samples, by name; their norm is the standard error.

    The samples are drawn again with replacement, and the deviations are those of the figure over these draws from
    their mean, divided by sqrt(resamples - 1). The mean itself is not used, since drawing again adds a bias of order
    1/N to a distance. With 20 draws the error is known to about 16 %. The draws are a function of the seed, so that
    models are drawn alike.

    Args:
        statistics: the figures as a function of drawn indices, int64 [N].
        num: number of samples N.
        resamples: number of draws, at least 2.
        seed: names the draws.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    draws = [
        statistics((Stream(seed, draw, 0, num).uniform("bootstrap").double() * num).long()) for draw in range(resamples)
    ]
    found = {}
    for name in draws[0]:
        values = torch.tensor([each[name] for each in draws], dtype=torch.float64)
        found[name] = (values - values.mean()) / (resamples - 1) ** 0.5
    return found


def difference(first: Measured, second: Measured) -> Difference:
    """`first` - `second`, with the paired standard error where both were judged on the same draws."""
    return Difference(first.value - second.value, combined_error((1.0, first), (-1.0, second)))


def combined_error(*terms: tuple[float, Measured]) -> float:
    """Standard error of a sum of figures, each times a factor.

    Paired where every figure has deviations of one length; else the figures are taken as independent.
    """
    known = [(factor, figure.deviations) for factor, figure in terms if figure.deviations is not None]
    if len(known) == len(terms) and len({vector.shape for _, vector in known}) == 1:
        return torch.stack([factor * vector for factor, vector in known]).sum(0).norm().item()
    return sum((factor * figure.standard_error) ** 2 for factor, figure in terms) ** 0.5


def recovered(few: Measured, student: Measured, many: Measured) -> Difference | None:
    """Share of the gap between a teacher at few and at many steps that a student closes, with its standard error.

        g = (m(few) - m(student)) / (m(few) - m(many))

    The error is that of the quotient to first order, (d few - d student - g (d few - d many)) / (few - many), paired
    as in `combined_error`.

    Returns:
        None where the teacher itself does not get better with more steps by at least two standard errors of that
        difference: the quotient would be noise, or praise for leaving a better model.
    """
    gap = difference(few, many)
    gain = -gap.value if student.more_is_better else gap.value
    if gain <= CLEAR * gap.standard_error:
        return None
    share = (few.value - student.value) / gap.value
    error = combined_error((1 - share, few), (-1.0, student), (share, many)) / abs(gap.value)
    return Difference(share, error)
