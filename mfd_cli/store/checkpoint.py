"""Training checkpoints: whole or absent, verified before use, the newest valid one found by content.

A checkpoint is a folder of safetensors files and `state.json`; `manifest.json`, written last, lists their sizes and
SHA-256. The folder is written under a hidden name, synced and renamed, so a killed save leaves no half checkpoint.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mfd_cli.errors import MfdError, RunStopped
from mfd_cli.store.files import (
    disk_errors,
    free_bytes,
    human,
    read_json,
    remove,
    remove_leftovers,
    sha256,
    whole_folder,
    write_json,
)
from mfd_cli.store.tensors import read_tensors, write_tensors

FORMAT = 1
_NAME = re.compile(r"update-(\d{6,})(?:\.(\d+))?")
#: a file in a checkpoint; no path, and no name that a disk might refuse
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
#: what stands aside while a checkpoint of the same position takes its place
_REPLACED = re.compile(r"\.(update-[\d.]+)\.old")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk.

    Attributes:
        path: its folder.
        state: counters and settings, content of state.json.
    """

    path: Path
    state: dict[str, Any]

    def tensors(self, part: str) -> dict[str, Tensor]:
        """One part's tensors ("student", "aux", "ema", "optim")."""
        return read_tensors(self.path / f"{part}.safetensors")


def save_checkpoint(
    folder: Path,
    *,
    update: int,
    inside: int,
    parts: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes a checkpoint, verifies it by reading it back, then removes the oldest ones.

    Any that claim more progress are removed too: a run stands where it last saved, so they are damaged ones that it
    was not resumed from, or another run's.

    Args:
        folder: the run's checkpoints folder.
        update: student updates done.
        inside: auxiliary updates done since; 0 at the border between two student updates.
        parts: tensors of each role and of the optimizers.
        state: JSON data to continue from.
        keep: number of checkpoints to leave.

    Raises:
        RunStopped: no space; earlier checkpoints are unharmed.
    """
    remove_leftovers(folder)
    size = sum(tensor.numel() * tensor.element_size() for part in parts.values() for tensor in part.values())
    require_space(folder, size)
    path = folder / (f"update-{update:06d}" + (f".{inside}" if inside else ""))
    with whole_folder(path, replace=True) as aside:
        for name, tensors in parts.items():
            write_tensors(aside / f"{name}.safetensors", tensors)
        write_json(aside / "state.json", {"format": FORMAT, "update": update, "inside": inside, **state})
        write_json(aside / "manifest.json", {"format": FORMAT, "files": _listing(aside)})
    verify(path)
    with disk_errors(path):
        _prune(folder, (update, inside), keep)
    return path


def require_space(folder: Path, size: int) -> None:
    """Raises RunStopped if the disk has no room for `size` bytes and a tenth more."""
    free = free_bytes(folder)
    if free < 1.1 * size:
        raise RunStopped(
            f"{folder}: a checkpoint needs {human(size)} and {human(free)} are free",
            do="make room and continue with `--resume`; earlier checkpoints are unharmed",
        )


def verify(path: Path) -> Checkpoint:
    """Checks a checkpoint against its manifest.

    Raises:
        MfdError: files are missing, cut, changed, or of a newer format; all of them are listed.
    """
    try:
        manifest = read_json(path / "manifest.json")
        version = int(manifest["format"])
        files = {name: (int(facts["size"]), str(facts["sha256"])) for name, facts in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise MfdError(
            f"{path}: no readable manifest.json ({error})", do="resume from an earlier checkpoint"
        ) from error
    if version > FORMAT:
        raise MfdError(f"{path}: checkpoint format {version}, this mfd reads up to {FORMAT}", do="use a newer mfd")
    problems = []
    for name, (size, digest) in files.items():
        file = path / name
        if not _FILE.fullmatch(name) or not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != size:
            problems.append(f"{name} has {file.stat().st_size} bytes instead of {size}")
        elif sha256(file) != digest:
            problems.append(f"{name} has changed (SHA-256 differs)")
    if problems or "state.json" not in files:
        raise MfdError(f"{path}: damaged: {'; '.join(problems) or 'state.json is not listed'}")
    try:
        state = read_json(path / "state.json")
        state["update"], state["inside"] = int(state["update"]), int(state["inside"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise MfdError(f"{path}: state.json has no position ({error})") from error
    return Checkpoint(path, state)


def newest_valid(
    folder: Path, foreign: Callable[[Checkpoint], str | None] = lambda checkpoint: None
) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with newer ones that were passed over.

    Args:
        folder: the run's checkpoints folder.
        foreign: why a checkpoint is another run's, if it is.
    """
    passed_over: list[str] = []
    for _, path in sorted([*_sorted(folder), *_replaced(folder)], reverse=True):
        try:
            found = verify(path)
        except MfdError as error:
            passed_over.append(error.found)
            continue
        why = foreign(found)
        if why is None:
            return found, passed_over
        passed_over.append(f"{path}: {why}")
    return None, passed_over


def set_aside_after(checkpoint: Checkpoint) -> None:
    """Renames the checkpoints that were passed over for this one, so that they no longer count as kept."""
    position = checkpoint.state["update"], checkpoint.state["inside"]
    for later, path in _sorted(checkpoint.path.parent):
        if later > position:
            aside = path.with_name(f"passed-over-{path.name}")
            remove(aside)
            path.rename(aside)


def _prune(folder: Path, newest: tuple[int, int], keep: int) -> None:
    """Leaves the checkpoint at position `newest` and the `keep` - 1 before it."""
    found = _sorted(folder)
    before = [path for position, path in found if position < newest]
    after = [path for position, path in found if position > newest]
    for path in [*after, *before[: max(0, len(before) - keep + 1)]]:
        remove(path)


def _listing(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        file.name: {"size": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.iterdir())
        if not file.name.startswith(".")
    }


def _sorted(folder: Path) -> list[tuple[tuple[int, int], Path]]:
    """Checkpoint folders by progress, oldest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            found.append(((int(match[1]), int(match[2] or 0)), path))
    return sorted(found)


def _replaced(folder: Path) -> list[tuple[tuple[int, int], Path]]:
    """Checkpoints that a killed process had moved aside to replace, and did not replace."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        place = _REPLACED.fullmatch(path.name)
        match = _NAME.fullmatch(place[1]) if place else None
        if place and match and not os.path.lexists(folder / place[1]):
            found.append(((int(match[1]), int(match[2] or 0)), path))
    return found
