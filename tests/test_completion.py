"""What the shell completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mfd_cli import completion
from mfd_cli.methods.registry import methods
from mfd_cli.store.layout import RunFolder


def test_recipes_teachers_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch()
    Path("runs/first").mkdir(parents=True)
    RunFolder(Path("runs/first")).update_record(status="finished")
    assert completion.recipes("to") == ["toy"] and completion.recipes("mi") == ["mine.yaml"]
    assert "digits" in completion.teachers("") and completion.teachers("gm") == ["gmm"]
    assert completion.runs("runs/") == ["runs/first"]


def test_settings_name_methods_and_every_fixed_key() -> None:
    assert completion.settings("method.type=") == [f"method.type={name}" for name in methods.names()]
    assert completion.settings("method.type=df") == [] and completion.settings("method.type=dm") == ["method.type=dmd2"]
    assert completion.settings("optim.student.l") == ["optim.student.lr="]
    assert "train.batch_size=" in completion.settings("train.")


def test_the_shell_is_answered_without_torch() -> None:
    words = {"_MFD_COMPLETE": "complete_bash", "COMP_WORDS": "mfd distill di", "COMP_CWORD": "2"}
    code = "import sys; from mfd_cli.cli import app\ntry: app(prog_name='mfd')\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["digits"]
