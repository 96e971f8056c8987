"""Figures that the field's own libraries gave for points which are a formula of their place.

prdc 0.2 (the authors' of density and coverage) and torch-fidelity 0.4.0, run once; neither is a dependency.
"""

import pytest
import torch
from torch import Tensor

from mfd_cli.metrics.frechet import frechet_distance
from mfd_cli.metrics.kid import cubic
from mfd_cli.metrics.mmd import MmdTo
from mfd_cli.metrics.neighbours import precision_recall


def _points(num: int, a: float, b: float) -> Tensor:
    place = torch.arange(num * 6, dtype=torch.float64).reshape(num, 6)
    return torch.sin(a * place + b * place**1.5)


MADE, REAL = _points(40, 0.7, 0.01) + 0.2, _points(50, 0.9, 0.013)


def test_precision_recall_density_and_coverage_are_prdc_s() -> None:
    found = precision_recall(REAL, MADE, 5)
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(
        {"precision": 0.5, "recall": 0.44, "density": 0.315, "coverage": 0.3}, rel=1e-9
    )


def test_the_kernel_distance_is_torch_fidelity_s() -> None:
    assert MmdTo(REAL[:40], cubic).measured(MADE).value == pytest.approx(0.344495485449666, rel=1e-9)


def test_the_frechet_distance_is_torch_fidelity_s() -> None:
    assert frechet_distance(MADE, REAL) == pytest.approx(1.0073841540924517, rel=1e-6)
