"""OccFM's compressor: labelled voxels of one frame to a small latent image and back.

Shapes: N frames, S the grid's side, 16 heights, C latent channels, L the latent side. Labels are uint8 [N, S, S, 16],
latents [N, C, L, L]. Parameters have the names of the published files, below `embedding.`, `encoder.` and `decoder.`.
Source: the single-frame VAE of OccFM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from teachers.occfm.classes import CLASSES
from teachers.occfm.swin import SwinStage

HEIGHTS = 16
#: features of a class, and of a height
CLASS_FEATURES, HEIGHT_FEATURES = 8, 4
#: heads of the attention in the middle, and channels of each
_HEADS, _HEAD_WIDTH = 8, 64
#: voxels whose 18 similarities are held at once: what stays in a CPU's cache, a frame of the published size on a GPU
_VOXELS_AT_ONCE = {"cpu": 20_000, "cuda": 640_000}


class Compressor(nn.Module):
    """Embedding, encoder and decoder.

    Args:
        size: S, a multiple of every level's halvings and windows.
        channels: latent channels C.
        encoder_width: channels of the encoder's first level; they double at every level.
        decoder_width: channels of the decoder.
        encoder_depths: Swin blocks of each of the encoder's levels, from the full grid down.
        decoder_depths: Swin blocks of each of the decoder's levels, from the latent grid up.
        heads: heads of window attention.
        window: side of a window.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    def __init__(
        self,
        size: int = 200,
        channels: int = 16,
        encoder_width: int = 128,
        decoder_width: int = 128,
        encoder_depths: Sequence[int] = (2, 6),
        decoder_depths: Sequence[int] = (6, 2),
        heads: int = 8,
        window: int = 5,
    ) -> None:
        super().__init__()
        _check(size, encoder_width, decoder_width, (encoder_depths, decoder_depths), heads, window)
        latent_side = size // 2 ** len(encoder_depths)
        self.size = size
        self.latent_shape = (channels, latent_side, latent_side)
        self.embedding = VoxelEmbedding(encoder_width)
        self.encoder = Encoder(encoder_width, channels, size, encoder_depths, heads, window)
        self.decoder = Decoder(decoder_width, channels, latent_side, decoder_depths, heads, window)

    def moments(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latents of labels [N, S, S, 16]: [N, C, L, L] each."""
        mean, log_variance = self.encoder(self.embedding(labels)).chunk(2, dim=1)
        return mean, log_variance

    def encode(self, labels: Tensor, noise: Tensor) -> Tensor:
        """One draw of the latents, mean + deviation * noise; the published latents are draws, not means."""
        mean, log_variance = self.moments(labels)
        return mean + torch.exp(log_variance / 2) * noise

    def similarity(self, latents: Tensor) -> Tensor:
        """Logits of the 18 classes [N, 16, 18, S, S]: products of decoded features with the classes' embeddings."""
        features = self.decoder(latents)
        voxels = features.flatten(2).unflatten(1, (HEIGHTS, CLASS_FEATURES))
        return (self.embedding.class_embeds.weight.to(voxels.dtype) @ voxels).unflatten(-1, features.shape[2:])

    def decode(self, latents: Tensor, frames_at_once: int | None = None) -> Tensor:
        """Most likely class of every voxel: latents [N, C, L, L] to uint8 [N, S, S, 16].

        Args:
            latents: what the network makes, divided by the factor it was trained with.
            frames_at_once: frames decoded together; all if None. Changes memory and speed only.
        """
        if torch.compiler.is_exporting():  # a graph for any number of frames cannot have a number of parts
            return self.classes(self.decoder(latents))
        parts = latents.split(frames_at_once or len(latents))
        return torch.cat([self.classes(self.decoder(part)) for part in parts])

    def classes(self, features: Tensor) -> Tensor:
        """Classes of decoded features, part by part, so that 18 numbers a voxel are never held for all of them."""
        embeddings = self.embedding.class_embeds.weight.to(features.dtype).t()
        if torch.compiler.is_exporting():
            columns = features.permute(0, 2, 3, 1).unflatten(-1, (HEIGHTS, CLASS_FEATURES))
            return (columns @ embeddings).argmax(dim=-1).to(torch.uint8)
        voxels = features.permute(0, 2, 3, 1).reshape(-1, CLASS_FEATURES)
        parts = voxels.split(_VOXELS_AT_ONCE.get(features.device.type, _VOXELS_AT_ONCE["cuda"]))
        classes = torch.cat([(part @ embeddings).argmax(dim=-1).to(torch.uint8) for part in parts])
        return classes.view(len(features), *features.shape[2:], HEIGHTS)


class VoxelEmbedding(nn.Module):
    """Labels to features of columns: the class and the height of each voxel, side by side, through a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.class_embeds = nn.Embedding(len(CLASSES), CLASS_FEATURES)
        self.height_embedding = nn.Parameter(height_waves(), requires_grad=False)
        features = HEIGHTS * (CLASS_FEATURES + HEIGHT_FEATURES)
        self.pre_pillar_feature = nn.Sequential(nn.Conv2d(features, width, 3, padding=1))

    def forward(self, labels: Tensor) -> Tensor:
        """[N, S, S, 16] to [N, width, S, S]."""
        classes = self.class_embeds(labels.int())
        heights = self.height_embedding.to(classes.dtype).expand(*labels.shape, -1)
        columns = torch.cat([classes, heights], dim=-1).flatten(3)
        return self.pre_pillar_feature(columns.permute(0, 3, 1, 2))


class ResidualConv(nn.Module):
    """x + conv(silu(norm(conv(x)))), [N, c, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm = _group_norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, c, H, W] to the same shape."""
        return x + self.conv2(functional.silu(self.norm(self.conv1(x))))


class GridAttention(nn.Module):
    """x + attention between all places of the grid, [N, c, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = _HEADS * _HEAD_WIDTH
        self.norm = _group_norm(width)
        self.attention: Any = nn.Module()
        self.attention.to_q = nn.Linear(width, inner, bias=False)
        self.attention.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.attention.to_out = nn.Linear(inner, width, bias=False)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, c, H, W] to the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        split = torch.cat([self.attention.to_q(tokens), self.attention.to_kv(tokens)], dim=-1)
        query, key, value = split.unflatten(-1, (3, _HEADS, _HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.proj_out(self.attention.to_out(found).transpose(1, 2).reshape(x.shape))


class Upsample(nn.Module):
    """The grid doubled by repeating each place, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, c, H, W] to [N, c, 2H, 2W]."""
        return doubled_convolution(x, self.conv.weight, self.conv.bias)


def doubled_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """3x3 convolution of the grid repeated 2x2, at 4/9 of its multiplications and without the repeated grid.

    Of the three rows under the kernel two are the same row of x, so each of the four output places of a cell is a 2x2
    convolution of x with those rows' and columns' weights added.
    """
    height, width = x.shape[2:]
    padded = functional.pad(x, (1, 1, 1, 1))
    found = None
    for row in (0, 1):
        rows = _added(weight, 2, row)
        for column in (0, 1):
            window = padded[:, :, row : row + height + 1, column : column + width + 1]
            part = functional.conv2d(window, _added(rows, 3, column), bias)
            if found is None:
                found = part.new_empty((x.shape[0], 2 * height, 2 * width, weight.shape[0])).permute(0, 3, 1, 2)
            found[:, :, row::2, column::2] = part
    return found  # type: ignore[return-value]


def _added(weight: Tensor, axis: int, parity: int) -> Tensor:
    """A kernel's three slices along an axis as two: the slices that fall on the same source are added."""
    first, middle, last = weight.split(1, dim=axis)
    return torch.cat([first, middle + last] if parity == 0 else [first + middle, last], dim=axis)


class Encoder(nn.Module):
    """Features of columns to mean and log-variance of the latents."""

    def __init__(self, width: int, channels: int, size: int, depths: Sequence[int], heads: int, window: int) -> None:
        super().__init__()
        self.patch_embed_layer: Any = nn.Module()
        self.patch_embed_layer.proj = nn.Conv2d(width, width, 1)
        self.patch_embed_layer.norm = nn.LayerNorm(width)
        self.absolute_pos_embed = nn.Parameter(0.02 * torch.randn(1, size * size, width))
        widths = [width * 2**level for level in range(len(depths) + 1)]
        self.net_blocks = nn.ModuleList()
        self.downsample_blocks = nn.ModuleList()
        for level, depth in enumerate(depths):
            self.net_blocks.append(SwinStage(widths[level], heads, size // 2**level, window, depth))
            self.net_blocks.append(ResidualConv(widths[level]))
            self.downsample_blocks.append(nn.Conv2d(widths[level], widths[level + 1], 3, 2, 1))
        self.conv_reduce = nn.Conv2d(widths[-1], width, 3, padding=1)
        self.mid = nn.ModuleList([ResidualConv(width), GridAttention(width), ResidualConv(width)])
        self.norm_out = _group_norm(width)
        self.conv_out = nn.Conv2d(width, 2 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, S, S] to [N, 2C, L, L]."""
        x = self.patch_embed_layer.proj(x)
        tokens = self.patch_embed_layer.norm(x.permute(0, 2, 3, 1))
        x = (tokens + self.absolute_pos_embed.view(tokens.shape[1:])).permute(0, 3, 1, 2)
        for level, downsample in enumerate(self.downsample_blocks):
            x = downsample(_level(self.net_blocks, level, x))
        x = self.conv_reduce(x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Latents to 8 features of every voxel, side by side for the 16 heights of a column."""

    def __init__(self, width: int, channels: int, side: int, depths: Sequence[int], heads: int, window: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.mid = nn.ModuleList([ResidualConv(width), GridAttention(width), ResidualConv(width)])
        self.net_blocks = nn.ModuleList()
        self.upsample_blocks = nn.ModuleList()
        for level, depth in enumerate(depths):
            self.net_blocks.append(SwinStage(width, heads, side * 2**level, window, depth))
            self.net_blocks.append(ResidualConv(width))
            self.upsample_blocks.append(Upsample(width))
        self.norm_out = _group_norm(width)
        self.conv_out = nn.Conv2d(width, HEIGHTS * CLASS_FEATURES, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, L, L] to [N, 128, S, S]; channel z * 8 + c is feature c of height z."""
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        for block in self.mid:
            x = block(x)
        for level, upsample in enumerate(self.upsample_blocks):
            x = upsample(_level(self.net_blocks, level, x))
        return self.conv_out(functional.silu(self.norm_out(x)))


def height_waves() -> Tensor:
    """Initial `height_embedding` [16, 4]: sines and cosines of a voxel's height over the range of heights."""
    share = (0.4 * torch.arange(HEIGHTS, dtype=torch.float64) + 0.2) / 6.4
    angle = torch.pi * torch.stack([torch.zeros_like(share), share], dim=1)
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).float()


def _level(blocks: nn.ModuleList, level: int, x: Tensor) -> Tensor:
    """One level's transformer stage and convolutions, [N, c, H, W]."""
    return blocks[2 * level + 1](blocks[2 * level](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32 if width > 32 else width // 4, width, eps=1e-6)


def _check(
    size: int, encoder: int, decoder: int, depths: tuple[Sequence[int], Sequence[int]], heads: int, window: int
) -> None:
    if min(size, encoder, decoder, heads, window) < 1:
        raise ValueError(
            f"size {size}, widths {encoder} and {decoder}, {heads} heads, window {window}: all must be >= 1"
        )
    levels = len(depths[0])
    sides = [size // 2**level for level in range(levels + 1)]
    wrong = [
        (len(depths[1]) != levels, f"{levels} encoder levels, {len(depths[1])} decoder levels"),
        (size % 2**levels, f"size {size} cannot be halved {levels} times"),
        (any(side > window and side % window for side in sides), f"windows of {window} do not divide sides {sides}"),
        (encoder % heads or decoder % heads, f"widths {encoder} and {decoder} are no multiples of {heads} heads"),
        (any(width % (32 if width > 32 else 4) for width in (encoder, decoder)), "widths that groups do not divide"),
    ]
    found = [text for broken, text in wrong if broken]
    if found:
        raise ValueError("; ".join(found))
