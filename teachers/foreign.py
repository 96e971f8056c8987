"""Weights that others published as pickles, opened in the one way that runs nothing of what is in them."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from teachers.errors import TeacherError


def load_pickled(source: Path, what: str, *, allowed: str, do: str) -> Any:
    """What a file of tensors, containers, strings and numbers holds; only converters call this.

    Args:
        source: the published file.
        what: what it should be, for a message, such as "a checkpoint".
        allowed: which files are taken, for a message.
        do: what to do with one that cannot be read.

    Raises:
        TeacherError: it asks for code, is damaged, or is of another format; nothing in it was run.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            # tensors stay on disk until they are copied, so what is not copied is not read; old formats do not allow it
            return torch.load(source, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(source))
    except Exception as error:  # a damaged pickle can fail in every way there is
        # torch's own words would advise to run it
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "damaged, or of another format"
        raise TeacherError(
            f"{source}: not {what} of tensors and plain containers; nothing in it was run ({reason})",
            allowed=allowed,
            do=do,
        ) from error
