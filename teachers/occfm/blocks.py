"""Layers of OccFM's transition network. Parameters have the names and shapes of the published files.

Shapes: B batch, F frames, H and W the latent grid, c channels. States are channels-last, [B, F, H, W, c], so that a
frame is an image to convolutions and a row of tokens to attention without being copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

#: numbers of the widest intermediate result of attention that a CPU works on at once: 4 MB, so that it stays cached
_CACHED = 2**20
#: a CPU's attention over many tokens is fastest with heads of this width, even where half of them is padding
_FAST_HEAD, _MANY_TOKENS = 16, 256


class ChannelNorm(nn.Module):
    """Layer norm over channels with a gain and no shift; `gamma` [1, c, 1, 1, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[..., c] to the same shape."""
        gain = self.gamma.flatten()
        return functional.layer_norm(x, gain.shape, gain, None, 1e-5)


class ChannelRms(nn.Module):
    """x / |x| sqrt(c) gamma over channels; `gamma` [c, 1, 1, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[..., c] to the same shape."""
        gain = self.gamma.flatten()
        return functional.normalize(x, dim=-1) * (gain * math.sqrt(len(gain)))


class FrameConv(nn.Module):
    """A convolution of each frame by itself; `weight` [out, in, 1, k, k] as of a 3-D convolution.

    Args:
        inputs: channels in.
        outputs: channels out.
        kernel: k; odd kernels keep the grid, k = 4 with stride 2 halves it.
        stride: 1 or 2.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, 1, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.stride, self.padding = stride, (kernel - 1) // 2
        _uniform(self.weight, self.bias, inputs * kernel * kernel)

    def forward(self, x: Tensor) -> Tensor:
        """[B, F, H, W, in] to [B, F, H / stride, W / stride, out]."""
        if self.weight.shape[-1] == 1:
            return functional.linear(x, self.weight.flatten(1), self.bias)
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        found = functional.conv2d(frames, self.weight.squeeze(2), self.bias, self.stride, self.padding)
        return found.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class FrameUpsample(nn.Module):
    """A transposed convolution of each frame that doubles the grid; `weight` [in, out, 1, 4, 4]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs, 1, 4, 4))
        self.bias = nn.Parameter(torch.empty(outputs))
        _uniform(self.weight, self.bias, outputs * 16)

    def forward(self, x: Tensor) -> Tensor:
        """[B, F, H, W, in] to [B, F, 2H, 2W, out]."""
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        found = functional.conv_transpose2d(frames, self.weight.squeeze(2), self.bias, 2, 1)
        return found.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class _Convolved(nn.Module):
    """3x3 convolution of each frame, RMS norm over channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = FrameConv(inputs, outputs, 3)
        self.norm = ChannelRms(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class ResnetBlock(nn.Module):
    """Two convolutions of each frame, the first one modulated by the embedding, and a residual.

    Args:
        inputs: channels in.
        outputs: channels out.
        embedding: width of the embedding; None for a block without modulation.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int | None) -> None:
        super().__init__()
        self.mlp = None if embedding is None else nn.Sequential(nn.SiLU(), _linear(embedding, 2 * outputs))
        self.block1, self.block2 = _Convolved(inputs, outputs), _Convolved(outputs, outputs)
        self.res_conv = FrameConv(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """[B, F, H, W, in] and [B, width] to [B, F, H, W, out]."""
        found = self.block1(x)
        if self.mlp is not None and embedding is not None:
            scale, shift = self.mlp(embedding)[:, None, None, None].chunk(2, dim=-1)
            found = torch.addcmul(shift, found, scale + 1)
        found = self.block2(functional.silu(found))
        return functional.silu(found) + (x if self.res_conv is None else self.res_conv(x))


class NormedAttention(nn.Module):
    """x + attention(norm(x)) over frames or over the grid, with `heads` heads of `head_width`.

    Args:
        channels: c.
        heads: attention heads.
        head_width: channels of a head.
    """

    def __init__(self, channels: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        projections: Any = nn.Module()
        projections.to_qkv = nn.Linear(channels, 3 * heads * head_width, bias=False)
        projections.to_out = nn.Linear(heads * head_width, channels, bias=False)
        for linear in (projections.to_qkv, projections.to_out):
            nn.init.xavier_uniform_(linear.weight)
        # the published files hold these under fn.norm and fn.fn.fn, after the wrappers they were written with
        self.fn: Any = nn.Module()
        self.fn.norm = ChannelNorm(channels)
        self.fn.fn = nn.Module()
        self.fn.fn.fn = projections

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Tokens of S sequences [B, S, N, c] attend to each other; `bias` [heads, N, N] is added to the logits."""
        return in_parts(lambda part: self._attended(part, bias), x, 3 * self.heads * self.head_width)

    def _attended(self, x: Tensor, bias: Tensor | None) -> Tensor:
        projections = self.fn.fn.fn
        tokens = self.fn.norm(x).flatten(0, 1)
        found = attention(projections.to_qkv(tokens).unflatten(-1, (3, self.heads, self.head_width)), bias)
        return x + projections.to_out(found.transpose(1, 2).flatten(2)).view(x.shape)


class DiTBlock(nn.Module):
    """A transformer block whose norms and residuals are modulated by the embedding (Peebles and Xie, arXiv 2212.09748).

    Args:
        width: channels of a token.
        heads: attention heads.
        embedding: width of the embedding.
    """

    def __init__(self, width: int, heads: int, embedding: int) -> None:
        super().__init__()
        self.heads = heads
        modulation = _linear(embedding, 6 * width)
        self.attn: Any = nn.Module()
        self.mlp: Any = nn.Module()
        self.attn.qkv, self.attn.proj = _linear(width, 3 * width), _linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = _linear(width, 4 * width), _linear(4 * width, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), modulation)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """S sequences of N tokens for each row, [B, S, N, c], and [B, width] to [B, S, N, c]."""
        modulation = self.adaLN_modulation(embedding)[:, None, None].chunk(6, dim=-1)
        return in_parts(lambda part: self._transformed(part, modulation), x, 4 * x.shape[-1])

    def _transformed(self, x: Tensor, modulation: Sequence[Tensor]) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation
        x = torch.addcmul(x, gate, self._attention(_modulated(x, shift, scale)))
        hidden = functional.gelu(self.mlp.fc1(_modulated(x, shift_mlp, scale_mlp)), approximate="tanh")
        return torch.addcmul(x, gate_mlp, self.mlp.fc2(hidden))

    def _attention(self, x: Tensor) -> Tensor:
        found = attention(self.attn.qkv(x.flatten(0, 1)).unflatten(-1, (3, self.heads, -1)))
        # heads are not moved behind the tokens before they are merged: the published weights were trained like this
        return self.attn.proj(found.reshape(x.shape))


def attention(projected: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention between the tokens of M sequences.

    Args:
        projected: queries, keys and values [M, N, 3, heads, width].
        bias: added to the logits [heads, N, N].

    Returns:
        [M, heads, N, width].
    """
    width = projected.shape[-1]
    if projected.device.type == "cpu" and width < _FAST_HEAD and projected.shape[1] >= _MANY_TOKENS:
        projected = functional.pad(projected, (0, _FAST_HEAD - width))
    query, key, value = projected.permute(2, 0, 3, 1, 4)
    mask = None if bias is None else bias.to(query.dtype).expand(query.shape[0], -1, -1, -1)
    found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=width**-0.5)
    return found[..., :width]


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """function(x) of independent sequences [B, S, N, c], on a CPU so many at a time that they stay in its cache.

    Args:
        function: does not mix the sequences of a row.
        x: the sequences.
        width: numbers that `function` holds for each token at most.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(x)
    at_once = max(1, _CACHED // (len(x) * x.shape[2] * width))
    return torch.cat([function(part) for part in x.split(at_once, dim=1)], dim=1)


class RelativeBias(nn.Module):
    """A bias for each head and each distance between frames, distances sorted into 32 buckets.

    Args:
        heads: attention heads.
        frames: F.
    """

    def __init__(self, heads: int, frames: int) -> None:
        super().__init__()
        self.relative_attention_bias = nn.Embedding(32, heads)
        self.register_buffer("buckets", relative_buckets(frames), persistent=False)

    def forward(self) -> Tensor:
        """[heads, F, F], query before key."""
        return self.relative_attention_bias(self.buckets).permute(2, 0, 1)


def relative_buckets(frames: int) -> Tensor:
    """Bucket of each (query, key) pair of frames, int64 [F, F]: exact up to 7 frames apart, then in logarithms.

    Distances n = query - key; negative ones have the upper 16 of 32 buckets. Source: Raffel et al. 2020,
    arXiv 1910.10683, with 16 as the largest distance.
    """
    place = torch.arange(frames)
    distance = place[:, None] - place[None, :]
    size = distance.abs()
    far = 8 + (torch.log(size.clamp(min=1).float() / 8) / math.log(16 / 8) * 8).long()
    return 16 * (distance < 0).long() + torch.where(size < 8, size, far.clamp(max=15))


def timestep_embedding(time: Tensor, width: int) -> Tensor:
    """[cos(1000 t f), sin(1000 t f)] with f from 1 down to 1/10000: float32 [B] to [B, width], cosines first."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=time.device, dtype=torch.float32) / half)
    angle = 1000 * time.float()[:, None] * frequency
    return functional.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, width % 2))


def trajectory_embedding(trajectory: Tensor, frequencies: int = 8) -> Tensor:
    """Sines and cosines of displacements in metres: [B, L, 2] to [B, L * 4 * frequencies].

    Frequencies 100^(k/8) are the outermost axis, then (sin, cos), then the coordinate.
    """
    frequency = 100 ** (torch.arange(frequencies, device=trajectory.device, dtype=torch.float32) / frequencies)
    angle = trajectory.float()[..., None, :] * frequency[:, None]
    return torch.stack([angle.sin(), angle.cos()], dim=-2).flatten(1)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:], eps=1e-6), scale + 1)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _uniform(weight: Tensor, bias: Tensor, fan_in: int) -> None:
    """Initial values of a convolution, as torch gives them by default."""
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(weight, -bound, bound)
    nn.init.uniform_(bias, -bound, bound)
