"""Small registered types, so that recipes can be checked without the real teachers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from mfd_cli.config import bundled
from mfd_cli.methods.registry import methods
from teachers.registry import data, teachers
from teachers.settings import Settings, Strict, TeacherSettings


class Solver(Strict):
    type: Literal["euler", "heun"] = "euler"
    step_size: float | None = Field(0.02, gt=0)


class FineSettings(TeacherSettings):
    depth: int = Field(2, ge=1)
    layers: list[Solver] = Field(default_factory=list)
    range: tuple[float, float] = (0.0, 1.0)
    text: str = ""
    mode: int | Literal["auto"] = "auto"


class FineNetwork(Strict):
    width: int = 4
    scale: float = 1.0


class PairSettings(Settings):
    solver: Solver = Field(default_factory=Solver)
    aux_updates: int = Field(10, ge=1)


class PointSettings(Settings):
    aux_updates: int = Field(3, ge=1)


class LaxSettings(TeacherSettings, extra="ignore"):
    pass


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {
        (teachers, "fine"): FineSettings,
        (teachers, "lax"): LaxSettings,
        (methods, "pair"): PairSettings,
        (methods, "point"): PointSettings,
        (data, "none"): Settings,
    }
    for (registry, name), settings in entries.items():
        members = {"Settings": settings, "Network": FineNetwork}
        monkeypatch.setitem(registry._registered, name, type("Registered", (), members))


RECIPE = """# a recipe for tests
name: demo
teacher: {type: fine, depth: 3}
method:
  type: pair
  solver: {type: heun, step_size: 1e-2}
  aux_updates: 4
train:
  updates: 12
  batch_size: 8
data: {type: none}
"""

TEACHER_RECIPE = """# trains a teacher for tests
name: demo-teacher
teacher: {type: fine}
network: {width: 8, scale: 1e-4}
train: {updates: 5, batch_size: 2}
data: {type: none}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """demo.yaml in the working folder; its path is relative."""
    monkeypatch.chdir(tmp_path)
    path = Path("demo.yaml")
    path.write_text(RECIPE)
    return path


@pytest.fixture
def bundle(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of bundled recipes with `small` and `teachers/small`."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "teachers").mkdir()
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "teachers" / "small.yaml").write_text(TEACHER_RECIPE)
    (folder / "README.md").write_text("not a recipe")
    monkeypatch.setattr(bundled, "folder", lambda: folder)
    yield folder
