"""The pages that a newcomer follows from top to bottom, followed: index.md and tutorial.md."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mfd_cli import cli
from mfd_cli.methods import registry as methods
from teachers import registry

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.M | re.S)


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Language, file name (or "") and text of every block of code."""
    return BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))


def test_the_tutorial_is_short() -> None:
    written = [text for _, name, text in blocks("tutorial.md") if name in ("flower.py", "my_teacher.py")]
    lines = [line for text in written for line in text.splitlines() if line.strip()]
    assert len(written) == 2 and len(lines) < 60


def test_a_file_has_its_name_above_it_too() -> None:
    """Where the page is read without the site, titles of blocks are not shown."""
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    names = [name for _, name, _ in blocks("tutorial.md") if name]
    assert names and all(f"`{name}`\n\n```" in page for name in names)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder; what is registered and imported from it is forgotten afterwards."""
    for known in (registry.teachers, registry.data, methods.methods):
        monkeypatch.setattr(known, "_registered", dict(known._registered))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("flower", "mfd_plugin_my_teacher"):
        sys.modules.pop(name, None)


def mfd(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["mfd", "--plugin", "my_teacher.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


def test_the_tutorial_in_few_updates(
    folder: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _, name, text in blocks("tutorial.md"):
        if name:
            (folder / name).write_text(text.replace("5000", "150"))
    runpy.run_path("flower.py", run_name="__main__")
    assert not mfd(monkeypatch, "teachers", "check", "flower.yaml")
    assert "sign" in capsys.readouterr().out
    few = ["train.updates=2", "train.batch_size=8", "evaluate.num=0"]
    assert not mfd(monkeypatch, "distill", "flower.yaml", *(part for change in few for part in ("--set", change)))
    mistake = "    def velocity(self, network, x, t, condition):\n        return -network(x, t)\n"
    head, tail = (folder / "my_teacher.py").read_text().split("class FlowerTeacher(Teacher):\n")
    (folder / "my_teacher.py").write_text(f"{head}class FlowerTeacher(Teacher):\n{mistake}{tail}")
    for known in (registry.teachers, registry.data):
        known._registered.pop("flower")
    assert mfd(monkeypatch, "teachers", "check", "flower.yaml") == 2
    assert "-u(x, t)" in capsys.readouterr().out


def follow(page: str, folder: Path) -> None:
    """Writes the named blocks of a page, and runs its shell blocks, then its nameless Python, in their order."""
    programs = folder / "bin"
    programs.mkdir()
    for name, module in (("mfd", "-m mfd_cli"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (programs / name).chmod(0o755)
    work = folder / "work"
    work.mkdir()
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    for language, name, text in blocks(page):
        if name:
            (work / name).write_text(text)
            continue
        if language not in ("bash", "python"):
            continue
        text = "\n".join(line for line in text.splitlines() if not line.startswith("pip install"))
        program = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(program, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_the_tutorial_as_it_is_written(tmp_path: Path) -> None:
    follow("tutorial.md", tmp_path)
    report = json.loads((tmp_path / "work/runs/flower/benchmark.json").read_text())
    assert report["gap_recovered"]["frechet"] > 0.95 and report["gap_recovered"]["sliced_wasserstein"] > 0.9
    assert (tmp_path / "work/runs/flower/export/flower.safetensors").is_file()


@pytest.mark.slow
def test_the_start_as_it_is_written(tmp_path: Path) -> None:
    follow("index.md", tmp_path)
    run = tmp_path / "work/runs/toy"
    table = re.search(r"^\| file \|.*?\n\n", (ROOT / "docs/index.md").read_text("utf-8"), re.M | re.S)
    assert table is not None
    named = re.findall(r"^\| `([^`]+)`", table[0], re.M)
    assert len(named) == 5 and all((run / name).exists() for name in named)
    assert json.loads((run / "benchmark.json").read_text())["gap_recovered"]["frechet"] > 0.95
