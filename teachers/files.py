"""Files written whole or not at all, and their SHA-256."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path

#: end of the names of files that are not finished yet
ASIDE = ".tmp"


def write_whole(path: Path, content: bytes) -> None:
    """Creates or replaces a file in one step, by a name that no other process uses meanwhile.

    Raises:
        OSError: it cannot be written; what stood there before still does.
    """
    aside = path.with_name(f".{uuid.uuid4().hex}{ASIDE}")
    try:
        with open(aside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def share_weights(folder: Path, like: Path) -> None:
    """Gives safetensors files below a folder the mode of another file: libraries write them for their owner alone."""
    for file in folder.rglob("*.safetensors"):
        shutil.copymode(like, file)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content, read a megabyte at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
