"""What methods share that follow the teacher's trajectories: derivatives along them, and a direction to regress on.

d/ds of u(x_s, s, t) along dx/ds = v is d_s u + (d_x u) v. Forward mode gives it in one pass (a Jacobian-vector
product); where a layer has no forward-mode rule, a central difference of two passes does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mfd_cli.errors import MfdError
from mfd_cli.flow import interpolate, per_row
from mfd_cli.methods.base import Batch, Loss, Method
from teachers.settings import Strict

#: times that `auto` looks at, and how large waves may be, against what is left when they are averaged out
_LOOKS, _WAVES = 8, 0.25


class DerivativeSettings(Strict):
    """How derivatives along a trajectory are computed."""

    type: Literal["auto", "forward", "difference"] = Field(
        "auto",
        description="forward: exact, one forward-mode pass, with attention computed plainly, since its fused kernels "
        "have no forward mode; difference: two passes; auto: forward, or with a warning difference where a layer has "
        "no forward mode or the exact derivative is wavy, as of networks that embed 1000 t.",
    )
    step: float = Field(
        0.05, gt=0, le=0.1, description="Half the time between the two passes of a difference, at most."
    )


class TangentSettings(Strict):
    """What the derivative term is given: arXiv 2506.14603, algorithm 1."""

    normalise: float | None = Field(
        0.1, gt=0, description="Directions g become g / (|g| + this), norm per sample; null: as they are."
    )
    warmup: int = Field(1000, ge=0, description="Student updates over which the derivative term rises from 0.")
    final: float = Field(0.99, gt=0, le=1, description="Its factor afterwards.")

    def share(self, update: int) -> float:
        """Factor of the derivative term at a student update."""
        return self.final * min(1.0, (update + 1) / self.warmup) if self.warmup else self.final


class Derivatives:
    """Directional derivatives of fields of (x, s, t).

    Args:
        settings: how.
    """

    def __init__(self, settings: DerivativeSettings) -> None:
        self._settings = settings
        self._difference = settings.type == "difference"

    @torch.no_grad()
    def along_start(
        self, field: Callable[..., Tensor], x: Tensor, s: Tensor, t: Tensor, velocity: Tensor
    ) -> tuple[Tensor, Tensor]:
        """U and du/ds = d_s u + (d_x u) velocity at (x, s, t), each [B, ...]."""
        ones, zeros = torch.ones_like(s), torch.zeros_like(s)
        found = self._forward(field, (x, s, t), (velocity, ones, zeros))
        return (field(x, s, t), self._averaged(field, x, s, t, velocity)) if found is None else found

    @torch.no_grad()
    def along_end(self, field: Callable[..., Tensor], x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """U and d_t u at (x, s, t), each [B, ...]."""
        zeros = torch.zeros_like(s)
        found = self._forward(field, (x, s, t), (torch.zeros_like(x), zeros, torch.ones_like(t)))
        if found is not None:
            return found
        high, low = (t + self._settings.step).clamp(max=1), torch.maximum(t - self._settings.step, s)
        return field(x, s, t), self._quotient(field(x, s, high), field(x, s, low), high - low)

    @torch.no_grad()
    def choose(self, field: Callable[..., Tensor], start: Tensor, end: Tensor) -> None:
        """Settles `auto` by a look at the field along straight lines: differences, if its exact derivative is wavy.

        Args:
            field: of (x, s, t).
            start: X_0 [B, ...].
            end: X_1 [B, ...].
        """
        velocity, waves, smooth = end - start, 0.0, 0.0
        for time in torch.linspace(0.05, 0.95, _LOOKS).tolist():
            s, t = (torch.full((len(start),), value, device=start.device) for value in (time, 1.0))
            x = interpolate(start, end, s)
            _, exact = self.along_start(field, x, s, t, velocity)
            if self._difference:  # a layer has no forward mode, and that has been said
                return
            averaged = self._averaged(field, x, s, t, velocity)
            waves += float((exact - averaged).float().square().sum())
            smooth += float(averaged.float().square().sum())
        if waves > _WAVES**2 * smooth:
            self._difference = True
            share = (waves / smooth) ** 0.5 if smooth else math.inf
            warnings.warn(
                f"the network's exact derivative in time is wavy; its waves are {share:.2g} times as large as what is "
                f"left when they are averaged out: differences over {self._settings.step:g} to each side are taken; "
                "method.derivative.type: forward keeps the exact one",
                stacklevel=2,
            )

    def _averaged(self, field: Callable[..., Tensor], x: Tensor, s: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
        """The derivative along `velocity`, averaged over the time of a difference."""
        high, low = torch.minimum(s + self._settings.step, t), (s - self._settings.step).clamp(min=0)
        there, back = (field(x + per_row(at - s, x) * velocity, at, t) for at in (high, low))
        return self._quotient(there, back, high - low)

    def _forward(
        self, field: Callable[..., Tensor], point: tuple[Tensor, ...], tangent: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor] | None:
        """Value and derivative in forward mode; None where differences are taken."""
        if self._difference:
            return None
        try:
            with sdpa_kernel(SDPBackend.MATH):
                value, derivative = torch.func.jvp(field, point, tangent)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            raise
        except (NotImplementedError, RuntimeError) as error:
            field(*point)  # a network that fails without forward mode, too, has another fault, which this tells
            reason = str(error).splitlines()[0]
            if self._settings.type == "forward":
                raise MfdError(
                    f"method.derivative.type forward: a layer of the network has no forward mode ({reason})",
                    allowed="method.derivative.type: auto or difference",
                ) from error
            self._difference = True
            warnings.warn(f"derivatives are taken as differences: a layer has no forward mode ({reason})", stacklevel=2)
            return None
        counter = getattr(field, "evaluations", None)
        if counter is not None:
            counter.rows += len(point[0])  # the tangent's pass, beside the value's
        return value, derivative

    @staticmethod
    def _quotient(high: Tensor, low: Tensor, length: Tensor) -> Tensor:
        """(high - low) / length; 0 where the interval is empty."""
        wide = per_row(length, high)
        return torch.where(wide > 0, (high - low) / wide.clamp(min=torch.finfo(torch.float32).tiny), 0.0)


class TrajectoryMethod(Method):
    """Methods whose student learns along the teacher's trajectories, entered at noised real states.

    Such students are made for any number of steps. Settings have a block `derivative`.
    """

    any_steps = True

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self._derivatives = Derivatives(settings.derivative)

    @property
    def needs_data(self) -> bool:
        """Always."""
        return True

    def prepare(self, example: Callable[[], Batch]) -> None:
        """Chooses how derivatives are taken, where the settings leave that to the network."""
        if self.settings.derivative.type != "auto":
            return
        batch = example()
        field = self.differentiated(batch)
        if field is not None:
            self._derivatives.choose(field, batch.random.normal("x0", batch.shape), batch.real)

    def differentiated(self, batch: Batch) -> Callable[..., Tensor] | None:
        """The field of (x, s, t) whose derivatives are taken; None where none are."""
        field: Callable[..., Tensor] = batch.frozen
        return field


def norm(value: Tensor) -> Tensor:
    """Euclidean norm of each row over all its dimensions, shaped to divide the rows of [B, ...]."""
    return per_row(value.flatten(1).norm(dim=1), value)


def step_towards(found: Tensor, direction: Tensor, normalise: float | None, times: Tensor) -> Loss:
    """|u - sg[u - g]|^2, summed over a row and averaged over rows: a step against g, which may be normalised first.

    Args:
        found: u with gradient [B, ...].
        direction: g [B, ...].
        normalise: c of g / (|g| + c); None leaves g as it is.
        times: for reports.

    Returns:
        The loss, reported as the mean square of g before it is normalised.
    """
    direction = direction.detach()
    size = direction.square().mean()
    if normalise is not None:
        direction = direction / (norm(direction) + normalise)
    wanted = found.detach() - direction
    return Loss((found - wanted).square().flatten(1).sum(1).mean(), size, times)
