"""Families that make images: Stable Diffusion 3, AuraFlow, FLUX.1, Qwen-Image, Lumina 2, Z-Image.

Sources: Esser et al. 2024, arXiv 2403.03206 (SD3); the pipelines of diffusers, against which each family is tested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from teachers.conditions import Condition
from teachers.pipelines.families.contract import (
    TWO_STREAMS,
    Family,
    at_norm_of,
    cut_rows,
    filled_rows,
    normalised,
    packed,
    unpacked,
    whole_rows,
)
from teachers.prompts.contract import Row

_LABELS = 1000.0
_POOLED = {"text": "prompt_embeds", "pooled": "pooled_prompt_embeds"}


class StableDiffusion3(Family):
    """SD3 and SD3.5: two CLIP encoders and T5, joint attention over all tokens, padding included."""

    pipeline = "StableDiffusion3Pipeline"
    text_parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    text = "whole"
    tokens = 256
    leading_tokens = 77
    text_width, pooled_width = "joint_attention_dim", "pooled_projection_dim"
    named = _POOLED
    lora_targets = TWO_STREAMS

    def pixels(self, transformer: Mapping[str, Any]) -> tuple[int, int]:
        """The size that the position table is made for."""
        side = 8 * int(transformer["sample_size"])
        return side, side

    def largest(self, transformer: Mapping[str, Any]) -> int | None:
        """Places are a table."""
        return int(transformer["pos_embed_max_size"]) * int(transformer["patch_size"])

    def embed(self, pipeline: Any, texts: Sequence[str], negative: bool, tokens: int) -> list[Row]:
        """CLIP's and T5's tokens, and CLIP's pooled embeddings."""
        text, _, pooled, _ = pipeline.encode_prompt(
            list(texts), None, None, do_classifier_free_guidance=False, max_sequence_length=tokens
        )
        return whole_rows(text, pooled)

    def predict(
        self, network: nn.Module, x: Tensor, time: Tensor, condition: Condition, architecture: Mapping[str, Any]
    ) -> Tensor:
        """Labels 1000 sigma."""
        return network(
            hidden_states=x, timestep=_LABELS * time, encoder_hidden_states=condition["text"],
            pooled_projections=condition["pooled"], return_dict=False,
        )[0]  # fmt: skip


class AuraFlow(Family):
    """AuraFlow: T5 tokens whose padding is zeros, which the network attends to."""

    pipeline = "AuraFlowPipeline"
    text = "zeros"
    tokens = 256
    text_width = "joint_attention_dim"
    lora_targets = TWO_STREAMS

    def largest(self, transformer: Mapping[str, Any]) -> int | None:
        """Places are a table, of which the configuration tells the whole area."""
        return math.isqrt(int(transformer["pos_embed_max_size"])) * int(transformer["patch_size"])

    def embed(self, pipeline: Any, texts: Sequence[str], negative: bool, tokens: int) -> list[Row]:
        """T5's tokens, without the zeros."""
        text, *_ = pipeline.encode_prompt(
            list(texts), do_classifier_free_guidance=False, max_sequence_length=tokens
        )  # fmt: skip
        return filled_rows(text)

    def embeddings(self, condition: Condition) -> dict[str, Tensor | list[Tensor]]:
        """With a mask, which the call asks for and leaves unused: padding is zeros already."""
        text = condition["text"]
        return {"prompt_embeds": text, "prompt_attention_mask": torch.ones(text.shape[:2], dtype=torch.long)}

    def predict(
        self, network: nn.Module, x: Tensor, time: Tensor, condition: Condition, architecture: Mapping[str, Any]
    ) -> Tensor:
        """Told sigma."""
        return network(x, encoder_hidden_states=condition["text"], timestep=time, return_dict=False)[0]


class Flux(Family):
    """FLUX.1: dev takes its guidance as an input, schnell takes none; 2 x 2 latents are one token."""

    pipeline = "FluxPipeline"
    text_parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    text = "whole"
    tokens = 512
    text_width, pooled_width = "joint_attention_dim", "pooled_projection_dim"
    named = _POOLED
    may_embed_guidance = True
    given_sigmas = True
    lora_targets = TWO_STREAMS

    def channels(self, transformer: Mapping[str, Any]) -> int:
        """A quarter of a token's."""
        return int(transformer["in_channels"]) // 4

    def embed(self, pipeline: Any, texts: Sequence[str], negative: bool, tokens: int) -> list[Row]:
        """T5's tokens with their padding, and CLIP's pooled embeddings."""
        text, pooled, _ = pipeline.encode_prompt(list(texts), max_sequence_length=tokens)
        return whole_rows(text, pooled)

    def predict(
        self, network: nn.Module, x: Tensor, time: Tensor, condition: Condition, architecture: Mapping[str, Any]
    ) -> Tensor:
        """Told sigma; places of image tokens are (0, row, column), of text tokens (0, 0, 0)."""
        height, width = x.shape[-2:]
        rows, columns = (torch.arange(side // 2, dtype=torch.float32, device=x.device) for side in (height, width))
        places = torch.cartesian_prod(torch.zeros_like(rows[:1]), rows, columns)
        tokens = network(
            hidden_states=packed(x), timestep=time, guidance=condition.get("guidance"),
            pooled_projections=condition["pooled"], encoder_hidden_states=condition["text"],
            txt_ids=places.new_zeros(condition["text"].shape[1], 3), img_ids=places, return_dict=False,
        )[0]  # fmt: skip
        return unpacked(tokens, height, width)

    def guidance(self, settings: Any, architecture: Mapping[str, Any]) -> dict[str, float]:
        """What the network was told in training, if it is told anything."""
        return {"guidance_scale": settings.guidance} if _embeds_guidance(architecture) else dict(self.unguided)

    def notes(self, settings: Any, architecture: Mapping[str, Any]) -> list[str]:
        """That guidance is an input."""
        if not _embeds_guidance(architecture):
            return []
        return [
            f"`guidance_scale={settings.guidance}` is an input of this network, and the only value that the student "
            "was trained with: with another one, which may be the pipeline's own default, it gives other samples."
        ]

    def handed(self, latents: Tensor) -> Tensor:
        """As tokens."""
        return packed(latents)

    def returned(self, latents: Tensor, shape: tuple[int, ...]) -> Tensor:
        """From tokens."""
        return unpacked(latents, *shape[-2:])


class QwenImage(Family):
    """Qwen-Image: a vision-language model's last hidden states with a mask; guided tokens keep the conditional norm."""

    pipeline = "QwenImagePipeline"
    text = "masked"
    tokens = 512
    text_width = "joint_attention_dim"
    named: ClassVar[Mapping[str, str]] = {"text": "prompt_embeds", "text_mask": "prompt_embeds_mask"}
    given_sigmas = True
    unguided: ClassVar[Mapping[str, float]] = {"true_cfg_scale": 1.0}
    lora_targets = TWO_STREAMS

    def channels(self, transformer: Mapping[str, Any]) -> int:
        """A quarter of a token's."""
        return int(transformer["in_channels"]) // 4

    def compression(self, vae: Mapping[str, Any]) -> tuple[int, int]:
        """A video's autoencoder, of which one frame is used."""
        return 1, 2 ** len(vae["temperal_downsample"])

    def embed(self, pipeline: Any, texts: Sequence[str], negative: bool, tokens: int) -> list[Row]:
        """The tokens behind the pipeline's own instruction."""
        text, mask = pipeline.encode_prompt(list(texts), max_sequence_length=tokens)
        return whole_rows(text) if mask is None else cut_rows(text, mask)

    def predict(
        self, network: nn.Module, x: Tensor, time: Tensor, condition: Condition, architecture: Mapping[str, Any]
    ) -> Tensor:
        """Told sigma."""
        height, width = x.shape[-2:]
        tokens = network(
            hidden_states=packed(x), timestep=time, encoder_hidden_states=condition["text"],
            encoder_hidden_states_mask=condition["text_mask"].bool(),
            img_shapes=[[(1, height // 2, width // 2)]] * len(x), return_dict=False,
        )[0]  # fmt: skip
        return unpacked(tokens, height, width)

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
        """Each token keeps the norm that it has in the conditional branch."""
        tokens = packed(conditional)
        guided = at_norm_of(torch.lerp(packed(unconditional), tokens, guidance), tokens, dim=-1)
        return unpacked(guided, *conditional.shape[-2:])

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """The only frame."""
        return vae.decode(normalised(vae, latents[:, :, None]), return_dict=False)[0][:, :, 0]

    def handed(self, latents: Tensor) -> Tensor:
        """As tokens."""
        return packed(latents)

    def returned(self, latents: Tensor, shape: tuple[int, ...]) -> Tensor:
        """From tokens."""
        return unpacked(latents, *shape[-2:])


class Lumina2(Family):
    """Lumina 2: time and sign are mfd's; the pipeline's instruction goes before prompts, not before negative ones."""

    pipeline = "Lumina2Pipeline"
    text = "masked"
    tokens = 256
    text_width = "cap_feat_dim"
    from_noise = True
    given_sigmas = True

    def pixels(self, transformer: Mapping[str, Any]) -> tuple[int, int]:
        """The size that it was trained at."""
        side = 8 * int(transformer["sample_size"])
        return side, side

    def embed(self, pipeline: Any, texts: Sequence[str], negative: bool, tokens: int) -> list[Row]:
        """Gemma's second to last hidden states; its attention is causal, so padding changes no real token."""
        encoded = pipeline.encode_prompt(
            list(texts), negative, negative_prompt=list(texts) if negative else None, max_sequence_length=tokens
        )
        text, mask = encoded[2:] if negative else encoded[:2]
        return cut_rows(text, mask)

    def predict(
        self, network: nn.Module, x: Tensor, time: Tensor, condition: Condition, architecture: Mapping[str, Any]
    ) -> Tensor:
        """Told 1 - sigma."""
        return network(
            hidden_states=x, timestep=time, encoder_hidden_states=condition["text"],
            encoder_attention_mask=condition["text_mask"], return_dict=False,
        )[0]  # fmt: skip

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
        """Each row of latents keeps the norm that it has in the conditional branch."""
        return at_norm_of(torch.lerp(unconditional, conditional, guidance), conditional, dim=-1)


class ZImage(Family):
    """Z-Image: time and sign are mfd's; the network takes lists, since prompts differ in length.

    The pipeline's `guidance_scale` g is added to the conditional branch, so it is `guidance` - 1 here.
    """

    pipeline = "ZImagePipeline"
    text = "masked"
    tokens = 512
    text_width = "cap_feat_dim"
    from_noise = True
    given_sigmas = True
    unguided: ClassVar[Mapping[str, float]] = {"guidance_scale": 0.0}
    mixes_types = True

    def embed(self, pipeline: Any, texts: Sequence[str], negative: bool, tokens: int) -> list[Row]:
        """The second to last hidden states of real tokens."""
        rows, _ = pipeline.encode_prompt(list(texts), do_classifier_free_guidance=False, max_sequence_length=tokens)
        return [{"text": row} for row in rows]

    def predict(
        self, network: nn.Module, x: Tensor, time: Tensor, condition: Condition, architecture: Mapping[str, Any]
    ) -> Tensor:
        """Told 1 - sigma."""
        texts = _cut(condition)
        return torch.stack(network(list(x[:, :, None].unbind()), time, texts, return_dict=False)[0])[:, :, 0]

    def embeddings(self, condition: Condition) -> dict[str, Tensor | list[Tensor]]:
        """A list, each prompt's of its own length."""
        return {"prompt_embeds": _cut(condition)}


def _embeds_guidance(architecture: Mapping[str, Any]) -> bool:
    return bool(architecture["transformer"].get("guidance_embeds"))


def _cut(condition: Condition) -> list[Tensor]:
    """The prompts' own tokens [n_i, width]."""
    lengths = condition["text_mask"].sum(dim=1).tolist()
    return [row[:length] for row, length in zip(condition["text"], lengths, strict=True)]
