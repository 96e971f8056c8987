"""OccFM's one-step forecast computed as the published code computes it: what `occfm_forecast.py` compares with.

The same numbers as `teachers.occfm` from the same state dict, by the straightforward route:

    states are [B, c, F, H, W] throughout; every attention rearranges them with a copy and back again
    a frame's convolution is a 3-D convolution with a kernel of one frame
    both branches of guidance are always evaluated, as one batch of 2B with the empty history first
    all 12 frames are finished, though only the 6 future ones are used
    six frames are decoded at once; grids are doubled by repeating cells before the convolution
    similarities of all voxels and classes are held in float32, two softmaxes and an int64 argmax follow

Shapes: B batch, F = 12 frames, C latent channels, H = W the latent grid, c channels, N decoded frames, S their side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as functional
from torch import Tensor

from teachers.occfm.architecture import below, compressor_sizes, transition_sizes
from teachers.occfm.blocks import relative_buckets, timestep_embedding, trajectory_embedding
from teachers.occfm.transition import FRAMES, HISTORY, MIDDLE_HEAD_WIDTH

#: queries whose logits over the whole grid are held at once; the published loop goes over tiles, too
_QUERIES = 512
_HEIGHTS, _FEATURES, _HEADS = 16, 8, 8


class StraightNetwork:
    """The transition network on states [B, c, F, H, W].

    Args:
        state: tensors under the names of `teachers.occfm.transition.TransitionNetwork`.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state, self.sizes = dict(state), transition_sizes(state)
        self.buckets = relative_buckets(FRAMES).to(state["pos_embed"].device)

    def guided(self, x: Tensor, t: Tensor, history: Tensor, trajectory: Tensor, scale: float) -> Tensor:
        """Velocity of the future frames [B, 6, C, H, W]: both branches in one batch, whatever the scale."""
        clip = torch.cat([torch.cat([torch.zeros_like(history), x], dim=1), torch.cat([history, x], dim=1)])
        found = self(clip, torch.cat([t, t]), torch.cat([trajectory, trajectory]))
        without, given = found.chunk(2)
        return (without + scale * (given - without))[:, HISTORY:]

    def __call__(self, clip: Tensor, t: Tensor, trajectory: Tensor) -> Tensor:
        """Velocities of whole clips [B, 12, C, H, W], the past frames' without meaning."""
        embedding = self._perceptron("t_embedder", timestep_embedding(t, self.sizes["width"]))
        rows = trajectory_embedding(trajectory[:, : self.sizes["trajectory_rows"]])
        embedding = embedding + self._perceptron("traj_encoder", rows)
        bias = self.state["time_rel_pos_bias.relative_attention_bias.weight"][self.buckets].permute(2, 0, 1)
        x = self._conv("init_conv", clip.transpose(1, 2).contiguous())
        x = 2 * x + self._over_frames("init_temporal_attn", x, bias)
        first, skips = x, []
        levels = len(self.sizes["levels"])
        for level in range(levels):
            x = self._level(f"downs.{level}", x, embedding, placed=level == 0)
            skips.append(x)
            x = self._conv(f"downs.{level}.5", x, 2) if level < levels - 1 else x
        x = self._resnet("mid_block1", x, embedding)
        x = x + self._over_grid("mid_spatial_attn", x)
        x = x + self._over_frames("mid_temporal_attn", x, bias)
        x = self._resnet("mid_block2", x, embedding)
        for level in range(levels):
            x = self._level(f"ups.{level}", torch.cat([x, skips.pop()], dim=1), embedding, placed=False)
            x = self._upsample(f"ups.{level}.4", x) if level < levels - 1 else x
        x = self._resnet("final_conv.0", torch.cat([x, first], dim=1), None)
        return self._conv("final_conv.1", x).transpose(1, 2).contiguous()

    def _level(self, name: str, x: Tensor, embedding: Tensor, placed: bool) -> Tensor:
        """Two convolutional blocks, attention over the grid and over frames, each with its rearrangements."""
        x = self._resnet(f"{name}.1", self._resnet(f"{name}.0", x, embedding), embedding)
        batch, width, frames, height, across = x.shape
        tokens = x.permute(0, 2, 3, 4, 1).reshape(batch * frames, height * across, width)
        tokens = tokens + self.state["pos_embed"] if placed else tokens
        tokens = self._transformer(f"{name}.2", tokens, embedding.repeat_interleave(frames, dim=0))
        tokens = tokens.view(batch, frames, -1, width).transpose(1, 2).reshape(-1, frames, width)
        tokens = tokens + self.state["temp_embed"] if placed else tokens
        tokens = self._transformer(f"{name}.3", tokens, embedding.repeat_interleave(height * across, dim=0))
        return tokens.view(batch, height, across, frames, width).permute(0, 4, 3, 1, 2).contiguous()

    def _transformer(self, name: str, x: Tensor, embedding: Tensor) -> Tensor:
        """Tokens [M, n, c] of M sequences, each with an embedding of its own, to the same shape."""
        modulation = self._linear(f"{name}.adaLN_modulation.1", functional.silu(embedding))[:, None]
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=-1)
        inputs = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        heads = self.sizes["spatial_heads"]
        query, key, value = (
            self._linear(f"{name}.attn.qkv", inputs).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        )
        # heads are not moved back behind the tokens, as in the published model
        found = functional.scaled_dot_product_attention(query, key, value).reshape(x.shape)
        x = x + gate * self._linear(f"{name}.attn.proj", found)
        inputs = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale_mlp) + shift_mlp
        hidden = functional.gelu(self._linear(f"{name}.mlp.fc1", inputs), approximate="tanh")
        return x + gate_mlp * self._linear(f"{name}.mlp.fc2", hidden)

    def _resnet(self, name: str, x: Tensor, embedding: Tensor | None) -> Tensor:
        found = self._rms(f"{name}.block1", self._conv(f"{name}.block1.proj", x))
        if embedding is not None:
            modulation = self._linear(f"{name}.mlp.1", functional.silu(embedding))[:, :, None, None, None]
            scale, shift = modulation.chunk(2, dim=1)
            found = found * (scale + 1) + shift
        found = self._rms(f"{name}.block2", self._conv(f"{name}.block2.proj", functional.silu(found)))
        residual = self._conv(f"{name}.res_conv", x) if f"{name}.res_conv.weight" in self.state else x
        return functional.silu(found) + residual

    def _rms(self, name: str, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=1) * math.sqrt(x.shape[1]) * self.state[f"{name}.norm.gamma"]

    def _over_frames(self, name: str, x: Tensor, bias: Tensor) -> Tensor:
        batch, _, frames, height, across = x.shape
        tokens = self._normed(name, x).permute(0, 3, 4, 2, 1).reshape(batch, height * across, frames, -1)
        found = self._attention(name, tokens, self.sizes["head_width"], bias)
        return found.view(batch, height, across, frames, -1).permute(0, 4, 3, 1, 2).contiguous()

    def _over_grid(self, name: str, x: Tensor) -> Tensor:
        batch, _, frames, height, across = x.shape
        tokens = self._normed(name, x).permute(0, 2, 3, 4, 1).reshape(batch, frames, height * across, -1)
        found = self._attention(name, tokens, MIDDLE_HEAD_WIDTH, None)
        return found.view(batch, frames, height, across, -1).permute(0, 4, 1, 2, 3).contiguous()

    def _normed(self, name: str, x: Tensor) -> Tensor:
        mean, variance = x.mean(dim=1, keepdim=True), x.var(dim=1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * self.state[f"{name}.fn.norm.gamma"]

    def _attention(self, name: str, tokens: Tensor, head_width: int, bias: Tensor | None) -> Tensor:
        """[B, S, n, c] to the same shape, logits written out."""
        projected = functional.linear(tokens, self.state[f"{name}.fn.fn.fn.to_qkv.weight"])
        split = projected.unflatten(-1, (3, -1, head_width)).permute(3, 0, 1, 4, 2, 5)
        query, key, value = split.contiguous()
        logits = (query * head_width**-0.5) @ key.transpose(-1, -2)
        logits = logits if bias is None else logits + bias
        found = (logits.softmax(dim=-1).to(value.dtype) @ value).transpose(2, 3).flatten(3)
        return functional.linear(found, self.state[f"{name}.fn.fn.fn.to_out.weight"])

    def _conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = (weight.shape[-1] - 1) // 2
        bias = self.state[f"{name}.bias"]
        return functional.conv3d(x, weight, bias, (1, stride, stride), (0, padding, padding))

    def _upsample(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return functional.conv_transpose3d(x, weight, bias, (1, 2, 2), (0, 1, 1))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def _perceptron(self, name: str, x: Tensor) -> Tensor:
        return self._linear(f"{name}.2", functional.silu(self._linear(f"{name}.0", x)))


class StraightDecoder:
    """The compressor's decoder, all frames at once.

    Args:
        state: tensors under the names of `teachers.occfm.compressor.Compressor`.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state, sizes = dict(below("decoder.", state)), compressor_sizes(state)
        self.depths, self.heads, self.window = sizes["decoder_depths"], sizes["heads"], sizes["window"]

    def __call__(self, latents: Tensor) -> Tensor:
        """[N, C, L, L] to features [N, 128, S, S]."""
        x = self._conv("conv_in", latents)
        x = self._residual("mid.2", self._grid_attention("mid.1", self._residual("mid.0", x)))
        for level, depth in enumerate(self.depths):
            batch, width, height, across = x.shape
            tokens = x.flatten(2).transpose(1, 2).contiguous()
            for index in range(depth):
                tokens = self._swin(f"net_blocks.{2 * level}.blocks.{index}", tokens, height)
            x = tokens.transpose(1, 2).contiguous().view(batch, width, height, across)
            x = self._residual(f"net_blocks.{2 * level + 1}", x)
            x = self._conv(f"upsample_blocks.{level}.conv", functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self._conv("conv_out", functional.silu(self._norm("norm_out", x)))

    def _swin(self, name: str, x: Tensor, side: int) -> Tensor:
        found = functional.layer_norm(self._shifted(name, x, side), x.shape[-1:], *self._pair(f"{name}.norm1"))
        x = x + found
        hidden = functional.gelu(functional.linear(x, *self._pair(f"{name}.mlp.fc1")))
        found = functional.linear(hidden, *self._pair(f"{name}.mlp.fc2"))
        return x + functional.layer_norm(found, x.shape[-1:], *self._pair(f"{name}.norm2"))

    def _shifted(self, name: str, x: Tensor, side: int) -> Tensor:
        """Attention in windows of tokens [N, L^2, c], rolled by half a window where there is a mask."""
        batch, _, width = x.shape
        mask = self.state.get(f"{name}.attn_mask")
        window = min(self.window, side)
        shift, count = 0 if mask is None else window // 2, side // window
        grid = x.view(batch, side, side, width)
        grid = grid.roll((-shift, -shift), (1, 2)) if shift else grid
        grid = grid.view(batch, count, window, count, window, width).transpose(2, 3).contiguous()
        found = self._windows(f"{name}.attn", grid.view(-1, window * window, width), mask)
        grid = found.view(batch, count, count, window, window, width).transpose(2, 3).contiguous()
        grid = grid.view(batch, side, side, width)
        return (grid.roll((shift, shift), (1, 2)) if shift else grid).reshape(x.shape)

    def _windows(self, name: str, x: Tensor, mask: Tensor | None) -> Tensor:
        """Cosine attention in windows [N * windows, n, c]."""
        state = self.state
        bias = torch.cat([state[f"{name}.q_bias"], torch.zeros_like(state[f"{name}.q_bias"]), state[f"{name}.v_bias"]])
        split = functional.linear(x, state[f"{name}.qkv.weight"], bias).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        logits = functional.normalize(query, dim=-1) @ functional.normalize(key, dim=-1).transpose(-2, -1)
        logits = logits * state[f"{name}.logit_scale"].clamp(max=math.log(100.0)).exp()
        hidden = functional.linear(state[f"{name}.relative_coords_table"], *self._pair(f"{name}.cpb_mlp.0")).relu()
        table = functional.linear(hidden, state[f"{name}.cpb_mlp.2.weight"]).flatten(0, 2)
        places = state[f"{name}.relative_position_index"]
        logits = logits + 16 * table[places.flatten()].view(*places.shape, -1).permute(2, 0, 1).sigmoid()
        if mask is not None:
            logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        found = logits.softmax(dim=-1).to(value.dtype) @ value
        return functional.linear(found.transpose(1, 2).flatten(2), *self._pair(f"{name}.proj"))

    def _grid_attention(self, name: str, x: Tensor) -> Tensor:
        """Plain attention between all places, a block of queries after the other."""
        tokens = self._norm(f"{name}.norm", x).flatten(2).transpose(1, 2).contiguous()
        query = functional.linear(tokens, self.state[f"{name}.attention.to_q.weight"])
        key, value = functional.linear(tokens, self.state[f"{name}.attention.to_kv.weight"]).chunk(2, dim=-1)
        query, key, value = (
            each.unflatten(-1, (_HEADS, -1)).transpose(1, 2).contiguous() for each in (query, key, value)
        )
        scale = query.shape[-1] ** -0.5
        parts = [
            (scale * part @ key.transpose(-1, -2)).softmax(-1).to(value.dtype) @ value
            for part in query.split(_QUERIES, dim=2)
        ]
        found = torch.cat(parts, dim=2).transpose(1, 2).flatten(2)
        found = functional.linear(found, self.state[f"{name}.attention.to_out.weight"])
        return x + self._conv(f"{name}.proj_out", found.transpose(1, 2).contiguous().view(x.shape))

    def _residual(self, name: str, x: Tensor) -> Tensor:
        found = functional.silu(self._norm(f"{name}.norm", self._conv(f"{name}.conv1", x)))
        return self._conv(f"{name}.conv2", found) + x

    def _norm(self, name: str, x: Tensor) -> Tensor:
        width = x.shape[1]
        return functional.group_norm(x, 32 if width > 32 else width // 4, *self._pair(name), eps=1e-6)

    def _conv(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._pair(name)
        return functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def _pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]


def straight_similarity(features: Tensor, embeddings: Tensor) -> Tensor:
    """Products of every voxel's features with every class: [N, 128, S, S] and [18, 8] to [N, S, S, 16, 18]."""
    voxels = features.permute(0, 2, 3, 1).reshape(len(features), *features.shape[2:], _HEIGHTS, _FEATURES)
    return voxels @ embeddings.to(voxels.dtype).t()


def straight_classes(features: Tensor, embeddings: Tensor) -> Tensor:
    """Classes int64 [N, S, S, 16] of decoded features: two softmaxes, then the largest."""
    chances = straight_similarity(features, embeddings).float().softmax(dim=-1).softmax(dim=-1)
    return chances.argmax(dim=-1)
