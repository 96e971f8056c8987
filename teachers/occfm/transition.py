"""OccFM's transition network: the velocity of six future frames of latents, given six past ones and a trajectory.

A U-Net over frames whose levels mix space by convolutions and attention, and time by attention alone. Written after
the published model so that its weights load and give its numbers, peculiarities included; each is named where it is.
Shapes: B batch, F = 12 frames (6 of history, 6 of future), C latent channels, H = W the latent grid.
Source: OccFM (4D occupancy forecasting by flow matching).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from teachers.occfm.blocks import (
    DiTBlock,
    FrameConv,
    FrameUpsample,
    NormedAttention,
    RelativeBias,
    ResnetBlock,
    timestep_embedding,
    trajectory_embedding,
)

#: heads of the spatial attention in the middle have this width whatever the others have
MIDDLE_HEAD_WIDTH = 32
#: numbers that a row of the trajectory is turned into
TRAJECTORY_FEATURES = 32

HISTORY, FUTURE = 6, 6
FRAMES = HISTORY + FUTURE


class TransitionNetwork(nn.Module):
    """The velocity network.

    Args:
        channels: latent channels C.
        grid: H and W; every level but the last halves it.
        width: width of the embedding, which is also that of the first level.
        base: channels after the first convolution.
        levels: channels of each level, as multiples of `base`.
        trajectory_rows: rows of the trajectory that are used: 6 (history) or 12 (all).
        kernel: side of the first convolution.
        head_width: channels of a head of the temporal attention.
        temporal_heads: heads of the first and the middle temporal attention.
        spatial_heads: heads of all other attention.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    #: methods that are called from outside as `forward` is; a network in shards has to know them
    forward_methods = ("with_and_without_history",)

    def __init__(
        self,
        channels: int = 16,
        grid: int = 50,
        width: int = 128,
        base: int = 64,
        levels: Sequence[int] = (2, 4),
        trajectory_rows: int = 6,
        kernel: int = 7,
        head_width: int = 32,
        temporal_heads: int = 8,
        spatial_heads: int = 8,
    ) -> None:
        super().__init__()
        widths = [base, *(level * base for level in levels)]
        _check(grid, width, widths, trajectory_rows, kernel, spatial_heads)
        self.channels, self.grid, self.trajectory_rows = channels, grid, trajectory_rows
        self.width, last, depth = width, widths[-1], len(levels)
        self.pos_embed = nn.Parameter(spatial_embedding(grid, width), requires_grad=False)
        self.temp_embed = nn.Parameter(frame_embedding(FRAMES, width), requires_grad=False)
        self.t_embedder = _perceptron(width, width)
        self.traj_encoder = _perceptron(trajectory_rows * TRAJECTORY_FEATURES, width)
        for index in (0, 2):
            nn.init.normal_(self.t_embedder.get_parameter(f"{index}.weight"), std=0.02)
        self.time_rel_pos_bias = RelativeBias(temporal_heads, FRAMES)
        self.init_conv = FrameConv(channels, base, kernel)
        self.init_temporal_attn = NormedAttention(base, temporal_heads, head_width)
        self.downs: Any = nn.ModuleList(
            nn.ModuleList(
                [
                    ResnetBlock(inputs, outputs, width),
                    ResnetBlock(outputs, outputs, width),
                    DiTBlock(outputs, spatial_heads, width),
                    DiTBlock(outputs, spatial_heads, width),
                    nn.Identity(),
                    FrameConv(outputs, outputs, 4, stride=2) if level < depth - 1 else nn.Identity(),
                ]
            )
            for level, (inputs, outputs) in enumerate(pairwise(widths))
        )
        self.mid_block1, self.mid_block2 = ResnetBlock(last, last, width), ResnetBlock(last, last, width)
        self.mid_spatial_attn = NormedAttention(last, spatial_heads, MIDDLE_HEAD_WIDTH)
        self.mid_temporal_attn = NormedAttention(last, temporal_heads, head_width)
        self.ups: Any = nn.ModuleList(
            nn.ModuleList(
                [
                    ResnetBlock(2 * inputs, outputs, width),
                    ResnetBlock(outputs, outputs, width),
                    DiTBlock(outputs, spatial_heads, width),
                    DiTBlock(outputs, spatial_heads, width),
                    FrameUpsample(outputs, outputs) if level else nn.Identity(),
                ]
            )
            for level, (outputs, inputs) in reversed(list(enumerate(pairwise(widths))))
        )
        self.final_conv = nn.Sequential(ResnetBlock(2 * base, base, None), FrameConv(base, channels, 1))

    def forward(self, x: Tensor, t: Tensor, history: Tensor, trajectory: Tensor | None) -> Tensor:
        """The velocity of the future frames.

        Args:
            x: future frames of X_t [B, 6, C, H, W].
            t: times in [0, 1], [B].
            history: past frames [B, 6, C, H, W], as the network sees them.
            trajectory: displacements in metres [B, 12, 2], of which the first `trajectory_rows` are used; or None.

        Returns:
            [B, 6, C, H, W].
        """
        frames = self.init_conv(_channels_last(torch.cat([history, x], dim=1)))
        return self._velocity(frames, self._embedding(t, trajectory))

    def with_and_without_history(
        self, x: Tensor, t: Tensor, history: Tensor, trajectory: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The velocities without (zeros) and with the history; what both need is computed once.

        Arguments and results are as those of `forward`. The first convolution of an empty history is its bias.
        """
        past, future = self.init_conv(_channels_last(torch.cat([history, x], dim=1))).chunk(2, dim=1)
        nothing = self.init_conv.bias.to(past.dtype).expand_as(past)
        frames = torch.cat([torch.cat([nothing, future], dim=1), torch.cat([past, future], dim=1)])
        embedding = self._embedding(t, trajectory)
        without, given = self._velocity(frames, torch.cat([embedding, embedding])).chunk(2)
        return without, given

    def _embedding(self, t: Tensor, trajectory: Tensor | None) -> Tensor:
        embedding = self.t_embedder(timestep_embedding(t, self.width))
        if trajectory is None:
            return embedding
        return embedding + self.traj_encoder(trajectory_embedding(trajectory[:, : self.trajectory_rows]))

    def _velocity(self, x: Tensor, embedding: Tensor) -> Tensor:
        """From the first convolution's frames [B, F, H, W, base] on."""
        bias = self.time_rel_pos_bias()
        x = x + _over_frames(self.init_temporal_attn, x, bias)  # the residual counts twice, as in the published model
        first, skips = x, []
        for level, (block1, block2, spatial, temporal, _, downsample) in enumerate(self.downs):
            x = block2(block1(x, embedding), embedding)
            x = self._attended(x, spatial, temporal, embedding, placed=level == 0)
            skips.append(x)
            x = downsample(x)
        x = self.mid_block1(x, embedding)
        x = self.mid_spatial_attn(x.flatten(2, 3)).view(x.shape)
        x = _over_frames(self.mid_temporal_attn, x, bias)
        x = self.mid_block2(x, embedding)
        for block1, block2, spatial, temporal, upsample in self.ups:
            x = block2(block1(torch.cat([x, skips.pop()], dim=-1), embedding), embedding)
            x = upsample(self._attended(x, spatial, temporal, embedding, placed=False))
        # frames no longer mix from here on, so those of the past need not be finished
        x = torch.cat([x[:, HISTORY:], first[:, HISTORY:]], dim=-1)
        return self.final_conv(x).permute(0, 1, 4, 2, 3)

    def _attended(self, x: Tensor, spatial: nn.Module, temporal: nn.Module, embedding: Tensor, placed: bool) -> Tensor:
        """Spatial, then temporal attention of [B, F, H, W, c]; `placed` adds the position of each token."""
        tokens = x.flatten(2, 3)
        tokens = spatial(tokens + self.pos_embed if placed else tokens, embedding).transpose(1, 2)
        tokens = temporal(tokens + self.temp_embed if placed else tokens, embedding)
        return tokens.transpose(1, 2).contiguous().view(x.shape)


def spatial_embedding(grid: int, width: int) -> Tensor:
    """Initial `pos_embed` [1, grid^2, width]: sines and cosines of column, then row.

    Rows of the table are laid out for a grid one wider than the image and the first grid^2 kept, so that places are
    sheared; harmless to weights that were trained with it.
    """
    place = torch.arange(grid * grid)
    row, column = place // (grid + 1), place % (grid + 1)
    return torch.cat([_waves(column, width // 2), _waves(row, width // 2)], dim=1)[None]


def frame_embedding(frames: int, width: int) -> Tensor:
    """Initial `temp_embed` [1, frames, width]: sines, then cosines, of the frame's index."""
    return _waves(torch.arange(frames), width)[None]


def _waves(place: Tensor, width: int) -> Tensor:
    half = width // 2
    angle = place.double()[:, None] * 10_000 ** (-torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def _over_frames(attention: nn.Module, x: Tensor, bias: Tensor) -> Tensor:
    """Attention between the frames of each place: [B, F, H, W, c] to the same shape."""
    return attention(x.flatten(2, 3).transpose(1, 2), bias).transpose(1, 2).reshape(x.shape)


def _channels_last(frames: Tensor) -> Tensor:
    return frames.permute(0, 1, 3, 4, 2).contiguous()


def _perceptron(inputs: int, width: int) -> nn.Sequential:
    first, second = nn.Linear(inputs, width), nn.Linear(width, width)
    for linear in (first, second):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    return nn.Sequential(first, nn.SiLU(), second)


def _check(grid: int, width: int, widths: Sequence[int], rows: int, kernel: int, heads: int) -> None:
    halvings = len(widths) - 2
    if halvings < 0:
        raise ValueError("no levels")
    if min(grid, kernel, heads, *widths) < 1:
        raise ValueError(
            f"grid {grid}, channels {list(widths)}, first kernel {kernel}, {heads} heads: all must be >= 1"
        )
    wrong = [
        (width != widths[1], f"embedding width {width}, first level {widths[1]}: they must be equal"),
        (width % 4, f"embedding width {width} is no multiple of 4"),
        (grid % 2**halvings, f"grid {grid} cannot be halved {halvings} times"),
        (not 1 <= rows <= FRAMES, f"{rows} trajectory rows of {FRAMES} frames"),
        (kernel % 2 == 0, f"first kernel {kernel} is even"),
        (any(size % heads for size in widths), f"channels {list(widths)} are no multiples of {heads} heads"),
    ]
    found = [text for broken, text in wrong if broken]
    if found:
        raise ValueError("; ".join(found))
