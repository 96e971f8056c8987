"""Every file that any command writes has the mode that the umask gives, wherever it is written."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mfd_cli import cli
from mfd_cli.training.run import distill

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX modes")

#: a teacher of small pictures, to be trained
DOTS = """name: dots
teacher: {type: images, weights: dots.safetensors}
network: {patch_size: 2, width: 8, depth: 1}
train: {updates: 2, batch_size: 4, threads: 1}
data: {type: images, path: dots.npz}
"""


@pytest.fixture
def fenced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that holds all that a test writes, caches included, under a umask that is not the usual one."""
    monkeypatch.setenv("MFD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = os.umask(0o027)
    yield tmp_path
    os.umask(before)


def mfd(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mfd", *line.split()])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code, line


def assert_modes(folder: Path, there: set[Path]) -> None:
    """All that was not there before is readable for the group, as the umask says, and for nobody else."""
    new = {path: oct(path.stat().st_mode & 0o777) for path in folder.rglob("*") if path not in there}
    assert new
    wrong = {str(path): mode for path, mode in new.items() if mode != ("0o640" if path.is_file() else "0o750")}
    assert not wrong


def commands(lines: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs command lines, and looks at what each has written."""
    for line in lines:
        there = set(folder.rglob("*"))
        mfd(line, monkeypatch)
        assert_modes(folder, there)


@pytest.mark.usefixtures("tiny")
def test_what_the_small_commands_write(fenced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distill("tiny.yaml", output="run", overrides=["log.checkpoint_every=2"])
    np.savez("dots.npz", images=np.zeros((4, 4, 4), np.uint8), labels=np.arange(4) % 2)
    Path("dots.yaml").write_text(DOTS)
    torch.save({"state_dict": {"encoder.w": torch.ones(1)}, "epoch": 1}, "published.ckpt")
    torch.save({"layers.0.weight": torch.ones(1)}, "published.pth")
    entry = {
        "x_sampled": np.zeros((1, 2, 3, 3), np.float32), "gt_path": "data/nuscenes/gts/scene/frame/labels.npz",
        "gt_trajs": np.zeros((1, 2), np.float32),
    }  # fmt: skip
    Path("nus_sem_occ_training.pkl").write_bytes(pickle.dumps([entry]))
    lines = [
        "sample run -o points.png", "sample run --num 2 -o points.npz", "sample run",
        "benchmark run --fps --json speed.json", "report run -o page.html --json page.json",
        "doctor --json doctor.json", "teachers list --json teachers.json",
        "recipes copy toy mine.yaml", "recipes schema schema.json", "recipes check mine.yaml --json checked.json",
        "teachers train dots.yaml", "teachers convert occfm published.ckpt -o occfm.safetensors",
        "teachers convert occfm nus_sem_occ_training.pkl -o clips",
        "metrics convert aesthetic published.pth -o aesthetic.safetensors",
    ]  # fmt: skip
    commands(lines, fenced, monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_what_exports_write(fenced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distill("tiny.yaml", output="run", overrides=["student.steps=2"])
    commands(["export run --safetensors", "export run --onnx -o graph"], fenced, monkeypatch)


@pytest.mark.slow
def test_what_a_prompted_run_and_its_exports_write(fenced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fenced)
    few = ["train.updates=1", "train.batch_size=2", "method.aux_updates=1", "log.preview_num=1", "teacher.steps=1"]
    distill("sana-tiny", output="run", overrides=few)
    assert_modes(fenced, set())
    commands(
        ["sample run --prompt fox -o pictures", "export run --lora", "export run --merged -o whole"],
        fenced, monkeypatch,
    )  # fmt: skip
