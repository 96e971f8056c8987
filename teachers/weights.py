"""Weights from safetensors files, checked before anything uses them. No pickle anywhere."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from teachers.errors import MfdError

#: key of a safetensors header under which mfd keeps its JSON
HEADER = "mfd"
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
#: lists of weights that are stored in several files, and what such a file may be called
_SHARDS, _SHARD = "*.safetensors.index*.json", re.compile(r"[\w.-]+\.safetensors")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        MfdError: the file is missing, damaged, no safetensors file, or holds NaN or infinite values.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    odd = [name for name, value in tensors.items() if value.is_floating_point() and value.dtype not in _FLOATS]
    if odd:
        raise MfdError(
            f"{path}: {odd[0]} is of type {str(tensors[odd[0]].dtype).removeprefix('torch.')}",
            allowed="floating-point weights of 16, 32 or 64 bits",
        )
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise MfdError(f"{path}: NaN or infinite values in {', '.join(bad[:5])}", do="use an earlier checkpoint")
    return tensors


def read_header(path: Path) -> dict[str, Any]:
    """The JSON that mfd wrote into a safetensors file's header.

    Raises:
        MfdError: the file is missing, damaged, or was not written by mfd.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        header = json.loads(metadata[HEADER])
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    except (KeyError, ValueError, RecursionError) as error:
        raise MfdError(
            f"{path}: a safetensors file, but not one that mfd wrote",
            allowed="a run folder, a checkpoint in it, or a file made by `mfd export`",
        ) from error
    if not isinstance(header, dict):
        raise MfdError(f"{path}: mfd's header is no JSON object", do="export the student again")
    return header


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Loads weights into a module whose tensors must match by name and shape.

    Raises:
        MfdError: names or shapes differ; lists them.
    """
    require_fit(module, tensors, path)
    module.load_state_dict(dict(tensors))


def require_fit(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuses weights that do not match a module, which may be without memory (on the meta device).

    Raises:
        MfdError: names or shapes differ; lists them.
    """
    expected = module.state_dict()
    wrong = [f"missing {name}" for name in expected.keys() - tensors.keys()]
    wrong += [f"unexpected {name}" for name in tensors.keys() - expected.keys()]
    wrong += [
        f"{name}: shape {list(tensors[name].shape)}, expected {list(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise MfdError(f"{path}: weights do not fit the network: {'; '.join(sorted(wrong)[:5])}{more}")


def require_shards_inside(folder: Path) -> None:
    """Refuses weights in several files whose list names anything but files beside it, which a library would open.

    Args:
        folder: of a model, or of a pipeline whose parts are folders in it.

    Raises:
        MfdError: a list is damaged, or leads out of its folder; names the list and the entry.
    """
    for index in sorted([*folder.glob(_SHARDS), *folder.glob(f"*/{_SHARDS}")]):
        try:
            listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MfdError(
                f"{index}: no readable list of weight files ({type(error).__name__})", do="copy or download it again"
            ) from error
        for name in listed:
            if not isinstance(name, str) or not _SHARD.fullmatch(name):
                raise MfdError(
                    f"{index}: lists {str(name)[:80]!r} among its weight files, which leads out of its folder",
                    allowed=".safetensors files beside the list",
                    do="use a copy whose origin you trust",
                )


def _unreadable(path: Path, error: Exception) -> MfdError:
    if isinstance(error, FileNotFoundError) or not os.path.exists(path):
        return MfdError(f"{path}: no such file", allowed="a .safetensors file", do="check the path")
    return MfdError(f"{path}: not a readable safetensors file ({error})", do="copy or make it again")
