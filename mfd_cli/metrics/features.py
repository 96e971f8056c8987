"""Networks that pictures are seen with, and feature spaces by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.metrics import images, weights
from mfd_cli.metrics.clip import clip_pixels, two_towers
from mfd_cli.metrics.contract import Against
from mfd_cli.metrics.inception import FEATURES, SIZE, Inception
from teachers.weights import load_into

#: pictures that go through a network at once
AT_ONCE = 32

GET_INCEPTION = (
    "download pt_inception-2015-12-05-6726825d.pth (release fid_weights of github.com/mseitzer/pytorch-fid), then: "
    "mfd metrics convert fid pt_inception-2015-12-05-6726825d.pth -o inception.safetensors"
)
DINOV2 = "facebook/dinov2-large"


class Extractor(Protocol):
    """Features of pictures.

    Attributes:
        width: number of features F.
    """

    width: int

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
        self.width = FEATURES

    def pixels(self, pictures: Tensor) -> Tensor:
        """(x - 128) / 128 of pictures at 299 x 299."""
        return (images.resized_like_tensorflow(pictures.to(self._device), SIZE) - 128) / 128

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features [B, 2048]."""
        return self._network(pixels).cpu()


class InceptionPatch(InceptionFeatures):
    """The same features of the middle 299 x 299 pixels of pictures, which are not resized."""

    def pixels(self, pictures: Tensor) -> Tensor:
        """(x - 128) / 128 of the middle."""
        return (images.middle(pictures, SIZE).to(self._device).float() - 128) / 128


class Dinov2Features:
    """The class token of a DINOv2 after its last normalisation; pictures at 224 x 224, whatever their shape.

    Args:
        folder: the model in transformers' layout.
        device: where it computes.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import Dinov2Model

        self._network, self._device = weights.loaded(Dinov2Model, folder, "fd-dinov2").to(device), device
        self.width = int(self._network.config.hidden_size)

    def pixels(self, pictures: Tensor) -> Tensor:
        """Pictures at 224 x 224, normalised with ImageNet's mean and deviation."""
        resized = images.resized(pictures, (224, 224))
        return images.normalised(resized, images.IMAGENET_MEAN, images.IMAGENET_STD)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features [B, F]."""
        return self._network(pixel_values=pixels.to(self._device)).last_hidden_state[:, 0].cpu()


class ClipFeatures:
    """The embedding of a CLIP, of length 1.

    Args:
        folder: the model in transformers' layout.
        metric: the metric's registered name.
        device: where it computes.
    """

    def __init__(self, folder: Path, metric: str, device: torch.device) -> None:
        self._towers = two_towers(metric, folder, None, device)
        self.width = self._towers.width

    def pixels(self, pictures: Tensor) -> Tensor:
        """Pictures after CLIP's preprocessing."""
        return clip_pixels(pictures, self._towers.size)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Embeddings [B, F]."""
        return self._towers.pictures(pixels)


def features_of(extractor: Extractor, samples: Tensor) -> Tensor:
    """Features [N, F] of decoded samples [N, 1 or 3, H, W], some at a time."""
    return torch.cat([extractor(extractor.pixels(images.to_uint8(part))) for part in samples.split(AT_ONCE)])


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
        inception_file(metric, model)
    elif features == "dinov2":
        weights.locate(metric, "model", model or DINOV2)


def inception_file(metric: str, model: str | None) -> Path:
    """The file of Inception's weights. Raises MfdError where there is none."""
    return weights.require_file(metric, "model", model, get=GET_INCEPTION, convert="fid")


def inception(metric: str, model: str | None, device: torch.device) -> tuple[Extractor, dict[str, str]]:
    """FID's Inception and what distinguishes its weights. Raises MfdError where there are none."""
    file = inception_file(metric, model)
    return InceptionFeatures(file, device), weights.identity(str(model), file)


def dinov2(metric: str, model: str | None, device: torch.device) -> tuple[Extractor, dict[str, str]]:
    """DINOv2 and what distinguishes its weights. Raises MfdError where there are none."""
    folder = weights.locate(metric, "model", model or DINOV2)
    return Dinov2Features(folder, device), weights.identity(model or DINOV2, folder)


_NETWORKS: dict[str, Callable[[str, str | None, torch.device], tuple[Extractor, dict[str, str]]]] = {
    "inception": inception,
    "dinov2": dinov2,
}
