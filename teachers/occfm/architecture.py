"""Sizes of OccFM's networks, read off the tensors of a file: nothing about them has to be said in a recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from teachers.errors import TeacherError
from teachers.occfm.transition import MIDDLE_HEAD_WIDTH, TRAJECTORY_FEATURES

#: what the published files call the transition network; the compressor's parts stand beside it
TRANSITION = "transition_model."
COMPRESSOR = ("embedding.", "encoder.", "decoder.")

Shapes = Mapping[str, tuple[int, ...]]


def below(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def transition_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `TransitionNetwork` for a state dict without prefix.

    Raises:
        TeacherError: a tensor from which they are read is missing or has another number of axes.
    """
    return _read("transition network", state, _transition_sizes)


def compressor_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `Compressor` for a state dict with its three prefixes.

    Raises:
        TeacherError: as of `transition_sizes`.
    """
    return _read("compressor", state, _compressor_sizes)


def _transition_sizes(shapes: Shapes) -> dict[str, Any]:
    base, channels, _, kernel, _ = shapes["init_conv.weight"]
    temporal_heads = shapes["time_rel_pos_bias.relative_attention_bias.weight"][1]
    first_width = shapes["init_temporal_attn.fn.fn.fn.to_qkv.weight"][0]
    middle_width = shapes["mid_spatial_attn.fn.fn.fn.to_qkv.weight"][0]
    return {
        "channels": channels,
        "grid": math.isqrt(shapes["pos_embed"][1]),
        "width": shapes["pos_embed"][2],
        "base": base,
        "levels": [
            shapes[f"downs.{level}.0.block1.proj.weight"][0] // base for level in range(_count("downs", shapes))
        ],
        "trajectory_rows": shapes["traj_encoder.0.weight"][1] // TRAJECTORY_FEATURES,
        "kernel": kernel,
        "head_width": first_width // (3 * temporal_heads),
        "temporal_heads": temporal_heads,
        "spatial_heads": middle_width // (3 * MIDDLE_HEAD_WIDTH),
    }


def _compressor_sizes(shapes: Shapes) -> dict[str, Any]:
    decoder_width, channels = shapes["decoder.conv_in.weight"][:2]
    levels = range(_count("encoder.downsample_blocks", shapes))
    attention = "encoder.net_blocks.0.blocks.0.attn."
    return {
        "size": math.isqrt(shapes["encoder.absolute_pos_embed"][1]),
        "channels": channels,
        "encoder_width": shapes["encoder.patch_embed_layer.proj.weight"][0],
        "decoder_width": decoder_width,
        "encoder_depths": [_count(f"encoder.net_blocks.{2 * level}.blocks", shapes) for level in levels],
        "decoder_depths": [_count(f"decoder.net_blocks.{2 * level}.blocks", shapes) for level in levels],
        "heads": shapes[f"{attention}logit_scale"][0],
        "window": (shapes[f"{attention}relative_coords_table"][1] + 1) // 2,
    }


def _read(what: str, state: Mapping[str, Tensor], sizes: Any) -> dict[str, Any]:
    try:
        return sizes({name: tuple(value.shape) for name, value in state.items()})
    except KeyError as error:
        raise TeacherError(
            f"no tensor {error} of OccFM's {what} among {len(state)}",
            allowed=f"all of its tensors, such as {', '.join(list(state)[:3]) or 'none here'}",
            do="convert the published checkpoint with `mfd teachers convert occfm CKPT -o FILE.safetensors`",
        ) from error
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise TeacherError(f"tensors of OccFM's {what} have other axes than the published ones ({error})") from error


def _count(prefix: str, shapes: Shapes) -> int:
    """Number of consecutive indices that follow `prefix` in the names."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    found = {int(match[1]) for name in shapes if (match := pattern.match(name))}
    missing = min(set(range(len(found) + 1)) - found)
    if missing < max(1, len(found)):
        raise KeyError(f"{prefix}.{missing}")
    return len(found)
