"""Feature extractors of samples, for critics that judge finished samples instead of noised states.

An extractor is a class whose objects are called with the teacher's field and states X_1 [B, ...] and give tokens
[B, N, C], with gradient. Further ones come from plugins: `@register("name")`, or an entry point in the group
`mfd.features`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from teachers.guidance import VelocityField
from teachers.registry import Registry

features = Registry(
    "feature extractor",
    "mfd.features",
    {
        "state": "mfd_cli.methods.features:StateFeatures",
        "teacher": "mfd_cli.methods.features:TeacherFeatures",
    },
)
register = features.register

#: time that the teacher is told for finished samples: close to data, and still one that it was trained on
_NEARLY_DATA = 0.95


def known(name: str, *others: str) -> str:
    """The name of an extractor that exists, or one of `others`.

    Raises:
        ValueError: it is neither.
    """
    allowed = [*others, *features.names()]
    if name not in allowed:
        raise ValueError(f"no feature extractor '{name}'; allowed: {', '.join(allowed)}")
    return name


def extracted(name: str, field: VelocityField, samples: Tensor) -> Tensor:
    """Tokens [B, N, C] that an extractor makes of finished samples X_1 [B, ...]."""
    extractor: Callable[[VelocityField, Tensor], Tensor] = features.get(name)()
    return extractor(field, samples)


class StateFeatures:
    """The numbers of a state themselves."""

    def __call__(self, field: VelocityField, samples: Tensor) -> Tensor:
        """One token, [B, 1, D]."""
        return samples.flatten(1)[:, None]


class TeacherFeatures:
    """What the frozen teacher makes of nearly finished samples."""

    def __call__(self, field: VelocityField, samples: Tensor) -> Tensor:
        """The tokens of its `feature_layer`, [B, N, C]."""
        return field.features(samples, torch.full((len(samples),), _NEARLY_DATA, device=samples.device))
