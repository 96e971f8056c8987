"""The files of a diffusers pipeline: where they are, what they say they are, and their parts one by one.

Weights are read from safetensors only, no code of a repository is ever run, and a hub revision is resolved to its
commit.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teachers.errors import TeacherError
from teachers.pipelines.quiet import quiet
from teachers.weights import require_shards_inside

if TYPE_CHECKING:
    import torch
    from torch import nn

#: names of the pipelines that mfd builds itself (teachers.pipelines.tiny) begin so
BUILT = "mfd/"
_INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")
#: what a part, and so its folder, may be called
_PART = re.compile(r"\w+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """A pipeline on disk.

    Attributes:
        model: the name or folder that the user gave.
        folder: where its files are.
        commit: hub commit; None for a local folder.
        variant: variant of the weight files, such as "fp16".
    """

    model: str
    folder: Path
    commit: str | None = None
    variant: str | None = None

    @functools.cached_property
    def index(self) -> dict[str, Any]:
        """Content of model_index.json."""
        return _read_json(self.folder / _INDEX)

    @property
    def pipeline(self) -> str:
        """Name of the pipeline's class."""
        return str(self.index.get("_class_name"))

    def config(self, part: str) -> dict[str, Any]:
        """Configuration of one part."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return _read_json(self.folder / part / name)

    def part_class(self, part: str) -> Any:
        """The class of one part.

        Raises:
            TeacherError: the pipeline has no such part, or its class comes from anywhere but diffusers or transformers.
        """
        found = self.index.get(part)
        if not (isinstance(found, list) and len(found) == 2 and all(isinstance(word, str) for word in found)):
            raise TeacherError(f"{self.model}: the pipeline has no {part}", allowed="a complete pipeline")
        library, name = found
        if library not in _LIBRARIES:
            raise TeacherError(
                f"{self.model}: its {part} is code of the repository ({library}.{name})",
                allowed="parts from diffusers and transformers; code that comes with weights is never run",
            )
        kind = getattr(importlib.import_module(library), name, None)
        if not isinstance(kind, type):
            raise TeacherError(f"{self.model}: this version of {library} has no {name}", do=f"upgrade {library}")
        return kind

    def load(self, part: str, dtype: torch.dtype) -> nn.Module:
        """One part with its weights in a type.

        Raises:
            TeacherError: weights are missing, damaged or not safetensors.
        """
        named = {"torch_dtype": dtype} if self.index[part][0] == "diffusers" else {"dtype": dtype}
        cls = self.part_class(part)
        try:
            with quiet():
                return cls.from_pretrained(
                    self.folder, subfolder=part, use_safetensors=True, variant=self.variant, local_files_only=True,
                    **named,
                )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            raise unreadable(self, part, error) from error

    def digest(self, parts: Iterable[str]) -> str:
        """SHA-256 over the names and contents of the files of some parts."""
        return _digest(self.folder, tuple(parts), self.variant)


def locate(model: str, revision: str | None = None, variant: str | None = None) -> Source:
    """Finds a pipeline: a folder, one that mfd builds, or a hub repository, which is downloaded into the hub's cache.

    Raises:
        TeacherError: there is none, it cannot be fetched, or it is no complete pipeline.
    """
    from teachers.pipelines import tiny
    from teachers.prompts.cache import cache_home

    if model in tiny.TINY:
        return Source(model, tiny.ensure(model, cache_home() / "pipelines"))
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _complete(Source(model, folder, variant=variant))
    if model.startswith(BUILT):
        raise TeacherError(f"teacher.model: {model}", allowed=", ".join(tiny.TINY))
    if model.startswith((".", "/", "~")) or model.count("/") != 1 or folder.exists():
        raise TeacherError(
            f"teacher.model: {model}: no such folder", allowed="a pipeline's folder, or a hub repository (owner/name)"
        )
    return _complete(_fetched(model, revision, variant))


def configs_of(model: str, revision: str | None = None) -> Source:
    """A pipeline's configuration files without its weights.

    Raises:
        TeacherError: as `locate`.
    """
    if model.startswith((BUILT, ".", "/", "~")) or Path(model).is_dir():
        return locate(model, revision)
    from huggingface_hub import snapshot_download

    try:
        return _complete(Source(model, Path(snapshot_download(model, revision=revision, allow_patterns=["*.json"]))))
    except Exception as error:
        raise TeacherError(
            f"teacher.model: {model}: the hub did not give its configuration ({type(error).__name__})",
            do="name a well-known SANA model or a local folder",
        ) from error


def require_flow(source: Source) -> None:
    """Raises TeacherError unless the pipeline's scheduler says that its network predicts a flow's velocity."""
    config = source.config("scheduler")
    name, kind = str(config.get("_class_name")), config.get("prediction_type")
    if name.startswith("FlowMatch") or kind == "flow_prediction":
        return
    raise TeacherError(
        f"{source.model}: not a flow-matching model: its scheduler ({name}) says that the network predicts "
        f"'{kind or 'epsilon'}'",
        allowed="a FlowMatch scheduler, or prediction_type 'flow_prediction'",
        do="distill a flow-matching model; this one is a diffusion model of another kind",
    )


def unreadable(source: Source, part: str, error: Exception) -> TeacherError:
    """What to tell when a part cannot be loaded."""
    folder = source.folder / part
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.ckpt") for file in folder.glob(pattern))
    if pickles and not list(folder.glob("*.safetensors")):
        return TeacherError(
            f"{source.model}: its {part} has pickled weights only ({', '.join(pickles[:3])})",
            allowed="safetensors",
            do="convert them first, where you trust their origin",
        )
    detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    variants = sorted({match[1] for file in folder.glob("*.safetensors") if (match := _variant(file.name))})
    return TeacherError(
        f"{source.model}: its {part} cannot be loaded from {folder} ({detail})",
        allowed=f"teacher.variant: {', '.join(variants)}" if variants and source.variant not in variants else None,
        do="complete or renew the download" if source.commit else "check the folder",
    )


def _variant(name: str) -> re.Match[str] | None:
    return re.fullmatch(r"[\w-]+\.(\w+)(?:-\d+-of-\d+)?\.safetensors", name)


def _complete(source: Source) -> Source:
    if not (source.folder / _INDEX).is_file():
        raise TeacherError(
            f"{source.model}: {source.folder} holds no {_INDEX}", allowed="the folder of a complete diffusers pipeline"
        )
    if odd := [part for part in source.index if not _PART.fullmatch(part)]:
        raise TeacherError(
            f"{source.folder / _INDEX}: {odd[0][:80]!r} is no name of a part", allowed="names of folders beside it"
        )
    require_shards_inside(source.folder)
    return source


def _fetched(model: str, revision: str | None, variant: str | None) -> Source:
    from diffusers import DiffusionPipeline

    try:
        folder = Path(DiffusionPipeline.download(model, revision=revision, variant=variant, use_safetensors=True))
    except Exception as error:  # the hub's client has dozens of kinds, offline and forbidden among them
        detail = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TeacherError(
            f"teacher.model: {model}: no such folder, and the hub did not give it ({type(error).__name__}: {detail})",
            allowed="a pipeline's folder, or a hub repository with safetensors weights",
            do=f"with network: `hf download {model}` (and `hf auth login` for gated models); for a rehearsal "
            "without weights: `mfd distill RECIPE --dry-run --random-weights`",
        ) from error
    commit = folder.name if _COMMIT.fullmatch(folder.name) else None
    return Source(model, folder, commit, variant)


@functools.lru_cache
def _digest(folder: Path, parts: tuple[str, ...], variant: str | None) -> str:
    digest = hashlib.sha256()
    for part in parts:
        for file in sorted(path for path in (folder / part).rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(folder).as_posix()}:{os.path.getsize(file)}\n".encode())
            with open(file, "rb") as content:
                while block := content.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise TeacherError(
            f"{path}: cannot be read ({error})", allowed="the folder of a complete diffusers pipeline"
        ) from error
