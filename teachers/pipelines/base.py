"""What every diffusers pipeline needs to be a teacher: its parts, its prompts, its latents. One subclass per family.

diffusers counts sigma = 1 - t from noise (1) to data (0) and its networks predict N = noise - data, so u = -N at
sigma = 1 - t. Time and sign are turned round in `velocity`, which each family writes, and nowhere else.
"""

from __future__ import annotations

import contextlib
import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from teachers.base import Teacher
from teachers.conditions import Condition
from teachers.errors import TeacherError
from teachers.pipelines import loading
from teachers.pipelines.quiet import quiet
from teachers.prompts.contract import NEGATIVE, PromptTeacher, Row
from teachers.settings import TeacherSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: pixels that are decoded at once; a single larger image is decoded alone
_DECODED_PIXELS = 4 * 1024 * 1024


class PipelineSettings(TeacherSettings):
    """Settings of every pipeline."""

    model: str = Field(description="Hub repository (owner/name) or folder of a diffusers pipeline.")
    revision: str | None = Field(None, description="Hub branch, tag or commit; null: main. The commit is recorded.")
    variant: str | None = Field(None, description="Variant of the weight files, such as fp16; null: the plain files.")
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "bf16", description="Type of the frozen network's weights; bf16 halves them. What is trained stays fp32."
    )
    encoder_dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "bf16", description="Type of text encoder and stored embeddings."
    )
    resolution: int | tuple[int, int] | None = Field(
        None, description="Pixels a side, or [height, width]; null: the model's own. Compute grows with the area."
    )
    negative_prompt: str = Field("", description="Prompt of the guidance's unconditional branch.")
    max_sequence_length: int = Field(300, ge=1, le=4096, description="Tokens of a prompt that are read.")
    vae_tiling: bool = Field(False, description="Decode in tiles: less memory at 2K and 4K pixels, slower.")


class PipelineTeacher(PromptTeacher):
    """A text-conditioned flow model of diffusers."""

    Settings: ClassVar[type[TeacherSettings]] = PipelineSettings
    weights_key = "model"
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v")
    shown = 4
    batch_size = 4
    #: the part that predicts the velocity
    network_part: ClassVar[str] = "transformer"
    #: parts that make embeddings; their content is part of the embeddings' key
    text_parts: tuple[str, ...] = ("text_encoder", "tokenizer")
    #: names of a row's tensors whose length differs from prompt to prompt: filled up with zeros
    ragged: tuple[str, ...] = ("text",)
    #: the length that they are filled up to, without a mask; None: the batch's longest prompt's, with a mask
    filled_to: int | None = None

    def __init__(self, settings: Any, architecture: Mapping[str, Any]) -> None:
        super().__init__(settings, architecture)
        self.device = torch.device("cpu")
        self._source: loading.Source | None = None
        self._encoder: Any = None
        self._vae: nn.Module | None = None
        self._random = False

    # -- what a family writes ------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def describe(cls, source: loading.Source, settings: Any) -> dict[str, Any]:
        """The architecture: `transformer` (its config), `pipeline` (class name), `sample_shape` and what else there is.

        Raises:
            TeacherError: the pipeline is of another family, or no flow-matching model.
        """

    @classmethod
    def published(cls, settings: Any) -> dict[str, Any] | None:
        """The architecture of a well-known model, for random weights without any file; None if it is not known."""
        return None

    @abstractmethod
    def embed(self, pipeline: Any, texts: Sequence[str], negative: bool) -> list[Row]:
        """Rows of prompts (or negative prompts), by the pipeline's own `encode_prompt`."""

    @abstractmethod
    def random_row(self, generator: torch.Generator) -> Row:
        """A row of the right shapes, for a dry run without a text encoder."""

    @abstractmethod
    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Images [B, C, H, W] in about [0, 1] from latents [B, ...] of the VAE's type."""

    def time_layer(self, network: nn.Module) -> str | None:
        """The embedding of the time, under the name that diffusers gives it."""
        found = [name for name, _ in network.named_modules() if name.endswith("timestep_embedder")]
        return found[0] if found else None

    def feature_layer(self, network: nn.Module) -> str | None:
        """The block in the middle."""
        blocks = getattr(network, "transformer_blocks", None)
        return f"transformer_blocks.{len(blocks) // 2}" if blocks else None

    # -- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, settings: Any) -> PipelineTeacher:
        """The pipeline's network, frozen; its other parts are loaded when they are needed."""
        source = loading.locate(settings.model, settings.revision, settings.variant)
        teacher = cls(settings, cls.describe(source, settings))
        teacher._source = source
        network = source.load(cls.network_part, DTYPES[settings.dtype])
        teacher.network = network.eval().requires_grad_(False)
        return teacher

    @classmethod
    def random(cls, settings: Any) -> PipelineTeacher:
        """Random weights in the shapes of the model, which needs no file for the well-known ones."""
        architecture = cls.published(settings)
        if architecture is None:
            architecture = cls.describe(loading.configs_of(settings.model, settings.revision), settings)
        teacher = cls(settings, architecture)
        teacher._random = True
        with _default_dtype(DTYPES[settings.dtype]):
            teacher.network = teacher.build_network().eval().requires_grad_(False)
        return teacher

    @property
    def source(self) -> loading.Source:
        """Where the parts are, found when it is first asked for."""
        if self._source is None:
            settings = self.settings
            self._source = loading.locate(settings.model, settings.revision, settings.variant)
        return self._source

    def build_network(self) -> nn.Module:
        """The network of `architecture`, in torch's default type."""
        import diffusers

        config = dict(self.architecture["transformer"])
        return getattr(diffusers, config["_class_name"]).from_config(config)

    def initial_network(self, seed: int) -> nn.Module:
        """A copy in float32, since updates are lost in half precision."""
        return copy.deepcopy(self.network).float().train().requires_grad_(True)  # type: ignore[union-attr]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of the latents."""
        return tuple(self.architecture["sample_shape"])

    def identity(self) -> dict[str, str]:
        """Model and commit, or the SHA-256 of a local folder's network."""
        if self._random:
            return {"model": self.settings.model, "weights": "random"}
        source = self.source
        if source.commit is not None:
            return {"model": source.model, "revision": source.commit}
        return {"network_sha256": source.digest([self.network_part])}

    def pinned(self) -> dict[str, Any]:
        """The commit instead of a branch."""
        commit = None if self._random else self.source.commit
        return {} if commit is None else {"revision": commit}

    def to(self, device: torch.device | str) -> Teacher:
        """Moves the network; other parts follow when they are used."""
        self.device = torch.device(device)
        return super().to(device)

    # -- prompts -------------------------------------------------------------------------------------------------

    def encoding(self) -> dict[str, str]:
        """Encoder, settings and type."""
        if self._random:
            return {"family": self.architecture["pipeline"], "encoder": "random"}
        source = self.source
        encoder = source.commit or source.digest(part for part in self.text_parts if part in source.index)
        return {
            "family": self.architecture["pipeline"], "encoder": encoder, "dtype": self.settings.encoder_dtype,
            "max_sequence_length": str(self.settings.max_sequence_length),
        }  # fmt: skip

    @torch.inference_mode()
    def encode_rows(self, texts: Sequence[str]) -> list[Row]:
        """Rows by the pipeline's own text encoder, which is loaded if it is not there."""
        if self._random:
            generator = torch.Generator().manual_seed(0)
            return [self.random_row(generator) for _ in texts]
        if self._encoder is None:
            self._encoder = self._text_pipeline()
        plain = [text for text in texts if not text.startswith(NEGATIVE)]
        negative = [text for text in texts if text.startswith(NEGATIVE)]
        rows = dict(zip(plain, self.embed(self._encoder, plain, False) if plain else [], strict=True))
        bare = [text.removeprefix(NEGATIVE) for text in negative]
        rows |= dict(zip(negative, self.embed(self._encoder, bare, True) if negative else [], strict=True))
        return [{name: value.cpu().clone() for name, value in rows[text].items()} for text in texts]

    def release_encoder(self) -> None:
        """Forgets the text encoder."""
        self._encoder = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def own_texts(self) -> list[str]:
        """The negative prompt, unless the model is guided by an input of its own."""
        return [] if self.guidance_embedded else [NEGATIVE + self.settings.negative_prompt]

    def collate(self, rows: Sequence[Row]) -> Condition:
        """Rows of one length: the longest's, the negative prompt's or the fixed one, with a mask unless it is fixed."""
        condition: dict[str, Tensor] = {}
        least = [self._negative()] if self.own_texts() else []
        for name in rows[0]:
            if name not in self.ragged:
                condition[name] = torch.stack([row[name] for row in rows])
                continue
            length = self.filled_to or max(len(row[name]) for row in (*rows, *least))
            condition[name], mask = _padded([row[name] for row in rows], length)
            if self.filled_to is None:
                condition[f"{name}_mask"] = mask
        return condition

    def null_condition(self, condition: Condition) -> Condition | None:
        """The negative prompt for every row, in the condition's shapes; None without one."""
        if not self.own_texts():
            return None
        null: dict[str, Tensor] = {}
        for name, value in self._negative().items():
            like = condition[name]
            one = value[None]
            if name in self.ragged:
                one, mask = _padded([value], like.shape[1])
                null[f"{name}_mask"] = mask.expand(len(like), -1).to(like.device)
            null[name] = one.expand_as(like).to(like.device)
        return {name: null[name] for name in condition}

    def _negative(self) -> Row:
        (text,) = self.own_texts()
        self.remember([text])
        return self._known[text]

    def _text_pipeline(self) -> Any:
        """The pipeline's object with its text parts alone."""
        import diffusers

        source = self.source
        parts = [name for name, entry in source.index.items() if isinstance(entry, list) and entry[:1] != [None]]
        for part in parts:
            source.part_class(part)  # refuses code of the repository
        without = {part: None for part in parts if part not in (*self.text_parts, "scheduler")}
        try:
            with quiet():
                pipeline = getattr(diffusers, source.pipeline).from_pretrained(
                    source.folder, torch_dtype=DTYPES[self.settings.encoder_dtype], use_safetensors=True,
                    variant=source.variant, local_files_only=True, **without,
                )  # fmt: skip
        except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise loading.unreadable(source, "text_encoder", error) from error
        return pipeline.to(self.device)

    # -- latents -------------------------------------------------------------------------------------------------

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1], by the VAE in float32 whatever the rest computes in."""
        vae = self._decoder().to(latents.device)
        height, width = self.architecture["pixels"]
        frames = self.architecture.get("frames") or 1
        at_once = max(1, _DECODED_PIXELS // (height * width * frames))
        with torch.inference_mode(), torch.autocast(latents.device.type, enabled=False):
            parts = [self.decode_latents(vae, part.float()) for part in latents.split(at_once)]
        return torch.cat(parts).clamp(0, 1)

    def rest(self) -> None:
        """Lets the VAE leave the device."""
        if self._vae is not None:
            self._vae.to("cpu")

    def _decoder(self) -> nn.Module:
        if self._vae is None:
            if self._random:
                import diffusers

                config = self.architecture["vae"]
                vae = getattr(diffusers, config["_class_name"]).from_config(config)
            else:
                vae = self.source.load("vae", torch.float32)
            self._vae = vae.eval().requires_grad_(False)
            if self.settings.vae_tiling:
                vae.enable_tiling()
        return self._vae


def dtype_of(network: nn.Module) -> torch.dtype:
    """Type that a network computes in, seen through a data-parallel wrapper."""
    inner = getattr(network, "module", network)
    return getattr(inner, "dtype", None) or next(inner.parameters()).dtype


def pixels_of(settings: Any, own: int | tuple[int, int], multiple: int) -> tuple[int, int]:
    """Height and width that a recipe asks for.

    Args:
        settings: the recipe's block.
        own: the model's own side, or height and width, where the recipe leaves it open.
        multiple: what both have to be multiples of.

    Raises:
        TeacherError: they are not.
    """
    asked = settings.resolution or own
    height, width = (asked, asked) if isinstance(asked, int) else asked
    if height % multiple or width % multiple or min(height, width) < multiple:
        raise TeacherError(f"teacher.resolution: {asked}", allowed=f"multiples of {multiple}, such as {own}")
    return height, width


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A part's config without notes of the library that saved it."""
    return {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}


def _padded(rows: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Rows [n_i, ...] as a tensor [B, length, ...] with zeros behind, and a mask int64 [B, length] of what is real."""
    whole = rows[0].new_zeros(len(rows), length, *rows[0].shape[1:])
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        whole[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return whole, mask


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Has new floating-point tensors inside the block be of a type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
