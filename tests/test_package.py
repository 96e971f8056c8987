"""The wheel holds everything that an installed mfd needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_holds_recipes_and_assets(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a build leaves files behind, which must not get into this folder or the next wheel
    for name in ("mfd_cli", "teachers", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("mfd-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"mfd_cli/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*.yaml")}
    modules = {str(path.relative_to(ROOT)) for top in ("mfd_cli", "teachers") for path in (ROOT / top).rglob("*.py")}
    assets = {str(path.relative_to(ROOT)) for path in (ROOT / "teachers/assets").rglob("*.[ns]*")}
    assert recipes and assets
    assert recipes | modules | assets <= names
