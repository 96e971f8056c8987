"""metrics.jsonl: a line at a time, continued without a gap or a repetition."""

from __future__ import annotations

import json
from pathlib import Path

from mfd_cli.training.tracking import MetricsFile


def updates(path: Path) -> list[int]:
    return [json.loads(line)["update"] for line in path.read_text().splitlines()]


def test_lines_are_readable_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    for update in (1, 2):
        file.write({"update": update, "loss": 0.5})
        assert updates(path)[-1] == update
    file.close()


def test_lines_past_the_checkpoint_and_cut_ones_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\n{"update": 2}\n{"update": 3}\n\n[]\n{"loss": 2}\n{"update": 4, "lo')
    file = MetricsFile(path, 2)
    assert updates(path) == [1, 2]
    file.write({"update": 3})
    file.close()
    assert updates(path) == [1, 2, 3]
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.jsonl"]
