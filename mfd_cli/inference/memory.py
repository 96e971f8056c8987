"""How much memory a device has, and how much of it work has taken."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

import torch

#: parameters of glibc's mallopt, and values: blocks up to 32 MB (its limit) come from a heap that is never given back
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = (-1, 2**31 - 1), (-2, 64 << 20), (-3, 32 << 20)
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory_mb(device: torch.device | str) -> float | None:
    """Largest memory allocated on a CUDA device, or held by this process on a CPU; None where nobody tells."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if torch.device(device).type != "cpu" or sys.platform == "win32":
        return None
    with contextlib.suppress(OSError, StopIteration):
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes there, kibibytes elsewhere


def reset_peak(device: torch.device | str) -> bool:
    """Starts a new peak at what is held now; returns whether this system can."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR.write_text("5", encoding="ascii")  # Linux: forgets the high-water mark of this process
    except OSError:
        return False
    return True


def total_memory_mb(device: torch.device | str) -> float | None:
    """Memory of a CUDA device, or of the machine; None where nobody tells."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e6
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (ValueError, OSError, AttributeError):
        return None


def keep_freed_memory() -> bool:
    """Has the C library keep freed memory for the next tensor; returns whether it can be told (glibc).

    Otherwise a CPU run returns pages to the system with every large intermediate result, and pays to have them back
    with the next one.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(name, value) == 1 for name, value in (_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD))
