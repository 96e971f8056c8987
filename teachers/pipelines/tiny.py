"""SANA pipelines small enough to build on the spot: random weights in the layout of the published ones, no download.

Every part is of the class that a published SANA has and is opened in the same way, so the whole path from recipe to
exported student can be rehearsed in seconds. The weights were never trained: pictures are coloured noise. They are
scaled to give a velocity field worth distilling all the same: of a size near one, smooth in time, and different for
each noise, time and prompt.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from teachers.errors import TeacherError
from teachers.files import share_weights
from teachers.pipelines.quiet import quiet


class Size(NamedTuple):
    """What differs between the pipelines: shape of the transformer, width of the text encoder."""

    heads: int
    head_dim: int
    cross_heads: int
    cross_head_dim: int
    layers: int
    text_width: int


#: 0.05 and 6.8 million parameters in the transformer
TINY: dict[str, Size] = {
    "mfd/sana-tiny": Size(heads=4, head_dim=8, cross_heads=2, cross_head_dim=16, layers=2, text_width=32),
    "mfd/sana-small": Size(heads=8, head_dim=32, cross_heads=4, cross_head_dim=64, layers=6, text_width=64),
}

#: raised with every change of what `build` makes, so that nobody is handed what an older version built
VERSION = 1

#: what makes a folder complete
FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)

_SPECIALS = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>",
             "mask_token": "<mask>"}  # fmt: skip
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_CHARACTERS = _SPACE + "abcdefghijklmnopqrstuvwxyz0123456789.,:-'\n"


def ensure(name: str, home: Path) -> Path:
    """The folder of a tiny pipeline under `home`, built there on first use and again if it is damaged.

    Several processes may ask at once; whichever ends first provides the folder.

    Raises:
        TeacherError: there is no such pipeline, or `home` cannot be written to.
    """
    size = _size(name)
    folder = home / f"{name.replace('/', '--')}-v{VERSION}"
    if not is_complete(folder):
        _write_whole(size, folder, seed=0)
    return folder


def build(name: str, folder: Path, seed: int = 0) -> Path:
    """Writes a tiny pipeline as a new folder, in one step, and returns the folder.

    The weights depend on `seed` alone, and the random state of the process stays as it is.

    Raises:
        TeacherError: there is no such pipeline, the folder exists, or it cannot be written.
    """
    size = _size(name)
    if folder.exists():
        raise TeacherError(f"{folder}: exists", allowed="a folder that does not exist yet", do="remove it first")
    _write_whole(size, folder, seed)
    return folder


def is_complete(folder: Path) -> bool:
    """Whether every file of a pipeline is there and can be opened."""
    from safetensors import SafetensorError, safe_open

    try:
        for path in (folder / file for file in FILES):
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
            else:
                json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def _size(name: str) -> Size:
    if name not in TINY:
        raise TeacherError(f"no tiny pipeline is called '{name}'", allowed=", ".join(TINY))
    return TINY[name]


def _write_whole(size: Size, folder: Path, seed: int) -> None:
    """Writes aside and renames, so that what stands at `folder` is never half a pipeline."""
    from safetensors import SafetensorError

    aside = _aside(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with quiet():
            _pipeline(size, seed).save_pretrained(aside, safe_serialization=True)
        share_weights(aside, aside / "model_index.json")
        _put(aside, folder)
    except (OSError, SafetensorError) as error:
        raise TeacherError(
            f"{folder}: cannot be written ({error})", do="free some space, or choose a folder that can be written to"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put(aside: Path, folder: Path) -> None:
    """Renames to `folder`; a complete one that another process put there meanwhile stays, a damaged one goes."""
    damaged = _aside(folder)
    try:
        if folder.exists() and not is_complete(folder):
            with contextlib.suppress(FileNotFoundError):  # another process was as quick
                os.rename(folder, damaged)
        os.rename(aside, folder)
    except OSError:
        if not is_complete(folder):
            raise
    finally:
        shutil.rmtree(damaged, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")


def _pipeline(size: Size, seed: int) -> Any:
    """A `SanaPipeline` in memory, with random weights."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline

    with torch.random.fork_rng(devices=[]):
        # not manual_seed of the whole library: it would seed accelerators, which fork_rng does not put back here
        torch.default_generator.manual_seed(seed)
        transformer, vae, text_encoder = _transformer(size), _vae(), _text_encoder(size)
    _tame(transformer)
    scheduler = DPMSolverMultistepScheduler(flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction")
    return SanaPipeline(
        tokenizer=_tokenizer(),
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=scheduler,
    )


def _transformer(size: Size) -> Any:
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=size.heads,
        attention_head_dim=size.head_dim,
        num_cross_attention_heads=size.cross_heads,
        cross_attention_head_dim=size.cross_head_dim,
        cross_attention_dim=size.heads * size.head_dim,
        num_layers=size.layers,
        caption_channels=size.text_width,
        sample_size=16,
    )


def _tame(transformer: Any) -> None:
    """Rescales fresh weights: the field becomes smooth in time, moderate in text, and about one in size.

    An untrained time embedding hears all its sinusoids alike, of which the fastest turns 1000 rad while t goes from 0
    to 1; no solver could follow. Slow ones are kept, and made louder by what the fast ones lose.
    """
    import torch

    embedding = transformer.time_embed.emb.timestep_embedder
    channels = embedding.linear_1.in_features // 2
    speed = 1000.0 * torch.exp(-math.log(10000.0) * torch.arange(channels) / channels)  # rad per unit of t
    kept = (1.0 / (1.0 + (speed / 4.0) ** 2)).repeat(2)
    with torch.no_grad():
        embedding.linear_1.weight *= kept / kept.square().mean().sqrt()
        embedding.linear_2.weight *= 4.0
        transformer.patch_embed.proj.weight *= 2.0
        for block in transformer.transformer_blocks:
            for parameter in block.attn2.to_out[0].parameters():
                parameter *= len(transformer.transformer_blocks) ** -0.5
        transformer.proj_out.weight *= 2.0


def _vae() -> Any:
    """A DC-AE with the true compression of 32, so its latents are H/32 x W/32."""
    from diffusers import AutoencoderDC

    stages: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        stages |= {
            f"{side}_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            f"{side}_block_out_channels": (8, 8, 16, 16, 32, 32),
            f"{side}_layers_per_block": (1,) * 6,
            f"{side}_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
        }
    return AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
        **stages,
    )


def _text_encoder(size: Size) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=len(_vocabulary()),
        hidden_size=size.text_width,
        intermediate_size=2 * size.text_width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=64,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return Gemma2Model(config)


def _vocabulary() -> dict[str, int]:
    """Tokens by number: specials, the 256 bytes that spell everything else, and common characters."""
    tokens = [*_SPECIALS.values(), *(f"<0x{byte:02X}>" for byte in range(256)), *_CHARACTERS]
    return {token: number for number, token in enumerate(tokens)}


def _tokenizer() -> Any:
    """Gemma's kind of tokenizer, one token for each character; `<bos>` is put first."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE
    from transformers import GemmaTokenizerFast  # type: ignore[attr-defined]

    characters = Tokenizer(
        BPE(vocab=_vocabulary(), merges=[], unk_token=_SPECIALS["unk_token"], fuse_unk=True, byte_fallback=True)
    )
    characters.normalizer = normalizers.Replace(" ", _SPACE)
    characters.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return GemmaTokenizerFast(tokenizer_object=characters, add_bos_token=True, **_SPECIALS)
