"""How diffusers' own pipelines are called: the facts that let a student be used without mfd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from teachers.conditions import Condition
from teachers.errors import TeacherError


class StockCall:
    """Calls of one pipeline's class that give a student's samples. Stateless: the rest is in a teacher's settings."""

    #: tokens of a prompt that the call reads by default
    tokens: ClassVar[int]
    #: whether the pipeline hands linspace(1, 1 / N, N) to the scheduler itself
    given_sigmas: ClassVar[bool] = False
    #: what keeps the pipeline from guiding
    unguided: ClassVar[Mapping[str, float]] = {"guidance_scale": 1.0}
    #: names that the call has for a condition's tensors
    named: ClassVar[Mapping[str, str]] = {"text": "prompt_embeds", "text_mask": "prompt_attention_mask"}
    #: whether encoders, network and VAE may have different types; else all of them need the network's
    mixes_types: ClassVar[bool] = False
    #: speed at which a video is shown
    frames_per_second: ClassVar[int] = 24

    def guidance(self, settings: Any, architecture: Mapping[str, Any]) -> dict[str, float]:
        """Arguments with which the network is called once a step, as a student is."""
        return dict(self.unguided)

    def more(self, settings: Any) -> dict[str, Any]:
        """Further arguments, besides steps, guidance, sizes and the number of tokens."""
        return {}

    def notes(self, settings: Any, architecture: Mapping[str, Any]) -> list[str]:
        """Sentences on what has to be heeded besides."""
        return []

    def embeddings(self, condition: Condition) -> dict[str, Tensor | list[Tensor]]:
        """A condition as the call takes it."""
        return {self.named[name]: value for name, value in condition.items()}

    def handed(self, latents: Tensor) -> Tensor:
        """Latents [B, ...] as the call takes them."""
        return latents

    def returned(self, latents: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Latents [B, *shape] from what the call returns for `output_type="latent"`."""
        return latents


def stock_of(teacher: Any) -> StockCall:
    """How a teacher's pipeline is called.

    Raises:
        TeacherError: it does not say.
    """
    stock = getattr(teacher, "stock", None)
    if not isinstance(stock, StockCall):
        raise TeacherError(
            f"{type(teacher).__name__} does not say how its pipeline is called", do="give it a StockCall as `stock`"
        )
    return stock
