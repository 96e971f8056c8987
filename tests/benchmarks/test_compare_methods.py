"""The comparison's arithmetic, its tuning files, and a smoke run that distills with two methods for real."""

import json

import pytest
from matplotlib.figure import Figure

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


def _row(method, steps, seed, values):
    curve = [{"seconds": 10.0 * k, "evaluations": 5 * k, "metrics": {"frechet": v}} for k, v in enumerate(values)]
    return {"method": method, "steps": steps, "seed": seed, "metrics": {"frechet": 1.0 + seed}, "curve": curve}


def test_the_picture_has_a_line_for_each_number_of_steps(module):
    rows = [_row("mfd", 1, seed, [4.0, 2.0 + seed]) for seed in (0, 1)]
    rows += [_row(method, 2, 0, values) for method, values in (("mfd", [3.0, 1.0]), ("cd", []))]
    rows += [_row("cd", 4, 0, [])]
    teacher = {"10": {"frechet": 0.5}}
    report = {"rows": rows, "teacher": teacher, "teacher_steps": 10, "unit": "evaluations"}
    figure = Figure()
    module.draw(figure, report)
    bars, courses = figure.axes[::2], figure.axes[1::2]
    assert [[text.get_text() for text in panel.get_xticklabels()] for panel in bars] == [["mfd"], ["cd", "mfd"], ["cd"]]
    assert bars[0].get_title() == "1 step: frechet (less is better)"
    assert bars[0].patches[0].get_height() == 1.5
    (drawn,) = courses[0].lines
    assert list(drawn.get_xdata()) == [0, 5] and list(drawn.get_ydata()) == [4.0, 2.5]
    assert courses[0].get_xlabel() == "evaluations of training"
    # the same method has one colour everywhere, and a student that was not judged on the way has no line
    assert [line.get_label() for line in courses[1].lines] == ["mfd"]
    assert courses[1].lines[0].get_color() == drawn.get_color()
    assert not courses[2].axison


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
