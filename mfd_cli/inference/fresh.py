"""A Python process that knows nothing of this one, to see whether what was written works by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

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
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True, env=environment, timeout=seconds, cwd=folder,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise failed(f"a fresh process took more than {seconds:.0f} s to sample from it") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise failed(f"a fresh process could not sample from it ({lines[-1]})")
    return done.stdout


def failed(what: str) -> RunStopped:
    """The error for an export that did not pass."""
    return RunStopped(
        f"the exported file failed its check: {what}; no new export was kept",
        do="export again; if it happens twice, report it with the output of `mfd doctor`",
    )
