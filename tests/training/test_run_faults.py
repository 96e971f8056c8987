"""A run that dies at any of its writes goes on to the same end, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfd_cli.store.checkpoint import newest_valid
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import read_student
from mfd_cli.training.run import distill

SETTINGS = ["log.checkpoint_every=2", "train.updates=5"]


def ended(run: RunFolder) -> tuple[str, list[dict[str, Any]], str]:
    """Weights, metrics and status."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    return read_student(run.root).config["weights_sha256"], kept, run.read_record()["status"]


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("power", [False, True], ids=["killed", "power cut"])
def test_dead_at_any_of_its_writes(power: bool, disk: Callable[..., Any]) -> None:
    with disk(Path()) as watched:
        whole = distill("tiny.yaml", output="whole", overrides=SETTINGS)
    assert watched.moments > 200
    positions = set()
    for number, moment in enumerate(range(1 + power, watched.moments, 29)):
        run = RunFolder(Path(f"run-{number}"))
        with disk(run.root, moment, power=power) as dead:
            distill("tiny.yaml", output=str(run.root), overrides=SETTINGS)
        assert dead.dead
        found, damaged = newest_valid(run.checkpoints)
        assert not damaged
        positions.add(found.state["update"] if found is not None else None)
        resume = found is not None
        distill("tiny.yaml", output=str(run.root), overrides=SETTINGS, resume=resume, force=not resume)
        assert ended(run) == ended(whole)
        assert not list(run.root.rglob(".*")), "no lock and no temporary file stays"
    assert positions >= {None, 2, 4, 5}
