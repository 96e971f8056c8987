"""A Python process that knows nothing of this one, to see whether what was written works by itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mfd_cli.errors import RunStopped


def run_fresh(script: str, arguments: Sequence[str], *, seconds: float, folder: Path | None = None) -> bytes:
    """Runs a program in a fresh process and returns what it wrote to stdout.

    Args:
        script: the program's text.
        arguments: its `sys.argv[1:]`.
        seconds: how long it may take.
        folder: where it runs; here if None.

    Raises:
        RunStopped: it failed, or took longer.
    """
    # the same packages as here, wherever they were imported from
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    process: subprocess.Popen[bytes] | None = None
    try:
        with _signals_held():
            process = subprocess.Popen(
                [sys.executable, "-c", script, *arguments],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=folder,
            )  # fmt: skip
        out, told = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise failed(f"a fresh process took more than {seconds:.0f} s to sample from it") from error
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode:
        lines = told.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        raise failed(f"a fresh process could not sample from it ({lines[-1]})")
    return out


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM wait until the block ends: a process that is just being started would be left behind."""
    held: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not None:
                before[number] = signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for held_back, handler in before.items():
            signal.signal(held_back, handler)
        if held:
            signal.raise_signal(held[0])


def failed(what: str) -> RunStopped:
    """The error for an export that did not pass."""
    return RunStopped(
        f"the exported file failed its check: {what}; no new export was kept",
        do="export again; if it happens twice, report it with the output of `mfd doctor`",
    )
