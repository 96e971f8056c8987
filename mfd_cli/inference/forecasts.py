"""How good forecasts are: each is held against what really followed, voxel by voxel, and counts are summed over all.

Figures are those of `occupancy.figures`, in percent; more is better.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.inference import occupancy
from mfd_cli.inference.generation import generated, items_of
from mfd_cli.inference.occupancy import Counts
from mfd_cli.inference.sampler import Sampler
from mfd_cli.metrics.uncertainty import Measured, from_deviations
from teachers.base import Data

#: clips whose truth is read at once for an answer that needs no model
_AT_ONCE = 8


class ForecastJudge:
    """What forecasts are held against.

    Args:
        data: the held-out clips.
        num: forecasts that each model is judged by; no more than there are clips, each of which is judged once.
        seed: names noise, the choice of clips, and bootstrap draws.

    Attributes:
        num: forecasts that each model is judged by.
        count: clips they are held against, the same number.

    Raises:
        MfdError: no clips.
        TeacherError: the clips' labels are missing.
    """

    def __init__(self, data: Data, num: int, seed: int) -> None:
        if not data.size:
            raise MfdError("no held-out clips to judge by", do="give the data source some")
        self.data, self.seed = data, seed
        self.num = self.count = min(num, data.size)
        data.truth(items_of(data, seed, 0, 1))  # missing labels are told of before anything is computed

    @torch.inference_mode()
    def judge(self, sampler: Sampler, *, steps: int | None, batch_size: int) -> dict[str, Measured]:
        """Every figure of one model; see `Reference.judge`."""
        parts, items = [], []
        for part in generated(sampler, self.data, steps=steps, num=self.num, seed=self.seed, batch_size=batch_size):
            parts.append(occupancy.count(part.samples, self.data.truth(part.items)))
            items.append(part.items)
        return self._measured(parts, torch.cat(items))

    def described(self) -> dict[str, dict[str, Any]]:
        """Nothing to say of figures that need no weights and no settings."""
        return {}

    def baselines(self) -> dict[str, dict[str, Measured]]:
        """Every figure of answers that need no model."""
        counts: dict[str, list[Counts]] = {}
        items = items_of(self.data, self.seed, 0, self.num)
        for part in items.split(_AT_ONCE):
            truth = self.data.truth(part)
            for name, answer in self.data.baselines(part).items():
                counts.setdefault(name, []).append(occupancy.count(answer, truth))
        return {name: self._measured(parts, items) for name, parts in counts.items()}

    def _measured(self, parts: list[Counts], items: Tensor) -> dict[str, Measured]:
        counts = Counts(*(torch.cat(each) for each in zip(*parts, strict=True)))
        moves = occupancy.bootstrap_deviations(counts, self.data.groups(items), self.seed)
        return {
            name: from_deviations(value, moves[name], self.num, more_is_better=True)
            if name in moves
            else Measured(value, 0.0, self.num, more_is_better=True)
            for name, value in occupancy.figures(occupancy.pooled(counts)).items()
        }
