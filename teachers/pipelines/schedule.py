"""A student's schedule as the configuration of a stock scheduler, so that a plain pipeline call takes the same steps.

`FlowMatchEulerDiscreteScheduler` has no list of sigmas in its configuration. Given N steps it makes its own grid,

    sigma = S_b(linspace(1, S_b(1 / T), N)),   S_b(x) = b x / (1 + (b - 1) x),   then 1 - sigma scaled to end at a value

and every step is an Euler step. A student's grid, 1 - sigma_k = p / (p + a (1 - p)) with p = k / N, is of the same kind
(a Möbius map of k), so for every a and N there is a b and a terminal value that give exactly that grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from teachers.errors import TeacherError

_TRAIN_TIMESTEPS = 1000
_TOLERANCE = 1e-6


def scheduler_config(grid: Sequence[float], first_time: float = 0.0, *, given_sigmas: bool = False) -> dict[str, Any]:
    """Configuration of a FlowMatchEulerDiscreteScheduler that, asked for N steps, takes the student's.

    Args:
        grid: the student's times [N + 1] from 0 to 1.
        first_time: the time that the student is told at pure noise; labels then go from 1000 (1 - first_time) down.
        given_sigmas: whether the family's pipeline hands linspace(1, 1 / N, N) to the scheduler itself.

    Raises:
        TeacherError: no configuration gives this grid.
    """
    wanted = 1 - np.asarray(grid[:-1], dtype=np.float64)
    steps, train = len(wanted), round(_TRAIN_TIMESTEPS * (1 - first_time))
    config: dict[str, Any] = {"num_train_timesteps": train, "use_dynamic_shifting": False, "shift": 1.0}
    if given_sigmas:
        config["shift"] = _shift_of(wanted)
        made = _shifted(np.linspace(1, 1 / steps, steps), config["shift"])
    else:
        if steps > 1:
            config["shift_terminal"] = float(wanted[-1])
        if steps > 2:
            config["shift"] = _matching_shift(wanted, train)
        made = sigmas_of(config, steps)
    if float(np.abs(made - wanted).max()) > _TOLERANCE:
        raise TeacherError(
            f"the schedule {[round(float(value), 4) for value in grid]} fits no stock scheduler",
            allowed="the schedules that student.steps and student.shift give",
        )
    return config


def sigmas_of(config: dict[str, Any], steps: int) -> np.ndarray:
    """The sigmas [N] that the scheduler makes of such a configuration by itself."""
    shift, train = config["shift"], config["num_train_timesteps"]
    sigmas = _shifted(np.linspace(1, float(_shifted(np.array(1 / train), shift)), steps), shift)
    if terminal := config.get("shift_terminal"):
        sigmas = 1 - (1 - sigmas) * (1 - terminal) / (1 - sigmas[-1])
    return sigmas


def _matching_shift(wanted: np.ndarray, train: int) -> float:
    """The b for which the scheduler's grid has the curvature of the wanted one.

    With 1 - sigma_k = k / (a N + (1 - a) k) wanted and c k / (b + (1 - b) c k), scaled, made, where
    c = (1 - S_b(1 / T)) / (N - 1), the two agree in every k if b / (1 - b) = a N c / (1 - a). c hardly depends on b,
    so a few iterations settle it.
    """
    steps, shift, b = len(wanted), _shift_of(wanted), 1.0
    for _ in range(500):
        spacing = (1 - float(_shifted(np.array(1 / train), b))) / (steps - 1)
        b = shift * steps * spacing / (1 - shift + shift * steps * spacing)
    return b


def _shift_of(wanted: np.ndarray) -> float:
    """The a of sigma = S_a(1 - k / N), read off the last value."""
    if len(wanted) == 1:
        return 1.0
    plain = 1 / len(wanted)
    return float(wanted[-1] * (1 - plain) / (plain * (1 - wanted[-1])))


def _shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    return shift * sigmas / (1 + (shift - 1) * sigmas)
