"""Flow maps from velocity networks: the same network, told in addition how far a step goes.

u(x, s, t) is the average velocity from x at time s to time t. The length t - s is embedded and added to the network's
own embedding of s through a projection that starts at zero, so that u(x, s, t) = v(x, s) in the beginning: one Euler
step, whatever its length.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

#: features sin(f d), cos(f d) of a length d for f = pi/4, pi/2, pi, 2 pi; low ones, since a derivative in s multiplies
#: the highest
_FREQUENCIES = 4


class FlowMapNetwork(nn.Module):
    """A velocity network that can be told the length of a step.

    Args:
        network: the velocity network; it is called as before.
        layer: name of its layer whose output [B, W], or [B, ..., W], embeds the time.

    Raises:
        ValueError: the layer holds no linear layer, so that W is not known.
    """

    angles: Tensor

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network = network
        embedding = network.get_submodule(layer)
        widths = [part.out_features for part in embedding.modules() if isinstance(part, nn.Linear)]
        if not widths:
            raise ValueError(f"layer '{layer}' of {type(network).__name__} holds no linear layer")
        width, like = widths[-1], next(network.parameters())
        self.register_buffer("angles", math.pi * 2.0 ** torch.arange(-2, _FREQUENCIES - 2), persistent=False)
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.length = nn.Sequential(nn.Linear(2 * _FREQUENCIES, width), nn.SiLU(), last)
        self.to(like.device)
        self._length: Tensor | None = None
        embedding.register_forward_hook(self._add)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The velocity network's own forward pass; over a step inside `over`."""
        return self.network(*arguments, **named)

    @contextlib.contextmanager
    def over(self, length: Tensor) -> Iterator[None]:
        """Has forward passes inside the block be told steps of these lengths t - s, float32 [B]."""
        self._length = length
        try:
            yield
        finally:
            self._length = None

    def _add(self, layer: nn.Module, arguments: Any, output: Tensor) -> Tensor | None:
        if self._length is None:
            return None
        angle = self._length[:, None] * self.angles
        added = self.length(torch.cat([angle.sin(), angle.cos()], dim=1))
        return output + added.to(output.dtype).reshape(added.shape[0], *(1,) * (output.dim() - 2), -1)
