"""The comparison that decides, and a few kills for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mfd_cli.errors import RunStopped
from mfd_cli.training.run import distill

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill_runs.py"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_runs_that_differ_are_told_apart(script, tiny, tmp_path, monkeypatch):
    kill_runs = script("kill_runs")
    monkeypatch.chdir(tmp_path)
    overrides = ["log.every=1", "log.preview_every=0"]
    one, two = (distill(tiny, output=name, overrides=overrides) for name in ("one", "two"))
    kill_runs.require_same(one.root, two.root)
    lines = two.metrics.read_text().splitlines()
    for what, changed in (("missing", lines[1:]), ("repeated", [*lines, lines[-1]]), ("other", lines[::-1])):
        two.metrics.write_text("\n".join(changed) + "\n")
        with pytest.raises(RunStopped, match="its metrics differ"):
            kill_runs.require_same(one.root, two.root)
        assert what
    other = distill(tiny, output="other", overrides=[*overrides, "seed=1"])
    with pytest.raises(RunStopped, match="its weights differ"):
        kill_runs.require_same(one.root, other.root)
    two.metrics.write_text("\n".join(lines) + "\n")
    (two.root / ".student.0123abcd").mkdir()
    with pytest.raises(RunStopped, match="its leftovers differ"):
        kill_runs.require_same(one.root, two.root)


@pytest.mark.slow
def test_killed_runs_end_as_undisturbed_ones(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--kills", "5", "--json", tmp_path / "kills.json", "--set", "train.updates=60"],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "kills.json").read_text())
    assert report["kills"] == 5 == sum(report["during"].values()) and report["ends"] >= 1 and report["equal"]
    assert report["most_updates_lost"] <= report["interval"] == 10
