"""One run from recipe to finished student: the story that `mfd distill` and the Python API tell."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mfd_cli import __version__
from mfd_cli.config.load import LoadedRecipe, dump, load_recipe
from mfd_cli.errors import Interrupted, MfdError, RunStopped
from mfd_cli.flow import time_grid
from mfd_cli.inference.benchmark import closing_report
from mfd_cli.inference.sampler import Sampler, teacher_sampler
from mfd_cli.methods.registry import methods
from mfd_cli.networks.roles import Roles, build_roles
from mfd_cli.store.checkpoint import Checkpoint, set_aside_after
from mfd_cli.store.files import remove_leftovers, write_bytes, write_json
from mfd_cli.store.layout import RUNS, RunFolder, point_latest
from mfd_cli.store.lock import locked
from mfd_cli.store.student import save_student
from mfd_cli.training import checkpoints
from mfd_cli.training.batches import Batches
from mfd_cli.training.folder import Plan, describe, open_folder, plan_run, remove_run, resume_command
from mfd_cli.training.previews import save_preview
from mfd_cli.training.reporting import Reporter
from mfd_cli.training.signals import EXIT_CODES, StopRequest
from mfd_cli.training.tracking import MetricsFile, Tracker, open_trackers, require_trackers
from mfd_cli.training.trainer import Trainer
from teachers.base import Data, Teacher
from teachers.registry import data as data_registry
from teachers.registry import teachers as teacher_registry


def distill(
    recipe: str | Path | LoadedRecipe,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> RunFolder:
    """Distills a teacher as a recipe says, and returns the run folder.

    Args:
        recipe: a YAML file, the name of a bundled recipe, or a loaded one.
        output: run folder; runs/<recipe name> if None.
        overrides: `key.path=value` texts, checked like the recipe itself.
        resume: continue the run in the folder from its newest valid checkpoint.
        force: replace an earlier run in the folder.
        device: "cpu" or "cuda"; what Accelerate finds if None.
        reporter: receives progress.

    Raises:
        MfdError: the recipe, the folder or the teacher's weights are wrong; nothing was written.
        RunStopped: training met a value that is not finite, or a full disk; the last checkpoint is good.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
    """
    loaded = recipe if isinstance(recipe, LoadedRecipe) else load_recipe(str(recipe), overrides)
    reporter = reporter or Reporter()
    plan = plan_run(Path(output) if output else RUNS / loaded.recipe.name, loaded, resume=resume, force=force)
    for note in (*loaded.notes, *plan.notes):
        reporter.note(note)
    if plan.finished:
        reporter.note(f"{plan.run.root}: this run is finished; nothing to do")
        return plan.run
    workshop = build(loaded, device)
    with _writing(plan, workshop, reporter) as session:
        session.train()
        session.finish()
    return plan.run


@dataclass
class Workshop:
    """Everything that a recipe builds, in memory."""

    loaded: LoadedRecipe
    accelerator: Accelerator
    teacher: Teacher
    data: Data
    roles: Roles
    batches: Batches

    @property
    def recipe(self) -> Any:
        """The validated recipe."""
        return self.loaded.recipe

    def student_config(self, update: int) -> dict[str, Any]:
        """What a stored student says about itself; see `mfd_cli.store.student`."""
        recipe, resolved = self.recipe, self.loaded.resolved
        grid = time_grid(recipe.student.steps, recipe.student.shift)
        return {
            "mfd_version": __version__,
            "recipe_name": recipe.name,
            "method": recipe.method.type,
            "update": update,
            "ema": recipe.train.ema,
            "student": {
                "steps": recipe.student.steps, "shift": recipe.student.shift, "sampler": "euler", "grid": grid.tolist(),
            },
            "teacher": resolved["teacher"],
            "architecture": self.teacher.architecture,
            "identity": self.teacher.identity(),
            "data": resolved["data"],
            "recipe": resolved,
        }  # fmt: skip

    def samplers(self) -> tuple[Sampler, Sampler]:
        """The teacher, and the student as it would be saved now."""
        device, student = self.accelerator.device, self.recipe.student
        return teacher_sampler(self.teacher, device), Sampler(
            "student", self.teacher, self.roles.final(), student.steps, student.shift, device=device
        )

    def bytes_needed(self) -> int:
        """Bytes that checkpoints and student need on disk: weights of three roles and two moments of two of them."""
        weights = sum(value.numel() * value.element_size() for value in self.roles.student.network.parameters())
        return 7 * weights * (self.recipe.log.keep + 1) + weights


def build(loaded: LoadedRecipe, device: str | None = None) -> Workshop:
    """Loads the teacher and its data and builds the roles.

    Raises:
        MfdError: the device does not exist or does not suit the recipe.
        TeacherError: weights or data are missing or do not fit.
    """
    recipe: Any = loaded.recipe
    here = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if device is not None and device not in here:
        raise MfdError(f"--device {device}: not here", allowed=" or ".join(here))
    require_trackers(recipe.log.trackers)
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    mixed = {"fp32": "no", "bf16": "bf16"}[recipe.train.precision]
    # Accelerate keeps the first device and precision of a process for good; a second run may want others
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(mixed_precision=mixed, cpu=device == "cpu", device_placement=False)
    teacher = teacher_registry.get(recipe.teacher.type).load(recipe.teacher)  # type: ignore[attr-defined]
    data = data_registry.get(recipe.data.type).load(recipe.data, teacher)  # type: ignore[attr-defined]
    batches = Batches(
        data, recipe.seed, recipe.train.batch_size, recipe.train.accumulation,
        accelerator.process_index, accelerator.num_processes, accelerator.device,
    )  # fmt: skip
    roles = build_roles(
        teacher.to(accelerator.device), recipe.optim.student, recipe.optim.aux, seed=recipe.seed,
        updates=recipe.train.updates, aux_updates=recipe.method.aux_updates, ema=recipe.train.ema,
        device=accelerator.device,
    )  # fmt: skip
    return Workshop(loaded, accelerator, teacher, data, roles, batches)


class Session:
    """A run that is being written: training, its borders, and its end."""

    def __init__(self, plan: Plan, workshop: Workshop, reporter: Reporter) -> None:
        self.run, self.workshop, self.reporter = plan.run, workshop, reporter
        recipe, roles = workshop.recipe, workshop.roles
        if plan.checkpoint is not None:
            _require_same_teacher(plan.run, workshop.teacher)
        progress = checkpoints.restore(plan.checkpoint, roles) if plan.checkpoint else None
        method = methods.get(recipe.method.type)(recipe.method)
        self.trainer = Trainer(
            recipe, method, workshop.teacher, roles, workshop.batches, workshop.accelerator, progress
        )
        self.main = workshop.accelerator.is_main_process
        self._metrics: MetricsFile | None = None
        self._trackers: list[Tracker] = []
        self._stop = StopRequest()
        self._stopped = False

    def open(self, checkpoint: Checkpoint | None) -> None:
        """Writes recipe and record, and opens the metrics."""
        if not self.main:
            return
        recipe, resolved = self.workshop.recipe, self.workshop.loaded.resolved
        for folder in (self.run.root, self.run.checkpoints, self.run.previews):
            remove_leftovers(folder)
        if checkpoint is not None:
            set_aside_after(checkpoint)
        text = dump(resolved)
        write_bytes(self.run.recipe, text.encode())
        facts = _facts(self.workshop) | {"recipe_sha256": hashlib.sha256(text.encode()).hexdigest()}
        self.run.update_record(status="running", **facts, **({"started": _now()} if checkpoint is None else {}))
        point_latest(self.run)
        self._trackers = open_trackers(recipe.log.trackers, self.run.root, recipe.name, resolved)
        self._metrics = MetricsFile(self.run.metrics, self.trainer.update)

    def train(self) -> None:
        """Steps to the last update.

        Raises:
            Interrupted: told to stop; a checkpoint was saved first.
        """
        trainer, recipe = self.trainer, self.workshop.recipe
        self.reporter.started(describe(recipe), recipe.train.updates, trainer.update)
        try:
            with self._stop:
                if trainer.progress.step == 0:
                    self._preview()
                trainer.run(self._border, lambda: self._stop.received is not None)
        finally:
            self.reporter.ended()
        if self._stopped:
            raise self._interrupted()

    def finish(self) -> None:
        """Saves the student, draws it and measures it.

        Raises:
            Interrupted: told to stop; the last update's checkpoint is there, from which a resumed run comes back here.
        """
        self._stop.at_once = True
        try:
            with self._stop:
                if self._stop.received is not None:
                    raise KeyboardInterrupt
                self._finish()
        except KeyboardInterrupt:
            raise self._interrupted() from None

    def _finish(self) -> None:
        if self.main:
            workshop, update = self.workshop, self.trainer.update
            save_student(self.run.student, workshop.student_config(update), workshop.roles.final().state_dict())
            self.reporter.saved("student", self.run.student)
            self._preview()
            report = self._closing_report()
            if report is not None:
                write_json(self.run.report, report)
            self.run.update_record(status="finished", finished=_now(), **self._position())
        self.workshop.accelerator.wait_for_everyone()
        self.workshop.accelerator.end_training()

    def closed(self, status: str, reason: str | None = None) -> None:
        """Records how a run ended that did not finish."""
        if self.main:
            with contextlib.suppress(OSError, RunStopped):
                self.run.update_record(status=status, stopped=_now(), reason=reason, **self._position())

    def close(self) -> None:
        """Closes files."""
        if self._metrics is not None:
            self._metrics.close()

    def _interrupted(self) -> Interrupted:
        signal = self._stop.received
        name, code = (signal.name, EXIT_CODES[signal]) if signal else ("a signal to another process", 143)
        return Interrupted(
            f"stopped by {name} after update {self.trainer.update}; a checkpoint was saved",
            exit_code=code,
            do=f"continue with `{resume_command(self.run)}`",
        )

    def _border(self, trainer: Trainer, stopping: bool) -> bool:
        log, update = self.workshop.recipe.log, trainer.update
        last = update == self.workshop.recipe.train.updates
        self.reporter.stepped(update, trainer.inside / trainer.cycle)
        if trainer.inside == 0:
            if update % log.every == 0 or last:
                self._log(trainer.metrics())
            if log.preview_every and update % log.preview_every == 0 and not last:
                self._preview()
            if last or (log.checkpoint_every and update % log.checkpoint_every == 0):
                self._checkpoint()
                self._stopped = stopping
                return last or stopping
        if stopping:
            self._stopped = True
            self._checkpoint()
        return stopping

    def _log(self, numbers: dict[str, Any]) -> None:
        if self._metrics is not None:
            self._metrics.write(numbers)
        for track in self._trackers:
            track(numbers)
        self.reporter.logged(numbers)

    def _checkpoint(self) -> None:
        trainer, workshop = self.trainer, self.workshop
        progress = trainer.snapshot()  # gathers counts from every process
        if self.main:
            path = checkpoints.save(
                self.run.checkpoints, roles=workshop.roles, progress=progress, update=trainer.update,
                inside=trainer.inside, student=workshop.student_config(trainer.update), keep=workshop.recipe.log.keep,
            )  # fmt: skip
            self.run.update_record(**self._position())
            self.reporter.saved("checkpoint", path)
        workshop.accelerator.wait_for_everyone()

    def _preview(self) -> None:
        if self.main:
            path = self.run.previews / f"update-{self.trainer.update:06d}.png"
            teacher, student = self.workshop.samplers()
            save_preview(path, teacher, student, self.workshop.data, self.trainer.update)
            self.reporter.saved("preview", path)

    def _closing_report(self) -> dict[str, Any] | None:
        recipe = self.workshop.recipe
        if not recipe.evaluate.num:
            return None
        teacher, student = self.workshop.samplers()
        return closing_report(
            teacher, student, self.workshop.data, num=recipe.evaluate.num, batch_size=recipe.evaluate.batch_size,
            method=recipe.method.type, recipe=recipe.name, run=self.run.root, say=self.reporter.note,
        )  # fmt: skip

    def _position(self) -> dict[str, Any]:
        progress = self.trainer.progress
        return {
            "update": self.trainer.update,
            "seconds": round(progress.seconds, 3),
            "evaluations": dict(progress.evaluations),
        }


@contextlib.contextmanager
def _writing(plan: Plan, workshop: Workshop, reporter: Reporter) -> Iterator[Session]:
    """Holds the run folder while a session writes it, and records how the session ended."""
    main = workshop.accelerator.is_main_process
    if main:
        open_folder(plan, workshop.bytes_needed())
    with locked(plan.run.root) if main else contextlib.nullcontext():
        session = Session(plan, workshop, reporter)
        if main and plan.replace:
            remove_run(plan.run)
        session.open(plan.checkpoint)
        try:
            yield session
        except (Interrupted, KeyboardInterrupt) as error:
            session.closed("interrupted", getattr(error, "found", "stopped at once by a second Ctrl-C"))
            raise
        except RunStopped as error:
            session.closed("stopped", error.found)
            raise
        except BaseException as error:
            session.closed("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            session.close()


def _require_same_teacher(run: RunFolder, teacher: Teacher) -> None:
    """Raises MfdError if the teacher's weights are not those that a run began with."""
    began = run.read_record().get("teacher", teacher.identity())
    if began != teacher.identity():
        raise MfdError(
            f"{run.root}: the teacher has changed since the run began: {began} -> {teacher.identity()}",
            do="put the teacher's weights back, or start anew with -o or --force",
        )


def _facts(workshop: Workshop) -> dict[str, Any]:
    accelerator = workshop.accelerator
    device = accelerator.device
    return {
        "schema": 1,
        "recipe": workshop.recipe.name,
        "method": workshop.recipe.method.type,
        "teacher": workshop.teacher.identity(),
        "versions": _versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "parameters": sum(value.numel() for value in workshop.roles.student.network.parameters()),
    }


def _versions() -> dict[str, str]:
    found = {"mfd": __version__, "python": platform.python_version()}
    for package in ("torch", "accelerate", "diffusers", "safetensors", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
