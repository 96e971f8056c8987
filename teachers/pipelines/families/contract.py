"""What distinguishes one flow-matching pipeline of diffusers from another: facts, and how its network is called.

Here times and signs are the network's own. They are turned round in one place, `DiffusersTeacher.velocity`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from teachers.conditions import Condition
from teachers.errors import TeacherError
from teachers.pipelines.families.stock import StockCall
from teachers.pipelines.loading import Source
from teachers.prompts.contract import Row

#: attention projections of the image's tokens, and of the text's where the two streams have their own
ONE_STREAM = ("to_q", "to_k", "to_v")
TWO_STREAMS = (*ONE_STREAM, "add_q_proj", "add_k_proj", "add_v_proj")


class Family(StockCall, ABC):
    """Pipelines of one class. Stateless: what depends on a model comes from its configurations."""

    #: name of the pipeline's class
    pipeline: ClassVar[str]
    #: parts that make embeddings
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    #: what becomes of padding behind a prompt. "masked": cut off, the network is told which tokens are real.
    #: "zeros": not stored, but filled up with zeros again, since the network attends to them. "whole": left as encoded,
    #: since the network attends to it and it is not zero.
    text: ClassVar[Literal["masked", "zeros", "whole"]]
    #: keys of the transformer's configuration: width of the text embedding, and of a pooled one if there is one
    text_width: ClassVar[str]
    pooled_width: ClassVar[str | None] = None
    #: tokens of further encoders, before those of the prompt
    leading_tokens: ClassVar[int] = 0
    #: whether the network counts time from noise and predicts data - noise, which is mfd's own convention
    from_noise: ClassVar[bool] = False
    #: whether a model of this family may take guidance as an input (`guidance_embeds` of its configuration)
    may_embed_guidance: ClassVar[bool] = False
    #: what height and width have to be multiples of, beyond what the autoencoder asks for
    patch: ClassVar[int] = 2
    #: frames of a video by default; None: images
    frames: ClassVar[int | None] = None
    lora_targets: ClassVar[tuple[str, ...]] = ONE_STREAM

    def check(self, source: Source) -> None:
        """Raises TeacherError for a variant that the family's facts do not hold for."""

    def pixels(self, transformer: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width by default."""
        return 1024, 1024

    def largest(self, transformer: Mapping[str, Any]) -> int | None:
        """Latents a side that the network has places for; None if there is no end to them."""
        return None

    def compression(self, vae: Mapping[str, Any]) -> tuple[int, int]:
        """Frames and pixels a side that become one latent."""
        return 1, 2 ** (len(vae["block_out_channels"]) - 1)

    def channels(self, transformer: Mapping[str, Any]) -> int:
        """Channels of the latents."""
        return int(transformer["in_channels"])

    @abstractmethod
    def embed(self, pipeline: Any, texts: Sequence[str], negative: bool, tokens: int) -> list[Row]:
        """Rows {"text": [n, width], maybe "pooled": [width]} by the pipeline's own `encode_prompt`."""

    @abstractmethod
    def predict(
        self, network: nn.Module, x: Tensor, time: Tensor, condition: Condition, architecture: Mapping[str, Any]
    ) -> Tensor:
        """The network's output in the shape of the latents.

        Args:
            network: the transformer.
            x: latents [B, C, H, W] or [B, C, T, H, W] in the network's type.
            time: float32 [B] in [0, 1]: sigma, or 1 - sigma where `from_noise`.
            condition: "text" and "pooled" in the network's type, "text_mask" int64 where `text` is "masked", "guidance"
                float32 [B] where it is an input.
            architecture: configurations and shapes.
        """

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
        """The two branches, of either sign, put together as the pipeline does by default."""
        return torch.lerp(unconditional, conditional, guidance)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Pixels in about [-1, 1]: images [B, 3, H, W] or videos [B, 3, T, H, W]."""
        config = vae.config
        return vae.decode(latents / config.scaling_factor + (config.shift_factor or 0.0), return_dict=False)[0]


def at_norm_of(guided: Tensor, conditional: Tensor, dim: int) -> Tensor:
    """A guided prediction, scaled to the norm that the conditional one has along an axis."""
    return guided * (conditional.norm(dim=dim, keepdim=True) / guided.norm(dim=dim, keepdim=True))


def whole_rows(text: Tensor, pooled: Tensor | None = None) -> list[Row]:
    """Embeddings [B, n, width], and pooled ones [B, width], row by row."""
    if pooled is None:
        return [{"text": row} for row in text]
    return [{"text": row, "pooled": one} for row, one in zip(text, pooled, strict=True)]


def cut_rows(text: Tensor, mask: Tensor) -> list[Row]:
    """Embeddings [B, n, width] without the padding on the right that the mask [B, n] tells of."""
    return [{"text": row[:length]} for row, length in zip(text, mask.sum(dim=1).tolist(), strict=True)]


def filled_rows(text: Tensor) -> list[Row]:
    """Embeddings [B, n, width] without the zeros behind them."""
    anything_follows = text.ne(0).any(dim=-1).flip(1).cumsum(dim=1).flip(1) > 0
    return cut_rows(text, anything_follows)


def packed(x: Tensor) -> Tensor:
    """Latents [B, C, H, W] as tokens [B, HW / 4, 4 C], one for each 2 x 2 square."""
    batch, channels, height, width = x.shape
    squares = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens [B, HW / 4, 4 C] as latents [B, C, H, W]."""
    batch, _, depth = tokens.shape
    squares = tokens.reshape(batch, height // 2, width // 2, depth // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(batch, depth // 4, height, width)


def normalised(vae: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, T, H, W] as an autoencoder with a mean and deviation for each channel wants them."""
    mean, deviation = (
        latents.new_tensor(values).reshape(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return latents * deviation + mean


def refuse(source: Source, reason: str, do: str | None = None) -> TeacherError:
    """The error for a variant of a known family."""
    return TeacherError(f"{source.model}: {source.pipeline} {reason}", do=do)
