"""Published weights of metrics that come as pickles: turned into safetensors, once, with their names kept.

Only `convert` opens a pickle, by `teachers.foreign`, which builds tensors and containers and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mfd_cli.errors import MfdError
from teachers.files import sha256, write_whole
from teachers.foreign import load_pickled
from teachers.weights import HEADER

#: metric to a tensor that its weights must hold
_KNOWN = {
    "fid": "Conv2d_1a_3x3.conv.weight",
    "aesthetic": "layers.0.weight",
    "hpsv2": "visual.conv1.weight",
    "image-reward": "mlp.layers.0.weight",
}


def convert(metric: str, source: Path, target: Path, *, force: bool = False) -> dict[str, Any]:
    """Writes the published weights of a metric as safetensors, every tensor in the type it has.

    Args:
        metric: fid, aesthetic, hpsv2 or image-reward.
        source: the published .pth or .pt.
        target: the safetensors file to write; its folder must exist.
        force: whether to replace a file.

    Returns:
        The header of the new file (type, source_sha256, source_name), and `tensors`: their number.

    Raises:
        MfdError: another metric; the source is missing, damaged or holds other weights; the target exists or cannot be
            written.
    """
    if metric not in _KNOWN:
        raise MfdError(
            f"no converter for '{metric}'", allowed=", ".join(_KNOWN), do="other metrics load their files as they are"
        )
    if not source.is_file():
        raise MfdError(f"{source}: no such file", allowed="the published .pth or .pt", do="check the path")
    if target.suffix != ".safetensors":
        raise MfdError(f"-o {target}", allowed="a file that ends in .safetensors")
    if target.exists() and not force:
        raise MfdError(f"{target}: exists", do="give another name, or replace it with --force")
    content = load_pickled(source, "a file", allowed="the published .pth or .pt", do="download it again")
    tensors = _tensors(content, metric, source)
    header = {"type": metric, "source_sha256": sha256(source), "source_name": source.name}
    try:
        write_whole(target, save(tensors, metadata={HEADER: json.dumps(header)}))
    except OSError as error:
        raise MfdError(
            f"{target}: cannot be written ({error.strerror or error})", do="give a file in a folder with room"
        ) from error
    return header | {"tensors": len(tensors)}


def _tensors(content: Any, metric: str, source: Path) -> dict[str, Tensor]:
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    found = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if _KNOWN[metric] not in found:
        held = f"{len(found)} tensors, such as {next(iter(found))}" if found else "no tensors"
        raise MfdError(f"{source}: not the weights of {metric} ({held})", allowed=f"weights with {_KNOWN[metric]}")
    bad = [name for name, value in found.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        # a causal mask of infinities is no weight
        found = {name: value for name, value in found.items() if name != "attn_mask"}
        bad = [name for name in bad if name in found]
    if bad:
        raise MfdError(f"{source}: NaN or infinite values in {', '.join(bad[:5])}", do="download the file again")
    # each tensor in memory of its own: safetensors refuses tensors that share it
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in found.items()}
