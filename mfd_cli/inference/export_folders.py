"""Folders that an export fills as a whole: made under a hidden name, never put over something else."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from mfd_cli.errors import MfdError, RunStopped
from mfd_cli.inference.card import content_of
from mfd_cli.store.files import disk_errors, free_bytes, human, sync_folder


def is_present(folder: Path, content: str) -> bool:
    """Whether a folder already holds this export; False if there is nothing.

    Raises:
        MfdError: it holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if folder.is_dir() and content_of(folder) == content:
        return True
    raise MfdError(f"{folder} exists and holds something else", do="choose another folder with -o")


@contextlib.contextmanager
def aside(folder: Path, needed: int) -> Iterator[Path]:
    """Gives a hidden folder beside the final one, which takes its name if the block ends without an exception.

    Raises:
        RunStopped: less free space than needed, or the disk refuses.
    """
    free = free_bytes(folder.parent)
    if needed > free:
        raise RunStopped(f"{folder}: {human(needed)} needed, {human(free)} free", do="make room, or use -o or --dtype")
    made_here = [parent for parent in folder.parents if not parent.exists()]
    with disk_errors(folder, needed):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as hidden:
                fresh = Path(hidden) / folder.name
                fresh.mkdir()
                yield fresh
                if folder.exists():
                    folder.rmdir()  # empty, or it would have been refused
                os.rename(fresh, folder)
                sync_folder(folder.parent)
        except BaseException:
            for parent in made_here:
                with contextlib.suppress(OSError):  # somebody else may use it by now
                    parent.rmdir()
            raise


@contextlib.contextmanager
def computing_in_float32(network: nn.Module | None) -> Iterator[None]:
    """Has a network compute in float32 inside the block, and puts its own tensors back."""
    before = [] if network is None else [*network.parameters(), *network.buffers()]
    narrow = [(value, value.data) for value in before if value.is_floating_point() and value.dtype != torch.float32]
    for value, data in narrow:
        value.data = data.float()
    try:
        yield
    finally:
        for value, data in narrow:
            value.data = data
