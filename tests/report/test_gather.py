"""What is read from a run folder or an export, in whatever state it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfd_cli.errors import MfdError
from mfd_cli.report.gather import gather
from mfd_cli.store.layout import RunFolder

Made = Callable[..., RunFolder]


def test_a_finished_run_is_read_whole(made: Made, figures: Any) -> None:
    report = figures({"frechet": (0.1, 0.01)}, {"frechet": (0.2, 0.01)})
    found = gather(made(report=report).root)
    assert (found.name, found.place, found.status, found.which) == ("made", "runs/made", "finished", "finished student")
    assert found.benchmark == report and found.source == "the closing check that ended the run"
    assert found.recipe["train"]["updates"] == 60 and found.record["device"] == "cpu" and found.notes == []
    assert [line["update"] for line in found.metrics] == [10, 20, 30, 40, 50, 60]
    assert found.student["student"]["steps"] == 1 and "recipe" not in found.student and found.updates == 60


def test_its_data_are_json_without_files_of_this_machine(made: Made, tmp_path: Path) -> None:
    data = gather(made().root.resolve()).data()
    text = json.dumps(data)
    assert str(tmp_path) not in text and data["schema"] == 1 and data["place"] == "runs/made"
    assert "stored" not in data and "preview" not in data


def test_a_run_without_student_or_checkpoint(made: Made) -> None:
    found = gather(made("failed", student=False, lines=2, reason="ValueError: /home/alice/x is odd").root)
    assert found.stored is None and found.which is None and found.status == "failed" and found.updates == 20
    assert found.reason == "ValueError: x is odd"
    assert found.notes == ["the run left no student and no checkpoint, so nothing can be sampled"]


def test_figures_of_an_earlier_end_are_not_those_of_a_run_that_goes_on(made: Made, figures: Any) -> None:
    found = gather(made("running", report=figures({}, {})).root)
    assert found.benchmark is None and found.source is None


def test_damaged_lines_and_a_missing_recipe_are_noted(made: Made) -> None:
    run = made()
    with open(run.metrics, "a") as file:
        file.write('{"update": 70, "loss"\n[1]\n{"loss": 1}\n{"update": 80, "loss": NaN}\n')
    run.recipe.unlink()
    found = gather(run.root)
    assert [line["update"] for line in found.metrics][-2:] == [60, 80] and found.recipe == {}
    assert found.notes == [
        "the run's recipe.yaml is missing or cannot be read", "3 damaged lines of metrics.jsonl left out"
    ]  # fmt: skip


def test_no_metrics_at_all(made: Made) -> None:
    run = made(lines=0)
    run.metrics.unlink()
    assert gather(run.root).metrics == []


def test_damaged_figures_are_refused(made: Made) -> None:
    run = made()
    run.report.write_text("{")
    with pytest.raises(MfdError, match=r"benchmark\.json: cannot be read"):
        gather(run.root)


def test_an_export_says_what_it_does_not_know(made: Made) -> None:
    run = made()
    exported = Path("given.safetensors")
    exported.write_bytes((run.student / "model.safetensors").read_bytes())
    found = gather(exported)
    assert (found.name, found.status, found.which, found.metrics) == ("given", None, "export", [])
    assert found.recipe["name"] == "toy" and "how it was trained is not in it" in found.notes[0]


def test_the_newest_picture_is_found(made: Made) -> None:
    run = made("stopped", student=False)
    run.previews.mkdir()
    for update in (0, 500, 1000):
        (run.previews / f"update-{update:06d}.png").touch()
    assert gather(run.root).preview == run.previews / "update-001000.png"
