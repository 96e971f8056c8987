"""What a run shows, and where, decides nothing about what it trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mfd_cli.store.student import read_student
from mfd_cli.training.run import distill

ROOT = Path(__file__).parents[2]


def watched_by_a_terminal(*arguments: str, plugin: str) -> tuple[int, bytes]:
    """Runs the command with stdout and stderr on a terminal: exit code, and what the terminal was sent."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "RANK", "WORLD_SIZE")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "mfd_cli", "--plugin", plugin, *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # how Linux says that nobody holds the other end any more
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=60), shown


@pytest.mark.slow
def test_a_terminal_changes_no_weight_and_is_where_colours_and_bars_go(start: Any) -> None:
    settings = ["--set", "train.updates=20", "--set", "log.every=3"]
    process = start("distill", "tiny.yaml", "-o", "piped", *settings)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "\x1b" not in out + err and "\r" not in out + err
    code, shown = watched_by_a_terminal("distill", "tiny.yaml", "-o", "shown", *settings, plugin="plugin0.py")
    assert code == 0 and b"\x1b[" in shown, shown[-2000:]
    quiet = distill("tiny.yaml", output="quiet", overrides=["train.updates=20", "log.every=20"])
    digests = {read_student(Path(folder)).config["weights_sha256"] for folder in ("piped", "shown", str(quiet.root))}
    assert len(digests) == 1
