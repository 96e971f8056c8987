"""The Python API of the contract."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mfd_cli
from mfd_cli.errors import MfdError

pytestmark = pytest.mark.usefixtures("tiny")


def test_distill_then_load_then_sample() -> None:
    run = mfd_cli.distill("tiny.yaml", overrides=["train.updates=2"])
    assert run.root == Path("runs/tiny")
    student = mfd_cli.load_student("runs/tiny")
    x = student.sample(16, steps=1, seed=0)
    assert x.shape == (16, 2) and x.isfinite().all()
    assert torch.equal(x, mfd_cli.load_student(run.root).sample(16, steps=1, seed=0))
    assert torch.equal(x, mfd_cli.load_student().sample(16))
    torch.testing.assert_close(x[3:5], student.sample(2, first=3), rtol=0, atol=1e-6)  # rounding of another batch size
    assert not torch.equal(x, student.sample(16, seed=1))


def test_a_student_loads_from_every_form_of_it() -> None:
    run = mfd_cli.distill("tiny.yaml", overrides=["train.updates=2"])
    expected = mfd_cli.load_student(run.root).sample(4)
    for path in (run.student, run.student / "model.safetensors", run.checkpoints / "update-000002"):
        assert torch.equal(mfd_cli.load_student(path).sample(4), expected)


def test_a_teacher_loads_from_a_run_a_recipe_and_a_name() -> None:
    run = mfd_cli.distill("tiny.yaml", overrides=["train.updates=1"])
    x = mfd_cli.load_teacher(run.root).sample(8)
    assert x.shape == (8, 2)
    assert torch.equal(x, mfd_cli.load_teacher("tiny.yaml").sample(8))
    assert mfd_cli.load_teacher("toy").sample(1).shape == (1, 2)


def test_a_mistake_is_an_mfd_error() -> None:
    for call in (mfd_cli.distill, mfd_cli.load_student, mfd_cli.load_teacher):
        with pytest.raises(MfdError):
            call("nowhere")


def test_unknown_names_are_attribute_errors_and_import_is_free() -> None:
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        mfd_cli.distil  # noqa: B018
    code = "import sys, mfd_cli; print('torch' in sys.modules, mfd_cli.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"False {mfd_cli.__version__}\n"
