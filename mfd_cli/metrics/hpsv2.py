"""HPSv2: an open_clip ViT-H-14 fine-tuned on human preferences, read into transformers' CLIP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.metrics import images, weights
from mfd_cli.metrics.clip import CLIP_H, PictureScore, TwoTowers
from mfd_cli.metrics.contract import Against, MetricSettings
from teachers.weights import load_into

GET = (
    "with network: hf download xswu/HPSv2 HPS_v2.1_compressed.pt --local-dir . && "
    "mfd metrics convert hpsv2 HPS_v2.1_compressed.pt -o hpsv2.1.safetensors"
)

#: heads of both towers of ViT-H-14
_HEADS = 16

_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
_NORMS = {"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm",
          "ln_final": "text_model.final_layer_norm"}  # fmt: skip
_PARTS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
          "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")


def clip_of(tensors: Mapping[str, Tensor], path: Path) -> Any:
    """A transformers CLIPModel with the weights of an open_clip state dict.

    Sizes are read off the tensors; heads, which cannot be, are those of ViT-H-14.

    Raises:
        MfdError: the tensors are no open_clip model of two transformers.
    """
    from transformers import CLIPModel

    try:
        model = CLIPModel(_config(tensors))
        named = transformers_names(tensors)
    except (KeyError, ValueError, IndexError) as error:
        raise MfdError(
            f"{path}: no weights of an open_clip ViT ({type(error).__name__}: {error})",
            allowed="HPS_v2_compressed.pt or HPS_v2.1_compressed.pt, converted",
            do=GET,
        ) from error
    load_into(model, named, path)
    return model.eval().requires_grad_(False)


def transformers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an open_clip state dict under the names and in the shapes of transformers' CLIPModel.

    Raises:
        ValueError: a name that open_clip's ViT has not.
    """
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition(".")
        block = _BLOCK.fullmatch(name)
        if name in _NAMES:
            found[_NAMES[name]] = value
        elif name in ("visual.proj", "text_projection"):
            found["visual_projection.weight" if "visual" in name else "text_projection.weight"] = value.T.contiguous()
        elif stem in _NORMS:
            found[f"{_NORMS[stem]}.{kind}"] = value
        elif block is not None:
            tower = "vision_model" if block[1] else "text_model"
            found |= _in_block(f"{tower}.encoder.layers.{block[2]}", block[3], value)
        elif name != "attn_mask":
            raise ValueError(f"an unknown tensor {name}")
    return found


def _in_block(place: str, part: str, value: Tensor) -> dict[str, Tensor]:
    if part.startswith("attn.in_proj_"):
        kind = part.removeprefix("attn.in_proj_")
        names = ("q_proj", "k_proj", "v_proj")
        return {
            f"{place}.self_attn.{name}.{kind}": third.clone() for name, third in zip(names, value.chunk(3), strict=True)
        }
    stem, _, kind = part.rpartition(".")
    if stem not in _PARTS:
        raise ValueError(f"an unknown part {part} of a block")
    return {f"{place}.{_PARTS[stem]}.{kind}": value}


def _config(tensors: Mapping[str, Tensor]) -> Any:
    from transformers import CLIPConfig

    width, _, patch, _ = tensors["visual.conv1.weight"].shape
    side = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
    words, text_width = tensors["token_embedding.weight"].shape
    shared = {"num_attention_heads": _HEADS, "hidden_act": "gelu"}
    return CLIPConfig(
        projection_dim=tensors["visual.proj"].shape[1],
        vision_config={
            "hidden_size": width, "patch_size": patch, "image_size": side * patch,
            "intermediate_size": len(tensors["visual.transformer.resblocks.0.mlp.c_fc.bias"]),
            "num_hidden_layers": _depth(tensors, "visual.transformer."), **shared,
        },
        text_config={
            "hidden_size": text_width, "vocab_size": words,
            "max_position_embeddings": len(tensors["positional_embedding"]),
            "intermediate_size": len(tensors["transformer.resblocks.0.mlp.c_fc.bias"]),
            "num_hidden_layers": _depth(tensors, "transformer."), **shared,
            # the end of a text is the last word of the vocabulary, and its place is the one that is read
            "eos_token_id": words - 1, "bos_token_id": words - 2, "pad_token_id": 0,
        },
    )  # fmt: skip


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(
        int(name.split(".")[-3]) for name in tensors if name.startswith(prefix) and name.endswith("ln_1.bias")
    )


class Hpsv2Settings(MetricSettings):
    """Settings of `hpsv2`."""

    model: str | None = Field(
        None, description="Weights v2.0 or v2.1: a .safetensors file (docs/metrics.md says how to get it)."
    )
    tokenizer: str = Field(CLIP_H, description="Folder or hub repository of the tokenizer.")


class Hpsv2(PictureScore):
    """Cosine between HPSv2's embeddings of picture and prompt.

    Source: Wu et al. 2023 (arXiv 2306.09341).
    """

    Settings = Hpsv2Settings

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses missing weights and a missing tokenizer."""
        weights.file_and_tokenizer(settings, get=GET)

    def prepare(self, against: Against) -> None:
        """The model."""
        own = self.settings
        self.require_prompts(against)
        file, folder = weights.file_and_tokenizer(own, get=GET)
        model = clip_of(weights.tensors_of(file), file)
        self._towers = TwoTowers(model, weights.tokenizer(folder, own.type), against.device)
        self._details = weights.identity(str(own.model), file)

    def scores(self, pictures: Tensor, prompts: list[str]) -> Tensor:
        """The cosine, of each picture; pictures that are not square get black borders."""
        pixels = images.normalised(images.long_side_to(pictures, self._towers.size), images.CLIP_MEAN, images.CLIP_STD)
        return (self._towers.pictures(pixels) * self._towers.texts(prompts)).sum(1)

    def details(self) -> dict[str, Any]:
        """Weights."""
        return self._details
