"""Teacher `images`: small class-conditional images, a DiT trained by `mfd teachers train` on a folder or npz file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from teachers.arrays import read_arrays
from teachers.base import Data, Teacher
from teachers.conditions import Condition
from teachers.errors import TeacherError
from teachers.files import sha256
from teachers.networks.dit import DiT
from teachers.settings import Settings, Strict, TeacherSettings
from teachers.weights import load_into, read_header, read_tensors, require_fit

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_LARGEST = 128  # pixels a side; attention over all patches is meant for small images


class ImageNetwork(Strict):
    """The DiT of a teacher to train; image size, channels and classes come from the data."""

    patch_size: int = Field(4, ge=1, description="Pixels a side of a token; halving it costs four times the compute.")
    width: int = Field(64, ge=8, description="Features of a token.")
    depth: int = Field(4, ge=1, description="Transformer blocks.")
    heads: int = Field(2, ge=1, description="Attention heads.")
    mlp_ratio: float = Field(4.0, gt=0, description="Hidden width of a block's perceptron, relative to width.")


class ImagesSettings(TeacherSettings):
    """Settings of `images`."""

    weights: str = Field(description="Safetensors file that `mfd teachers train` writes and distillation reads.")


class ImagesTeacher(Teacher):
    """A DiT over images in [-1, 1], conditioned on a class; the class after the last one means none."""

    Settings = ImagesSettings
    Network = ImageNetwork
    condition_kind = "label"
    weights_key = "weights"

    @classmethod
    def load(cls, settings: Any) -> ImagesTeacher:
        """The teacher in a weights file.

        Raises:
            TeacherError: the file holds no DiT of mfd; MfdError: it is missing or damaged.
        """
        path = Path(settings.weights)
        header, tensors = read_header(path), read_tensors(path)
        try:
            teacher = cls(settings, header["architecture"])
            # a file can claim any size; time and memory are taken for what it holds
            if teacher.architecture["image_size"] > _LARGEST or teacher.architecture["depth"] > len(tensors):
                raise ValueError(f"image_size {teacher.architecture['image_size']}, {len(tensors)} tensors")
            with torch.device("meta"):
                require_fit(teacher.build_network(), tensors, path)
            network = teacher.build_network()
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise TeacherError(f"{path}: holds no teacher of type '{settings.type}' ({error})") from error
        load_into(network, tensors, path)
        teacher.network = network.eval().requires_grad_(False)
        return teacher

    @classmethod
    def untrained(cls, settings: Any, network: Any, data: Data) -> ImagesTeacher:
        """An adapter whose network fits the images of `data`.

        Raises:
            TeacherError: the data are no images, or patches or heads do not divide them.
        """
        if not isinstance(data, ImagesData):
            raise TeacherError("only image data can train this teacher", allowed="data.type: images or digits")
        channels, size, _ = data.image_shape
        teacher = cls(
            settings,
            {"image_size": size, "channels": channels, "num_classes": data.classes, **network.model_dump()},
        )
        try:
            teacher.build_network()
        except ValueError as error:
            raise TeacherError(f"network: {error}") from error
        return teacher

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        size = self.architecture["image_size"]
        return (self.architecture["channels"], size, size)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.architecture["num_classes"]

    def build_network(self) -> nn.Module:
        """A DiT with fresh weights."""
        return DiT(**self.architecture)

    def time_layer(self, network: nn.Module) -> str:
        """The embedding of the time."""
        return "time"

    def feature_layer(self, network: nn.Module) -> str:
        """The last block."""
        return f"blocks.{self.architecture['depth'] - 1}"

    def null_condition(self, condition: Condition) -> Condition:
        """The class that means none."""
        return {"label": torch.full_like(condition["label"], self.classes)}

    def encode(self, asked: Sequence[int | str]) -> Condition:
        """Class indices as a condition."""
        for label in asked:
            if type(label) is not int or not 0 <= label < self.classes:
                raise TeacherError(f"label {label}", allowed=f"class indices from 0 to {self.classes - 1}")
        return {"label": torch.tensor(list(asked), dtype=torch.long)}

    def examples(self, count: int) -> list[int | str]:
        """Every class in turn."""
        return [index % self.classes for index in range(count)]

    def decode(self, latents: Tensor) -> Tensor:
        """[-1, 1] to [0, 1], clamped."""
        return latents.add(1).div(2).clamp(0, 1)

    def identity(self) -> dict[str, str]:
        """SHA-256 of the weights file."""
        return {"weights_sha256": sha256(Path(self.settings.weights))}


class ImagesDataSettings(Settings):
    """Settings of `images` data."""

    path: str = Field(
        description="npz with uint8 `images` [N, H, W(, C)] and `labels` [N], or a folder of class folders."
    )
    largest: int = Field(255, ge=1, description="Pixel value that means white.")


class ImagesData(Data):
    """Labelled images: uint8 [N, C, H, W] and labels [N]."""

    Settings = ImagesDataSettings

    def __init__(self, images: Tensor, labels: Tensor, largest: int) -> None:
        self._images, self._labels, self._largest = images, labels, largest

    @classmethod
    def load(cls, settings: Any, teacher: Teacher | None) -> ImagesData:
        """The images of a folder or npz file.

        Raises:
            TeacherError: missing, unreadable, no small square images, or not what the teacher makes.
        """
        images, labels = read_images(Path(settings.path))
        return cls(images, labels, settings.largest).fitting(teacher, settings.path)

    def fitting(self, teacher: Teacher | None, where: str) -> ImagesData:
        """Itself, if a teacher makes images of this shape and knows all classes. Raises TeacherError otherwise."""
        if teacher is not None and tuple(teacher.sample_shape) != self.image_shape:
            raise TeacherError(
                f"{where}: images of {list(self.image_shape)}", allowed=f"the teacher's: {list(teacher.sample_shape)}"
            )
        known = getattr(teacher, "classes", None)
        if known is not None and self.classes > known:
            raise TeacherError(f"{where}: {self.classes} classes", allowed=f"at most the teacher's {known}")
        return self

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self._images.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self._labels.max()) + 1

    @property
    def size(self) -> int | None:
        """Number of images."""
        return len(self._labels)

    def condition(self, items: Tensor) -> Condition:
        """Labels of the items."""
        return {"label": self._labels[items]}

    def states(self, items: Tensor) -> Tensor:
        """Images in [-1, 1], float32 [B, C, H, W]."""
        return self._images[items].float().mul(2 / self._largest).sub(1)

    def reference(self, count: int | None, seed: int) -> Tensor:
        """All images, in [0, 1]."""
        return self._images.float() / self._largest


def read_images(path: Path) -> tuple[Tensor, Tensor]:
    """Small square images uint8 [N, C, H, W] and labels int64 [N] of an npz file or a folder of class folders.

    Raises:
        TeacherError: see `ImagesData.load`.
    """
    if path.is_dir():
        images, labels = _read_folder(path)
    elif path.suffix == ".npz" and path.is_file():
        images, labels = _read_npz(path)
    else:
        raise TeacherError(f"{path}: no such images", allowed="an .npz file, or a folder with one folder per class")
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or not len(images):
        raise TeacherError(
            f"{path}: images of type {images.dtype} and shape {list(images.shape)}",
            allowed="uint8, square, [N, H, W] or [N, H, W, C]",
        )
    if images.shape[1] > _LARGEST or len(labels) != len(images) or labels.min() < 0:
        raise TeacherError(
            f"{path}: {len(images)} images of {images.shape[1]} pixels a side with {len(labels)} labels",
            allowed=f"at most {_LARGEST} pixels, and one label from 0 up for each image",
        )
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), torch.from_numpy(labels)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        images, labels = read_arrays(path, "images", "labels")
        whole = labels.astype(np.int64)
    except (ValueError, TypeError) as error:
        raise TeacherError(f"{path}: cannot be read ({error})", allowed="arrays `images` and `labels`") from error
    if labels.ndim != 1 or not np.array_equal(whole, labels):
        raise TeacherError(
            f"{path}: labels of type {labels.dtype} and shape {list(labels.shape)}",
            allowed="one whole number for each image",
        )
    return images, whole


def _read_folder(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    classes = sorted(folder for folder in path.iterdir() if folder.is_dir())
    images, labels = [], []
    for label, folder in enumerate(classes):
        for file in sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES):
            try:
                with Image.open(file) as picture:
                    images.append(np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB")))
            except OSError as error:
                raise TeacherError(f"{file}: not a readable picture ({error})") from error
            labels.append(label)
            if images[-1].shape != images[0].shape:
                raise TeacherError(
                    f"{file}: shape {images[-1].shape}", allowed=f"the first picture's: {images[0].shape}"
                )
    if not images:
        raise TeacherError(f"{path}: no pictures in its folders", allowed=f"class folders with {', '.join(_SUFFIXES)}")
    return np.stack(images), np.asarray(labels, dtype=np.int64)
