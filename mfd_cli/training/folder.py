"""What may be done with the folder that a run is to be written to. Decided before anything is built or written."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfd_cli.config.load import LoadedRecipe, difference, load_recipe
from mfd_cli.config.schema import completed
from mfd_cli.errors import MfdError, NewerFormat, RunStopped
from mfd_cli.store.checkpoint import Checkpoint, newest_valid, require_space
from mfd_cli.store.files import is_unused, remove
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import read_student

#: keys that change nothing about the weights, so a resumed run may change them
_HARMLESS = ("name", "log.", "guards.", "evaluate.", "train.threads")


@dataclass(frozen=True)
class Plan:
    """How a run begins.

    Attributes:
        run: its folder.
        checkpoint: where it continues; None for a start from the beginning.
        replace: whether an earlier run in the folder is removed first.
        finished: whether there is nothing left to do.
        notes: what the user should be told.
    """

    run: RunFolder
    checkpoint: Checkpoint | None = None
    replace: bool = False
    finished: bool = False
    notes: tuple[str, ...] = ()


def plan_run(folder: Path, recipe: LoadedRecipe, *, resume: bool, force: bool) -> Plan:
    """Decides whether a run may be written to a folder, and where it begins.

    Raises:
        MfdError: the folder holds something that would be overwritten, cannot be resumed, or cannot be written to.
    """
    run = RunFolder(folder)
    if resume and force:
        raise MfdError("--resume and --force together", allowed="one of them: continue the run, or start it again")
    run.require_own()
    if resume:
        return _resumed(run, recipe)
    if folder.exists() and not folder.is_dir():
        raise MfdError(f"{folder}: a file stands where the run folder should be", do="choose another folder with -o")
    if folder.is_dir() and not is_unused(folder) and not force:
        what = f"a run ({run.read_record().get('status')})" if run.is_run() else "files that are not a run's"
        raise MfdError(
            f"{folder}: holds {what} and would be overwritten",
            allowed="an empty or new folder",
            do="continue it with --resume, replace it with --force, or choose another folder with -o"
            if run.is_run()
            else "choose another folder with -o, or add the run beside these files with --force",
        )
    return Plan(run, replace=force and run.is_run())


def _resumed(run: RunFolder, recipe: LoadedRecipe) -> Plan:
    if not run.is_run():
        raise MfdError(f"{run.root}: no run to resume", do="leave out --resume to start it, or name its folder with -o")
    stored = load_recipe(str(run.recipe)).resolved
    changes = _changes(stored, recipe.resolved)
    if changes:
        raise MfdError(
            f"{run.root}: the recipe differs from the one the run began with: {'; '.join(changes)}",
            allowed="changes under log, guards and evaluate, train.threads and name",
            do=f"resume with `{resume_command(run)}`, or start anew with -o or --force",
        )
    record = run.read_record()
    lost = _lost_student(run) if record.get("status") == "finished" else None
    if record.get("status") == "finished" and lost is None:
        return Plan(run, finished=True)
    checkpoint, passed_over = newest_valid(run.checkpoints, lambda found: _foreign(found, stored, record))
    if checkpoint is None:
        why = f" ({'; '.join(passed_over)})" if passed_over else ""
        raise MfdError(f"{run.root}: no checkpoint to resume from{why}", do="start again with --force")
    notes = [f"the run is finished, but its student is lost: {lost}"] if lost else []
    notes += [f"passed over {text}" for text in passed_over]
    return Plan(run, checkpoint, notes=(*notes, f"continues from {checkpoint.path.name}"))


def _lost_student(run: RunFolder) -> str | None:
    """What is wrong with a finished run's student; None if nothing is.

    Raises:
        NewerFormat: a later mfd wrote it.
    """
    try:
        read_student(run.root)
    except NewerFormat:
        raise
    except MfdError as error:
        return error.found
    return None


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Where two resolved recipes differ in what decides about the weights."""
    return [line for line in difference(old, new) if not line.startswith(_HARMLESS)]


def _foreign(checkpoint: Checkpoint, recipe: dict[str, Any], record: dict[str, Any]) -> str | None:
    """Why a checkpoint is not one of the run with this recipe and record, if it is not."""
    student = checkpoint.state.get("student")
    if not isinstance(student, dict) or not isinstance(student.get("recipe"), dict):
        return "its state names no recipe"
    if changes := _changes(recipe, completed(student["recipe"])):
        return f"another run's: {'; '.join(changes)}"
    if record.get("teacher", student.get("identity")) != student.get("identity"):
        return "another run's: its teacher is another"
    return None


def open_folder(plan: Plan, size: int) -> None:
    """Makes sure that the run folder exists and can take what the run will write.

    Args:
        plan: the plan.
        size: bytes that the run will need at least.

    Raises:
        MfdError: the folder cannot be made or written, or the disk is too full to begin.
    """
    root = plan.run.root
    try:
        require_space(root, size)
    except RunStopped as error:
        raise MfdError(
            error.found.replace("a checkpoint", "the run"), do="make room first; nothing was started"
        ) from error
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".writable"
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:  # a ValueError: a path that cannot be one
        why = getattr(error, "strerror", None) or error
        raise MfdError(f"{root}: cannot be written ({why})", do="choose another folder with -o") from error


def resume_command(run: RunFolder) -> str:
    """The command that continues a run, ready for a shell."""
    return f"mfd distill {shlex.quote(str(run.recipe))} -o {shlex.quote(str(run.root))} --resume"


def remove_run(run: RunFolder) -> None:
    """Removes what an earlier run wrote, and nothing else that lies in the folder."""
    for folder in (run.previews, run.checkpoints, run.best, run.student):
        remove(folder)
    # the record last: a removal that was cut short still leaves a run, which --force replaces
    for path in (run.metrics, run.recipe, run.report, run.record):
        path.unlink(missing_ok=True)


def describe(recipe: Any) -> str:
    """One line about what will be done."""
    alone = getattr(recipe, "network", None) is not None
    source = f"from nothing, a network of {recipe.teacher.type}" if alone else f"on teacher {recipe.teacher.type}"
    followed = getattr(recipe.method, "aux_updates", 0)
    return (
        f"{recipe.name}: {recipe.method.type} {source}, {recipe.train.updates} student updates "
        f"of {recipe.train.batch_size} samples" + (f", {followed} auxiliary updates each" if followed else "")
    )
