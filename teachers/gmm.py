"""Teacher `gmm`: a Gaussian mixture, whose velocity field is known in closed form. Its recipe is `toy`.

Target Q = sum_k pi_k N(mu_k, sigma_k^2 I). With tau_k(t)^2 = (1 - t)^2 + t^2 sigma_k^2 the path has components
N(t mu_k, tau_k^2 I), posterior weights gamma_k(x, t), and

    u(x, t) = sum_k gamma_k [ mu_k + (t sigma_k^2 - (1 - t)) / tau_k^2 (x - t mu_k) ]

No weights and no training: samples of the target and the field are exact, so errors seen on it are a solver's or a
student's own. The student's network is a perceptron that is fitted to the field before distillation begins.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from teachers.base import Data, Modes, Teacher
from teachers.conditions import Condition
from teachers.errors import TeacherError
from teachers.networks.mlp import PointMLP
from teachers.settings import Settings, Strict, TeacherSettings

#: samples that are drawn at once
_BLOCK = 1024

_FIT_UPDATES, _FIT_BATCH, _FIT_RATE = 800, 512, 3e-3


class Ring(Strict):
    """Equal modes, evenly spaced on a circle in the first two axes."""

    modes: int = Field(8, ge=1, description="Number of modes.")
    radius: float = Field(4.0, gt=0, description="Radius of the circle.")
    deviation: float = Field(0.3, gt=0, description="Standard deviation of each mode, the same in every axis.")
    dim: int = Field(2, ge=2, description="Dimension of the points.")


class Component(Strict):
    """One mode of a mixture given in full."""

    mean: list[float] = Field(min_length=1, description="Centre; its length is the dimension.")
    deviation: float = Field(gt=0, description="Standard deviation, the same in every axis.")
    weight: float = Field(1.0, gt=0, description="Share, relative to the other components.")


class PointNetwork(Strict):
    """The student's network."""

    width: int = Field(128, ge=1, description="Units of each hidden layer.")
    depth: int = Field(3, ge=1, description="Hidden layers.")
    frequencies: int = Field(4, ge=1, description="Time features sin(f t), cos(f t) for f = pi/4, pi/2, pi ...")


class GaussianMixtureSettings(TeacherSettings):
    """Settings of `gmm`."""

    guidance: float = Field(1.0, ge=1, le=1, description="A mixture has no condition, so nothing to guide with.")
    ring: Ring = Field(default=Ring(), description="The mixture, if `components` is not given.")
    components: list[Component] | None = Field(None, min_length=1, description="The mixture, mode by mode.")
    network: PointNetwork = Field(default=PointNetwork(), description="The student's network.")

    @model_validator(mode="after")
    def _one_dimension(self) -> GaussianMixtureSettings:
        lengths = {len(component.mean) for component in self.components or []}
        if len(lengths) > 1:
            raise ValueError(f"components of different dimensions: {sorted(lengths)}")
        return self


class MixtureField(nn.Module):
    """The exact velocity of a mixture with means [K, D], deviations [K] and shares [K] that sum to 1."""

    means: Tensor
    deviations: Tensor
    shares: Tensor

    def __init__(self, means: Tensor, deviations: Tensor, shares: Tensor) -> None:
        super().__init__()
        self.register_buffer("means", means)
        self.register_buffer("deviations", deviations)
        self.register_buffer("shares", shares)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """u(x, t) [B, D] for points x [B, D] at times t [B] in [0, 1]."""
        time = t.to(x.dtype)[:, None]
        means, variance = self.means.to(x.dtype), self.deviations.to(x.dtype).square()
        spread = (1 - time) ** 2 + time**2 * variance  # tau^2 [B, K]
        offset = x[:, None, :] - time[..., None] * means  # [B, K, D]
        squared = offset.square().sum(-1)
        logits = self.shares.to(x.dtype).log() - 0.5 * (x.shape[1] * spread.log() + squared / spread)
        gamma = logits.softmax(dim=1)
        factor = (time * variance - (1 - time)) / spread
        return torch.einsum("bk,bkd->bd", gamma, means + factor[..., None] * offset)

    def draw(self, count: int, seed: int) -> Tensor:
        """`count` exact, independent samples of the target [N, D]."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.shares.cpu(), count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator)
        return self.means.cpu()[which] + self.deviations.cpu()[which, None] * noise


class GaussianMixtureTeacher(Teacher):
    """The closed-form field as a teacher."""

    Settings = GaussianMixtureSettings
    sample_kind = "points"

    @classmethod
    def load(cls, settings: Any) -> GaussianMixtureTeacher:
        """The mixture that the settings describe; nothing can be missing."""
        field = _mixture(settings)
        network = settings.network
        architecture = {
            "dim": field.means.shape[1], "width": network.width, "depth": network.depth,
            "frequencies": network.frequencies,
        }  # fmt: skip
        teacher = cls(settings, architecture)
        teacher.network = field.eval()
        return teacher

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(D,)."""
        return (self.architecture["dim"],)

    def build_network(self) -> nn.Module:
        """A perceptron; the exact field itself has nothing to train."""
        return PointMLP(**self.architecture)

    def initial_network(self, seed: int) -> nn.Module:
        """A perceptron fitted to the exact field along its paths: a few seconds, the same for the same seed."""
        field = _mixture(self.settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.build_network()
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=_FIT_RATE, fused=True)
        for update in range(_FIT_UPDATES):
            optimizer.param_groups[0]["lr"] = _FIT_RATE * 0.5 * (1 + math.cos(math.pi * update / _FIT_UPDATES))
            data = field.draw(_FIT_BATCH, seed * _FIT_UPDATES + update)
            t = torch.rand(_FIT_BATCH, generator=generator)
            x = (1 - t[:, None]) * torch.randn(data.shape, generator=generator) + t[:, None] * data
            loss = (network(x, t) - field(x, t)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return network

    def time_layer(self, network: nn.Module) -> str:
        """The first layer, which sees point and time; what is added to it is as good as a further input."""
        return "layers.0"

    def feature_layer(self, network: nn.Module) -> str | None:
        """The last hidden layer of a perceptron; the exact field has none."""
        return None if isinstance(network, MixtureField) else f"layers.{2 * self.architecture['depth'] - 1}"

    def identity(self) -> dict[str, str]:
        """Hash of the mixture."""
        content = self.settings.model_dump_json(include={"ring", "components"})
        return {"mixture": hashlib.sha256(content.encode()).hexdigest()}


class GaussianMixtureData(Data):
    """Exact samples of the teacher's mixture; there are no conditions."""

    Settings = Settings

    def __init__(self, field: MixtureField) -> None:
        self._field = field

    @classmethod
    def load(cls, settings: Any, teacher: Teacher | None) -> GaussianMixtureData:
        """The samples of a `gmm` teacher's target."""
        if not isinstance(teacher, GaussianMixtureTeacher):
            raise TeacherError("data of type 'gmm' are samples of a mixture", allowed="teacher.type: gmm")
        return cls(_mixture(teacher.settings))

    @property
    def size(self) -> int | None:
        """Endless."""
        return None

    def condition(self, items: Tensor) -> Condition:
        """Nothing."""
        return {}

    def states(self, items: Tensor) -> Tensor:
        """The samples that belong to the items [B, D], each a function of its item alone."""
        blocks, inverse = (items // _BLOCK).unique(return_inverse=True)
        drawn = torch.stack([self._field.draw(_BLOCK, int(block)) for block in blocks])
        return drawn[inverse, items % _BLOCK]

    def reference(self, count: int | None, seed: int) -> Tensor:
        """`count` (or 10,000) points, as many of each mode as its share demands.

        Random numbers per mode would double the floor of any distance to them.
        """
        count = count or 10_000
        wanted = self._field.shares.cumsum(0).mul(count).round().long().diff(prepend=torch.zeros(1, dtype=torch.long))
        generator = torch.Generator().manual_seed(seed)
        which = torch.repeat_interleave(torch.arange(len(wanted)), wanted)
        noise = torch.randn(len(which), self._field.means.shape[1], generator=generator)
        return self._field.means[which] + self._field.deviations[which, None] * noise

    def modes(self) -> Modes:
        """The components."""
        return Modes(self._field.means, self._field.deviations)


def _mixture(settings: GaussianMixtureSettings) -> MixtureField:
    if settings.components is not None:
        means = torch.tensor([component.mean for component in settings.components])
        deviations = torch.tensor([component.deviation for component in settings.components])
        shares = torch.tensor([component.weight for component in settings.components])
        return MixtureField(means, deviations, shares / shares.sum())
    ring = settings.ring
    angle = 2 * math.pi * torch.arange(ring.modes) / ring.modes
    means = torch.zeros(ring.modes, ring.dim)
    means[:, 0], means[:, 1] = ring.radius * angle.cos(), ring.radius * angle.sin()
    return MixtureField(means, torch.full((ring.modes,), ring.deviation), torch.full((ring.modes,), 1 / ring.modes))
