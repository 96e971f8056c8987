"""The comparison's arithmetic, its tuning files, and a smoke run that distills with two methods for real."""

import json

import pytest

from mfd_cli.errors import MfdError


@pytest.fixture
def module(script):
    return script("compare_methods")


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
