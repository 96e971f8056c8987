"""How good samples are: every metric that a data source allows or a recipe lists, with its standard error.

Models are judged on the same noise and the same conditions, drawn as the data's are, so that differences between rows
are differences between models. Metrics are `mfd_cli.metrics`; those that need no weights are used wherever the data
allow them:

    frechet, frechet_*   spaces()     Fréchet distance in each feature space; less is better
    sliced_wasserstein   reference()  on flattened decoded samples; less is better
    class_agreement      classify()   share of samples classified as the label asked for; more is better
    in_mode              modes()      share of samples within 3 deviations of a mode; more is better
    mode_coverage        modes()      smallest, over modes, of share / share in the reference; 1 is all that is wanted

Where every condition has one right answer (`Data.paired`), samples are held against that instead: `forecasts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mfd_cli.errors import MfdError, TeacherError
from mfd_cli.inference.forecasts import ForecastJudge
from mfd_cli.inference.generation import generated
from mfd_cli.inference.sampler import Sampler
from mfd_cli.metrics.contract import Against, Batch, Distance, Metric
from mfd_cli.metrics.registry import DEFAULTS
from mfd_cli.metrics.registry import metrics as registry
from mfd_cli.metrics.uncertainty import Measured, recovered
from teachers.base import Data


class Judge(Protocol):
    """What models are held against, prepared once for all of them.

    Attributes:
        num: samples that each model is judged by.
        count: real samples they are held against; 0 where there are none.
    """

    num: int
    count: int

    def judge(self, sampler: Sampler, *, steps: int | None, batch_size: int) -> dict[str, Measured]:
        """Every metric of one model's samples."""

    def baselines(self) -> dict[str, dict[str, Measured]]:
        """The same metrics of answers that need no model, by name."""

    def described(self) -> dict[str, dict[str, Any]]:
        """What metrics hold for, such as their model and weights, by figure; of those with something to say."""


def check_metrics(listed: Sequence[Any]) -> None:
    """Raises MfdError for weights or files that metrics need and that are missing."""
    for settings in listed:
        _class(settings.type).check(settings)


def judge_of(
    data: Data,
    num: int,
    seed: int,
    listed: Sequence[Any] = (),
    device: str | torch.device = "cpu",
    teacher: Sampler | None = None,
) -> Judge:
    """What the data lets models be held against: what really followed, or real samples and what metrics need.

    Args:
        data: the source that models were trained or distilled with.
        num: samples that each model is judged by; at most the held-out ones where every one has its own answer.
        seed: names noise, conditions, and whatever is drawn.
        listed: settings of metrics besides those that the data allow (`evaluate.metrics`).
        device: where the metrics' networks compute.
        teacher: makes the reference of metrics that hold samples against the teacher's.

    Raises:
        MfdError: too few samples, or a metric that the data do not allow or whose weights or teacher are missing.
        TeacherError: the data have nothing to hold samples against, and no metric does without.
    """
    held_out = data.held_out()
    if not held_out.paired:
        return Reference(held_out, num, seed, listed, device, teacher)
    if listed:
        raise MfdError(
            f"evaluate.metrics: {', '.join(settings.type for settings in listed)} of forecasts",
            allowed="no metrics: forecasts are held against what followed (iou, miou)",
        )
    return ForecastJudge(held_out, num, seed)


class Reference:
    """The real samples that models are held against, and the metrics, prepared once for every model.

    Args:
        data: source of the reference: all of it, or `num` samples drawn with `seed` if it is endless.
        num: samples N that models will be judged by.
        seed: names the reference samples, the directions and the bootstrap draws.
        listed: settings of further metrics.
        device: where the metrics' networks compute.
        teacher: makes the reference of metrics that hold samples against the teacher's.

    Raises:
        MfdError: too few samples for the data's feature spaces, or a metric that cannot be prepared.
        TeacherError: the data source has no reference samples, and no metric does without.
    """

    @torch.inference_mode()
    def __init__(
        self,
        data: Data,
        num: int,
        seed: int,
        listed: Sequence[Any] = (),
        device: str | torch.device = "cpu",
        teacher: Sampler | None = None,
    ) -> None:
        self.data, self.num, self.seed = data, num, seed
        real = None
        try:
            real = data.reference(None if data.size is not None else num, seed)
        except TeacherError:
            if not listed:
                raise
        self.count = 0 if real is None else len(real)
        against = Against(data, num, seed, real, torch.device(device))
        made = [_made(settings) for settings in listed]
        waiting = [metric for metric in made if isinstance(metric, Distance) and metric.against_teacher]
        replaced = {metric.settings.type for metric in made if metric not in waiting}
        self._metrics = [*_defaults(against, replaced), *made]
        if waiting and teacher is None:
            raise MfdError(
                f"{waiting[0].settings.type}: reference: teacher, and the teacher is not here",
                allowed="the data's real samples as reference, or a student whose teacher's weights are here",
            )
        for metric in self._metrics:
            metric.prepare(against)
        if waiting and teacher is not None:
            self._hold_against(teacher, waiting)
        self._figures: dict[str, dict[str, Any]] = {}

    def judge(self, sampler: Sampler, *, steps: int | None, batch_size: int) -> dict[str, Measured]:
        """Every metric of one model.

        Args:
            sampler: teacher or student.
            steps: Euler steps; the sampler's own if None.
            batch_size: samples generated at once; changes memory and speed only.

        Raises:
            MfdError: samples that are not finite.
        """
        return self.of(generated(sampler, self.data, steps=steps, num=self.num, seed=self.seed, batch_size=batch_size))

    def baselines(self) -> dict[str, dict[str, Measured]]:
        """None: any real sample would do."""
        return {}

    def described(self) -> dict[str, dict[str, Any]]:
        """Type, and model, weights or settings, of the figures seen so far."""
        return self._figures

    def score(self, samples: Tensor, asked: Tensor | None = None) -> dict[str, Measured]:
        """Every metric of decoded samples [N, ...]; `asked` are the class indices [N] they were asked to show.

        Raises:
            MfdError: too few samples, or some that are not finite.
        """
        return self.of([Batch(samples, torch.arange(len(samples)), asked)])

    @torch.inference_mode()
    def of(self, batches: Iterable[Batch]) -> dict[str, Measured]:
        """Every metric of samples that come in batches; each batch is let go once it has been seen.

        Raises:
            MfdError: too few samples, or some that are not finite.
        """
        rows, items = _rows_of(self._metrics, batches)
        groups = self.data.groups(items)
        found: dict[str, Measured] = {}
        for metric, kept in zip(self._metrics, rows, strict=True):
            figures = metric.figures(kept, groups)
            self._describe(metric, figures)
            found |= figures
        return found

    def _hold_against(self, teacher: Sampler, metrics: Sequence[Distance]) -> None:
        """Makes the teacher's samples, once for all metrics that are held against them.

        Their noise is that of another seed: on the models' own noise, the teacher's row would be its own reference.
        """
        batches = generated(
            teacher, self.data, steps=None, num=self.num, seed=self.seed, noise_seed=self.seed + 1,
            batch_size=teacher.teacher.batch_size,
        )  # fmt: skip
        for metric, rows in zip(metrics, _rows_of(metrics, batches)[0], strict=True):
            metric.hold_against(rows)

    def _describe(self, metric: Metric, figures: Mapping[str, Measured]) -> None:
        details = metric.details()
        if details:
            self._figures |= {name: {"type": metric.settings.type, **details} for name in figures}


def gap_recovered(
    teacher_few: Mapping[str, Measured], student: Mapping[str, Measured], teacher_many: Mapping[str, Measured]
) -> dict[str, float | None]:
    """Share of the gap between the teacher at few and at many steps that the student closes, for each metric:

        (m(teacher, n) - m(student, n)) / (m(teacher, n) - m(teacher, N))

    1: the student is as good as the N-step teacher. None where the teacher itself does not get better with more steps
    by at least two standard errors: the quotient would be noise, or praise for leaving a better model.
    """
    found = {
        name: recovered(teacher_few[name], student[name], teacher_many[name])
        for name in student
        if name in teacher_few and name in teacher_many
    }
    return {name: None if share is None else share.value for name, share in found.items()}


def _class(name: str) -> type[Metric]:
    return registry.get(name)


def _made(settings: Any) -> Metric:
    return _class(settings.type)(settings)


def _defaults(against: Against, listed: set[str]) -> list[Metric]:
    """The metrics that need no weights and that the data allow, but for those `listed` with settings of their own."""
    found = []
    for name in DEFAULTS:
        cls = _class(name)
        if name not in listed and cls.offered(against):
            found.append(cls(cls.Settings(type=name)))
    return found


def _rows_of(metrics: Sequence[Metric], batches: Iterable[Batch]) -> tuple[list[Tensor], Tensor]:
    """What each metric keeps of all batches [N, ...], and their items [N]. Raises MfdError for what is not finite."""
    rows: list[list[Tensor]] = [[] for _ in metrics]
    items: list[Tensor] = []
    for batch in batches:
        _require_finite(batch.samples, sum(map(len, items)))
        items.append(batch.items)
        for metric, kept in zip(metrics, rows, strict=True):
            kept.append(metric.rows(batch))
    return [torch.cat(kept) for kept in rows], torch.cat(items)


def _require_finite(samples: Tensor, before: int) -> None:
    broken = int((~samples.flatten(1).isfinite().all(dim=1)).sum())
    if broken:
        raise MfdError(
            f"{broken} of {before + len(samples)} samples hold NaN or infinite values, so they have no quality to "
            "measure",
            do="use an earlier checkpoint of the student, or look at its previews",
        )
