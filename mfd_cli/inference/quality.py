"""How good samples are: every metric that a data source allows, with its standard error.

Models are judged on the same noise and the same conditions, drawn as the data's are, so that differences between rows
are differences between models. Metrics and what they need of `Data`:

    frechet, frechet_*   spaces()     Fréchet distance in each feature space; less is better
    sliced_wasserstein   reference()  on flattened decoded samples; less is better
    class_agreement      classify()   share of samples classified as the label asked for; more is better
    in_mode              modes()      share of samples within 3 deviations of a mode; more is better
    mode_coverage        modes()      smallest, over modes, of share / share in the reference; 1 is all that is wanted

Where every condition has one right answer (`Data.paired`), samples are held against that instead: `forecasts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.inference import metrics
from mfd_cli.inference.forecasts import ForecastJudge
from mfd_cli.inference.generation import generated
from mfd_cli.inference.metrics import Measured
from mfd_cli.inference.sampler import Sampler
from teachers.base import Data, Modes

#: decoded samples that go through a feature extractor or classifier at once
_FEATURE_BATCH = 1000

#: above this many features the eigenvalues of a resample cost seconds, and a rougher standard error has to do
_MANY_FEATURES, _FEW_RESAMPLES = 512, 5

#: a resample of the sliced distance passes over 256 numbers a sample several times
_SLICED_RESAMPLES = 10


class Judge(Protocol):
    """What models are held against, prepared once for all of them.

    Attributes:
        num: samples that each model is judged by.
        count: real samples they are held against.
    """

    num: int
    count: int

    def judge(self, sampler: Sampler, *, steps: int | None, batch_size: int) -> dict[str, Measured]:
        """Every metric of one model's samples."""

    def baselines(self) -> dict[str, dict[str, Measured]]:
        """The same metrics of answers that need no model, by name."""


def judge_of(data: Data, num: int, seed: int) -> Judge:
    """What the data lets models be held against: what really followed, or real samples.

    Args:
        data: the source that models were trained or distilled with.
        num: samples that each model is judged by; at most the held-out ones where every one has its own answer.
        seed: names noise, conditions, and whatever is drawn.

    Raises:
        MfdError: too few samples. TeacherError: the data have nothing to hold samples against.
    """
    held_out = data.held_out()
    return ForecastJudge(held_out, num, seed) if held_out.paired else Reference(held_out, num, seed)


class Reference:
    """The real samples that models are held against, prepared once for every model.

    Args:
        data: source of the reference: all of it, or `num` samples drawn with `seed` if it is endless.
        num: samples N that models will be judged by.
        seed: names the reference samples, the directions and the bootstrap draws.

    Raises:
        MfdError: too few samples for the data's feature spaces.
        TeacherError: the data source has no reference samples.
    """

    @torch.inference_mode()
    def __init__(self, data: Data, num: int, seed: int) -> None:
        self.data, self.num, self.seed = data, num, seed
        samples = data.reference(None if data.size is not None else num, seed)
        self.count = len(samples)
        self._spaces: dict[str, tuple[Callable[[Tensor], Tensor], metrics.Moments, Tensor]] = {}
        for name, space in data.spaces().items():
            features = _in_parts(space, samples)
            _require_samples(name, features.shape[1], num)
            moments = metrics.moments(features)
            self._spaces[name] = space, moments, metrics.symmetric_root(moments.covariance)
        flat = samples.flatten(1)
        self._along = metrics.directions(metrics.DIRECTIONS, flat.shape[1], seed)
        self._projected = metrics.sorted_projections(flat.cpu(), self._along)
        self._modes = data.modes()
        if self._modes is not None:
            self._mode_shares = metrics.mode_shares(flat, *self._modes).shares

    def judge(self, sampler: Sampler, *, steps: int | None, batch_size: int) -> dict[str, Measured]:
        """Every metric of one model.

        Args:
            sampler: teacher or student.
            steps: Euler steps; the sampler's own if None.
            batch_size: samples generated at once; changes memory and speed only.

        Raises:
            MfdError: samples that are not finite.
        """
        parts = list(generated(sampler, self.data, steps=steps, num=self.num, seed=self.seed, batch_size=batch_size))
        asked = [part.asked for part in parts if part.asked is not None]
        return self.score(torch.cat([part.samples for part in parts]), torch.cat(asked) if asked else None)

    def baselines(self) -> dict[str, dict[str, Measured]]:
        """None: any real sample would do."""
        return {}

    @torch.inference_mode()
    def score(self, samples: Tensor, asked: Tensor | None = None) -> dict[str, Measured]:
        """Every metric of decoded samples [N, ...]; `asked` are the class indices [N] they were asked to show.

        Raises:
            MfdError: too few samples, or some that are not finite.
        """
        broken = int((~samples.flatten(1).isfinite().all(dim=1)).sum())
        if broken:
            raise MfdError(
                f"{broken} of {len(samples)} samples hold NaN or infinite values, so they have no quality to measure",
                do="use an earlier checkpoint of the student, or look at its previews",
            )
        found = {name: self._frechet(name, samples) for name in self._spaces}
        found["sliced_wasserstein"] = self._sliced(samples.flatten(1))
        if asked is not None and (predicted := self._predicted(samples)) is not None:
            found["class_agreement"] = _share(metrics.class_agreement(predicted, asked), len(samples))
        if self._modes is not None and bool(self._mode_shares.sum() > 0):
            found |= self._in_modes(samples.flatten(1), self._modes)
        return found

    def _frechet(self, name: str, samples: Tensor) -> Measured:
        space, reference, root = self._spaces[name]
        features = _in_parts(space, samples).double()
        _require_samples(name, features.shape[1], len(features))
        resamples = metrics.RESAMPLES if features.shape[1] <= _MANY_FEATURES else _FEW_RESAMPLES

        def distance(rows: Tensor) -> float:
            return metrics.frechet_between(metrics.moments(rows), reference, root)

        return self._measured(distance(features), lambda drawn: distance(features[drawn]), len(features), resamples)

    def _sliced(self, samples: Tensor) -> Measured:
        projected = (self._along @ samples.cpu().double().T).sort(dim=1)

        def again(drawn: Tensor) -> float:
            return metrics.sliced_between(metrics.redrawn(projected.values, projected.indices, drawn), self._projected)

        value = metrics.sliced_between(projected.values, self._projected)
        return self._measured(value, again, len(samples), _SLICED_RESAMPLES)

    def _predicted(self, samples: Tensor) -> Tensor | None:
        parts = [self.data.classify(part) for part in samples.split(_FEATURE_BATCH)]
        given = [part for part in parts if part is not None]
        return torch.cat(given) if given else None

    def _in_modes(self, samples: Tensor, modes: Modes) -> dict[str, Measured]:
        members, wanted = metrics.mode_members(samples, *modes), self._mode_shares > 0

        def coverage(of: Tensor) -> float:
            shares = metrics.shares_of(of, len(modes.means)).shares
            return (shares[wanted] / self._mode_shares[wanted]).min().item()

        covered = self._measured(coverage(members), lambda drawn: coverage(members[drawn]), len(samples))
        inside = metrics.shares_of(members, len(modes.means)).inside
        return {"in_mode": _share(inside, len(samples)), "mode_coverage": covered}

    def _measured(
        self, value: float, again: Callable[[Tensor], float], num: int, resamples: int = metrics.RESAMPLES
    ) -> Measured:
        return Measured(value, metrics.standard_error(again, num, resamples, self.seed), num)


def gap_recovered(
    teacher_few: Mapping[str, Measured], student: Mapping[str, Measured], teacher_many: Mapping[str, Measured]
) -> dict[str, float | None]:
    """Share of the gap between the teacher at few and at many steps that the student closes, for each metric:

        (m(teacher, n) - m(student, n)) / (m(teacher, n) - m(teacher, N))

    1: the student is as good as the N-step teacher. None where the teacher itself does not get better with more steps
    by at least two standard errors: the quotient would be noise, or praise for leaving a better model.
    """
    return {
        name: _recovered(name, teacher_few[name], student[name], teacher_many[name])
        for name in student
        if name in teacher_few and name in teacher_many
    }


def _recovered(name: str, few: Measured, student: Measured, many: Measured) -> float | None:
    gap = few.value - many.value
    gain = -gap if metrics.higher_is_better(name) else gap
    noise = (few.standard_error**2 + many.standard_error**2) ** 0.5
    return None if gain <= 2 * noise else (few.value - student.value) / gap


def _in_parts(space: Callable[[Tensor], Tensor], samples: Tensor) -> Tensor:
    return torch.cat([space(part).cpu() for part in samples.split(_FEATURE_BATCH)])


def _require_samples(name: str, features: int, num: int) -> None:
    if num <= features:
        raise MfdError(
            f"{num} samples are too few for '{name}', which has {features} features: the covariance is singular",
            allowed=f"at least {features + 1}; several times as many for a figure worth quoting",
            do=f"use --num {max(10 * features, 1000)} or more",
        )


def _share(share: float, num: int) -> Measured:
    return Measured(share, metrics.share_error(share, num), num)
