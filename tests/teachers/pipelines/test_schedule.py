"""A student's schedule in a stock scheduler's configuration."""

import numpy as np
import pytest

from mfd_cli.flow import time_grid
from teachers.errors import TeacherError
from teachers.pipelines.schedule import scheduler_config, sigmas_of


def scheduler(config):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 25])
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 12.0])
def test_the_scheduler_makes_the_students_grid_and_labels_by_itself(steps, shift):
    grid = time_grid(steps, shift)
    config = scheduler_config(grid.tolist(), 0.001)
    made = scheduler(config)
    made.set_timesteps(steps)
    np.testing.assert_allclose(made.sigmas.numpy(), 1 - grid.numpy(), atol=1e-6)
    np.testing.assert_allclose(made.timesteps.numpy(), 999 * (1 - grid.numpy()[:-1]), atol=1e-3)
    np.testing.assert_allclose(sigmas_of(config, steps), 1 - grid.numpy()[:-1], atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4, 25])
@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0, 12.0])
def test_pipelines_that_hand_over_their_own_sigmas(steps, shift):
    grid = time_grid(steps, shift)
    made = scheduler(scheduler_config(grid.tolist(), given_sigmas=True))
    made.set_timesteps(steps, sigmas=np.linspace(1, 1 / steps, steps))
    np.testing.assert_allclose(made.sigmas.numpy(), 1 - grid.numpy(), atol=1e-6)


def test_a_grid_of_another_kind_is_refused():
    with pytest.raises(TeacherError, match="fits no stock scheduler"):
        scheduler_config([0.0, 0.5, 0.55, 0.9, 1.0])
