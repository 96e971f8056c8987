"""Everything that a page says in words and numbers, read from a run folder or an export.

Nothing here computes: what a run recorded is read, made free of private paths, and kept with notes on what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from mfd_cli.report.private import scrubbed, shown_path
from mfd_cli.store.checkpoint import newest_valid
from mfd_cli.store.layout import RunFolder, is_checkpoint, run_of
from mfd_cli.store.student import read_student

SCHEMA = 1


@dataclass(frozen=True)
class Gathered:
    """What is known of a run or an export, without private paths.

    Attributes:
        name: the run folder's or the export's name.
        place: RUN as it may be shown, relative to the working folder if it lies there.
        status: finished, running, interrupted, stopped or failed; None for an export.
        reason: why it ended early.
        recipe: the resolved recipe; empty if there is none.
        record: run.json; empty for an export.
        metrics: lines of metrics.jsonl.
        student: the stored student's config but for its recipe; empty if there is none.
        which: which student that is: "finished student", "checkpoint update-000100", "export".
        benchmark: report of speed and quality (docs/benchmark.md); None if there is none.
        source: where `benchmark` is from.
        notes: what is missing or not as usual.
        stored: where the student can be loaded from; None if there is none. Not part of the data.
        preview: newest picture made while training. Not part of the data.
    """

    name: str
    place: str
    status: str | None = None
    reason: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    student: dict[str, Any] = field(default_factory=dict)
    which: str | None = None
    benchmark: dict[str, Any] | None = None
    source: str | None = None
    notes: list[str] = field(default_factory=list)
    stored: Path | None = None
    preview: Path | None = None

    def with_benchmark(self, report: Mapping[str, Any], source: str) -> Gathered:
        """The same with figures measured elsewhere."""
        return replace(self, benchmark=scrubbed(report), source=source)

    def with_notes(self, *notes: str) -> Gathered:
        """The same with further notes."""
        return replace(self, notes=[*self.notes, *(scrubbed(note) for note in notes)])

    def data(self) -> dict[str, Any]:
        """JSON data of all that is not a path on this machine."""
        found = asdict(replace(self, stored=None, preview=None))
        return {"schema": SCHEMA} | {key: value for key, value in found.items() if key not in ("stored", "preview")}

    @property
    def updates(self) -> int | None:
        """Student updates that were done."""
        found = self.student.get("update") or self.record.get("update")
        if found is None and self.metrics:
            found = self.metrics[-1].get("update")
        return found


def gather(path: Path) -> Gathered:
    """What is known of a run folder, a checkpoint in it, or an export.

    Args:
        path: as `store.layout.find` gives it.

    Raises:
        MfdError: run.json, benchmark.json or a student's config cannot be read.
    """
    run = run_of(path)
    if run is None:
        return _of_export(path)
    asked = path if path.is_dir() and is_checkpoint(path) else None
    record = run.read_record()
    notes: list[str] = []
    stored, which = _student_of(run, asked, notes)
    recipe = _read_recipe(run, notes)
    metrics = _read_metrics(run, notes)
    status = record.pop("status", None)
    benchmark, source = None, None
    if asked is not None:
        notes.append("this is a checkpoint: the run's closing check is about its finished student, and is not shown")
    elif status == "finished" and (benchmark := run.read_report()) is not None:
        source = "the closing check that ended the run"
    root = run.root.resolve()
    return Gathered(
        name=f"{root.name}-{asked.name}" if asked else root.name,
        place=shown_path(asked or run.root),
        status=status or "unknown",
        reason=scrubbed(record.pop("reason", None)),
        recipe=scrubbed(recipe),
        record=scrubbed(record),
        metrics=metrics,
        student=_about(stored),
        which=which,
        benchmark=scrubbed(benchmark),
        source=source,
        notes=scrubbed(notes),
        stored=stored,
        preview=max(run.previews.glob("update-*.png"), default=None),
    )


def _of_export(path: Path) -> Gathered:
    config = read_student(path).config
    return Gathered(
        name=path.resolve().stem,
        place=shown_path(path),
        recipe=scrubbed(config.get("recipe") or {}),
        student=_about(path),
        which="export",
        notes=["this is an export: how it was trained is not in it"],
        stored=path,
    )


def _student_of(run: RunFolder, asked: Path | None, notes: list[str]) -> tuple[Path | None, str | None]:
    """Where the student to show is stored, and which it is: the one asked for, the finished one, or the newest."""
    if asked is not None:
        return asked, f"checkpoint {asked.name}"
    if run.student.is_dir():
        return run.student, "finished student"
    checkpoint, passed_over = newest_valid(run.checkpoints)
    notes += [f"passed over {text}" for text in passed_over]
    if checkpoint is None:
        notes.append("the run left no student and no checkpoint, so nothing can be sampled")
        return None, None
    return checkpoint.path, f"checkpoint {checkpoint.path.name}"


def _about(stored: Path | None) -> dict[str, Any]:
    """A stored student's config without the recipe, which is shown on its own."""
    if stored is None:
        return {}
    return scrubbed({key: value for key, value in read_student(stored).config.items() if key != "recipe"})


def _read_recipe(run: RunFolder, notes: list[str]) -> dict[str, Any]:
    """The resolved recipe as plain data: not validated, since the plugin that it needs may not be here."""
    try:
        found = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        notes.append("the run's recipe.yaml is missing or cannot be read")
        return {}
    return found


def _read_metrics(run: RunFolder, notes: list[str]) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; damaged ones are left out, and counted in a note."""
    if not run.metrics.is_file():
        return []
    lines, damaged = [], 0
    for text in run.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            line["update"] + 0
            lines.append(line)
        except (ValueError, KeyError, TypeError):
            damaged += 1
    if damaged:
        notes.append(f"{damaged} damaged line{'s'[: damaged != 1]} of metrics.jsonl left out")
    return lines
