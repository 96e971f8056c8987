"""Networks that pictures are seen with, and the Fréchet distances in their features: FID and FD-DINOv2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.metrics import images, weights
from mfd_cli.metrics.contract import Against, Batch, Metric, MetricSettings
from mfd_cli.metrics.frechet import FrechetTo, Moments, in_parts, moments, require_samples
from mfd_cli.metrics.inception import SIZE, Inception
from mfd_cli.metrics.uncertainty import Measured
from teachers.weights import load_into

#: pictures that go through a network at once
_AT_ONCE = 32

GET_INCEPTION = (
    "download pt_inception-2015-12-05-6726825d.pth (release fid_weights of github.com/mseitzer/pytorch-fid), then: "
    "mfd metrics convert fid pt_inception-2015-12-05-6726825d.pth -o inception.safetensors"
)
DINOV2 = "facebook/dinov2-large"


class Extractor(Protocol):
    """Features of pictures."""

    def pixels(self, pictures: Tensor) -> Tensor:
        """Pictures uint8 [B, 3, H, W] as the network takes them."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features [B, F], on the CPU."""


class InceptionFeatures:
    """The 2048 average-pool features of FID's Inception; pictures are resized as TensorFlow 1 does.

    Args:
        file: its weights (safetensors, names of the published ports).
        device: where it computes.
    """

    def __init__(self, file: Path, device: torch.device) -> None:
        network = Inception()
        held = weights.tensors_of(file)
        # the classifier is not needed, and counters of training batches are not in every copy
        counters = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
        kept = {name: value for name, value in held.items() if not name.startswith(("fc.", "AuxLogits."))}
        load_into(network, counters | kept, file)
        self._network, self._device = network.eval().requires_grad_(False).to(device), device

    def pixels(self, pictures: Tensor) -> Tensor:
        """(x - 128) / 128 of pictures at 299 x 299."""
        return (images.resized_like_tensorflow(pictures.to(self._device), SIZE) - 128) / 128

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features [B, 2048]."""
        return self._network(pixels).cpu()


class Dinov2Features:
    """The class token of a DINOv2 after its last normalisation; pictures at 224 x 224, whatever their shape.

    Args:
        folder: the model in transformers' layout.
        device: where it computes.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import Dinov2Model

        self._network, self._device = weights.loaded(Dinov2Model, folder, "fd-dinov2").to(device), device

    def pixels(self, pictures: Tensor) -> Tensor:
        """Pictures at 224 x 224, normalised with ImageNet's mean and deviation."""
        resized = images.resized(pictures, (224, 224))
        return images.normalised(resized, images.IMAGENET_MEAN, images.IMAGENET_STD)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features [B, F]."""
        return self._network(pixel_values=pixels.to(self._device)).last_hidden_state[:, 0].cpu()


def features_of(extractor: Extractor, samples: Tensor) -> Tensor:
    """Features [N, F] of decoded samples [N, 1 or 3, H, W], some at a time."""
    return torch.cat([extractor(extractor.pixels(images.to_uint8(part))) for part in samples.split(_AT_ONCE)])


def space_of(
    metric: str, features: str, model: str | None, against: Against
) -> tuple[Callable[[Tensor], Tensor], dict[str, str]]:
    """A feature space by name, as a function from decoded samples to [N, F], and what it holds for.

    Args:
        metric: the metric's registered name.
        features: "samples", "inception", "dinov2", or the name of a space of the data.
        model: weights of the network, where it is one.
        against: the data.

    Raises:
        MfdError: no such space, or weights that are missing.
    """
    spaces = against.data.spaces()
    if features == "samples":
        return (lambda samples: samples.flatten(1)), {}
    if features in spaces:
        return spaces[features], {}
    if features not in _NETWORKS:
        raise MfdError(
            f"{metric}: features: {features}",
            allowed=", ".join(["samples", *_NETWORKS, *spaces]),
            do="name one of them",
        )
    extractor, details = _NETWORKS[features](metric, model, against.device)
    return (lambda samples: features_of(extractor, samples)), details


def check_space(metric: str, features: str, model: str | None) -> None:
    """Raises MfdError where the weights of a network that `features` names are missing."""
    if features == "inception":
        weights.require_file("fid", "model", model, get=GET_INCEPTION)
    elif features == "dinov2":
        weights.locate(metric, "model", model or DINOV2)


def _inception(metric: str, model: str | None, device: torch.device) -> tuple[Extractor, dict[str, str]]:
    file = weights.require_file("fid", "model", model, get=GET_INCEPTION)
    return InceptionFeatures(file, device), weights.identity(str(model), file)


def _dinov2(metric: str, model: str | None, device: torch.device) -> tuple[Extractor, dict[str, str]]:
    folder = weights.locate(metric, "model", model or DINOV2)
    return Dinov2Features(folder, device), weights.identity(model or DINOV2, folder)


_NETWORKS: dict[str, Callable[[str, str | None, torch.device], tuple[Extractor, dict[str, str]]]] = {
    "inception": _inception,
    "dinov2": _dinov2,
}


class FidSettings(MetricSettings):
    """Settings of `fid`."""

    model: str | None = Field(None, description="Weights of FID's Inception: a .safetensors file (docs/metrics.md).")
    reference: str | None = Field(
        None,
        description="Real pictures: a folder, or an .npz with mu and sigma of the features; null: the data's own.",
    )


class FdDinov2Settings(MetricSettings):
    """Settings of `fd-dinov2`."""

    model: str = Field(DINOV2, description="DINOv2: a folder in transformers' layout, or a hub repository.")
    reference: str | None = Field(
        None,
        description="Real pictures: a folder, or an .npz with mu and sigma of the features; null: the data's own.",
    )


class _PictureFrechet(Metric):
    """Fréchet distance between features of pictures."""

    features: ClassVar[str]
    figure: ClassVar[str]

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses missing weights, and a reference that is not there."""
        check_space(settings.type, cls.features, settings.model)
        if settings.reference is not None and not settings.reference.endswith(".npz"):
            images.require_folder(Path(settings.reference).expanduser())
        elif settings.reference is not None:
            _statistics(Path(settings.reference).expanduser())

    def prepare(self, against: Against) -> None:
        """The network, and moments of the reference."""
        self._extractor, self._details = _NETWORKS[self.features](
            self.settings.type, self.settings.model, against.device
        )
        width = features_of(self._extractor, torch.zeros(1, 3, 8, 8)).shape[1]
        require_samples(self.named(self.figure), width, against.num)  # before the reference, which may take long
        reference, self._count = self._reference(against)
        self._to = FrechetTo(self.named(self.figure), reference, against.num, against.seed)

    def rows(self, batch: Batch) -> Tensor:
        """Features [B, F]."""
        return features_of(self._extractor, batch.samples)

    def figures(self, rows: Tensor, groups: Tensor) -> dict[str, Measured]:
        """The distance."""
        return {self.named(self.figure): self._to.measured(rows)}

    def details(self) -> dict[str, Any]:
        """Model, its weights, and the reference."""
        return {**self._details, "reference": self.settings.reference or "data", "reference_num": self._count}

    def _reference(self, against: Against) -> tuple[Moments, int | None]:
        """Moments of the reference, and of how many pictures, if that is known."""
        if self.settings.reference is None:
            real = in_parts(lambda part: features_of(self._extractor, part), self.real(against))
            return moments(real), len(real)
        place = Path(self.settings.reference).expanduser()
        if place.suffix == ".npz":
            return _statistics(place), None
        paths = images.require_folder(place)
        parts = [self._extractor(pixels) for pixels in images.pictures_in(paths, self._extractor.pixels, _AT_ONCE)]
        if len(paths) < 2:
            raise MfdError(f"{place}: one picture is no reference", allowed="as many pictures as samples")
        return moments(torch.cat(parts)), len(paths)


class Fid(_PictureFrechet):
    """Fréchet Inception distance: on the 2048 features of TensorFlow's Inception of 2015-12-05.

    Source: Heusel et al. 2017 (arXiv 1706.08500).
    """

    Settings = FidSettings
    features, figure = "inception", "fid"


class FdDinov2(_PictureFrechet):
    """Fréchet distance on the class tokens of DINOv2 ViT-L/14.

    Source: Stein et al. 2023 (arXiv 2306.04675).
    """

    Settings = FdDinov2Settings
    features, figure = "dinov2", "fd_dinov2"


def _statistics(path: Path) -> Moments:
    """Mean and covariance from an .npz. Raises MfdError if they are not there."""
    try:
        with np.load(path) as held:
            mean, covariance = torch.from_numpy(held["mu"]).double(), torch.from_numpy(held["sigma"]).double()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MfdError(
            f"{path}: not readable ({error})", allowed="an .npz with arrays mu [F] and sigma [F, F]"
        ) from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise MfdError(
            f"{path}: mu {list(mean.shape)} and sigma {list(covariance.shape)}", allowed="mu [F] and sigma [F, F]"
        )
    return Moments(mean, covariance)
