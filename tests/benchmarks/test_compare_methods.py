"""The comparison's arithmetic, its tuning files, and a smoke run that distills with two methods for real."""

import json

import pytest
import yaml

from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError
from mfd_cli.methods.registry import methods


@pytest.fixture
def module(script):
    return script("compare_methods")


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


def test_costs_of_an_earlier_report_are_taken(module, tmp_path):
    (tmp_path / "report.json").write_text('{"costs": {"mfd 1": {"seconds": 0.5, "evaluations": 64.0}}}')
    assert module._known_costs(tmp_path / "report.json") == {"mfd 1": module.Cost(0.5, 64.0)}
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(MfdError, match="no report of this script"):
        module._known_costs(tmp_path / "other.json")


def test_the_first_checkpoint_that_is_good_enough_counts(module):
    report = {
        "teacher": {"1": {"frechet": 10.0, "iou": 40.0}, "10": {"frechet": 0.0, "iou": 60.0}},
        "teacher_steps": 10,
    }
    points = [(10, 8.0, 45.0), (20, 4.0, 55.0), (30, 4.5, 58.0), (40, 1.0, 59.0)]
    curve = [{"seconds": s, "evaluations": 100 * s, "metrics": {"frechet": f, "iou": i}} for s, f, i in points]
    row = {"steps": 1, "curve": curve}
    assert module.reached(report, row, "frechet", 0.5, "seconds") == 20
    assert module.reached(report, row, "frechet", 0.9, "evaluations") == 4000
    assert module.reached(report, row, "iou", 0.9, "seconds") == 30
    assert module.reached(report, row, "frechet", 0.95, "seconds") is None


def test_unknown_methods_are_refused(module):
    with pytest.raises(MfdError, match="--methods ddim"):
        module.main(["toy", "--methods", "ddim"])


@pytest.mark.slow
def test_a_quick_run(module, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module.main(
        [tiny, "--quick", "--methods", "mfd", "meanflow", "--steps", "1", "2", "--json", "found.json", "--plot",
         "found.png", "--output", "runs"]
    )  # fmt: skip
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(row["method"], row["steps"]) for row in found["rows"]] == [
        ("mfd", 1), ("mfd", 2), ("meanflow", 1), ("meanflow", 2)
    ]  # fmt: skip
    for row in found["rows"]:
        assert row["evaluations"] > 0 and row["peak_memory_mb"] > 50 and row["metrics"]["sliced_wasserstein"] > 0
    assert all(row["gradient_noise"]["error"] > 0 for row in found["rows"])
    assert len(found["rows"][0]["curve"]) >= 2 and found["costs"]["mfd 1"]["evaluations"] > 0
    assert (tmp_path / "found.png").stat().st_size > 1000
