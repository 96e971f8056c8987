"""What was tuned for methods, and what their updates cost."""

import json

import pytest
import yaml

from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError
from mfd_cli.methods.registry import methods


@pytest.fixture
def module(script):
    return script("contestants")


def test_every_tuning_fits_its_recipe_and_its_method(module):
    files = sorted(module.TUNING.glob("*.yaml"))
    assert files
    for path in files:
        found = yaml.safe_load(path.read_text())
        assert {name.partition("@")[0] for name in found} <= set(methods.names())
        for name in module.known(path.stem):
            assert load_recipe(path.stem, module.tuned(path.stem, name)).recipe.method.type == name.partition("@")[0]
    assert module.tuned("no-such-recipe", "mfd") == ["method.type=mfd"]


def test_values_of_a_tuning_survive_as_overrides(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TUNING", tmp_path)
    (tmp_path / "toy.yaml").write_text("mfd: {train.ema: null, method.times: {min_interval: 1.0e-3}, seed: 3}")
    recipe = load_recipe("toy", module.tuned("recipes/toy.yaml", "mfd")).recipe
    assert recipe.train.ema is None and recipe.method.times.min_interval == 1e-3 and recipe.seed == 3


def test_a_variant_adds_to_its_method(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TUNING", tmp_path)
    (tmp_path / "toy.yaml").write_text("mfd: {train.ema: null, seed: 3}\nmfd@other: {seed: 4, method.weight: early}")
    assert module.known("toy") == [*methods.names(), "mfd@other"]
    recipe = load_recipe("toy", module.tuned("toy", "mfd@other")).recipe
    assert (recipe.train.ema, recipe.seed, recipe.method.weight) == (None, 4, "early")


def test_the_command_line_replaces_what_was_tuned(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TUNING", tmp_path)
    (tmp_path / "toy.yaml").write_text("mfd: {seed: 3, train.ema: null}")
    found = module.Contestant("mfd", 2).overrides("toy", ["seed=4"])
    assert found == ["method.type=mfd", "train.ema=null", "seed=4", "student.steps=2"]


def test_costs_of_an_earlier_report_are_taken(module, tmp_path):
    (tmp_path / "report.json").write_text('{"costs": {"mfd 1": {"seconds": 0.5, "evaluations": 64.0}}}')
    assert module.read_costs(tmp_path / "report.json") == {"mfd 1": module.Cost(0.5, 64.0)}
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(MfdError, match="no report of costs"):
        module.read_costs(tmp_path / "other.json")


def test_students_for_any_steps_are_distilled_once(module):
    found = module.contestants(["mfd", "meanflow"], [2, 1])
    assert [(who.name, who.steps) for who in found] == [("mfd", 2), ("mfd", 1), ("meanflow", 1)]
    assert str(found[0]) == "mfd 2"


def test_an_update_costs_what_its_method_says(module, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch = ["train.batch_size=8", "method.aux_updates=3", "method.solver={type: euler, steps: 2}"]
    sets = [part for text in batch for part in ("--set", text)]
    module.main([str(tiny), "--quick", "--methods", "mfd", *sets, "--json", "costs.json"])
    cost = module.read_costs(tmp_path / "costs.json")["mfd 1"]
    # three auxiliary updates (student, auxiliary), one of the student (student, two steps of both fields)
    assert cost.evaluations == 8 * (3 * 2 + 1 + 2 * 2) and cost.seconds > 0
    assert json.loads((tmp_path / "costs.json").read_text())["recipe"] == str(tiny)
