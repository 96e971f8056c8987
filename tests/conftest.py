"""Fixtures for tests that need a whole run: a toy recipe that takes a fraction of a second."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]

TINY = """# Three modes, a perceptron of one small layer
name: tiny
teacher: {type: gmm, ring: {modes: 3}, network: {width: 16, depth: 1, frequencies: 2}}
method: {type: mfd, solver: {steps: 2}, aux_updates: 2}
optim: {student: {lr: 1e-3}, aux: {lr: 2e-3, schedule: cosine}}
train: {updates: 6, batch_size: 16, threads: 1}
data: {type: gmm}
log: {every: 1, preview_every: 0, checkpoint_every: 0}
evaluate: {num: 0}
"""

#: a plugin that does for a process of its own what the fixture `quick` does for this one
QUICK = """
import mfd_cli.training.run
import teachers.gmm

teachers.gmm._FIT_UPDATES = 20
mfd_cli.training.run.save_preview = lambda path, *rest: path.parent.mkdir(exist_ok=True)
"""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The networks of tests are too small to share between cores, also in processes that tests start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits the toy teacher's network for 20 updates, and draws no previews."""
    import mfd_cli.training.run
    import teachers.gmm

    monkeypatch.setattr(teachers.gmm, "_FIT_UPDATES", 20)
    monkeypatch.setattr(mfd_cli.training.run, "save_preview", lambda path, *rest: path.parent.mkdir(exist_ok=True))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> Path:
    """The toy recipe as a file, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache folder of the tests' own, also in processes that tests start."""
    os.environ["MFD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_sana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the smallest SANA pipeline, with random weights; for reading only."""
    from teachers.pipelines import tiny

    return tiny.ensure("mfd/sana-tiny", tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="session")
def tiny_occfm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the smallest OccFM for grids of 32 cells; for reading only."""
    from teachers.occfm.compressor import Compressor
    from teachers.occfm.driving import DrivingData, DrivingSettings, TinySettings, TinyTeacher
    from teachers.occfm.training import CompressorNetwork, OccFMNetwork, rescaled

    compressor = CompressorNetwork(channels=4, encoder_width=8, decoder_width=16, heads=2)
    sizes = OccFMNetwork(base=8, heads=2, head_width=8, compressor=compressor)
    data = DrivingData.load(DrivingSettings(type="driving", scenes=1, frames=13), None)
    teacher = TinyTeacher.untrained(TinySettings(type="occfm-tiny"), sizes, data)
    torch.manual_seed(0)
    random = Compressor(**teacher.architecture["compressor"]).eval().requires_grad_(False)
    teacher._compressor = rescaled(random, data.frames(torch.arange(4)), 1 / teacher.settings.rescale)
    path = tmp_path_factory.mktemp("occfm") / "tiny.safetensors"
    save_file(teacher.weights(teacher.build_network()), path)
    return path


@pytest.fixture
def disk() -> Callable[..., Any]:
    """`Disk` of dying.py: a disk under a process that dies."""
    spec = importlib.util.spec_from_file_location("dying", Path(__file__).with_name("dying.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Disk


Command = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tiny: Path) -> Command:
    """Starts `mfd` in a process of its own, with the quick fit; ended with the test if it still runs.

    `start("distill", "tiny.yaml", plugin="...code...")`: the code runs before the command.
    """
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, plugin: str = "", cwd: Path | None = None) -> subprocess.Popen[str]:
        folder = tiny.parent
        code = folder / f"plugin{len(running)}.py"
        code.write_text(QUICK + plugin)
        process = subprocess.Popen(
            [*mfd(), "--plugin", str(code), *arguments],
            cwd=cwd or folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def alone() -> dict[str, str]:
    """Environment for a process that a test starts itself; see `environment`."""
    return environment()


def mfd() -> Sequence[str]:
    """The command, as a script would start it: the working folder is not on the import path."""
    return [sys.executable, "-c", "import sys; sys.path[:] = [p for p in sys.path if p]; "
            "from mfd_cli.cli import main; main()"]  # fmt: skip


def environment() -> dict[str, str]:
    """The environment without what would make a process part of a launched job, and with this checkout importable."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
