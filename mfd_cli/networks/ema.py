"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mfd_cli.networks.sharding import local


class AveragedNetwork:
    """A copy of a network whose weights follow the original's: w <- decay w + (1 - decay) w_now.

    The decay grows with the number of updates, min(decay, (1 + n) / (10 + n)), so that the starting weights are
    forgotten early. Buffers are copied.

    Args:
        network: the network to follow; its present weights are the starting point.
        decay: weight of the past, in (0, 1).
        place: a network of the same parameters to keep the average in; a copy if None.
    """

    def __init__(self, network: nn.Module, decay: float, place: nn.Module | None = None) -> None:
        self.network = (copy.deepcopy(network) if place is None else place).eval().requires_grad_(False)
        self.decay = decay
        self._averaged, self._followed = list(self.network.parameters()), list(network.parameters())
        self._buffers = list(network.buffers())

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Takes in the network's weights after its `updates`-th update (counted from 1)."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(_tensors(self._averaged), _tensors(self._followed), 1 - decay)
        for averaged, now in zip(self.network.buffers(), self._buffers, strict=True):
            averaged.copy_(now)


def _tensors(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Parameters, or this process's shards of them, as plain tensors on their present memory, which moving a network
    to a device replaces.
    """
    return [local(value.detach()) for value in parameters]
