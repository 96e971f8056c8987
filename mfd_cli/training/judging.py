"""Quick judgements: the student's quality on a few samples while it trains, the best one kept, an end when it is over.

The same noise, conditions and reference in every judgement, so figures of one run compare with each other; being of few
samples, they compare with nothing else. No weight changes. Only the main process judges; what follows is shared.
Sharded networks are sampled by all processes together, of which the others keep nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from mfd_cli.errors import MfdError, RunStopped
from mfd_cli.inference.quality import Judge, judge_of
from mfd_cli.inference.sampler import Sampler
from mfd_cli.metrics.contract import higher_is_better
from mfd_cli.metrics.uncertainty import Measured
from mfd_cli.networks.sharding import gathered
from mfd_cli.store.best import save_best
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import student_tensors
from mfd_cli.training.savings import out_of_memory, savings_in
from mfd_cli.training.trainer import Trainer
from mfd_cli.training.watch import Standing
from mfd_cli.training.workshop import Workshop

_SEED = 0


@dataclass(frozen=True)
class Judgement:
    """One quick judgement.

    Attributes:
        update: student updates done.
        metric: the metric that decides.
        found: every metric.
        standing: how the run stands after it.
        best: whether no earlier student was better.
    """

    update: int
    metric: str
    found: dict[str, Measured]
    standing: Standing
    best: bool

    def numbers(self) -> dict[str, Any]:
        """What a line of metrics says of it."""
        return {
            "metric": self.metric,
            "num": self.found[self.metric].num,
            "metrics": {name: each.value for name, each in self.found.items()},
            "standard_errors": {name: each.standard_error for name, each in self.found.items()},
            "best": self.best,
        }

    def text(self) -> str:
        """The same for people: "update 40: frechet 0.12 +- 0.01, the best so far"."""
        found = self.found[self.metric]
        verdict = "the best so far" if self.best else f"best {self.standing.value:.4g} at {self.standing.update}"
        figure = f"{found.value:.4g} +- {found.standard_error:.2g} of {found.num} samples"
        return f"update {self.update}: {self.metric} {figure}, {verdict}"


class QuickJudge:
    """Judges the student of a run.

    Args:
        workshop: the run's networks and data.
        run: where the best student is kept.
    """

    def __init__(self, workshop: Workshop, run: RunFolder) -> None:
        self.settings = workshop.recipe.evaluate
        self.last: Judgement | None = None
        self._workshop, self._run = workshop, run
        self._judge: Judge | None = None
        self._beginning: dict[str, Measured] | None = None

    def due(self, update: int) -> bool:
        """Whether the student is judged after this many updates: at multiples of `every`, and at the end."""
        every = self.settings.every
        return bool(every) and (update % every == 0 or update == self._workshop.recipe.train.updates)

    def require(self) -> None:
        """Judges the student as it begins, so that what cannot be judged is told before anything is written.

        Raises:
            MfdError: the data have nothing to hold samples against, too few samples or too little
                memory for it, or no such metric.
        """
        if not self.settings.every or not self._samples:
            return
        try:
            self._beginning = self._found()
        except torch.OutOfMemoryError as error:
            phase, recipe = "a quick judgement", self._workshop.recipe
            problem = out_of_memory(phase, self._workshop.accelerator.device, savings_in(phase, recipe))
            raise MfdError(problem.found, do=problem.do) from error
        except MfdError as error:
            raise MfdError(
                f"evaluate.every {self.settings.every}: the student cannot be judged: {error.found}",
                allowed=error.allowed,
                do=(error.do or "evaluate.every: 0 trains without quick judgements").replace(
                    "--num", "evaluate.quick_num"
                ),
            ) from error
        if self.settings.metric not in (None, *self._beginning):
            raise MfdError(
                f"evaluate.metric {self.settings.metric}: not measured on data '{self._workshop.recipe.data.type}'",
                allowed=", ".join(self._beginning),
            )

    def judge(self, trainer: Trainer) -> Judgement | None:
        """Judges the student, and keeps it if none was better; None on processes that do not judge.

        Raises:
            RunStopped: samples are not finite, or the disk is full.
        """
        self.last = None
        if not self._samples:
            return None
        beginning, self._beginning = self._beginning, None
        try:
            found = beginning if beginning is not None and trainer.progress.step == 0 else self._found()
        except MfdError as error:
            raise RunStopped(f"quick judgement at update {trainer.update}: {error.found}", do=error.do) from error
        metric = self.settings.metric or next(iter(found))
        standing, best = judged(trainer.progress.standing, metric, found[metric], trainer.update)
        trainer.progress.standing = standing
        workshop, main = self._workshop, self._workshop.accelerator.is_main_process
        if best if workshop.roles.sharding is None else self._mains(best):
            tensors = gathered(student_tensors(workshop.roles.final(), workshop.teacher.carried()), keep=main)
            if main:
                save_best(self._run, workshop.student_config(trainer.update), tensors)
                self._run.update_record(best=standing.record())
        if not main:
            return None
        self.last = Judgement(trainer.update, metric, found, standing, best)
        return self.last

    @property
    def _samples(self) -> bool:
        """Whether this process takes part in sampling."""
        return self._workshop.accelerator.is_main_process or self._workshop.roles.sharding is not None

    def _mains(self, verdict: bool) -> bool:
        """The main process's verdict, on every process: samples of other devices may differ by rounding."""
        accelerator = self._workshop.accelerator
        if accelerator.num_processes == 1:
            return verdict
        flag = torch.tensor([float(accelerator.is_main_process and verdict)], device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum").item() > 0)

    def over(self, standing: Standing) -> bool:
        """Whether the recipe's patience is at its end, by this process's knowledge."""
        patience = self.settings.patience
        return bool(self.settings.every) and patience is not None and standing.waited >= patience

    def over_anywhere(self, standing: Standing) -> bool:
        """The same, agreed between processes, of which only the main one judges."""
        return self.settings.patience is not None and self._mains(self.over(standing))

    def _found(self) -> dict[str, Measured]:
        """Every metric of the student as it would be saved now."""
        workshop, settings = self._workshop, self.settings
        if self._judge is None:
            self._judge = judge_of(workshop.data, settings.quick_num, _SEED)
        student: Sampler = workshop.samplers()[1]
        training = student.network.training
        student.network.eval()
        try:
            return self._judge.judge(student, steps=student.steps, batch_size=settings.batch_size)
        finally:
            student.network.train(training)
            workshop.teacher.rest()


def judged(before: Standing, metric: str, found: Measured, update: int) -> tuple[Standing, bool]:
    """How a run stands after a judgement, and whether no earlier student was better.

    The best student is the one with the best figure. Patience looks at more: a figure counts as an improvement if it is
    better than the last one that counted by more than its own standard error, so that luck does not keep a run alive
    and many small steps still add up.
    """
    sign = -1.0 if higher_is_better(metric) else 1.0
    if before.metric != metric or before.value is None or before.mark is None:
        return Standing(metric, update, found.value, found.standard_error, found.value, 0), True
    improved = sign * (before.mark - found.value) > found.standard_error
    after = replace(before, mark=found.value if improved else before.mark, waited=0 if improved else before.waited + 1)
    if sign * (before.value - found.value) > 0:
        return replace(after, update=update, value=found.value, standard_error=found.standard_error), True
    return after, False
