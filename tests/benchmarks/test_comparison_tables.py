"""Tables from reports: what is bold, what is left out, and that a real report has all that they need."""

import json
from pathlib import Path

import pytest

from mfd_cli.errors import MfdError

ROOT = Path(__file__).parents[2]
STORED = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.fixture
def module(script):
    return script("comparison_tables")


def _row(method, seed, frechet, steps=1):
    curve = [{"seconds": 1.0, "evaluations": 2_000_000, "metrics": {"frechet": frechet}}]
    return {
        "method": method, "steps": steps, "seed": seed, "metrics": {"frechet": frechet},
        "gap_recovered": {"frechet": 0.9}, "seconds": 1.0, "evaluations": 10, "peak_memory_mb": 300.0,
        "gradient_noise": {"value": 2.0}, "curve": curve,
    }  # fmt: skip


def _report(rows):
    costs = {f"{row['method']} 1": {"seconds": 0.5, "evaluations": 64.0} for row in rows}
    return {
        "schema": 2, "recipe": "digits", "overrides": [], "budget": 60.0, "unit": "seconds", "seeds": [0, 1, 2],
        "num": 100,
        "device": "cpu", "versions": {"torch": "2"}, "rows": rows, "costs": costs,
        "teacher": {"1": {"frechet": 10.0}, "10": {"frechet": 1.0}},
        "teacher_steps": 10,
    }  # fmt: skip


def test_the_best_is_bold_and_what_cannot_be_told_from_it(module):
    values = {"a": (1.0, 1.2, 1.1), "b": (1.1, 1.3, 1.2), "c": (3.0, 3.1, 3.2)}
    rows = [_row(method, seed, value) for method, found in values.items() for seed, value in enumerate(found)]
    assert module.undistinguished({m: [r for r in rows if r["method"] == m] for m in values}, "frechet") == {"a", "b"}
    text = module.tables(_report(rows))
    assert "| `a` | 1 | **1.1 ± 0.1** | 0.9 ± 0 |" in text and "| `c` | 1 | 3.1 ± 0.1 | 0.9 ± 0 |" in text
    assert "| `c` | 1 | 0.5 | 64 | 300 | 2 ± 0 | 2.00 M | not reached | not reached |" in text


def test_one_seed_tells_nothing_apart_but_the_best(module):
    rows = [_row("a", 0, 1.0), _row("b", 0, 1.01)]
    assert module.undistinguished({"a": rows[:1], "b": rows[1:]}, "frechet") == {"a"}


def test_another_file_is_refused(module, tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(MfdError, match="no report of compare_methods"):
        module.main([str(tmp_path / "other.json")])


def test_a_report_becomes_tables_and_a_picture(module, tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps(_report([_row("a", seed, 1.0 + seed) for seed in range(3)])))
    module.main([str(tmp_path / "report.json"), "--plot", str(tmp_path / "plot.png")])
    assert "| `a` | 1 |" in capsys.readouterr().out and (tmp_path / "plot.png").stat().st_size > 1000


def test_parts_of_one_comparison_are_put_together(module):
    first, second = (_report([_row(method, 0, value)]) for method, value in (("a", 1.0), ("b", 2.0)))
    other = _report([_row("a", 0, 1.0)]) | {"recipe": "toy"}
    merged = module.merged([first, other, second])
    assert [report["recipe"] for report in merged] == ["digits", "toy"]
    assert [row["method"] for row in merged[0]["rows"]] == ["a", "b"] and set(merged[0]["costs"]) == {"a 1", "b 1"}
    assert [row["method"] for row in first["rows"]] == ["a"]


def test_seeds_and_steps_may_come_in_parts(module):
    first = _report([_row("a", 0, 1.0), _row("b", 0, 2.0)]) | {"seeds": [0]}
    second = _report([_row("a", 1, 1.2, steps) for steps in (1, 2)]) | {"seeds": [1]}
    second["teacher"] = {"1": {"frechet": 10.0}, "2": {"frechet": 5.0}, "10": {"frechet": 1.0}}
    report = module.merged([first, second])[0]
    assert report["seeds"] == [0, 1] and list(report["teacher"]) == ["1", "2", "10"]
    text = module.tables(report)
    assert "| `a` | 1 | **1.1 ± 0.14** |" in text and "| `b`, 1 seed | 1 | 2 |" in text


def test_a_run_is_told_of_once(module):
    report = _report([_row("a", 0, 1.0)])
    with pytest.raises(MfdError, match="same run: a, 1 steps, seed 0"):
        module.merged([report, _report([_row("a", 0, 1.1)])])


def test_memory_of_earlier_reports_is_left_out(module):
    report = _report([_row("a", 0, 1.0)]) | {"schema": 1, "seeds": [0]}
    text = module.tables(module.merged([report])[0])
    assert "| `a` | 1 | 0.5 | 64 |  | 2 | 2.00 M |" in text


def test_what_was_not_judged_on_the_way_is_left_out(module):
    report = _report([_row("a", seed, 1.0) | {"curve": []} for seed in range(3)])
    assert "| `a` | 1 | 0.5 | 64 | 300 | 2 ± 0 |  |  |  |" in module.tables(report)


def test_small_numbers_of_evaluations_are_in_thousands(module):
    assert module._count(4096) == "4.1 k" and module._count(123_456) == "0.12 M"


def test_budgets_are_told_in_plain_digits(module):
    assert [module._plain(number) for number in (180.0, 0.5, 4_000_000.0)] == ["180", "0.5", "4,000,000"]


def test_the_page_holds_the_tables_of_the_stored_reports(module):
    page = (ROOT / "docs" / "comparison.md").read_text("utf-8")
    found = module.merged([json.loads(path.read_text("utf-8")) for path in STORED])
    assert found
    for report in found:
        for table in module.tables(report).split("\n\n"):
            assert table in page


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_reports_are_of_the_present_tuning(path, script):
    report = json.loads(path.read_text("utf-8"))
    tuned = script("contestants").tuned
    assert report["tuning"] == {name: tuned(report["recipe"], name) for name in report["tuning"]}
