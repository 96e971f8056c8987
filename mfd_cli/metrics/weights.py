"""Where a metric's weights are: a file, a folder in transformers' layout, or a repository of the hub. No pickle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from mfd_cli.errors import MfdError
from teachers.files import sha256
from teachers.weights import read_tensors, require_shards_inside

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_CONFIGS = ["*.json", "*.txt"]
_COMMIT = re.compile(r"[0-9a-f]{40}")


def require_file(metric: str, key: str, path: str | None, *, get: str, convert: str | None = None) -> Path:
    """A local safetensors file.

    Args:
        metric: the metric's registered name.
        key: the recipe key that names the file.
        path: what it says.
        get: how to get the file, in one line.
        convert: the name under which `mfd metrics convert` knows these weights; the metric's own if None.

    Raises:
        MfdError: none is named, it is missing, or it is a pickle; with the way to get one.
    """
    if path is None:
        raise MfdError(f"{metric} needs {key}: a file of weights", do=get)
    file = Path(path).expanduser()
    if file.suffix.lower() in _PICKLES:
        raise MfdError(
            f"{metric}: {key}: {path} is a pickle, which mfd does not read as weights",
            allowed="a .safetensors file",
            do=f"mfd metrics convert {convert or metric} {path} -o {file.stem}.safetensors",
        )
    if not file.is_file():
        raise MfdError(f"{metric}: {key}: {path}: no such file", allowed="a .safetensors file", do=get)
    return file


def locate(metric: str, key: str, model: str, *, weights: bool = True) -> Path:
    """The folder of a model, or of a tokenizer, in transformers' layout.

    A repository is looked for in the hub's cache and then downloaded into it; code of a repository is never run.

    Args:
        metric: the metric's registered name.
        key: the recipe key that names the model.
        model: a folder, or a repository (owner/name, or owner/name@revision).
        weights: whether it is to hold model.safetensors, besides configurations.

    Raises:
        MfdError: there is none, the hub does not give it, or it has no safetensors weights.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _complete(metric, key, model, folder, weights)
    if model.startswith((".", "/", "~")) or model.count("/") != 1 or folder.exists():
        raise MfdError(
            f"{metric}: {key}: {model}: no such folder",
            allowed="a folder, or a hub repository (owner/name, owner/name@revision)",
        )
    from huggingface_hub import snapshot_download

    patterns = [*_CONFIGS, *(["model.safetensors", "model-*.safetensors"] if weights else [])]
    name, _, given = model.partition("@")
    revision = given or None
    try:
        try:
            found = snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True)
            return _complete(metric, key, model, Path(found), weights)
        except Exception:  # not in the cache, or without all of its files
            found = snapshot_download(name, revision=revision, allow_patterns=patterns)
    except Exception as error:  # the hub's client has dozens of kinds, offline and forbidden among them
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MfdError(
            f"{metric}: {key}: {model}: no such folder, and the hub did not give it ({type(error).__name__}: {detail})",
            allowed="a folder in transformers' layout, or a hub repository with model.safetensors",
            do=f"with network: {download_line(model, weights=weights)}; then, without: "
            f"--metric '{{type: {metric}, {key}: FOLDER}}'",
        ) from error
    return _complete(metric, key, model, Path(found), weights)


def file_and_tokenizer(settings: Any, *, get: str) -> tuple[Path, Path]:
    """The file that `model` names and the folder of the tokenizer that `tokenizer` names.

    Raises:
        MfdError: either is missing.
    """
    file = require_file(settings.type, "model", settings.model, get=get)
    return file, locate(settings.type, "tokenizer", settings.tokenizer, weights=False)


def download_line(model: str, *, weights: bool = True) -> str:
    """The command that fetches a repository's files that are read."""
    parts = [*_CONFIGS, *(["model.safetensors"] if weights else [])]
    name, _, revision = model.partition("@")
    place = f"{name} --revision {revision}" if revision else name
    return f"hf download {place} {' '.join(f'--include {part!r}' for part in parts)} --local-dir FOLDER"


def loaded(cls: Any, folder: Path, metric: str) -> Any:
    """A transformers model in float32, for evaluation only.

    Raises:
        MfdError: the files do not fit the class.
    """
    from teachers.pipelines.quiet import quiet

    try:
        with quiet():
            model, facts = cls.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MfdError(f"{metric}: {folder} cannot be loaded as {cls.__name__} ({detail})") from error
    missing = sorted(facts["missing_keys"])
    if missing:
        raise MfdError(
            f"{metric}: {folder} lacks {len(missing)} of the weights of {cls.__name__}, such as {missing[0]}",
            allowed="the whole model",
        )
    return model.float().eval().requires_grad_(False)


def tokenizer(folder: Path, metric: str) -> Any:
    """The tokenizer in a folder.

    Raises:
        MfdError: there is none that can be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as many kinds as there are tokenizers
        raise MfdError(f"{metric}: no tokenizer can be read from {folder} ({type(error).__name__})") from error


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file in float32. Raises MfdError if it is damaged or holds what is not finite."""
    return {name: value.float() if value.is_floating_point() else value for name, value in read_tensors(path).items()}


def identity(model: str, place: Path) -> dict[str, str]:
    """What distinguishes weights from others: a hub commit, or the SHA-256 of the file."""
    if _COMMIT.fullmatch(place.name):
        return {"model": model, "commit": place.name}
    file = place / "model.safetensors" if place.is_dir() else place
    return {"model": model, **({"sha256": sha256(file)} if file.is_file() else {})}


def _complete(metric: str, key: str, model: str, folder: Path, weights: bool) -> Path:
    names = {path.name for path in folder.iterdir()}
    if weights and not any(name.endswith(".safetensors") and name.startswith("model") for name in names):
        pickles = sorted(name for name in names if name.endswith(_PICKLES))
        found = f"pickled weights only ({', '.join(pickles[:3])})" if pickles else "no weights"
        raise MfdError(
            f"{metric}: {key}: {model} has {found}", allowed="config.json and model.safetensors",
            do=download_line(model) if not Path(model).is_dir() else None,
        )  # fmt: skip
    if weights and "config.json" not in names:
        raise MfdError(f"{metric}: {key}: {model} has no config.json", allowed="config.json and model.safetensors")
    if weights:
        require_shards_inside(folder)
    return folder
