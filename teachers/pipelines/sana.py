"""Teacher `sana`: SANA and SANA-1.5 at any resolution that their autoencoder allows.

    u(x, t, c) = -N(x, 1000 (1 - t), c)          labels from 0 to 999: pure noise is told 999, since 1000 was never seen

Sources: Xie et al. 2024, arXiv 2410.10629; `SanaPipeline` of diffusers, whose `encode_prompt` is used as it is.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from teachers.conditions import Condition
from teachers.errors import TeacherError
from teachers.pipelines import loading
from teachers.pipelines.base import DTYPES, PipelineSettings, PipelineTeacher, dtype_of, pixels_of, plain_config
from teachers.pipelines.families.stock import StockCall
from teachers.prompts.contract import Row

_PIPELINES = ("SanaPipeline", "SanaPAGPipeline")
_LARGEST_LABEL = 999.0
#: hub names of the published models: size and pixels a side
_PUBLISHED = re.compile(r"(?:.*/)?Sana_(600M|1600M)_(512px|1024px|2Kpx|4Kpx)(?:_.*)?")
_SIZES = {
    "600M": {
        "num_attention_heads": 36, "num_layers": 28, "num_cross_attention_heads": 16, "cross_attention_head_dim": 72,
    },
    "1600M": {
        "num_attention_heads": 70, "num_layers": 20, "num_cross_attention_heads": 20, "cross_attention_head_dim": 112,
    },
}  # fmt: skip
_SIDES = {"512px": (16, None), "1024px": (32, None), "2Kpx": (64, 1.0), "4Kpx": (128, 2.0)}
_TYPICAL_TOKENS = (12, 80)  # of random rows: captions have a few dozen
_LENGTH_MARGIN = 8


class SanaSettings(PipelineSettings):
    """Settings of `sana`."""

    guidance: float = Field(
        4.5, ge=0, description="Classifier-free guidance scale of the teacher; 1 is none, else evaluations cost double."
    )
    steps: int = Field(
        20, ge=1, description="Euler steps of the teacher's own sampler, which the student is held against."
    )
    shift: float = Field(
        3.0, gt=0, description="Time shift of the teacher's sampler; above 1 moves steps towards noise."
    )
    instruction: bool = Field(
        True,
        description="Put the pipeline's complex human instruction before prompts, as SanaPipeline does when it is "
        "called; the published distillation script trained without it and sampled with it.",
    )


class _SanaCall(StockCall):
    """Calls of SanaPipeline."""

    tokens = 300
    mixes_types = True

    def more(self, settings: Any) -> dict[str, Any]:
        """The size that is asked for, and the instruction that was trained with."""
        fixed: dict[str, Any] = {"use_resolution_binning": False}
        return fixed if settings.instruction else fixed | {"complex_human_instruction": None}

    def notes(self, settings: Any, architecture: Mapping[str, Any]) -> list[str]:
        """What stands before prompts."""
        if settings.instruction:
            return ["Trained with the pipeline's instruction before prompts, which a plain call puts there as well."]
        return ["Trained on bare prompts: `complex_human_instruction=None` must be passed, or the pipeline adds text."]


class SanaTeacher(PipelineTeacher):
    """SANA: linear-attention transformer on 32x compressed latents, Gemma embeddings."""

    Settings = SanaSettings
    stock: ClassVar[StockCall] = _SanaCall()
    first_time = 1 - _LARGEST_LABEL / 1000
    rows_first = True

    @classmethod
    def describe(cls, source: loading.Source, settings: Any) -> dict[str, Any]:
        """Shapes from the parts' configs."""
        if source.pipeline == "SanaSprintPipeline":
            raise _not_a_velocity(
                source, "SANA-Sprint is a TrigFlow consistency model, which is told angles and scales"
            )
        if source.pipeline not in _PIPELINES:
            raise TeacherError(
                f"{source.model}: a {source.pipeline}",
                allowed=f"for type sana: {', '.join(_PIPELINES)}",
                do="other flow-matching pipelines load with teacher.type: diffusers",
            )
        transformer = plain_config(source.config("transformer"))
        if transformer.get("guidance_embeds"):
            raise _not_a_velocity(source, "its transformer takes guidance as an input, as SANA-Sprint's does")
        loading.require_flow(source)
        return _architecture(transformer, source.config("vae"), settings)

    @classmethod
    def published(cls, settings: Any) -> dict[str, Any] | None:
        """Shapes of the models that the authors published."""
        found = _PUBLISHED.fullmatch(settings.model)
        if found is None:
            return None
        side, scale = _SIDES[found[2]]
        transformer = {
            "_class_name": "SanaTransformer2DModel", "in_channels": 32, "out_channels": 32, "patch_size": 1,
            "attention_head_dim": 32, "caption_channels": 2304, "mlp_ratio": 2.5, "attention_bias": False,
            "sample_size": side, "interpolation_scale": scale, **_SIZES[found[1]],
        }  # fmt: skip
        transformer["cross_attention_dim"] = 32 * transformer["num_attention_heads"]  # type: ignore[operator]
        return _architecture(transformer, _DC_AE, settings)

    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's -N; the only place where time and sign are turned round."""
        scale = self.architecture["transformer"].get("timestep_scale") or 1.0
        label = (1000 * (1 - t.float())).clamp(0.0, _LARGEST_LABEL) * scale
        dtype = dtype_of(network)
        prediction = network(
            x.to(dtype),
            encoder_hidden_states=condition["text"].to(dtype),
            encoder_attention_mask=condition["text_mask"],
            timestep=label,
            return_dict=False,
        )[0]
        return -prediction[:, : x.shape[1]]  # a learned variance, where there is one, comes behind

    def encoding(self) -> dict[str, str]:
        """The instruction is part of what embeddings depend on."""
        return super().encoding() | {"instruction": str(self.settings.instruction).lower()}

    def embed(self, pipeline: Any, texts: Sequence[str], negative: bool) -> list[Row]:
        """Last hidden states of the prompts' own tokens; a negative prompt never gets the instruction."""
        instruction = None if negative or not self.settings.instruction else complex_human_instruction()
        text, mask, *_ = pipeline.encode_prompt(
            list(texts),
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self._length(pipeline.tokenizer, texts, instruction),
            complex_human_instruction=instruction,
        )
        # padding is on the right, and causal attention keeps it from changing what stands before it
        return [{"text": row[:length]} for row, length in zip(text, mask.sum(dim=1).tolist(), strict=True)]

    def random_row(self, generator: torch.Generator) -> Row:
        """Noise, as long as a caption."""
        length = int(torch.randint(*_TYPICAL_TOKENS, (1,), generator=generator))
        width = self.architecture["transformer"]["caption_channels"]
        return {"text": torch.randn(length, width, generator=generator).to(DTYPES[self.settings.encoder_dtype])}

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Images in about [0, 1]."""
        return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5

    def _length(self, tokenizer: Any, texts: Sequence[str], instruction: list[str] | None) -> int:
        """Tokens to pad to: the longest prompt's, at most the setting; embeddings do not depend on padding."""
        before = "\n".join(instruction or [])
        own = len(tokenizer.encode(before)) if instruction else 0
        longest = max(len(tokenizer.encode(before + text.lower().strip())) for text in texts) - own
        return min(self.settings.max_sequence_length, longest + _LENGTH_MARGIN)


def complex_human_instruction() -> list[str]:
    """The lines that SanaPipeline puts before a prompt when it is called."""
    from diffusers import SanaPipeline

    return list(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)


def _architecture(transformer: Mapping[str, Any], vae: Mapping[str, Any], settings: Any) -> dict[str, Any]:
    compression = 2 ** (len(vae["encoder_block_out_channels"]) - 1)
    patch = int(transformer.get("patch_size", 1))
    height, width = pixels_of(settings, int(transformer["sample_size"]) * compression, compression * patch)
    return {
        "pipeline": "SanaPipeline",
        "transformer": dict(transformer),
        "vae": plain_config(vae),
        "sample_shape": [int(transformer["in_channels"]), height // compression, width // compression],
        "pixels": [height, width],
    }


def _not_a_velocity(source: loading.Source, reason: str) -> TeacherError:
    return TeacherError(
        f"{source.model}: not a velocity field: {reason}",
        allowed="flow-matching SANA models (SANA, SANA-1.5)",
        do="distill the model that it was made from",
    )


_STAGES = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
#: the autoencoder of all published models (DC-AE f32c32)
_DC_AE = {
    "_class_name": "AutoencoderDC", "in_channels": 3, "latent_channels": 32, "attention_head_dim": 32,
    "encoder_block_types": _STAGES, "decoder_block_types": _STAGES,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3], "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]], "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]],
    "downsample_block_type": "conv", "upsample_block_type": "interpolate", "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu", "scaling_factor": 0.41407,
}  # fmt: skip
