"""Training OccFM's networks from nothing: what `mfd teachers train` needs besides flow matching.

The compressor comes first: labelled voxels through a small latent image and back, cross-entropy of the 18 classes and
a weighed divergence of the latents from N(0, 1) (Kingma and Welling 2014, arXiv 1312.6114). Then its latents are given
a deviation of 1 / rescale, as OccFM's have, so that the velocity network sees unit variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as functional
from pydantic import Field
from torch import Tensor

from teachers.occfm.classes import CLASSES
from teachers.occfm.compressor import Compressor
from teachers.settings import Strict

#: a larger weight of the divergence rises geometrically from this one: there from the start, it empties most channels
_FIRST_DIVERGENCE = 0.01
#: share of the updates after which it is reached
_RISE = 0.6
#: class weights are frequencies to this power, so that rare classes are worth learning
_RARITY = -0.25
#: largest norm of a gradient
_CLIP = 1.0
#: frames that class frequencies and the latents' deviation are taken from
_SURVEYED = 256

#: labels of frames, uint8 [B, S, S, 16], by their numbers
Frames = Callable[[Tensor], Tensor]


class CompressorNetwork(Strict):
    """The compressor to train."""

    channels: int = Field(8, ge=1, description="Latent channels.")
    encoder_width: int = Field(32, ge=4, description="Channels of the encoder's first level; they double at each.")
    decoder_width: int = Field(64, ge=4, description="Channels of the decoder; cost grows with the square.")
    depths: list[int] = Field(
        default=[1, 1], min_length=1, description="Swin blocks a level; each level halves the grid."
    )
    heads: int = Field(4, ge=1, description="Heads of window attention.")
    window: int = Field(4, ge=2, description="Cells a side of an attention window.")
    updates: int = Field(3000, ge=1, description="Updates of the compressor.")
    batch_size: int = Field(16, ge=1, description="Frames per update.")
    lr: float = Field(2.0e-3, gt=0, description="Learning rate at the start; it falls to 0 along a cosine.")
    divergence: float = Field(
        0.01,
        gt=0,
        description="Weight of the latents' divergence from N(0, 1). With more, latents are noisier and the decoder "
        "bears it: a mean of forecasts then decodes well, so that steps bring less.",
    )


class OccFMNetwork(Strict):
    """The transition network to train, and its compressor; the grid comes from the data."""

    base: int = Field(16, ge=4, description="Channels after the first convolution.")
    levels: list[int] = Field(default=[2, 4], min_length=1, description="Channels of each level, over `base`.")
    kernel: int = Field(3, ge=1, description="Side of the first convolution.")
    head_width: int = Field(16, ge=1, description="Channels of a head of the outer temporal attention.")
    heads: int = Field(2, ge=1, description="Attention heads.")
    compressor: CompressorNetwork = Field(default_factory=CompressorNetwork, description="The compressor.")


def train_compressor(
    compressor: Compressor,
    frames: Frames,
    count: int,
    settings: CompressorNetwork,
    *,
    deviation: float,
    seed: int,
    report: Callable[[int, int], None],
) -> Compressor:
    """Trains a compressor in place and returns it, its latents scaled to a standard deviation.

    Args:
        compressor: with fresh weights.
        frames: gives labels by frame numbers.
        count: number of frames.
        settings: length, batch and rate.
        deviation: standard deviation that latents are given in the end.
        seed: of frames and noise.
        report: is told how many updates are done, and of how many.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    survey = frames(_drawn(count, min(count, _SURVEYED), generator))
    weights = class_weights(survey)
    optimizer = torch.optim.AdamW(
        [value for value in compressor.parameters() if value.requires_grad], lr=settings.lr, weight_decay=1e-4
    )
    compressor.train()
    for update in range(settings.updates):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * _pace(update, settings.updates)
        labels = frames(_drawn(count, settings.batch_size, generator))
        divergence = _divergence(settings.divergence, update, settings.updates)
        loss = compressor_loss(compressor, labels, weights, divergence, generator)
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"the compressor's loss is {loss.item()} at update {update}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(compressor.parameters(), _CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        report(update + 1, settings.updates)
    compressor.eval().requires_grad_(False)
    return rescaled(compressor, survey, deviation)


def compressor_loss(
    compressor: Compressor, labels: Tensor, weights: Tensor, divergence: float, generator: torch.Generator
) -> Tensor:
    """Weighted cross-entropy of every voxel, and the divergence of the latents; with weights of 1, the evidence bound.

    Args:
        compressor: the network.
        labels: uint8 [B, S, S, 16].
        weights: of the classes, [18].
        divergence: weight of the divergence.
        generator: of the latents' noise.
    """
    mean, log_variance = compressor.moments(labels)
    log_variance = log_variance.clamp(-20, 10)
    noise = torch.randn(mean.shape, generator=generator)
    logits = compressor.similarity(mean + torch.exp(log_variance / 2) * noise)
    distance = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / labels.numel()
    target = labels.permute(0, 3, 1, 2).long()
    return functional.cross_entropy(logits.transpose(1, 2), target, weights) + divergence * distance


def class_weights(labels: Tensor) -> Tensor:
    """Weights of the 18 classes for labels of any shape: their frequencies to a negative power, 1 on average."""
    counts = torch.bincount(labels.flatten().long(), minlength=len(CLASSES)).double() + 1
    weights = (counts / counts.sum()) ** _RARITY
    return (weights / (weights * counts / counts.sum()).sum()).float()


@torch.no_grad()
def rescaled(compressor: Compressor, labels: Tensor, deviation: float) -> Compressor:
    """The compressor, whose latents have a given deviation and whose decoder undoes it; in place.

    The last convolution of the encoder and the first of the decoder take up the factor, so that nothing else changes.
    """
    means_seen, log_variances = (
        torch.cat(parts) for parts in zip(*(compressor.moments(part) for part in labels.split(32)), strict=True)
    )
    factor = deviation / math.sqrt(float(means_seen.var() + log_variances.exp().mean()))
    means, last = compressor.latent_shape[0], compressor.encoder.conv_out
    last.weight[:means].mul_(factor)
    if last.bias is not None:
        last.bias.copy_(torch.cat([last.bias[:means] * factor, last.bias[means:] + 2 * math.log(factor)]))
    compressor.decoder.conv_in.weight.div_(factor)
    return compressor


def compressor_sizes(settings: CompressorNetwork, size: int) -> dict[str, object]:
    """Arguments of `Compressor` for a grid of `size` cells a side."""
    return {
        "size": size, "channels": settings.channels, "encoder_width": settings.encoder_width,
        "decoder_width": settings.decoder_width, "encoder_depths": settings.depths,
        "decoder_depths": settings.depths[::-1], "heads": settings.heads, "window": settings.window,
    }  # fmt: skip


def transition_sizes(settings: OccFMNetwork, latent_shape: Sequence[int], trajectory_rows: int) -> dict[str, object]:
    """Arguments of `TransitionNetwork` for latents [C, L, L]."""
    return {
        "channels": latent_shape[0], "grid": latent_shape[1], "width": settings.levels[0] * settings.base,
        "base": settings.base, "levels": settings.levels, "trajectory_rows": trajectory_rows,
        "kernel": settings.kernel, "head_width": settings.head_width, "temporal_heads": settings.heads,
        "spatial_heads": settings.heads,
    }  # fmt: skip


def _divergence(last: float, update: int, updates: int) -> float:
    """Weight of the divergence; see Sonderby et al. 2016, arXiv 1602.02282, on latents that fall empty."""
    first = min(last, _FIRST_DIVERGENCE)
    return first * (last / first) ** min(1.0, update / (_RISE * updates))


def _drawn(count: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(count, (size,), generator=generator)


def _pace(update: int, updates: int) -> float:
    """Warm-up over the first twentieth, then a cosine to 0."""
    warm = max(1, updates // 20)
    return min((update + 1) / warm, 0.5 * (1 + math.cos(math.pi * update / updates)))
