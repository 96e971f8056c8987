"""Families that make videos: Wan 2.1 and 2.2 (one network), LTX-Video. Latents are [C, T, H, W].

Sources: the pipelines of diffusers, against which each family is tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from teachers.conditions import Condition
from teachers.pipelines.families.contract import Family, cut_rows, filled_rows, normalised, refuse
from teachers.pipelines.loading import Source
from teachers.prompts.contract import Row

_LABELS = 1000.0


class Wan(Family):
    """Wan 2.1 and the Wan 2.2 models with one network, text to video; prompts are filled up with zeros."""

    pipeline = "WanPipeline"
    text = "zeros"
    tokens = 512
    text_width = "text_dim"
    frames = 81
    frames_per_second = 16
    mixes_types = True

    def check(self, source: Source) -> None:
        """One network for all times."""
        second = source.index.get("transformer_2") or (None, None)
        if second[0] is not None or source.index.get("boundary_ratio") is not None:
            raise refuse(
                source, "with two networks, one for high noise and one for low: a student has one",
                do="use a Wan model with one network, such as Wan 2.1 or Wan 2.2 TI2V 5B",
            )  # fmt: skip

    def pixels(self, transformer: Mapping[str, Any]) -> tuple[int, int]:
        """480p."""
        return 480, 832

    def compression(self, vae: Mapping[str, Any]) -> tuple[int, int]:
        """As the autoencoder says."""
        return int(vae.get("scale_factor_temporal") or 4), int(vae.get("scale_factor_spatial") or 8)

    def embed(self, pipeline: Any, texts: Sequence[str], negative: bool, tokens: int) -> list[Row]:
        """T5's tokens, without the zeros."""
        text, _ = pipeline.encode_prompt(list(texts), do_classifier_free_guidance=False, max_sequence_length=tokens)
        return filled_rows(text)

    def predict(
        self, network: nn.Module, x: Tensor, time: Tensor, condition: Condition, architecture: Mapping[str, Any]
    ) -> Tensor:
        """Labels 1000 sigma, one a sample also where the pipeline gives each token the same one."""
        return network(
            hidden_states=x, timestep=_LABELS * time, encoder_hidden_states=condition["text"], return_dict=False
        )[0]

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """All frames."""
        return vae.decode(normalised(vae, latents), return_dict=False)[0]


class LTXVideo(Family):
    """LTX-Video: T5 tokens with a mask, latents of 32 x 32 pixels and 8 frames."""

    pipeline = "LTXPipeline"
    text = "masked"
    tokens = 128
    text_width = "caption_channels"
    given_sigmas = True
    patch = 1
    frames = 161
    frames_per_second = 25

    def check(self, source: Source) -> None:
        """One token a latent, as in every published model."""
        transformer = source.config("transformer")
        if (transformer.get("patch_size", 1), transformer.get("patch_size_t", 1)) != (1, 1):
            raise refuse(source, "whose network takes several latents as one token")

    def pixels(self, transformer: Mapping[str, Any]) -> tuple[int, int]:
        """The pipeline's own."""
        return 512, 704

    def compression(self, vae: Mapping[str, Any]) -> tuple[int, int]:
        """As the autoencoder says, else by its stages."""
        stages = 2 ** sum(vae["spatio_temporal_scaling"])
        return (
            int(vae.get("temporal_compression_ratio") or vae["patch_size_t"] * stages),
            int(vae.get("spatial_compression_ratio") or vae["patch_size"] * stages),
        )

    def embed(self, pipeline: Any, texts: Sequence[str], negative: bool, tokens: int) -> list[Row]:
        """T5's tokens; they are encoded with their padding, which attention to them then leaves out."""
        text, mask, *_ = pipeline.encode_prompt(
            list(texts), do_classifier_free_guidance=False, max_sequence_length=tokens
        )
        return cut_rows(text, mask)

    def predict(
        self, network: nn.Module, x: Tensor, time: Tensor, condition: Condition, architecture: Mapping[str, Any]
    ) -> Tensor:
        """Labels 1000 sigma; places in seconds and pixels."""
        frames, height, width = x.shape[2:]
        of_time, of_space = self.compression(architecture["vae"])
        tokens = network(
            hidden_states=self.handed(x), encoder_hidden_states=condition["text"],
            timestep=_LABELS * time, encoder_attention_mask=condition["text_mask"],
            num_frames=frames, height=height, width=width,
            rope_interpolation_scale=(of_time / self.frames_per_second, of_space, of_space), return_dict=False,
        )[0]  # fmt: skip
        return self.returned(tokens, tuple(x.shape[1:]))

    def handed(self, latents: Tensor) -> Tensor:
        """As tokens, one a latent."""
        return latents.flatten(2).transpose(1, 2)

    def returned(self, latents: Tensor, shape: tuple[int, ...]) -> Tensor:
        """From tokens."""
        return latents.transpose(1, 2).reshape(-1, *shape)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """All frames; an autoencoder that takes a time is told that nothing is left to denoise, as by default."""
        mean, deviation = (values.reshape(1, -1, 1, 1, 1) for values in (vae.latents_mean, vae.latents_std))
        time = latents.new_zeros(len(latents)) if vae.config.timestep_conditioning else None
        return vae.decode(latents * deviation / vae.config.scaling_factor + mean, time, return_dict=False)[0]
