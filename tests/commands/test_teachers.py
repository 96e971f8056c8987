"""`mfd teachers`: what it lists, what a check prints and refuses, where training writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mfd_cli.commands import teachers
from mfd_cli.errors import MfdError
from teachers import conformance
from teachers.conformance import Finding

RECIPE = """name: dots
teacher: {{type: images, weights: {weights}}}
network: {{patch_size: 2, width: 8, depth: 1}}
train: {{updates: 2, batch_size: 4, threads: 1}}
data: {{type: images, path: dots.npz}}
"""


@pytest.fixture
def dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("dots.npz", images=np.zeros((4, 4, 4), np.uint8), labels=np.arange(4) % 2)


def test_the_list_names_every_teacher_and_where_it_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    teachers.list_teachers("-")
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"gmm", "digits", "images"} <= listed.keys()
    assert listed["gmm"]["origin"] == "built in" and listed["gmm"]["what"]


@pytest.mark.usefixtures("dots")
def test_training_writes_where_the_recipe_says_unless_told_otherwise() -> None:
    Path("t.yaml").write_text(RECIPE.format(weights="named.safetensors"))
    assert teachers.train("t.yaml") == Path("named.safetensors")
    assert teachers.train("t.yaml", output=Path("other.safetensors")) == Path("other.safetensors")
    assert Path("named.safetensors").is_file() and Path("other.safetensors").is_file()
    with pytest.raises(MfdError, match="exists"):
        teachers.train("t.yaml")


def test_a_broken_adapter_is_named_with_the_line_it_breaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Finding("shape", True, "fine", "a"), Finding("sign", False, "turned", "u = X_1 - X_0")]
    monkeypatch.setattr(conformance, "check", lambda teacher, data, seed: found)
    with pytest.raises(MfdError, match="1 of 2 checks failed: sign") as error:
        teachers.check("gmm")
    assert error.value.allowed == "u = X_1 - X_0"
    assert "BROKEN" in capsys.readouterr().out


def test_a_teacher_that_needs_settings_wants_a_recipe() -> None:
    with pytest.raises(MfdError, match="needs settings that only a recipe can give"):
        teachers.check("images")
