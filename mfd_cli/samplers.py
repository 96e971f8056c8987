"""How a student's network makes samples from noise along a schedule 0 = s_0 < ... < s_N = 1.

euler       x <- x + (s_{k+1} - s_k) v(x, s_k)                      a velocity, followed
flow-map    x <- x + (s_{k+1} - s_k) u(x, s_k, s_{k+1})             an average velocity: any grid is exact in the limit
renoise     x <- (1 - s_{k+1}) e + s_{k+1} (x + (1 - s_k) v(x, s_k))    a prediction of the data, noised afresh

In one step all three are z + v(z, 0) (told 1 as the end). Renoising is the multistep sampler of consistency models
(Song et al. 2023, arXiv 2303.01469, algorithm 1) and of DMD2 (Yin et al. 2024, arXiv 2405.14867).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mfd_cli.flow import interpolate, predicted_data
from mfd_cli.solvers import integrate_grid

SamplerName = Literal["euler", "flow-map", "renoise"]
SAMPLERS: tuple[str, ...] = get_args(SamplerName)

#: gives fresh noise [B, ...] for the k-th point of the schedule
Fresh = Callable[[int], Tensor]


def sample(
    kind: str, field: Any, noise: Tensor, grid: Tensor, *, told: Tensor | None = None, fresh: Fresh | None = None
) -> Tensor:
    """States at t = 1 [B, ...].

    Args:
        kind: one of SAMPLERS.
        field: velocity field (x, t), or average velocity (x, s, t) of a flow map.
        noise: X_0 [B, ...].
        grid: times [N + 1] from 0 to 1.
        told: times that a velocity field is told at the steps' starts; `grid` if None.
        fresh: noise of the points between, for `renoise` in several steps.

    Raises:
        ValueError: no such sampler, or one that renoises without fresh noise.
    """
    if kind == "euler":
        return integrate_grid(field, noise, grid, told=told).end
    if kind == "flow-map":
        return follow_map(field, noise, grid)
    if kind != "renoise":
        raise ValueError(f"no sampler {kind!r}; there are {', '.join(SAMPLERS)}")
    return renoised(field, noise, grid, told=told, fresh=fresh)


def follow_map(field: Any, noise: Tensor, grid: Tensor) -> Tensor:
    """X <- x + (t - s) u(x, s, t) along a grid, in float32 at least."""
    state = noise.to(torch.promote_types(noise.dtype, torch.float32))
    times = grid.float().to(noise.device)
    for s, t in pairwise(times):
        state = state + (t - s) * field(state, s.expand(state.shape[0]), t.expand(state.shape[0]))
    return state


def renoised(
    field: Any,
    noise: Tensor,
    grid: Tensor,
    *,
    told: Tensor | None = None,
    fresh: Fresh | None = None,
    stop: int | None = None,
) -> Tensor:
    """Predictions of the data, each noised afresh to the next point of the schedule.

    Args:
        field: velocity field (x, t).
        noise: X_0 [B, ...].
        grid: times [N + 1] from 0 to 1.
        told: times that the field is told at the steps' starts; `grid` if None.
        fresh: noise of the points after the first.
        stop: index of the point to stop at, whose noised state is returned; the end of the grid if None.
    """
    times = grid.float().to(noise.device)
    asked = times if told is None else told.float().to(noise.device)
    state = noise.to(torch.promote_types(noise.dtype, torch.float32))
    for step in range(len(times) - 1 if stop is None else stop):
        rows = state.shape[0]
        data = predicted_data(state, field(state, asked[step].expand(rows)), times[step].expand(rows))
        if step + 2 == len(times):
            return data
        if fresh is None:
            raise ValueError("a sampler that renoises needs fresh noise")
        state = interpolate(fresh(step + 1), data, times[step + 1].expand(rows))
    return state
