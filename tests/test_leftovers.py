"""A command that is stopped or fails leaves no process and no temporary file behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfd_cli.training.run import distill

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to see other processes"),
]

#: what an interrupted run holds
HELD = ("recipe.yaml", "run.json", "metrics.jsonl", "previews", "checkpoints")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
#: plugins that make the process which checks an export wait, or fail
WAITS = "import mfd_cli.inference.exporters as exporters\nexporters._CHECK = 'import time; time.sleep(120)'\n"
FAILS = "import mfd_cli.inference.exporters as exporters\nexporters._CHECK = 'raise SystemExit(9)'\n"
#: a teacher whose training takes until it is stopped
DOTS = """name: dots
teacher: {type: images, weights: dots.safetensors}
network: {patch_size: 2, width: 8, depth: 1}
train: {updates: 1000000, batch_size: 4, threads: 1}
data: {type: images, path: dots.npz}
"""


def children(process: int) -> set[int]:
    """The processes that a process has started and that still run."""
    found: set[int] = set()
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        found |= {int(number) for number in task.read_text().split()}
    return found


def runs(process: int) -> bool:
    """Whether there is such a process, and it is not a dead one that nobody has asked about."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(process: int) -> bool:
    """Whether a process ends, which takes a moment after it is killed."""
    for _ in range(100):
        if not runs(process):
            return True
        time.sleep(0.05)
    return False


def until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < 300
        time.sleep(0.02)


def everything() -> set[Path]:
    return {path for path in Path().rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    """Temporary files of commands go below the working folder, where they are seen."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("number", CODES)
def test_an_export_that_is_stopped_ends_its_check_too(number: signal.Signals, start: Any) -> None:
    distill("tiny.yaml", output="run", overrides=["train.updates=1"])
    process = start("export", "run", plugin=WAITS)
    before = everything()
    until(lambda: children(process.pid), process)
    (check,) = children(process.pid)
    assert everything() > before, "something is being written"
    process.send_signal(number)
    _, told = process.communicate(timeout=300)
    assert process.returncode == CODES[number] and "Traceback" not in told
    assert gone(check)
    assert everything() == before


@pytest.mark.usefixtures("inside")
def test_an_export_that_fails_leaves_nothing(start: Any) -> None:
    distill("tiny.yaml", output="run", overrides=["train.updates=1"])
    process = start("export", "run", plugin=FAILS)
    before = everything()
    _, told = process.communicate(timeout=300)
    assert process.returncode == 3 and "no new export was kept" in told and "Traceback" not in told
    assert everything() == before


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("number", CODES)
def test_a_training_of_a_teacher_that_is_stopped_leaves_nothing(number: signal.Signals, start: Any) -> None:
    import numpy as np

    np.savez("dots.npz", images=np.zeros((4, 4, 4), np.uint8), labels=np.arange(4) % 2)
    Path("dots.yaml").write_text(DOTS)
    process = start("teachers", "train", "dots.yaml")
    before = everything()
    read = (process.stderr or sys.stderr).readline
    until(lambda: "update" in read(), process)
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode == CODES[number]
    assert everything() == before


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("number", CODES)
def test_a_run_that_is_stopped_leaves_no_process_and_only_what_a_run_holds(number: signal.Signals, start: Any) -> None:
    process = start("distill", "tiny.yaml", "-o", "run", "--set", "train.updates=100000")
    before = everything()
    until(lambda: Path("run/metrics.jsonl").is_file() and os.path.getsize("run/metrics.jsonl"), process)
    started = children(process.pid)
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode == CODES[number]
    assert all(gone(each) for each in started)
    left = {"/".join(path.parts[:2]) for path in everything() - before}
    assert left <= {"runs", "runs/latest", "run"} | {f"run/{name}" for name in HELD}
    assert not [path for path in everything() - before if path.name.startswith(".")]
