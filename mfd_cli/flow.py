"""The straight path between noise and data, and what one velocity says about its two ends.

t = 0 is noise, t = 1 is data, X_t = (1 - t) X_0 + t X_1, u = X_1 - X_0 (arXiv 2606.11155, section 3). Pure functions of
tensors; times are [B] and act on rows of [B, ...].
"""

from __future__ import annotations

import torch
from torch import Tensor


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """A [B] tensor reshaped so that it multiplies the rows of `like` [B, ...]."""
    return value.reshape(-1, *(1,) * (like.dim() - 1))


def interpolate(noise: Tensor, data: Tensor, t: Tensor) -> Tensor:
    """X_t = (1 - t) X_0 + t X_1 for noise X_0 and data X_1 [B, ...], t [B]."""
    time = per_row(t, data)
    return (1 - time) * noise + time * data


def predicted_data(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """E[X_1 | X_t = x] = x + (1 - t) u; at t = 0 this is the one-step generator G(z) = z + v(z, 0)."""
    return x + per_row(1 - t, x) * velocity


def predicted_noise(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """E[X_0 | X_t = x] = x - t u."""
    return x - per_row(t, x) * velocity


def time_grid(steps: int, shift: float = 1.0) -> Tensor:
    """N + 1 times from 0 to 1, float32: t_k = p / (p + a (1 - p)) with p = k / N and shift a.

    a = 1 is uniform; a > 1 moves points towards noise. The SD3 family's noise-level shift
    (Esser et al. 2024, arXiv 2403.03206, equation 23) and OccFM's alpha are this same a.

    Raises:
        ValueError: steps < 1 or shift <= 0.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"a time grid needs steps >= 1 and shift > 0, got {steps} and {shift}")
    p = torch.arange(steps + 1, dtype=torch.float64) / steps
    return (p / (p + shift * (1 - p))).float()


def told_times(grid: Tensor, first: float) -> Tensor:
    """Times that a network is told along a grid from 0 to 1, for one that was never trained before time `first`."""
    return first + (1 - first) * grid
