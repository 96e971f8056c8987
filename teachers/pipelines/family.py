"""Teacher `diffusers`: flow-matching pipelines of diffusers, one small class of facts for each family.

u(x, t, c) = -N(x, 1 - t, c) for networks that count time from data and predict noise - data, and N(x, t, c) for those
that already use mfd's convention (Lumina 2, Z-Image).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from teachers.conditions import Condition
from teachers.errors import TeacherError
from teachers.pipelines import loading
from teachers.pipelines.base import DTYPES, PipelineSettings, PipelineTeacher, dtype_of, pixels_of, plain_config
from teachers.pipelines.families.contract import Family
from teachers.pipelines.families.stock import StockCall
from teachers.pipelines.families.table import family_of, recognised
from teachers.prompts.contract import Row

_TYPICAL_TOKENS = (12, 80)  # of random rows: captions have a few dozen
_STRIP = 8  # frames of a video that a picture shows


class DiffusersSettings(PipelineSettings):
    """Settings of `diffusers`. Models differ in what suits them: docs/pipelines.md lists it."""

    guidance: float = Field(
        4.0,
        ge=0,
        description="Classifier-free guidance scale of the teacher; 1 is none, else evaluations cost double. For "
        "models that take guidance as an input (FLUX.1 dev) it is that input, and costs nothing.",
    )
    steps: int = Field(
        28, ge=1, description="Euler steps of the teacher's own sampler, which the student is held against."
    )
    shift: float = Field(
        3.0, gt=0, description="Time shift of the teacher's sampler; above 1 moves steps towards noise."
    )
    max_sequence_length: int | None = Field(  # type: ignore[assignment]
        None, ge=1, le=4096, description="Tokens of a prompt that are read; null: as many as the pipeline reads."
    )
    num_frames: int | None = Field(None, ge=1, description="Frames of a video; null: the pipeline's own number.")


class DiffusersTeacher(PipelineTeacher):
    """SD3, AuraFlow, FLUX.1, Qwen-Image, Lumina 2, Z-Image, Wan or LTX-Video (docs/pipelines.md).

    A video is decoded to one picture: up to eight evenly spaced frames, side by side.
    """

    Settings = DiffusersSettings

    def __init__(self, settings: Any, architecture: Mapping[str, Any]) -> None:
        super().__init__(settings, architecture)
        self.family: Family = family_of(architecture["pipeline"])
        self.stock: StockCall = self.family
        self.text_parts = self.family.text_parts
        self.lora_targets = self.family.lora_targets  # type: ignore[misc]
        self.guidance_embedded = bool(architecture["transformer"].get("guidance_embeds"))
        self.ragged = () if self.family.text == "whole" else ("text",)
        self.filled_to = self._tokens if self.family.text == "zeros" else None
        if self.family.frames is not None:
            self.batch_size = 1  # type: ignore[misc]

    @classmethod
    def describe(cls, source: loading.Source, settings: Any) -> dict[str, Any]:
        """Shapes from the parts' configurations."""
        family = recognised(source)
        transformer, vae = plain_config(source.config("transformer")), plain_config(source.config("vae"))
        of_time, of_space = family.compression(vae)
        height, width = pixels_of(settings, family.pixels(transformer), of_space * family.patch)
        largest = family.largest(transformer)
        if largest is not None and max(height, width) > largest * of_space:
            raise TeacherError(
                f"teacher.resolution: {height} x {width}: {source.model} has no places for so many latents",
                allowed=f"at most {largest * of_space} pixels a side",
            )
        frames = _frames(family, settings.num_frames, of_time)
        times = [] if frames is None else [(frames - 1) // of_time + 1]
        return {
            "pipeline": family.pipeline,
            "transformer": transformer,
            "vae": vae,
            "sample_shape": [family.channels(transformer), *times, height // of_space, width // of_space],
            "pixels": [height, width],
            "frames": frames,
        }

    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """u; the only place where time and sign are turned round."""
        dtype = dtype_of(network)
        inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in condition.items()}
        if self.guidance_embedded:
            inputs["guidance"] = torch.full_like(t, self.settings.guidance, dtype=torch.float32)
        time, sign = (t, 1) if self.family.from_noise else (1 - t, -1)
        return sign * self.family.predict(network, x.to(dtype), time.float(), inputs, self.architecture)

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
        """As the family's pipeline guides by default."""
        return self.family.guide(unconditional, conditional, guidance)

    def encoding(self) -> dict[str, str]:
        """With the number of tokens that are read."""
        own = super().encoding()
        return own | {"max_sequence_length": str(self._tokens)} if "dtype" in own else own

    def embed(self, pipeline: Any, texts: Sequence[str], negative: bool) -> list[Row]:
        """Rows as the family cuts them."""
        return self.family.embed(pipeline, texts, negative, self._tokens)

    def random_row(self, generator: torch.Generator) -> Row:
        """Noise, as long as a caption, or as the family's fixed length."""
        family, config, dtype = self.family, self.architecture["transformer"], DTYPES[self.settings.encoder_dtype]
        length = min(self._tokens, int(torch.randint(*_TYPICAL_TOKENS, (1,), generator=generator)))
        if family.text == "whole":
            length = family.leading_tokens + self._tokens
        row = {"text": torch.randn(length, config[family.text_width], generator=generator).to(dtype)}
        if family.pooled_width is not None:
            row["pooled"] = torch.randn(config[family.pooled_width], generator=generator).to(dtype)
        return row

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Images in about [0, 1]; of a video a strip of frames [B, 3, H, n W]."""
        pixels = self.family.decode(vae, latents) / 2 + 0.5
        return pixels if pixels.dim() == 4 else _strip(pixels)

    @property
    def _tokens(self) -> int:
        return self.settings.max_sequence_length or self.family.tokens


def _frames(family: Family, asked: int | None, compression: int) -> int | None:
    """Frames of a video; None for images.

    Raises:
        TeacherError: the family makes images, or its latents do not come out even.
    """
    if family.frames is None:
        if asked is not None:
            raise TeacherError(f"teacher.num_frames: {asked}: a {family.pipeline} makes images", allowed="null")
        return None
    frames = family.frames if asked is None else asked
    if (frames - 1) % compression:
        raise TeacherError(
            f"teacher.num_frames: {frames}", allowed=f"1 more than a multiple of {compression}, such as {family.frames}"
        )
    return frames


def _strip(video: Tensor) -> Tensor:
    """Up to eight evenly spaced frames of videos [B, 3, T, H, W] side by side: [B, 3, H, n W]."""
    count = min(_STRIP, video.shape[2])
    shown = torch.linspace(0, video.shape[2] - 1, count, device=video.device).round().long()
    return video[:, :, shown].permute(0, 1, 3, 2, 4).flatten(3)
