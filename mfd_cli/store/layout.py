"""Every path in a run folder, and how a RUN given by the user is found.

A run folder holds `recipe.yaml`, `run.json`, `metrics.jsonl`, `previews/`, `checkpoints/update-NNNNNN/`, `student/`
and, where students are judged while they train, `best/update-NNNNNN/`; `runs/latest` names the newest run.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfd_cli.errors import MfdError
from mfd_cli.store.files import read_json, write_bytes, write_json

RUNS = Path("runs")
#: the two files of a student's folder
WEIGHTS, CONFIG = "model.safetensors", "config.json"
#: held while a process writes the run
LOCK = ".lock"
_LATEST = "latest"


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder."""

    root: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.root / "recipe.yaml"

    @property
    def record(self) -> Path:
        """Status, versions, device, times, evaluations."""
        return self.root / "run.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def previews(self) -> Path:
        """Pictures made while training."""
        return self.root / "previews"

    @property
    def checkpoints(self) -> Path:
        """What `--resume` continues from."""
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        """The best student by quick judgements, in a folder named after its update."""
        return self.root / "best"

    @property
    def student(self) -> Path:
        """The finished student."""
        return self.root / "student"

    @property
    def samples(self) -> Path:
        """Where `mfd sample` puts pictures."""
        return self.root / "samples"

    @property
    def export(self) -> Path:
        """Where `mfd export` puts files."""
        return self.root / "export"

    @property
    def report(self) -> Path:
        """Speed and quality measured at the end of the run."""
        return self.root / "benchmark.json"

    def require_own(self, *paths: Path) -> None:
        """Refuses to write through links that lead out of the run folder.

        Args:
            paths: places in the folder; all that a run writes if left out.

        Raises:
            MfdError: one of them is such a link.
        """
        everything = (self.previews, self.checkpoints, self.best, self.student, self.root / LOCK)
        for path in paths or everything:
            if path.is_symlink() and not path.resolve().is_relative_to(self.root.resolve()):
                raise MfdError(
                    f"{path}: a link that leads out of the run folder ({os.readlink(path)})",
                    allowed="a run folder that holds all of its files",
                    do="remove the link, or choose another folder with -o",
                )

    def is_run(self) -> bool:
        """Whether mfd made this folder."""
        return self.record.is_file()

    def read_record(self) -> dict[str, Any]:
        """Content of run.json.

        Raises:
            MfdError: it is missing or damaged.
        """
        try:
            return read_json(self.record)
        except (OSError, ValueError) as error:
            raise MfdError(f"{self.record}: cannot be read ({error})", do="is this a run folder of mfd?") from error

    def read_report(self) -> dict[str, Any] | None:
        """Content of benchmark.json; None if the run has none.

        Raises:
            MfdError: it is damaged.
        """
        if not self.report.is_file():
            return None
        try:
            return read_json(self.report)
        except (OSError, ValueError) as error:
            raise MfdError(f"{self.report}: cannot be read ({error})", do="remove it") from error

    def update_record(self, **changes: Any) -> None:
        """Changes some fields of run.json, creating it if needed."""
        record = self.read_record() if self.record.is_file() else {}
        write_json(self.record, record | changes)


def point_latest(run: RunFolder) -> None:
    """Makes `runs/latest` name this run (a text file with its path, so that it works on every file system)."""
    RUNS.mkdir(exist_ok=True)
    relative = os.path.relpath(run.root, RUNS)
    write_bytes(RUNS / _LATEST, f"{relative}\n".encode())


def find(reference: str | None) -> Path:
    """The run folder, checkpoint folder, export folder or .safetensors file that RUN means; the newest run if None.

    Raises:
        MfdError: it does not exist, or is none of these.
    """
    if reference is None:
        return _latest().root
    path = Path(reference)
    if path == RUNS / _LATEST:
        return _latest().root
    if not path.exists():
        raise MfdError(f"{path}: no such run, export or file", allowed=_known(), do="see `mfd distill --help`")
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if path.is_dir() and (RunFolder(path).is_run() or (path / CONFIG).is_file() or is_checkpoint(path)):
        return path
    if path.is_dir() and len(exported := sorted(path.glob("*.safetensors"))) == 1:
        return exported[0]
    raise MfdError(
        f"{path}: neither a run folder nor an export",
        allowed="a run folder (it holds run.json), a checkpoint in it, an export folder, or a .safetensors file",
        do=_known(),
    )


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a training checkpoint."""
    return (path / "manifest.json").is_file() and (path / "state.json").is_file()


def run_of(path: Path) -> RunFolder | None:
    """The run folder that a found path is, or lies in; None for an export."""
    if path.is_dir() and RunFolder(path).is_run():
        return RunFolder(path)
    if path.is_dir() and is_checkpoint(path) and RunFolder(path.parent.parent).is_run():
        return RunFolder(path.parent.parent)
    folder = path.parent if path.name == WEIGHTS else path
    if folder.parent.name == "best" and RunFolder(folder.parent.parent).is_run():
        return RunFolder(folder.parent.parent)
    if folder.name == "student" and RunFolder(folder.parent).is_run():
        return RunFolder(folder.parent)
    return None


def _latest() -> RunFolder:
    # a pointer that is missing or damaged is no loss: the newest run here is what it would name
    with contextlib.suppress(OSError, ValueError):
        target = (RUNS / _LATEST).read_text(encoding="utf-8").strip()
        named = RunFolder(Path(os.path.normpath(RUNS / target)))
        if target and named.is_run():
            return named
    runs = [RunFolder(record.parent) for record in RUNS.glob("*/run.json")]
    if not runs:
        raise MfdError(
            "no run found: the folder runs/ here is empty or missing",
            allowed="a run folder, an export or a .safetensors file as RUN",
            do="make a run first, e.g. `mfd distill toy`",
        )
    return max(runs, key=lambda run: run.record.stat().st_mtime)


def _known() -> str:
    runs = sorted(str(record.parent) for record in RUNS.glob("*/run.json"))
    return f"runs here: {', '.join(runs[:8])}" if runs else "there are no runs in ./runs yet"
