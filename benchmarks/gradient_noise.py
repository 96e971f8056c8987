"""How noisy a student's gradient is at a checkpoint of its run, for any method.

Role weights are put back as they were; gradients of fresh minibatches of the recipe's size are taken without an update.

    NSR = tr Cov / |mean|^2 ,   unbiased, free of the loss's scale

so a minibatch's gradient is mostly signal below 1 and mostly noise above. Its error is a jackknife over minibatches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jackknife import statistics

from mfd_cli.config.load import load_recipe
from mfd_cli.store.checkpoint import verify
from mfd_cli.store.layout import RunFolder
from mfd_cli.training.checkpoints import restore
from mfd_cli.training.fields import Fields
from mfd_cli.training.schedule import schedule_of
from mfd_cli.training.workshop import build
from teachers.guidance import Evaluations

#: added to the run's seed, so that no minibatch was trained on
_FRESH = 10_000_019


@dataclass(frozen=True)
class Noise:
    """NSR with its standard error, and the student update it holds for."""

    update: int
    value: float
    error: float


def gradient_noise(run: RunFolder, checkpoint: Path, minibatches: int, device: str) -> Noise:
    """Noise of the student's gradient at a checkpoint.

    Raises:
        MfdError: the checkpoint is damaged or is not of this run.
    """
    workshop = build(load_recipe(str(run.recipe)), device)
    found = verify(checkpoint)
    progress = restore(found, workshop.roles)
    update = schedule_of(workshop.method).update(progress.step)
    batches = replace(workshop.batches, seed=workshop.recipe.seed + _FRESH)
    counts = {name: Evaluations() for name in progress.evaluations}
    fields = Fields(workshop.recipe, workshop.method, workshop.teacher, workshop.roles, batches, counts)
    parameters = workshop.roles.student.parameters
    gradients = []
    for index in range(minibatches):
        loss = workshop.method.student_loss(fields.batch(index, 0, is_student=True, update=update))
        parts = torch.autograd.grad(loss.value, parameters, allow_unused=True)
        gradients.append(torch.cat([part.flatten() for part in parts if part is not None]))
    rows = torch.stack(gradients)
    noise = statistics(rows, rows)["nsr"]
    return Noise(update, noise.value, noise.error)
