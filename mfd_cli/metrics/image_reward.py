"""ImageReward: BLIP reads a prompt while it looks at the picture, and a linear head scores what it made of both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from mfd_cli.errors import MfdError
from mfd_cli.metrics import weights
from mfd_cli.metrics.aesthetic import Head, head_of
from mfd_cli.metrics.clip import PictureScore, clip_pixels
from mfd_cli.metrics.contract import Against, MetricSettings
from teachers.weights import load_into

GET = (
    "with network: hf download THUDM/ImageReward ImageReward.pt --local-dir . && "
    "mfd metrics convert image-reward ImageReward.pt -o image-reward.safetensors"
)
BERT = "google-bert/bert-base-uncased"

#: mean and deviation of the head's values on the authors' validation set, and the tokens of a prompt that are read
MEAN, DEVIATION, TOKENS = 0.16717362830052426, 1.0333394966054072, 35

#: heads of ViT-L and of BERT base
_VISION_HEADS, _TEXT_HEADS = 16, 12

_VISION, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
_VISION_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)


class Blip(nn.Module):
    """The scoring network, its parts in transformers' BLIP.

    Args:
        tensors: ImageReward's, by their published names.
        path: the file they are from, for messages.

    Raises:
        MfdError: they are not ImageReward's.
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        super().__init__()
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        vision, text = _within(tensors, _VISION), _within(tensors, _TEXT)
        text.pop("embeddings.position_ids", None)
        try:
            self.vision = BlipVisionModel(_vision_config(vision))
            self.text = BlipTextModel(_text_config(text), add_pooling_layer=False)
        except (KeyError, ValueError, IndexError) as error:
            raise MfdError(
                f"{path}: no weights of ImageReward ({type(error).__name__}: {error})",
                allowed="ImageReward.pt, converted",
                do=GET,
            ) from error
        load_into(self.vision, {_renamed(name): value for name, value in vision.items()}, path)
        load_into(self.text, text, path)
        self.head: Head = head_of(_within(tensors, _HEAD), path, self.text.config.hidden_size)
        #: side of a picture that it takes
        self.size: int = self.vision.config.image_size  # type: ignore[assignment]
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Scores [B] of pictures [B, 3, size, size] for prompts of token numbers and mask [B, T]."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=tokens, attention_mask=mask, encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device), is_decoder=False,
        )  # fmt: skip
        return (self.head(read.last_hidden_state[:, 0]) - MEAN) / DEVIATION


class ImageRewardSettings(MetricSettings):
    """Settings of `image-reward`."""

    model: str | None = Field(
        None, description="The weights: a .safetensors file (docs/metrics.md says how to get it)."
    )
    tokenizer: str = Field(BERT, description="Folder or hub repository of BERT's uncased tokenizer.")


class ImageReward(PictureScore):
    """ImageReward v1.0; about standard normal over its validation set, and negative for poor pictures.

    Source: Xu et al. 2023 (arXiv 2304.05977).
    """

    Settings = ImageRewardSettings

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses missing weights and a missing tokenizer."""
        weights.file_and_tokenizer(settings, get=GET)

    def prepare(self, against: Against) -> None:
        """The model."""
        own = self.settings
        self.require_prompts(against)
        file, folder = weights.file_and_tokenizer(own, get=GET)
        self._tokenizer, self._device = weights.tokenizer(folder, own.type), against.device
        self._model = Blip(weights.tensors_of(file), file).to(against.device)
        self._details = weights.identity(str(own.model), file)

    def scores(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        """The reward of each picture [B]."""
        tokens, mask = self._tokens(prompts)
        pixels = clip_pixels(pictures, self._model.size).to(self._device)
        return self._model(pixels, tokens.to(self._device), mask.to(self._device)).cpu()

    def details(self) -> dict[str, Any]:
        """Weights."""
        return self._details

    def _tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        return found.input_ids, found.attention_mask


def _within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _renamed(name: str) -> str:
    for pattern, replacement in _VISION_NAMES:
        new, count = re.subn(pattern, replacement, name)
        if count:
            return new
    return name


def _depth(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(match[1]) for name in tensors if (match := re.match(pattern, name)))


def _vision_config(tensors: Mapping[str, Tensor]) -> Any:
    from transformers import BlipVisionConfig

    width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
    return BlipVisionConfig(
        hidden_size=width, patch_size=patch, num_attention_heads=_VISION_HEADS, hidden_act="gelu", layer_norm_eps=1e-6,
        image_size=round((tensors["pos_embed"].shape[1] - 1) ** 0.5) * patch,
        intermediate_size=len(tensors["blocks.0.mlp.fc1.bias"]), num_hidden_layers=_depth(tensors, r"blocks\.(\d+)\."),
    )  # fmt: skip


def _text_config(tensors: Mapping[str, Tensor]) -> Any:
    from transformers import BlipTextConfig

    words, width = tensors["embeddings.word_embeddings.weight"].shape
    first = "encoder.layer.0"
    return BlipTextConfig(
        vocab_size=words, hidden_size=width, num_attention_heads=_TEXT_HEADS, hidden_act="gelu", layer_norm_eps=1e-12,
        encoder_hidden_size=tensors[f"{first}.crossattention.self.key.weight"].shape[1],
        intermediate_size=len(tensors[f"{first}.intermediate.dense.bias"]),
        num_hidden_layers=_depth(tensors, r"encoder\.layer\.(\d+)\."), use_cache=False,
        max_position_embeddings=len(tensors["embeddings.position_embeddings.weight"]),
        bos_token_id=None, sep_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
