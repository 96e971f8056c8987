"""OccFM's published checkpoints: turned into safetensors once, then read as names and tensors.

A published `.ckpt` is a pickle, so only `convert` opens one, with a loader that builds tensors and containers and
nothing else. Names after conversion begin with `embedding.`, `encoder.`, `decoder.` (the compressor) and, except in
files of the compressor alone, `transition_model.`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from teachers.errors import TeacherError
from teachers.files import sha256, write_whole
from teachers.foreign import load_pickled
from teachers.occfm.architecture import COMPRESSOR, TRANSITION
from teachers.weights import HEADER, read_tensors

Weights = Literal["ema", "raw"]

#: first parts of the names of OccFM's tensors
PARTS = (*COMPRESSOR, TRANSITION)

_PICKLES = (".ckpt", ".pt", ".pth", ".pkl", ".bin")
_WRAPPER = "module."  # put before every name by DDP, and once more by AveragedModel
_COUNT = "n_averaged"  # AveragedModel's own


def published_names(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict under OccFM's names, without what wrappers added.

    Args:
        state: a state dict of the model, of DDP around it, of AveragedModel around either.

    Returns:
        The same tensors by name; the number of averaged updates and all that is no tensor are left out.

    Raises:
        TeacherError: two names become one.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        while name.startswith(_WRAPPER):
            name = name.removeprefix(_WRAPPER)
        if name == _COUNT or not isinstance(value, Tensor):
            continue
        if name in tensors:
            raise TeacherError(f"two tensors are named {name} once '{_WRAPPER}' is taken off")
        tensors[name] = value
    return tensors


def convert(source: Path, target: Path, weights: Weights | None = None, *, force: bool = False) -> dict[str, Any]:
    """Writes the weights of a published checkpoint as safetensors, every tensor in the type it has.

    Args:
        source: a `.ckpt` of OccFM or of its compressor, or a bare state dict.
        target: the safetensors file to write; its folder must exist.
        weights: averaged (`ema`) or last (`raw`) weights; by default averaged ones where there are any.
        force: whether to replace a file.

    Returns:
        The header of the new file (type, source_sha256, source_name, weights, epoch), and `tensors`: their number.

    Raises:
        TeacherError: the source is missing, damaged, holds no weights of OccFM, not those asked for, or values that
            are not finite; the target exists or cannot be written.
    """
    if target.exists() and not force:
        raise TeacherError(f"{target}: exists", do="give another name, or replace it with --force")
    digest = _sha256(source)
    checkpoint = _load(source)
    kind, state = _choose(checkpoint, weights, source)
    tensors = _checked(published_names(state), source)
    epoch = checkpoint.get("epoch")
    header = {
        "type": "occfm",
        "source_sha256": digest,
        "source_name": source.name,
        "weights": kind,
        "epoch": epoch if type(epoch) is int else None,
    }
    # each tensor in memory of its own: safetensors refuses tensors that share it
    own = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    _write(target, save(own, metadata={HEADER: json.dumps(header)}))
    return header | {"tensors": len(own)}


def read_weights(path: Path) -> dict[str, Tensor]:
    """OccFM's tensors by published name, from a file that `convert` wrote or any safetensors file of the model.

    Raises:
        TeacherError: the file is a pickle, or holds no weights of OccFM.
        MfdError: it is missing, damaged, or holds values that are not finite.
    """
    if path.suffix.lower() in _PICKLES:
        raise TeacherError(
            f"{path}: a checkpoint in pickle format, which mfd does not read as weights",
            allowed="a .safetensors file",
            do=f"convert it first with `mfd teachers convert occfm {path} -o {path.stem}.safetensors`",
        )
    tensors = published_names(read_tensors(path))
    _refuse_foreign(tensors, path)
    return tensors


def _load(source: Path) -> Mapping[str, Any]:
    content = load_pickled(
        source, "a checkpoint", allowed="a .ckpt that OccFM's training wrote", do="copy or download it again"
    )
    if not isinstance(content, Mapping):
        raise TeacherError(f"{source}: not a checkpoint but a {type(content).__name__}", allowed="a dict of tensors")
    return {str(name): value for name, value in content.items()}


def _choose(checkpoint: Mapping[str, Any], asked: Weights | None, source: Path) -> tuple[Weights, Mapping[str, Any]]:
    """Which weights are taken, and their state dict."""
    held: dict[Weights, Mapping[str, Any]] = {}
    if isinstance(checkpoint.get("state_dict"), Mapping):
        held["raw"] = checkpoint["state_dict"]
    if isinstance(checkpoint.get("ema_model"), Mapping):
        held["ema"] = checkpoint["ema_model"]
    if not held:  # a bare state dict; averaged if it counts its updates
        held["ema" if _COUNT in checkpoint else "raw"] = checkpoint
    kind: Weights = asked or ("ema" if "ema" in held else "raw")
    if kind not in held:
        words = {"ema": "averaged (ema) weights", "raw": "raw weights"}
        other = next(iter(held))
        raise TeacherError(f"{source}: holds no {words[kind]}", allowed=words[other], do=f"ask for --weights {other}")
    return kind, held[kind]


def _checked(tensors: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    _refuse_foreign(tensors, source)
    odd = [name for name, value in tensors.items() if value.layout != torch.strided or value.is_quantized]
    if odd:
        raise TeacherError(f"{source}: sparse or quantized tensors: {', '.join(odd[:5])}", allowed="dense tensors")
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise TeacherError(
            f"{source}: NaN or infinite values in {', '.join(bad[:5])}{more}", do="use a checkpoint of another epoch"
        )
    return tensors


def _refuse_foreign(tensors: Mapping[str, Tensor], path: Path) -> None:
    if not any(name.startswith(PARTS) for name in tensors):
        found = f"{len(tensors)} tensors, such as {next(iter(tensors))}" if tensors else "no tensors at all"
        raise TeacherError(
            f"{path}: no weights of OccFM ({found})", allowed=f"names that begin with {', '.join(PARTS)}"
        )


def _sha256(path: Path) -> str:
    try:
        return sha256(path)
    except FileNotFoundError as error:
        raise TeacherError(f"{path}: no such file", allowed="a .ckpt file", do="check the path") from error
    except OSError as error:
        raise TeacherError(f"{path}: cannot be read ({error.strerror or error})") from error


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise TeacherError(
            f"{path}: cannot be written ({error.strerror or error}); {len(content):,} bytes needed",
            do="give a file in a folder that exists and has room",
        ) from error
