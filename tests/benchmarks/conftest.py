"""Imports the scripts of benchmarks/ as they import each other, and gives them a recipe of milliseconds."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

import teachers.gmm

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"

TINY = """
name: tiny
teacher: {type: gmm, network: {width: 8, depth: 1}}
method: {type: mfd, solver: {type: euler, steps: 4}, aux_updates: 2}
train: {updates: 3, batch_size: 16, threads: 1}
data: {type: gmm}
evaluate: {num: 0}
"""

DIGITS = """
name: tiny-digits
teacher: {type: digits, guidance: 1.5}
method: {type: mfd, solver: {type: euler, step_size: 0.2}, aux_updates: 2}
train: {updates: 3, batch_size: 4, threads: 1}
data: {type: digits}
"""


@pytest.fixture
def script(monkeypatch):
    """A function from a script's name to its module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in [name for name, module in sys.modules.items() if _from_scripts(module)]:
        del sys.modules[name]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A recipe on the mixture with a student of a few units, hardly fitted."""
    monkeypatch.setattr(teachers.gmm, "_FIT_UPDATES", 5)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return str(path)


@pytest.fixture
def tiny_digits(tmp_path):
    """A recipe on the digits with a guided teacher."""
    path = tmp_path / "tiny-digits.yaml"
    path.write_text(DIGITS, encoding="utf-8")
    return str(path)


def _from_scripts(module) -> bool:
    return Path(getattr(module, "__file__", None) or "/").parent == SCRIPTS
