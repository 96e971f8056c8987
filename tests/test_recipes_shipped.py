"""Every recipe that ships is valid, complete and runs; every key of a recipe is read by something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from mfd_cli.config import bundled
from mfd_cli.config.load import LoadedRecipe, dump, load_any, load_recipe
from mfd_cli.methods.registry import methods
from mfd_cli.training.run import distill
from teachers.settings import Strict

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(path for path in FOLDER.rglob("*") if path.suffix in bundled.SUFFIXES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_shipped_recipe_is_valid_and_says_what_it_does(path: Path, tmp_path: Path) -> None:
    loaded = load_any(str(path))
    assert loaded.recipe.name.startswith(path.stem), "the name of the run folder should tell the recipe"
    assert bundled.description(path.read_text("utf-8"))
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump(loaded.resolved), "utf-8")
    again = load_any(str(resolved))
    assert again.resolved == loaded.resolved and again.kind == loaded.kind


def test_all_of_them_are_found_by_name() -> None:
    assert set(bundled.recipes()) == {path.relative_to(FOLDER).with_suffix("").as_posix() for path in RECIPES}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["method.type=diff-instruct", "method.times={type: sorted-pair}"],
        ["method.solver={step_size: 0.25}", "method.times={type: logit-normal}"],
        ["method.solver={type: ab2, steps: 3}", "method.times.interval_share=0.5", "student={steps: 2, shift: 2.0}"],
    ],
)
def test_the_toy_recipe_runs_under_its_variations(settings: list[str]) -> None:
    short = ["train.updates=2", "train.batch_size=32", "evaluate.num=0"]
    run = distill("toy", overrides=[*short, *settings])
    assert run.read_record()["status"] == "finished" and load_recipe(str(run.recipe)).recipe.train.updates == 2


# every key is read --------------------------------------------------------------------------------------------------

#: what guards ask for only where there is something to warn of, or to leave out
IDLE = {"guards.repeat", "guards.skip_non_finite"}
#: keys that nothing reads in a run: adapters where there are none, and how to judge where nothing is judged
UNREAD = {
    "toy": {"student.lora", *IDLE},
    # no samples are drawn while training, so the guards that look at them wait for nothing
    "trajectory": {"student.lora", "guards.after", *IDLE},
    "prompted": {"evaluate.batch_size", "evaluate.metric", "evaluate.quick_num", *IDLE},
}


DIFFERENCE = "method.derivative.type=difference"
#: method to the settings of runs that together read every key
FORMS: dict[str, list[list[str]]] = {
    "mfd": [[]],
    "diff-instruct": [[]],
    "dmd2": [[]],
    "senseflow": [[]],
    "cd": [[], ["method.form=continuous", DIFFERENCE]],
    "ayf": [[DIFFERENCE]],
    "meanflow": [[DIFFERENCE]],
}


def test_every_method_is_looked_at() -> None:
    assert set(FORMS) == set(methods.names())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, str]]:
    """(identity of a block, field) of every field that is read."""
    found: set[tuple[int, str]] = set()
    original = BaseModel.__getattribute__

    def recorded(block: Any, name: str) -> Any:
        if name in type(block).__pydantic_fields__:
            found.add((id(block), name))
        return original(block, name)

    monkeypatch.setattr(Strict, "__getattribute__", recorded, raising=False)
    return found


def fields(block: Strict, prefix: str = "") -> Iterator[tuple[tuple[int, str], str]]:
    """Every key of a recipe, as it is recorded and as it is written."""
    for name in type(block).model_fields:
        value = block.__dict__[name]
        if isinstance(value, Strict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield (id(block), name), prefix + name


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("method", FORMS)
def test_every_key_is_read_by_something(method: str, reads: set[tuple[int, str]]) -> None:
    settings = [f"method.type={method}", "evaluate.num=200", "evaluate.batch_size=100", "log.preview_every=3"]
    settings += ["optim.student.schedule=cosine", "evaluate.every=2", "evaluate.quick_num=100", "evaluate.patience=9"]
    unread = []
    for number, form in enumerate(FORMS[method]):
        loaded: LoadedRecipe = load_recipe("tiny.yaml", [*settings, *form])
        reads.clear()  # what validation reads does not count
        distill(loaded, output=f"run-{number}")
        unread.append({key for place, key in fields(loaded.recipe) if place not in reads})
    alone = methods.get(method)(loaded.recipe.method).aux_updates == 0
    assert set.intersection(*unread) == UNREAD["trajectory" if alone else "toy"]


@pytest.mark.slow
def test_every_key_of_a_prompted_recipe_is_read_by_something(
    reads: set[tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["train.updates=2", "train.batch_size=2", "method.aux_updates=1", "teacher.steps=1", "student.steps=2"]
    settings += ["optim.aux.schedule=cosine"]
    loaded: LoadedRecipe = load_recipe("sana-tiny", settings)
    reads.clear()
    distill(loaded)
    unread = {key for place, key in fields(loaded.recipe) if place not in reads}
    assert unread == UNREAD["prompted"]
