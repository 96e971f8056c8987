"""A multilayer perceptron velocity network for points."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class PointMLP(nn.Module):
    """v(x, t) for points x [B, D]: SiLU layers over the point and sines and cosines of its time.

    Args:
        dim: D.
        width: units of each hidden layer.
        depth: number of hidden layers.
        frequencies: time features sin(f t) and cos(f t) for f = pi/4, pi/2, pi ...; few and low on purpose, since
            a derivative in time multiplies the highest one.
    """

    angles: Tensor

    def __init__(self, *, dim: int, width: int, depth: int, frequencies: int) -> None:
        super().__init__()
        self.register_buffer("angles", math.pi * 2.0 ** torch.arange(-2, frequencies - 2), persistent=False)
        sizes = [dim + 2 * frequencies] + [width] * depth
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, dim))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity [B, D] at x [B, D] and times t [B] in [0, 1]."""
        angles = t[:, None] * self.angles
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], dim=1))
