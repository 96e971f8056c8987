"""Arrays that others stored: the one way .npz files are opened."""

from __future__ import annotations

import zlib
from lzma import LZMAError
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

#: what numpy and zipfile raise of files that are damaged, encrypted, packed in an unknown way, or something else
_UNREADABLE = (
    OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, BadZipFile, LZMAError, zlib.error,
)  # fmt: skip


def read_arrays(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays of an .npz file by their names; never a pickle.

    Raises:
        ValueError: the file is missing or damaged, or lacks an array; with the reason.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return [np.asarray(file[name]) for name in names]
    except _UNREADABLE as error:
        raise ValueError(str(error) or type(error).__name__) from error
