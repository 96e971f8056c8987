"""Swin transformer V2 blocks, as OccFM's compressor has them (Liu et al. 2022, arXiv 2111.09883).

Shapes: N frames, H and W the grid, c channels; states are channels-last, [N, H, W, c]. Parameters and buffers have the
names and shapes of the published files. The buffers are loaded, never rebuilt: averaging during training has changed
the published ones, and the other weights were evaluated with them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

#: heads' logits are scaled by at most this
_LARGEST_SCALE = math.log(100.0)


class WindowAttention(nn.Module):
    """Cosine attention inside windows, with a bias from the distance of two tokens.

    Args:
        width: c.
        heads: attention heads.
        window: side of a window.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.register_buffer("relative_coords_table", relative_coordinates(window))
        self.register_buffer("relative_position_index", relative_index(window))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens of windows [N, M, n, c] to the same shape; `mask` [M, n, n] is added to the logits."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        split = functional.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(3, 0, 1, 4, 2, 5)
        query = functional.normalize(query, dim=-1) * self.logit_scale.clamp(max=_LARGEST_SCALE).exp()
        logits = query @ functional.normalize(key, dim=-1).transpose(-1, -2)
        logits = logits + self._bias() if mask is None else logits + (self._bias() + mask[:, None])
        found = logits.softmax(dim=-1).to(value.dtype) @ value
        return self.proj(found.transpose(2, 3).flatten(3))

    def _bias(self) -> Tensor:
        """[heads, n, n]: between 0 and 16, from a perceptron of the distance."""
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)
        return 16 * torch.sigmoid(table[self.relative_position_index].permute(2, 0, 1))


class SwinBlock(nn.Module):
    """Window attention and a perceptron, each normed before it is added.

    Args:
        width: c.
        heads: attention heads.
        size: H = W.
        window: side of a window; the whole grid is one window where it is no larger.
        shifted: whether windows are moved by half a window.
    """

    def __init__(self, width: int, heads: int, size: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.window = min(window, size)
        self.shift = window // 2 if shifted and size > window else 0
        self.attn = WindowAttention(width, heads, self.window)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp: Any = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.register_buffer("attn_mask", shifted_mask(size, self.window, self.shift) if self.shift else None)

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, c] to the same shape."""
        x = x + self.norm1(self._attention(x))
        return x + self.norm2(self.mlp.fc2(functional.gelu(self.mlp.fc1(x))))

    def _attention(self, x: Tensor) -> Tensor:
        side, (height, width) = self.window, x.shape[1:3]
        moved = x.roll((-self.shift, -self.shift), (1, 2)) if self.shift else x
        windows = moved.unflatten(1, (height // side, side)).unflatten(3, (width // side, side))
        tokens = windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        found = self.attn(tokens, self.attn_mask).unflatten(2, (side, side))
        found = found.unflatten(1, (height // side, width // side)).transpose(2, 3)
        found = found.reshape(x.shape)
        return found.roll((self.shift, self.shift), (1, 2)) if self.shift else found


class SwinStage(nn.Module):
    """Blocks of one level, every other one shifted."""

    def __init__(self, width: int, heads: int, size: int, window: int, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(width, heads, size, window, index % 2 == 1) for index in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, c] to the same shape."""
        for block in self.blocks:
            x = block(x)
        return x


def relative_coordinates(window: int) -> Tensor:
    """Distances (dy, dx) of two tokens on a logarithmic scale, [1, 2w - 1, 2w - 1, 2]."""
    place = torch.arange(1 - window, window, dtype=torch.float32) * (8 / max(1, window - 1))
    place = place.sign() * torch.log2(place.abs() + 1) / math.log2(8)
    return torch.stack(torch.meshgrid(place, place, indexing="ij"), dim=-1)[None]


def relative_index(window: int) -> Tensor:
    """Entry of the table for each pair (query, key) of a window's tokens, int64 [w^2, w^2]."""
    place = torch.arange(window)
    row, column = (axis.flatten() for axis in torch.meshgrid(place, place, indexing="ij"))
    across = 2 * window - 1
    return (row[:, None] - row + window - 1) * across + column[:, None] - column + window - 1


def shifted_mask(size: int, window: int, shift: int) -> Tensor:
    """-100 where two tokens share a window only because the grid was rolled, else 0: [windows, w^2, w^2]."""
    region = torch.zeros(size, dtype=torch.long)
    region[-window:], region[-shift:] = 1, 2
    label = 3 * region[:, None] + region[None, :]
    count = size // window
    tokens = label.view(count, window, count, window).transpose(1, 2).reshape(count * count, window * window)
    return (tokens[:, :, None] != tokens[:, None, :]) * -100.0
