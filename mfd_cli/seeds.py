"""Random numbers as a pure function of (seed, purpose, update, sample, element).

A counter-based generator (NumPy's Philox 4x64, Salmon et al. 2011) is keyed by seed, purpose and update and moved to
the block of counters that belongs to a sample. So nothing has to be saved to resume, a preview cannot disturb training,
and a sample receives the same noise whichever process computes it and however the batch is split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

#: steps of the additive recurrence by dimension: powers of the inverse of the root of x^(d + 1) = x + 1
_RECURRENCES = {1: (0.6180339887498949,), 2: (0.7548776662466927, 0.5698402909980532)}

_OUTPUTS_PER_COUNTER = 4  # Philox 4x64 gives four 64-bit numbers for one counter


def key(seed: int, purpose: str, *indices: int) -> tuple[int, int]:
    """Two 64-bit words that name a random stream; distinct arguments give independent streams."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


class Stream:
    """Random tensors for samples `first` .. `first + count - 1` of one update.

    Args:
        seed: the recipe's seed.
        update: counter of the update (or of the preview, evaluation...) that asks.
        first: index, in the global batch, of the first sample this process holds.
        count: number of samples B it holds.
        device: where tensors are put; the numbers do not depend on it.
    """

    def __init__(self, seed: int, update: int, first: int, count: int, device: torch.device | str = "cpu") -> None:
        self.seed, self.update, self.first, self.count, self.device = seed, update, first, count, device

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Uniform on (0, 1), float32 [B, *shape]."""
        numbers = self._raw(purpose, math.prod(shape))
        # 23 bits and a half fit float32's 24 exactly: never 0 and never 1
        values = ((numbers >> np.uint64(41)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
        return self._tensor(values, shape)

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal, float32 [B, *shape]; Box and Muller's transform makes two of one 64-bit number."""
        elements = math.prod(shape)
        numbers = self._raw(purpose, -(-elements // 2))
        high = (numbers >> np.uint64(32)).astype(np.float32)
        low = (numbers & np.uint64(0xFFFFFFFF)).astype(np.float32)
        radius = np.sqrt(np.float32(-2) * np.log((high + np.float32(0.5)) * np.float32(2.0**-32)))
        angle = low * np.float32(2.0**-32 * 2 * math.pi)
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return self._tensor(both[:, :elements], shape)

    def even(self, purpose: str, dimensions: int) -> Tensor:
        """Points spread evenly over the unit cube, each coordinate uniform on (0, 1), float32 [B, dimensions].

        A lattice moved by a random vector that is new in every update; every part and process holds its own rows of
        the same lattice. Up to 2 dimensions. Source: Roberts 2018, the additive recurrence R_d.
        """
        steps = _RECURRENCES[dimensions]
        offsets = [self.shared(f"{purpose}.{axis}") for axis in range(dimensions)]
        index = np.arange(self.first, self.first + self.count, dtype=np.float64)[:, None]
        values = (np.array(offsets) + index * np.array(steps)) % 1.0
        tiny = 2.0**-24
        return self._tensor(values.clip(tiny, 1 - tiny).astype(np.float32), (dimensions,))

    def shared(self, purpose: str) -> float:
        """One uniform number on (0, 1) for the whole update, the same in every part and process."""
        return float(Stream(self.seed, self.update, 0, 1).uniform(purpose))

    def _raw(self, purpose: str, elements: int) -> np.ndarray:
        blocks = -(-elements // _OUTPUTS_PER_COUNTER)
        generator = np.random.Philox(key=key(self.seed, purpose, self.update))
        generator.advance(self.first * blocks)
        numbers = generator.random_raw(self.count * blocks * _OUTPUTS_PER_COUNTER)
        return numbers.reshape(self.count, -1)[:, :elements]

    def _tensor(self, values: np.ndarray, shape: Sequence[int]) -> Tensor:
        # a copy, so that the result owns its memory whatever slice it came from
        return torch.from_numpy(np.ascontiguousarray(values)).reshape(self.count, *shape).to(self.device)


def order(seed: int, size: int, first: int, count: int) -> Tensor:
    """Items that positions `first` .. `first + count - 1` of an endlessly reshuffled data set hold: int64 [count].

    Every epoch of `size` positions is a permutation of its own, so each item is seen once per epoch.
    """
    parts, left = [], count
    epoch, start = divmod(first, size)
    while left > 0:
        parts.append(_permutation(seed, size, epoch)[start : start + left])
        left -= len(parts[-1])
        epoch, start = epoch + 1, 0
    return torch.from_numpy(np.concatenate(parts))


_last_permutation: tuple[tuple[int, int, int], np.ndarray] | None = None


def _permutation(seed: int, size: int, epoch: int) -> np.ndarray:
    """Permutation of an epoch; the last one is kept, since consecutive batches ask for the same."""
    global _last_permutation
    name = (seed, size, epoch)
    if _last_permutation is None or _last_permutation[0] != name:
        generator = np.random.Generator(np.random.Philox(key=key(seed, "order", epoch)))
        _last_permutation = name, generator.permutation(size)
    return _last_permutation[1]
