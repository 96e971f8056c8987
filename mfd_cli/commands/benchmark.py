"""`mfd benchmark`: speed and quality of a student, its teacher and other students, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mfd_cli import console
from mfd_cli.errors import MfdError
from mfd_cli.options import whole_numbers

if TYPE_CHECKING:
    from mfd_cli.inference.benchmark import Contestant, Effort
    from mfd_cli.inference.models import Models
    from mfd_cli.inference.quality import Judge
    from mfd_cli.inference.sampler import Sampler


def benchmark(
    run: str | None = None,
    *,
    checkpoint: str | None = None,
    fps: bool = False,
    quality: bool = False,
    steps: str | None = None,
    teacher_steps: str | None = None,
    batch_size: str | None = None,
    num: int | None = None,
    seed: int = 0,
    compare: Sequence[str] = (),
    metrics: Sequence[str] = (),
    compiled: bool = False,
    channels_last: bool = False,
    json_target: str | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
) -> dict[str, Any]:
    """Prints the table, or JSON, and returns the report (docs/benchmark.md).

    Args:
        run: run folder, checkpoint, export; the newest run if None.
        checkpoint: which student of a run folder: "best" by quick judgements, "last", or an update; the finished one
            if None.
        fps: whether to time; with `quality` false too, both are done.
        quality: whether to judge samples.
        steps: further steps of the student, as in "1,2,4".
        teacher_steps: further steps of the teacher; its own and the students' are always there.
        batch_size: samples per timed run, 1 if None; several as in "1,8,64": the first is that of the table, the
            others make a table of their own. Without timing, samples generated at once.
        num: samples each model is judged by; the recipe's `evaluate.num` if None.
        seed: names noise, conditions and reference.
        compare: further runs or exports whose students join the table.
        metrics: further metrics, each as "TYPE", "TYPE=MODEL" or a block as in a recipe's `evaluate.metrics`.
        compiled: whether networks go through torch.compile first.
        channels_last: whether weights of convolutions are laid out channels-last first.
        json_target: file to write JSON to, or "-" for stdout and nothing else there.
        device: where to compute.
        dtype: precision that networks compute in: fp32, bf16 or fp16.

    Raises:
        MfdError: flags out of range, a metric whose weights are missing, no such run, runs that do not compare, too few
            samples, a network that cannot be compiled or is another one then.
        TeacherError: `--quality` for data without real samples.
    """
    students_steps = whole_numbers(steps, "--steps")
    teachers_steps = whole_numbers(teacher_steps, "--teacher-steps")
    sizes = whole_numbers(batch_size, "--batch-size")
    timed = fps or not quality
    if len(sizes) > 1 and not timed:
        raise MfdError(f"--batch-size {batch_size} without timing", allowed="one number, or --fps as well")
    if num is not None and num < 1:
        raise MfdError(f"--num {num}", allowed="at least 1")
    console.check_json_target(json_target)

    from mfd_cli.inference.batches import by_batch_size
    from mfd_cli.inference.benchmark import contestants, report
    from mfd_cli.inference.faster import make_faster
    from mfd_cli.inference.models import load_models
    from mfd_cli.store.best import select
    from mfd_cli.store.layout import find

    path = str(select(find(run), checkpoint))
    judged = quality or not fps or bool(metrics)
    required = {"student", *(["teacher"] if teachers_steps else []), *(["data"] if judged else [])}
    models = load_models(path, device=device, dtype=dtype, required=required, stand_in=not judged, say=console.warn)
    student, teacher, data, notes = models.student, models.teacher, models.data, models.notes
    assert student is not None and data is not None, "required, or stood in for"
    listed = _listed(models, metrics, quality) if judged else []
    effort = _effort(models, timed, sizes[0] if sizes else None, num, seed)
    reference = _reference(models, effort, quality or bool(metrics), listed) if judged else None
    rows = contestants(teacher, _students(path, student, students_steps, compare, device, dtype), teachers_steps)
    if compiled or channels_last:
        console.note("changing networks, and checking that their samples stay what they were")
        make_faster([row.sampler for row in rows], data, compiled=compiled, channels_last=channels_last)
    recipe = models.recipe.get("name")
    result = report(rows, data, effort, reference=reference, recipe=recipe, notes=notes, say=console.note)
    result |= {"compiled": compiled, "channels_last": channels_last}
    result["batches"] = by_batch_size(rows, data, effort, sizes[1:], console.note)
    console.emit_json(result, json_target)
    if json_target != "-":
        show(result)
    return result


def show(result: dict[str, Any]) -> None:
    """Prints a report to stdout for people."""
    from mfd_cli.inference.batches import batch_table
    from mfd_cli.inference.benchmark import summary, table

    below = summary(result)
    if result["compiled"] and result["rows"][0]["warm_up_s"] is not None:
        spent = sum(row["warm_up_s"] for row in result["rows"])
        below.append(f"Networks are compiled; warm-up, which holds most of that, took {spent:.1f} s in all.")
    console.table(*table(result), below=below)
    if result["batches"]:
        console.table(*batch_table([*result["rows"], *result["batches"]]))


def _effort(models: Models, fps: bool, batch_size: int | None, num: int | None, seed: int) -> Effort:
    judging = None if fps else batch_size
    return models.effort(num=num, seed=seed, batch_size=judging, fps=fps, timed_batch=batch_size or 1)


def _listed(models: Models, flags: Sequence[str], required: bool) -> list[Any]:
    """Settings of the metrics that the recipe lists and of those given by --metric, which go before it.

    Raises:
        MfdError: a flag that names no metric, or a metric whose weights are missing; of the recipe's alone, and where
            quality was not asked for by name, that is a note.
    """
    from mfd_cli.inference.quality import check_metrics

    asked = _metrics([_block(text) for text in flags], "--metric")
    own = models.evaluate.get("metrics") or []
    replaced = {(metric.type, metric.label) for metric in asked}
    stored = [metric for metric in _metrics(own, "evaluate.metrics") if (metric.type, metric.label) not in replaced]
    check_metrics(asked)
    usable = []
    for metric in stored:
        try:
            check_metrics([metric])
            usable.append(metric)
        except MfdError as error:
            if required:
                raise
            models.notes.append(f"{metric.type} was not measured: {error.found}")
            console.warn(models.notes[-1])
    return [*usable, *asked]


def _metrics(blocks: Sequence[Any], where: str) -> list[Any]:
    """Checked settings of metrics. Raises MfdError for what no recipe could list."""
    from pydantic import ValidationError

    from mfd_cli.config.schema import Evaluate

    try:
        return list(Evaluate.model_validate({"metrics": list(blocks)}).metrics)
    except ValidationError as error:
        what = "; ".join(str(entry["ctx"]["error"] if "error" in entry.get("ctx", {}) else entry["msg"])
                         for entry in error.errors())  # fmt: skip
        raise MfdError(f"{where}: {what}", do="docs/metrics.md lists the metrics and their settings") from error


def _block(text: str) -> Any:
    """A metric's block from "TYPE", "TYPE=MODEL" or YAML in braces."""
    from mfd_cli.config import strict_yaml

    if text.lstrip().startswith("{"):
        found = strict_yaml.parse(text, f"--metric {text}", line_numbers=False)
        if found.mistakes:
            raise MfdError("; ".join(map(str, found.mistakes)), allowed="{type: TYPE, model: PATH}")
        return found.data
    name, equals, model = text.partition("=")
    if not name or (equals and not model):
        raise MfdError(f"--metric {text}", allowed="TYPE, TYPE=MODEL, or {type: TYPE, ...} as in a recipe")
    return {"type": name, "model": model} if equals else {"type": name}


def _reference(models: Models, effort: Effort, required: bool, listed: Sequence[Any]) -> Judge | None:
    """What quality is held against; None, with a note, if the data has none and quality was not asked for by name."""
    from mfd_cli.inference.quality import judge_of
    from teachers.base import TeacherError

    assert models.student is not None and models.data is not None
    try:
        return judge_of(models.data, effort.num, effort.seed, listed, models.student.device, models.teacher)
    except TeacherError as error:
        if required:
            raise
        models.notes.append(f"quality was not measured: {error.found}")
        return None


def _students(
    path: str, student: Sampler, steps: Sequence[int], compare: Sequence[str], device: str, dtype: str
) -> list[Contestant]:
    """The student at its own steps and those asked for, then the other runs' students at theirs."""
    from mfd_cli.inference.benchmark import Contestant
    from mfd_cli.inference.sampler import load_student
    from mfd_cli.store.layout import find

    counts = list(dict.fromkeys([student.steps, *steps]))
    rows = [Contestant(student, count, student.config.get("method"), path) for count in counts]
    for reference in compare:
        place = str(find(reference))
        other = load_student(place, device=device, dtype=dtype)
        _require_comparable(student, other, place)
        rows.append(Contestant(other, other.steps, other.config.get("method"), place))
    return rows


def _require_comparable(student: Sampler, other: Sampler, place: str) -> None:
    """Refuses a comparison of students that do not make the same thing from the same noise and conditions."""
    for what, mine, theirs in (
        ("teacher", student.config["teacher"]["type"], other.config["teacher"]["type"]),
        ("data", student.config["data"], other.config["data"]),
        ("sample shape", list(student.teacher.sample_shape), list(other.teacher.sample_shape)),
    ):
        if mine != theirs:
            raise MfdError(
                f"--compare {place}: its {what} is {theirs}, that of the first run {mine}",
                allowed="runs with the same type of teacher, the same data and the same sample shape",
            )
