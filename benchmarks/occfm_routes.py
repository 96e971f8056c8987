"""Ways to compute one forecast of OccFM, for `occfm_forecast.py`: mfd's, and the published code's with variations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from occfm_straight import StraightDecoder, StraightNetwork, straight_classes
from torch import Tensor

from teachers.occfm.compressor import Compressor
from teachers.occfm.teacher import CELLS_AT_ONCE, OccFMSettings, OccFMTeacher
from teachers.occfm.transition import FRAMES, FUTURE, HISTORY

PUBLISHED, OURS = "published", "mfd"
#: sizes of `--quick`; the others are the networks' own
_SMALL_NETWORK = {"channels": 4, "grid": 10, "width": 32, "base": 16, "kernel": 3, "head_width": 8}
_SMALL_COMPRESSOR = {
    "size": 40, "channels": 4, "encoder_width": 32, "decoder_width": 128, "encoder_depths": (1, 1),
    "decoder_depths": (2, 2),
}  # fmt: skip


class Stages(Protocol):
    """What times the stages of a forecast."""

    def timed(self, stage: str, work: Callable[[], Any]) -> Any:
        """Does the work."""


@dataclass(frozen=True)
class Case:
    """Networks with random weights, and the inputs of one clip.

    Attributes:
        teacher: adapter that holds both networks.
        noise: [1, 6, C, L, L]; `time` [1] is 0.
        history: [1, 6, C, L, L].
        trajectory: [1, 12, 2].
    """

    teacher: OccFMTeacher
    noise: Tensor
    time: Tensor
    history: Tensor
    trajectory: Tensor

    @property
    def network(self) -> Any:
        """The transition network."""
        return self.teacher.network

    @property
    def compressor(self) -> Compressor:
        """The compressor, where the network is."""
        return self.teacher.compressor(self.noise.device)

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the network takes."""
        return self.noise, self.time, self.history, self.trajectory


@dataclass(frozen=True)
class Route:
    """One way to compute a forecast.

    Attributes:
        velocity: the network on `Case.inputs`, to [1, 6, C, L, L].
        features: latents [N, C, L, L] to [N, 128, S, S].
        classes: features to classes [N, S, S, 16].
        at_once: frames that are decoded together.
        half: whether networks compute in bfloat16 (autocast).
    """

    velocity: Callable[..., Tensor]
    features: Callable[[Tensor], Tensor]
    classes: Callable[[Tensor], Tensor]
    at_once: int
    half: bool = False


def case_of(device: str, quick: bool, seed: int = 0) -> Case:
    """Everything that a forecast needs, the same from the same seed."""
    torch.manual_seed(seed)
    settings = OccFMSettings(type="occfm", weights="random")
    small = {"transition": _SMALL_NETWORK, "compressor": _SMALL_COMPRESSOR}
    teacher = OccFMTeacher(settings, small).with_random_weights() if quick else OccFMTeacher.random(settings)
    shape = (1, *teacher.sample_shape)
    noise, history, trajectory = torch.randn(shape), torch.randn(shape), 3 * torch.rand(1, FRAMES, 2)
    inputs = (noise, torch.zeros(1), history, trajectory)
    return Case(teacher.to(device), *(value.to(device) for value in inputs))  # type: ignore[arg-type]


def routes_of(case: Case, compiled: bool) -> dict[str, Route]:
    """Every way to compute the forecast that suits the device."""
    cuda, compressor = case.noise.device.type == "cuda", case.compressor
    at_once = max(1, CELLS_AT_ONCE["cuda" if cuda else "cpu"] // compressor.size**2)
    ours = Route(case.network, compressor.decoder, compressor.classes, at_once)
    routes = {PUBLISHED: published(case), f"{PUBLISHED}, one branch": published(case, guided=False), OURS: ours}
    routes[f"{OURS}, bf16"] = replace(ours, half=True)
    if cuda:
        routes[f"{PUBLISHED}, bf16"] = published(case, half=True)
        routes[f"{PUBLISHED}, channels last"] = published(case, channels_last=True)
    if compiled:
        for name in [name for name in routes if cuda or "bf16" not in name]:
            routes[f"{name}, compiled"] = _compiled(routes[name])
    return routes


def published(case: Case, *, guided: bool = True, channels_last: bool = False, half: bool = False) -> Route:
    """The published code's way, with or without the unconditional half and states whose channels are innermost."""
    place: Callable[[Tensor], Tensor] = _channels_last if channels_last else lambda value: value
    network = StraightNetwork({name: place(value) for name, value in case.network.state_dict().items()})
    decoder = StraightDecoder({name: place(value) for name, value in case.compressor.state_dict().items()})

    def one_branch(x: Tensor, t: Tensor, history: Tensor, trajectory: Tensor) -> Tensor:
        return network(torch.cat([history, x], dim=1), t, trajectory)[:, HISTORY:]

    velocity = partial(network.guided, scale=1.0) if guided else one_branch
    classes = partial(straight_classes, embeddings=case.compressor.embedding.class_embeds.weight)
    return Route(velocity, lambda latents: decoder(place(latents)), classes, FUTURE, half)


def forecast(case: Case, route: Route, clock: Stages | None = None) -> Tensor:
    """Classes [6, S, S, 16] by one Euler step."""
    timed = clock.timed if clock else lambda stage, work: work()
    with torch.inference_mode(), precision_of(case.noise.device, route.half):
        velocity = timed("network", lambda: route.velocity(*case.inputs))
        latents = ((case.noise + velocity) / case.teacher.settings.rescale)[0]
        found = []
        for part in latents.split(route.at_once):
            features = timed("decoder", partial(route.features, part))
            found.append(timed("classes", partial(route.classes, features)))
            del features  # before the next frames' are there
        return torch.cat(found)


def _compiled(route: Route) -> Route:
    compiled: Any = partial(torch.compile, dynamic=False)
    velocity, features, classes = compiled(route.velocity), compiled(route.features), compiled(route.classes)
    return replace(route, velocity=velocity, features=features, classes=classes)


def _channels_last(value: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return value.contiguous(memory_format=formats.get(value.ndim, torch.contiguous_format))


def precision_of(device: torch.device, half: bool) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext()
