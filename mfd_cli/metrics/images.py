"""Decoded samples as the pictures that metrics see: 8-bit colour, resized as each metric's original does it.

Shapes: B pictures, C channels, H x W pixels. Resizing is Pillow's, on 8-bit pictures, whose result is 8-bit again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mfd_cli.errors import MfdError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


def to_uint8(samples: Tensor) -> Tensor:
    """Colour pictures uint8 [B, 3, H, W] from decoded ones [B, 1 or 3, H, W] in [0, 1].

    Raises:
        MfdError: the samples are no pictures.
    """
    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise MfdError(
            f"samples of shape {list(samples.shape[1:])} are no pictures",
            allowed="pictures [1 or 3, H, W] for fid, kid, cmmd, their kin and the scores of pictures",
        )
    pixels = (samples.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels if pixels.shape[1] == 3 else pixels.expand(-1, 3, -1, -1)


def resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures uint8 [B, 3, H, W] at another size (height, width): bicubic with antialiasing, rounded to 8 bits."""
    if tuple(pictures.shape[2:]) == size:
        return pictures
    height, width = size
    parts = [
        np.asarray(Image.fromarray(part).resize((width, height), Image.Resampling.BICUBIC))
        for part in pictures.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    ]
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2)


def short_side_to(pictures: Tensor, size: int) -> Tensor:
    """Short side resized to `size`, the long one in proportion (rounded down), then the centre size x size."""
    height, width = pictures.shape[2:]
    short = min(height, width)
    return middle(resized(pictures, (size * height // short, size * width // short)), size)


def middle(pictures: Tensor, size: int) -> Tensor:
    """The middle size x size pixels of pictures [B, C, H, W].

    Raises:
        MfdError: they are smaller.
    """
    height, width = pictures.shape[2:]
    if min(height, width) < size:
        raise MfdError(f"pictures of {width} x {height} pixels have no {size} x {size} in their middle",
                       allowed=f"pictures of at least {size} x {size} pixels")  # fmt: skip
    top, left = (height - size) // 2, (width - size) // 2
    return pictures[:, :, top : top + size, left : left + size]


def long_side_to(pictures: Tensor, size: int) -> Tensor:
    """Long side resized to `size`, the short one in proportion (rounded), in the middle of black size x size."""
    height, width = pictures.shape[2:]
    scale = size / max(height, width)
    whole = resized(pictures, (max(round(height * scale), 1), max(round(width * scale), 1)))
    padded = whole.new_zeros(len(whole), 3, size, size)
    top, left = (size - whole.shape[2]) // 2, (size - whole.shape[3]) // 2
    padded[:, :, top : top + whole.shape[2], left : left + whole.shape[3]] = whole
    return padded


def normalised(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std, float32 [B, 3, H, W]."""
    shift, scale = (torch.tensor(values, device=pictures.device)[:, None, None] for values in (mean, std))
    return (pictures.float() / 255 - shift) / scale


def resized_like_tensorflow(pictures: Tensor, size: int) -> Tensor:
    """Pictures [B, 3, H, W] at size x size, float32, as TensorFlow 1's `resize_bilinear` has them.

    Bilinear without antialiasing, pixel i of the result at i H / size of the source: corners are not aligned and
    pixels have no centres, unlike in `torch.nn.functional.interpolate`.
    """
    x = pictures.float()
    for axis in (3, 2):
        length = x.shape[axis]
        place = torch.arange(size, dtype=torch.float32, device=x.device) * (length / size)
        low = place.floor().long().clamp_max(length - 1)
        high = (low + 1).clamp_max(length - 1)
        share = (place - low).reshape(-1, *(1,) * (3 - axis))
        first = x.index_select(axis, low)
        x = first + (x.index_select(axis, high) - first) * share
    return x


def require_folder(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted by name.

    Raises:
        MfdError: no such folder, or no picture in it.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES) if folder.is_dir() else []
    if not found:
        raise MfdError(
            f"{folder}: {'no pictures in this folder' if folder.is_dir() else 'no such folder'}",
            allowed=f"a folder of pictures ({', '.join(sorted(_SUFFIXES))})",
        )
    return found


def pictures_in(paths: Sequence[Path], prepared: Callable[[Tensor], Tensor], at_once: int) -> Iterator[Tensor]:
    """Pictures of files, prepared one by one (their sizes may differ), `at_once` of them at a time.

    Raises:
        MfdError: a file is no picture.
    """
    for first in range(0, len(paths), at_once):
        yield torch.cat([prepared(_read(path)) for path in paths[first : first + at_once]])


def _read(path: Path) -> Tensor:
    try:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise MfdError(f"{path}: not a readable picture ({error})", do="remove the file, or copy it again") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]
