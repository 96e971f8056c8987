"""The best students of a run by its quick judgements, each a student's folder, kept apart from checkpoints.

`best/update-NNNNNN/` is written before an older one goes, and one that a kept checkpoint tells of stays as long as that
checkpoint: a run that is continued from it finds what it remembers.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.store.checkpoint import newest_valid
from mfd_cli.store.layout import CONFIG, RunFolder, run_of
from mfd_cli.store.student import save_student

_FOLDER = re.compile(r"update-(\d{6,}(?:\.\d+)?)")


def save_best(run: RunFolder, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Path:
    """Writes a student that was judged the best so far; earlier ones stay until `prune_best`.

    Raises:
        RunStopped: the disk is full; earlier ones are unharmed.
    """
    path = run.best / f"update-{config['update']:06d}"
    save_student(path, config, weights)
    return path


def prune_best(run: RunFolder, present: int | None) -> None:
    """Removes best students that neither the run (its best is of update `present`) nor a kept checkpoint tells of."""
    told = {present}
    for file in run.checkpoints.glob("update-*/state.json"):
        standing = json.loads(file.read_text(encoding="utf-8")).get("progress", {}).get("standing", {})
        told.add(standing.get("update"))
    for name, path in _students(run.best).items():
        if int(name) not in told:
            shutil.rmtree(path)


def select(path: Path, wanted: str | None) -> Path:
    """What `--checkpoint` means for a found RUN.

    Args:
        path: what `find` gave.
        wanted: "best" by quick judgements, "last", or the number of an update; None leaves the path as it is.

    Returns:
        A student's or a checkpoint's folder.

    Raises:
        MfdError: there is no such student, or RUN is no run folder; lists what there is.
    """
    if wanted is None:
        return path
    run = run_of(path)
    if run is None or run.root != path:
        raise MfdError(f"--checkpoint {wanted} of {path}", allowed="a run folder as RUN, or RUN without --checkpoint")
    if wanted == "best":
        return _best(run)
    if wanted == "last":
        return _last(run)
    there = {**_students(run.checkpoints), **_students(run.best), **_finished(run)}
    if wanted not in there:
        what = "" if wanted.replace(".", "").isdigit() else " is neither best nor last nor an update"
        raise MfdError(f"--checkpoint {wanted}{what or ': no such update is kept'}", allowed=_there(run))
    return there[wanted]


def _best(run: RunFolder) -> Path:
    record = run.read_record().get("best")
    if record is None:
        raise MfdError(
            f"{run.root}: no best student, since this run made no quick judgements (evaluate.every: 0)",
            allowed=_there(run),
            do="set evaluate.every to judge students while they train, such as --set evaluate.every=500",
        )
    path = run.best / f"update-{record['update']:06d}"
    if not (path / CONFIG).is_file():
        raise MfdError(f"{path}: the best student is missing", allowed=_there(run))
    return path


def _last(run: RunFolder) -> Path:
    if finished := _finished(run):
        return next(iter(finished.values()))
    checkpoint, passed_over = newest_valid(run.checkpoints)
    if checkpoint is None:
        why = f" ({'; '.join(passed_over)})" if passed_over else ""
        raise MfdError(f"{run.root}: no checkpoint yet{why}", allowed=_there(run))
    return checkpoint.path


def _finished(run: RunFolder) -> dict[str, Path]:
    """The finished student by its update."""
    try:
        config = json.loads((run.student / CONFIG).read_text(encoding="utf-8"))
        return {str(config["update"]): run.student}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _students(folder: Path) -> dict[str, Path]:
    """Folders by update, "500" or "500.3" within a cycle, in order."""
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := _FOLDER.fullmatch(path.name):
            update, *inside = match[1].split(".")
            found[".".join([str(int(update)), *inside])] = path
    return found


def _there(run: RunFolder) -> str:
    record = run.read_record().get("best")
    kinds = {
        "best": [] if record is None else [f"best (update {record['update']})"],
        "checkpoints": [f"update {name}" for name in _students(run.checkpoints)],
        "finished": [f"last (update {name}, finished)" for name in _finished(run)],
    }
    found = [name for names in kinds.values() for name in names]
    return f"here: {', '.join(found)}" if found else "nothing is here yet"
