"""Conditions of a batch: a plain mapping from names to tensors whose first axis is the batch.

An unconditional model has the empty mapping. Every operation below acts on rows, so that a solver can drop finished
rows and guidance can stack a conditional and an unconditional half.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

Condition = Mapping[str, torch.Tensor]


def rows(condition: Condition, index: torch.Tensor | slice) -> Condition:
    """The condition of the selected rows, in the order of `index`."""
    return {name: value[index] for name, value in condition.items()}


def stack(first: Condition, second: Condition) -> Condition:
    """The conditions of two batches, one behind the other.

    Raises:
        ValueError: the two have different names.
    """
    if first.keys() != second.keys():
        raise ValueError(f"conditions with different names: {sorted(first)} and {sorted(second)}")
    return {name: torch.cat([value, second[name]]) for name, value in first.items()}


def to(condition: Condition, device: torch.device | str) -> Condition:
    """The condition on a device."""
    return {name: value.to(device, non_blocking=True) for name, value in condition.items()}
