from __future__ import annotations

import json
from pathlib import Path

import pytest

from mfd_cli.commands import recipes
from mfd_cli.config import bundled
from mfd_cli.errors import MfdError

RECIPE = """# A mixture in a few seconds
name: tiny
teacher: {type: gmm}
method: {type: mfd, solver: {step_size: 0.1}}
train: {updates: 3, batch_size: 4}
data: {type: gmm}
"""
TEACHER_RECIPE = "# Trains a small teacher\nname: base\nnetwork: {width: 8}\n"


@pytest.fixture(autouse=True)
def bundle(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Bundled recipes `tiny` and `teachers/base`, with an empty working folder."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "teachers").mkdir()
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "teachers" / "base.yaml").write_text(TEACHER_RECIPE)
    monkeypatch.setattr(bundled, "folder", lambda: folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_list_names_every_recipe_with_its_description(capsys: pytest.CaptureFixture[str]) -> None:
    recipes.list_recipes()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split("  ")[0] == "teachers/base"
    assert "mfd teachers train" in lines[1] and "Trains a small teacher" in lines[1]
    assert lines[2].startswith("tiny") and "mfd distill" in lines[2]


def test_list_as_json_is_only_json(capsys: pytest.CaptureFixture[str]) -> None:
    recipes.list_recipes("-")
    names = [entry["name"] for entry in json.loads(capsys.readouterr().out)["recipes"]]
    assert names == ["teachers/base", "tiny"]


def test_show_prints_the_recipe_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    recipes.show("tiny")
    assert capsys.readouterr().out == RECIPE
    with pytest.raises(MfdError, match="did you mean 'tiny'"):
        recipes.show("tinny")


def test_copy_writes_once_and_overwrites_only_by_force(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes.copy("tiny") == Path("tiny.yaml")
    captured = capsys.readouterr()
    assert captured.out == "tiny.yaml\n"
    assert "mfd distill ./tiny.yaml" in captured.err
    Path("tiny.yaml").write_text("mine")
    with pytest.raises(MfdError, match="exists"):
        recipes.copy("tiny")
    assert Path("tiny.yaml").read_text() == "mine"
    recipes.copy("tiny", force=True)
    assert Path("tiny.yaml").read_text() == RECIPE


def test_copy_takes_a_file_or_a_folder() -> None:
    Path("folder").mkdir()
    assert recipes.copy("teachers/base", "folder") == Path("folder/base.yaml")
    assert recipes.copy("tiny", "folder/other.yaml").read_text() == RECIPE
    with pytest.raises(MfdError, match="does not exist"):
        recipes.copy("tiny", "nowhere/x.yaml")


def test_check_reports_every_file_before_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    Path("all/deep").mkdir(parents=True)
    Path("all/a.yaml").write_text(RECIPE.replace("updates: 3", "updates: 0"))
    Path("all/deep/b.yml").write_text(RECIPE.replace("gmm", "gmn"))
    with pytest.raises(MfdError) as caught:
        recipes.check(["tiny", "all", "missing.yaml"])
    assert caught.value.exit_code == 2
    assert capsys.readouterr().out.splitlines() == [
        "ok    tiny", "wrong all/a.yaml", "wrong all/deep/b.yml", "wrong missing.yaml",
    ]  # fmt: skip
    for words in (
        "all/a.yaml:5: train.updates: is 0",
        "all/deep/b.yml:3: teacher.type",
        "b.yml:6: data.type",
        "no recipe",
    ):
        assert words in caught.value.found


def test_check_passes_overrides_and_writes_json(capsys: pytest.CaptureFixture[str]) -> None:
    recipes.check(["tiny"], ["train.updates=7"], "-")
    assert json.loads(capsys.readouterr().out)["recipes"] == [
        {"recipe": "tiny", "ok": True, "name": "tiny", "kind": "distill"}
    ]
    with pytest.raises(MfdError, match=r"--set train\.updates=0: train\.updates: is 0"):
        recipes.check(["tiny"], ["train.updates=0"])


def test_a_folder_without_recipes_is_no_success() -> None:
    Path("empty").mkdir()
    with pytest.raises(MfdError, match="no recipe in the folder"):
        recipes.check(["empty"])


def test_schema_goes_to_stdout_or_a_new_file(capsys: pytest.CaptureFixture[str]) -> None:
    recipes.schema()
    printed = json.loads(capsys.readouterr().out)
    assert printed["$schema"].endswith("2020-12/schema")
    recipes.schema("s.json")
    assert json.loads(Path("s.json").read_text("utf-8")) == printed
    with pytest.raises(MfdError, match="exists"):
        recipes.schema("s.json")
