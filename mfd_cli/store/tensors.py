"""Tensors and optimizer states to and from safetensors files; reading is `teachers.weights`. No pickle anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mfd_cli.errors import MfdError
from mfd_cli.store.files import write_bytes
from teachers.weights import HEADER, load_into, read_header, read_tensors

#: what 8-bit optimizers keep of large parameters besides moments in the parameter's shape: tables and block scales
_QUANTISED = frozenset({"qmap1", "qmap2", "absmax1", "absmax2"})

__all__ = ["load_into", "optimizer_tensors", "read_header", "read_tensors", "restore_optimizer", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> None:
    """Writes tensors, with a JSON header under the key "mfd", whole or not at all.

    Raises:
        RunStopped: no space on the disk.
    """
    content = {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}
    # one key only: safetensors writes several in an order that changes from process to process, and equal content
    # should give equal files
    metadata = {HEADER: json.dumps(header, ensure_ascii=False)} if header is not None else None
    write_bytes(path, save(content, metadata))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """An optimizer's state as tensors "parameter name/state name"; `names` are its parameters', in their order."""
    # not by state_dict(), into which 8-bit optimizers pack dictionaries
    return {
        # tables are one tensor for all parameters, which a file cannot say
        f"{name}/{key}": value.clone() if key in _QUANTISED else torch.as_tensor(value)
        for name, parameter in zip(names, _parameters(optimizer), strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor], path: Path
) -> None:
    """Puts the tensors of `optimizer_tensors` back.

    Raises:
        MfdError: a tensor belongs to no parameter, has another shape, or a parameter's state is incomplete.
    """
    state: dict[int, dict[str, Tensor]] = {}
    positions = {name: index for index, name in enumerate(names)}
    parameters = _parameters(optimizer)
    shapes = [value.shape for value in parameters]
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        if name not in positions:
            raise MfdError(f"{path}: optimizer state for an unknown parameter {name}")
        if value.dim() and key not in _QUANTISED and value.shape != shapes[positions[name]]:
            raise MfdError(
                f"{path}: {full} has shape {list(value.shape)}, its parameter {list(shapes[positions[name]])}"
            )
        state.setdefault(positions[name], {})[key] = value
    keys = {frozenset(entry.keys() - _QUANTISED) for entry in state.values()}
    if state and (len(state) != len(names) or len(keys) != 1):
        raise MfdError(f"{path}: optimizer state of {len(state)} of {len(names)} parameters, or incomplete")
    for index, entry in state.items():
        device = parameters[index].device
        optimizer.state[parameters[index]] = {key: _placed(value, device) for key, value in entry.items()}


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [value for group in optimizer.param_groups for value in group["params"]]


def _placed(value: Tensor, device: torch.device) -> Tensor | int:
    """A state on its parameter's device; a count that was a plain number is one again."""
    whole = value.dim() == 0 and not value.is_floating_point()
    return int(value) if whole else value.clone().to(device)
