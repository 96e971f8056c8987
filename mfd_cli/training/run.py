"""One run from recipe to finished student: the story that `mfd distill` and the Python API tell."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mfd_cli.config.load import LoadedRecipe, dump, load_recipe
from mfd_cli.errors import Interrupted, MfdError, RunStopped
from mfd_cli.inference.benchmark import closing_report
from mfd_cli.networks.sharding import gathered
from mfd_cli.store.best import prune_best
from mfd_cli.store.checkpoint import Checkpoint, set_aside_after
from mfd_cli.store.files import remove_leftovers, write_bytes, write_json
from mfd_cli.store.layout import RUNS, RunFolder, point_latest
from mfd_cli.store.lock import locked
from mfd_cli.store.student import save_student, student_tensors
from mfd_cli.training import checkpoints
from mfd_cli.training.folder import Plan, describe, open_folder, plan_run, remove_run, resume_command
from mfd_cli.training.judging import QuickJudge
from mfd_cli.training.previews import save_preview
from mfd_cli.training.record import facts, now
from mfd_cli.training.reporting import Reporter, reported
from mfd_cli.training.savings import out_of_memory, savings_in
from mfd_cli.training.signals import EXIT_CODES, StopRequest
from mfd_cli.training.tracking import MetricsFile, Tracker, open_trackers, scalars
from mfd_cli.training.trainer import Trainer
from mfd_cli.training.workshop import Workshop, build


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
        RunStopped: training met a value that is not finite, a collapse or a full disk; the last checkpoint is good.
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
    _prepare(workshop, reporter)
    judge = QuickJudge(workshop, plan.run)
    judge.require()
    with _writing(plan, workshop, judge, reporter) as session:
        session.train()
        session.finish()
    return plan.run


class Session:
    """A run that is being written: training, its borders, and its end."""

    def __init__(self, plan: Plan, workshop: Workshop, judge: QuickJudge, reporter: Reporter) -> None:
        self.run, self.workshop, self.judge, self.reporter = plan.run, workshop, judge, reporter
        progress = None
        if plan.checkpoint is not None:
            _require_same_teacher(plan.run, workshop.identity())
            progress = checkpoints.restore(plan.checkpoint, workshop.roles)
        self.trainer = workshop.trainer(progress)
        self.main = workshop.accelerator.is_main_process
        self._metrics: MetricsFile | None = None
        self._trackers: list[Tracker] = []
        self._stop = StopRequest()
        self._stopped = False
        self._phase: str | None = None

    def open(self, checkpoint: Checkpoint | None) -> None:
        """Writes recipe and record, and opens the metrics."""
        if not self.main:
            return
        recipe, resolved = self.workshop.recipe, self.workshop.loaded.resolved
        for folder in (self.run.root, self.run.checkpoints, self.run.best, self.run.previews):
            remove_leftovers(folder)
        if checkpoint is not None:
            set_aside_after(checkpoint)
        text = dump(resolved)
        write_bytes(self.run.recipe, text.encode())
        record = facts(self.workshop) | {"recipe_sha256": hashlib.sha256(text.encode()).hexdigest()}
        if self.judge.settings.every:
            record["best"] = self.trainer.progress.standing.record()
        self.run.update_record(status="running", **record, **({"started": now()} if checkpoint is None else {}))
        point_latest(self.run)
        self._trackers = open_trackers(recipe.log.trackers, self.run.root, recipe.name, resolved)
        self._metrics = MetricsFile(self.run.metrics, self.trainer.update)

    def train(self) -> None:
        """Steps to the last update, or to the end of the recipe's patience.

        Raises:
            Interrupted: told to stop; a checkpoint was saved first.
        """
        trainer, recipe = self.trainer, self.workshop.recipe
        self.reporter.started(describe(recipe), recipe.train.updates, trainer.update)
        try:
            with self._stop:
                if trainer.progress.step == 0:
                    if self.judge.due(0):
                        self._log(trainer.metrics(), self._judge())
                    self._preview()
                if not self.judge.over(trainer.progress.standing):
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
        workshop, update = self.workshop, self.trainer.update
        tensors = gathered(student_tensors(workshop.roles.final(), workshop.teacher.carried()), keep=self.main)
        if self.main:
            save_student(self.run.student, workshop.student_config(update), tensors)
            self.reporter.saved("student", self.run.student)
        self._preview()
        if self.main:
            with self._doing("the closing check"):
                report = self._closing_report()
            if report is not None:
                write_json(self.run.report, report)
            self.run.update_record(status="finished", finished=now(), **self._early(), **self._position())
            self._tell_best()
        self.workshop.accelerator.wait_for_everyone()
        self.workshop.accelerator.end_training()

    def out_of_memory(self) -> RunStopped:
        """The error of a device whose memory did not suffice; the last checkpoint is good."""
        trainer, workshop = self.trainer, self.workshop
        role = "student" if trainer.is_student else "auxiliary"
        phase = self._phase or f"{role} update"
        where = f"{phase} after {trainer.update} student updates"
        return out_of_memory(where, workshop.accelerator.device, savings_in(phase, workshop.recipe))

    def closed(self, status: str, reason: str | None = None) -> None:
        """Records how a run ended that did not finish."""
        if self.main:
            with contextlib.suppress(OSError, RunStopped):
                self.run.update_record(status=status, stopped=now(), reason=reason, **self._position())

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
        self.reporter.stepped(update, trainer.inside / trainer.schedule.length(update))
        for text in trainer.guards.watch.news():
            self.reporter.warned(text)
        if trainer.inside == 0:
            quality = self._judge() if self.judge.due(update) else None
            last = last or (self.judge.due(update) and self.judge.over_anywhere(trainer.progress.standing))
            if update % log.every == 0 or last or self.judge.due(update):
                self._log(trainer.metrics(), quality)
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

    def _log(self, numbers: dict[str, Any], quality: dict[str, Any] | None = None) -> None:
        numbers |= {"quality": quality} if quality else {}
        if self._metrics is not None:
            self._metrics.write(numbers)
        for track in self._trackers:
            track(scalars(numbers))
        self.reporter.logged(numbers)

    def _judge(self) -> dict[str, Any] | None:
        """A quick judgement for a line of metrics; None on processes that do not judge."""
        with self._doing("a quick judgement"):
            judgement = self.judge.judge(self.trainer)
        if judgement is None:
            return None
        self.reporter.note(judgement.text())
        return judgement.numbers()

    def _checkpoint(self) -> None:
        trainer, workshop = self.trainer, self.workshop
        progress = trainer.snapshot()  # gathers counts from every process
        parts = checkpoints.collect(workshop.roles, keep=self.main)
        if self.main:
            if self._metrics is not None:
                self._metrics.sync()  # no line before a checkpoint is lost with the power
            path = checkpoints.save(
                self.run.checkpoints, parts=parts, progress=progress, update=trainer.update,
                inside=trainer.inside, student=workshop.student_config(trainer.update), keep=workshop.recipe.log.keep,
            )  # fmt: skip
            self.run.update_record(**self._position())
            prune_best(self.run, progress.standing.update)
            self.reporter.saved("checkpoint", path)
        workshop.accelerator.wait_for_everyone()

    def _preview(self) -> None:
        if self.main or self.workshop.roles.sharding is not None:  # shards are sampled by all processes together
            path = self.run.previews / f"update-{self.trainer.update:06d}.png" if self.main else None
            teacher, student = self.workshop.samplers()
            num, update, judged = self.workshop.recipe.log.preview_num, self.trainer.update, self.judge.last
            quality = judged.text() if judged is not None and judged.update == update else None
            with self._doing("a preview"):
                save_preview(path, teacher, student, self.workshop.data, update, num, quality)
            self.workshop.teacher.rest()
            if path is not None:
                self.reporter.saved("preview", path)

    def _closing_report(self) -> dict[str, Any] | None:
        recipe = self.workshop.recipe
        if not recipe.evaluate.num:
            return None
        if self.workshop.roles.sharding is not None:
            # the speed of shards says nothing of the student's, and how often it is timed differs by process
            self.reporter.note(f"no closing check of sharded networks: `mfd benchmark {self.run.root}` makes it")
            return None
        teacher, student = self.workshop.samplers()
        return closing_report(
            teacher, student, self.workshop.data, num=recipe.evaluate.num, batch_size=recipe.evaluate.batch_size,
            method=recipe.method.type, recipe=recipe.name, run=self.run.root, metrics=recipe.evaluate.metrics,
            say=self.reporter.note,
        )  # fmt: skip

    def _early(self) -> dict[str, str]:
        """Why the run ended before its last update, for run.json; empty if it did not."""
        update, standing = self.trainer.update, self.trainer.progress.standing
        if update == self.workshop.recipe.train.updates:
            return {}
        return {
            "ended_early": f"{standing.metric} did not improve beyond its standard error in {standing.waited} quick "
            f"judgements (evaluate.patience); ended after update {update}"
        }

    def _tell_best(self) -> None:
        best = self.trainer.progress.standing.update
        for why in self._early().values():
            self.reporter.note(f"ended early: {why}")
        if best not in (None, self.trainer.update):
            self.reporter.note(f"the best student is that of update {best}: `--checkpoint best` selects it")

    @contextlib.contextmanager
    def _doing(self, phase: str) -> Iterator[None]:
        """Names what is being done, for the report of a device whose memory did not suffice."""
        self._phase = phase
        yield
        self._phase = None  # kept where the block fails: it is asked for then

    def _position(self) -> dict[str, Any]:
        progress, warnings = self.trainer.progress, self.trainer.guards.watch.record()
        return {
            **({"warnings": warnings} if warnings else {}),
            "update": self.trainer.update,
            "seconds": round(progress.seconds, 3),
            "evaluations": dict(progress.evaluations),
        }


@contextlib.contextmanager
def _writing(plan: Plan, workshop: Workshop, judge: QuickJudge, reporter: Reporter) -> Iterator[Session]:
    """Holds the run folder while a session writes it, and records how the session ended."""
    main = workshop.accelerator.is_main_process
    if main:
        open_folder(plan, workshop.bytes_needed())
    with locked(plan.run.root) if main else contextlib.nullcontext():
        session = Session(plan, workshop, judge, reporter)
        if main and plan.replace:
            remove_run(plan.run)
        session.open(plan.checkpoint)
        try:
            yield session
        except (Interrupted, KeyboardInterrupt, SystemExit) as error:
            session.closed("interrupted", getattr(error, "found", "stopped at once"))
            raise
        except RunStopped as error:
            session.closed("stopped", error.found)
            raise
        except torch.OutOfMemoryError as error:
            stopped = session.out_of_memory()
            session.closed("stopped", stopped.found)
            raise stopped from error
        except BaseException as error:
            session.closed("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            session.close()


def _prepare(workshop: Workshop, reporter: Reporter) -> None:
    """Lets the data source do what it does once before training, each process its share.

    Raises:
        Interrupted: told to stop.
    """
    stop, accelerator = StopRequest(), workshop.accelerator
    stop.at_once = True
    try:
        with stop, reported(reporter, "prepare data") as report:
            workshop.data.prepare(report, accelerator.process_index, accelerator.num_processes)
    except KeyboardInterrupt:
        signal = stop.received
        raise Interrupted(
            "stopped while preparing data; no run was begun",
            exit_code=EXIT_CODES[signal] if signal else 130,
            do="start again: what was prepared is kept",
        ) from None
    accelerator.wait_for_everyone()


def _require_same_teacher(run: RunFolder, identity: dict[str, str]) -> None:
    """Raises MfdError if the teacher's weights are not those that a run began with."""
    began = run.read_record().get("teacher", identity)
    if began != identity:
        raise MfdError(
            f"{run.root}: the teacher has changed since the run began: {began} -> {identity}",
            do="put the teacher's weights back, or start anew with -o or --force",
        )
