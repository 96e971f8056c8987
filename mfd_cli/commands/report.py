"""`mfd report`: one HTML page about a run, which needs nothing else to be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mfd_cli import console
from mfd_cli.errors import MfdError
from mfd_cli.options import whole_numbers

if TYPE_CHECKING:
    from mfd_cli.inference.models import Models
    from mfd_cli.report.gather import Gathered
    from mfd_cli.report.samples import Samples


def report(
    run: str | None = None,
    *,
    output: str | Path | None = None,
    force: bool = False,
    benchmark: bool = False,
    steps: str | None = None,
    teacher_steps: str | None = None,
    num: int | None = None,
    seed: int = 0,
    json_target: str | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
) -> Path | None:
    """Writes the page and prints where it is (docs/report.md).

    Args:
        run: run folder, checkpoint, export; the newest run if None.
        output: HTML file; RUN-report.html in the working folder if None.
        force: whether a file that stands there may be replaced.
        benchmark: whether speed and quality are measured anew, in place of the run's closing check.
        steps: further steps of the student to measure, as in "1,2,4".
        teacher_steps: further steps of the teacher to measure.
        num: samples each model is judged by; the recipe's `evaluate.num` if None.
        seed: names the noise of samples shown and judged.
        json_target: file to write the data to, or "-" for stdout and nothing else there; without `output` no page.
        device: where to compute.
        dtype: precision that networks compute in: fp32, bf16 or fp16.

    Returns:
        The page; None if only data were asked for.

    Raises:
        MfdError: flags that do not fit each other, no such run, a file that stands there, or nothing to measure.
    """
    counts = [whole_numbers(steps, "--steps"), whole_numbers(teacher_steps, "--teacher-steps")]
    _check(benchmark, {"--steps": steps, "--teacher-steps": teacher_steps, "--num": num})
    console.check_json_target(json_target)

    from mfd_cli.inference.models import Models, load_models
    from mfd_cli.report.gather import gather
    from mfd_cli.report.measure import measured
    from mfd_cli.report.page import data, render
    from mfd_cli.store.layout import find

    found = gather(find(run))
    wanted = json_target is None or output is not None
    target = Path(output) if output is not None else Path(f"{found.name}-report.html")
    if wanted:
        _check_target(target, force)
    models = Models(notes=["there is no student"])
    if found.stored is not None and (wanted or benchmark):
        models = load_models(found.stored, device=device, dtype=dtype)
    if benchmark:
        figures = measured(models, steps=counts[0], teacher_steps=counts[1], num=num, seed=seed, say=console.note)
        found = found.with_benchmark(figures, "measured for this page")
    elif found.benchmark is None and found.stored is not None:
        console.note("no figures: speed and quality are measured with --benchmark")
    if wanted:
        console.write_text(target, render(found, _samples(found, models, seed)))
    console.emit_json(data(found), json_target)
    if not wanted:
        return None
    if json_target == "-":
        console.note(str(target))
    else:
        print(console.literal(str(target)))
    return target


def _samples(found: Gathered, models: Models, seed: int) -> Samples:
    """Samples if there is a student; else the newest picture made while training; else why there is none."""
    from mfd_cli.report.private import scrubbed
    from mfd_cli.report.samples import Samples, draw, preview

    try:
        drawn = draw(models, seed)
        drawn.notes.extend(models.notes)
    except MfdError as error:
        why = error.found
        console.note(f"no samples are drawn: {why}")
        drawn = Samples("none") if found.preview is None else preview(found.preview)
        drawn.notes.append(why)
    drawn.notes[:] = dict.fromkeys(scrubbed(note) for note in drawn.notes)
    return drawn


def _check(benchmark: bool, of_benchmark: dict[str, str | int | None]) -> None:
    """Refuses flags that say how to measure where nothing is measured."""
    given = [flag for flag, value in of_benchmark.items() if value is not None]
    if given and not benchmark:
        raise MfdError(f"{', '.join(given)} without --benchmark", do="add --benchmark, which measures anew")
    num = of_benchmark["--num"]
    if isinstance(num, int) and num < 1:
        raise MfdError(f"--num {num}", allowed="at least 1")


def _check_target(target: Path, force: bool) -> None:
    """Refuses, before anything is computed, a file that cannot be written or is not to be replaced."""
    if target.is_dir():
        raise MfdError(f"-o {target} is a folder", allowed="an HTML file")
    if target.suffix.lower() not in (".html", ".htm"):
        raise MfdError(f"-o {target}: no format '{target.suffix}'", allowed="an HTML file (.html)")
    if not target.parent.is_dir():
        raise MfdError(f"-o {target}: the folder {target.parent} does not exist", do=f"mkdir -p {target.parent}")
    if (target.exists() or target.is_symlink()) and not force:
        raise MfdError(f"{target} exists and is left as it is", do="choose another name with -o, or --force")
