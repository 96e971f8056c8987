"""The finished student on disk: `model.safetensors` and `config.json`, or one file that carries its config.

The config is all that sampling needs besides the weights (for an adapter: besides those of its teacher, too):

    format, mfd_version, teacher (its settings), architecture, method, update, ema, identity (of the teacher),
    student {steps, shift, sampler, flow_map, any_steps, grid, weights, lora {rank, alpha, targets} or null,
             first_time},
    data (its settings), recipe (complete),
    weights_sha256 (of the tensors), config_sha256 (of all this)

Beside the network's tensors stand those that the family needs to decode (`Teacher.carried`), under names of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mfd_cli.config.schema import plain_name
from mfd_cli.errors import MfdError, NewerFormat
from mfd_cli.store.checkpoint import verify
from mfd_cli.store.files import whole_folder, write_json
from mfd_cli.store.layout import CONFIG, WEIGHTS, RunFolder, is_checkpoint
from mfd_cli.store.tensors import read_header, read_tensors, write_tensors

FORMAT = 1
#: first part of the names of tensors that are not the network's
_CARRIED = "carried."
_SEAL = ("format", "weights_sha256", "config_sha256")


@dataclass(frozen=True)
class StoredStudent:
    """A student's weights and config, as read.

    Attributes:
        config: see the module's text.
        weights: every tensor of the file.
        path: where it was read from.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    path: Path

    @property
    def network(self) -> dict[str, Tensor]:
        """State dict of the network."""
        return {name: value for name, value in self.weights.items() if not name.startswith(_CARRIED)}

    @property
    def carried(self) -> dict[str, Tensor]:
        """What `Teacher.receive` takes; empty in checkpoints, whose teacher is at hand."""
        return {name.removeprefix(_CARRIED): value for name, value in self.weights.items() if name.startswith(_CARRIED)}


def student_tensors(network: nn.Module, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors to store of a student: its network's, and those that decoding needs."""
    return {**network.state_dict(), **{f"{_CARRIED}{name}": value for name, value in carried.items()}}


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of tensors, whatever file they are in."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_student(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Writes a student folder, whole or not at all, in place of an older one."""
    full = _sealed(config, weights)
    with whole_folder(folder, replace=True) as aside:
        write_tensors(aside / WEIGHTS, weights, header=full)
        write_json(aside / CONFIG, full)


def save_student_file(path: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Writes a student as one self-describing file, its config in the safetensors header."""
    write_tensors(path, weights, header=_sealed(config, weights))


def content(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config without what sealing it added: format and hashes."""
    return {key: value for key, value in config.items() if key not in _SEAL}


def read_student(path: Path) -> StoredStudent:
    """A student from a run folder, a student or export folder, a checkpoint folder or a single file.

    Raises:
        MfdError: the run has no student yet; files are missing, damaged, foreign, or of a newer format.
    """
    if path.is_dir() and RunFolder(path).is_run():
        if not RunFolder(path).student.is_dir():
            raise MfdError(
                f"{path}: this run has no finished student yet",
                do=f"continue it with `mfd distill {path}/recipe.yaml -o {path} --resume`, or name a checkpoint in it",
            )
        path = RunFolder(path).student
    if path.is_dir() and is_checkpoint(path):
        return _from_checkpoint(path)
    file = path / WEIGHTS if path.is_dir() else path
    config = read_header(file)
    _check_format(file, config)
    _require_plain_name(file, config)
    weights = read_tensors(file)
    if config.get("weights_sha256") != fingerprint(weights):
        raise MfdError(f"{file}: the weights have changed since mfd wrote them (SHA-256 differs)", do="copy it again")
    if config.get("config_sha256") != _config_hash(config):
        raise MfdError(f"{file}: the config has changed since mfd wrote it (SHA-256 differs)", do="copy it again")
    return StoredStudent(config, weights, path)


def _sealed(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    sealed = {"format": FORMAT, **content(config), "weights_sha256": fingerprint(weights)}
    return sealed | {"config_sha256": _config_hash(sealed)}


def _config_hash(config: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in config.items() if key != "config_sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _from_checkpoint(path: Path) -> StoredStudent:
    checkpoint = verify(path)
    _require_plain_name(path, checkpoint.state["student"])
    part = "ema" if checkpoint.state["student"].get("ema") else "student"
    return StoredStudent({"format": FORMAT, **checkpoint.state["student"]}, checkpoint.tensors(part), path)


def _require_plain_name(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses a recipe's name that leads elsewhere: pictures and exports are called after it."""
    recipe = config.get("recipe") or {}
    try:
        if "name" in recipe:
            plain_name(recipe["name"])
    except (ValueError, TypeError, AttributeError) as error:
        raise MfdError(
            f"{path}: the student's recipe has a name that is none ({error})", do="train it again"
        ) from error


def _check_format(file: Path, config: Mapping[str, Any]) -> None:
    if not isinstance(config.get("format"), int) or "architecture" not in config:
        raise MfdError(f"{file}: not a student's weights", allowed="a student or an export of mfd")
    if config["format"] > FORMAT:
        raise NewerFormat(
            f"{file}: student format {config['format']}, this mfd reads up to {FORMAT}", do="use a newer mfd"
        )
