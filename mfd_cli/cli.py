"""The command line: verbs and options, nothing else. Torch is imported by the commands, not here."""

from __future__ import annotations

import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from mfd_cli import __version__, completion, console
from mfd_cli.errors import MfdError
from mfd_cli.groups import metrics, recipes, teachers
from mfd_cli.options import Checkpoint, Device, Dtype, Force, Json, Overrides, Recipe, Run

#: mistakes in flags: Click's class, or that of the copy of Click inside newer versions of Typer
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="mfd",
    help="Distill a flow-matching model into a student that samples in one step.\n\n"
    "mfd distill recipes/digits.yaml && mfd sample --steps 1 && mfd benchmark --fps && mfd export --safetensors",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for name, group in (("recipes", recipes), ("teachers", teachers), ("metrics", metrics)):
    app.add_typer(group, name=name)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"mfd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    plugin: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE.py", help="Import a file that registers teachers or methods."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options of every command."""
    from mfd_cli.plugins import import_plugin, refuse_shadowed

    refuse_shadowed()
    for path in plugin or ():
        import_plugin(path)


@app.command(no_args_is_help=True)
def distill(
    recipe: Recipe,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Run folder; runs/NAME if left out.")] = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    force: Force = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Run updates of each kind; write nothing.")] = False,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="With --dry-run: random weights of the right shapes.")
    ] = False,
    processes: Annotated[int | None, typer.Option(help="Processes; one per GPU if left out.")] = None,
    device: Device = None,
) -> None:
    """Distill a teacher into a student. Example: mfd distill digits --set train.updates=200"""
    from mfd_cli.commands.distill import distill as command

    code = command(
        recipe, output=output, overrides=overrides or (), resume=resume, force=force, dry_run=dry_run,
        random_weights=random_weights, processes=processes, device=device, arguments=sys.argv[1:],
    )  # fmt: skip
    raise typer.Exit(code)


@app.command()
def sample(
    run: Run = None,
    checkpoint: Checkpoint = None,
    steps: Annotated[int | None, typer.Option(help="Euler steps; what the student was made for if left out.")] = None,
    num: Annotated[int | None, typer.Option(help="Number of samples.")] = None,
    seed: Annotated[int, typer.Option(help="Seed; sample i has the noise of (seed, i).")] = 0,
    teacher: Annotated[
        bool | None, typer.Option("--teacher/--no-teacher", help="Also the teacher's samples from the same noise.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Text to sample; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="File with one prompt a line.")] = None,
    label: Annotated[list[int] | None, typer.Option(help="Class index; may be repeated.")] = None,
    clip: Annotated[list[int] | None, typer.Option(help="Held-out clip to forecast; may be repeated.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples computed at once.")] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="PNG grid, .npz, .gif of forecasts, or a folder.")
    ] = None,
    device: Device = None,
    dtype: Dtype = "fp32",
) -> None:
    """Sample from a student, and its teacher. Example: mfd sample --steps 1 --teacher"""
    from mfd_cli.commands.sample import sample as command

    command(
        run, checkpoint=checkpoint,
        steps=steps, num=num, seed=seed, teacher=teacher, prompt=prompt or (), prompts=prompts, label=label or (),
        clip=clip or (), guidance=guidance, batch_size=batch_size, output=output, device=_device(device), dtype=dtype,
    )  # fmt: skip


@app.command()
def benchmark(
    run: Run = None,
    checkpoint: Checkpoint = None,
    fps: Annotated[bool, typer.Option("--fps", help="Measure speed.")] = False,
    quality: Annotated[bool, typer.Option("--quality", help="Measure quality.")] = False,
    steps: Annotated[str | None, typer.Option(help="Further step counts of the student, e.g. 1,2,4.")] = None,
    teacher_steps: Annotated[
        str | None,
        typer.Option(help="Further step counts of the teacher, e.g. 1,10,50."),
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Batch size that is timed, 1 if left out; or several, e.g. 1,8,64.")
    ] = None,
    num: Annotated[int | None, typer.Option(help="Samples that quality is judged by.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of noise and conditions.")] = 0,
    compare: Annotated[
        list[str] | None, typer.Option(help="Another run to put in the table.", autocompletion=completion.runs)
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="TYPE[=MODEL]", help="A further metric; may be repeated.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Through torch.compile, which is checked.")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Weights laid out channels-last.")] = False,
    json_target: Json = None,
    device: Device = None,
    dtype: Dtype = "fp32",
) -> None:
    """Measure speed and quality of student and teacher. Example: mfd benchmark --fps --json -"""
    from mfd_cli.commands.benchmark import benchmark as command

    command(
        run, checkpoint=checkpoint, fps=fps, quality=quality, steps=steps, teacher_steps=teacher_steps,
        batch_size=batch_size, num=num, seed=seed, compare=compare or (), metrics=metric or (),
        compiled=compiled, channels_last=channels_last, json_target=json_target, device=_device(device),
        dtype=dtype,
    )  # fmt: skip


@app.command()
def report(
    run: Run = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="HTML file; RUN-report.html here if left out.")
    ] = None,
    force: Force = False,
    benchmark: Annotated[bool, typer.Option("--benchmark", help="Measure speed and quality anew.")] = False,
    steps: Annotated[str | None, typer.Option(help="With --benchmark: further step counts of the student.")] = None,
    teacher_steps: Annotated[
        str | None, typer.Option(help="With --benchmark: step counts of the teacher; 1,2,4... if left out.")
    ] = None,
    num: Annotated[int | None, typer.Option(help="With --benchmark: samples that quality is judged by.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of noise and conditions.")] = 0,
    json_target: Annotated[
        str | None,
        typer.Option("--json", metavar="PATH", help="Write the data as JSON; '-' is stdout. Without -o, no page."),
    ] = None,
    device: Device = None,
    dtype: Dtype = "fp32",
) -> None:
    """Write one HTML page about a run: verdict, samples, plots, recipe. Example: mfd report runs/digits"""
    from mfd_cli.commands.report import report as command

    command(
        run, output=output, force=force, benchmark=benchmark, steps=steps, teacher_steps=teacher_steps, num=num,
        seed=seed, json_target=json_target, device=_device(device), dtype=dtype,
    )  # fmt: skip


@app.command()
def export(
    run: Run = None,
    checkpoint: Checkpoint = None,
    safetensors: Annotated[bool, typer.Option("--safetensors", help="One self-describing file (the default).")] = False,
    diffusers: Annotated[bool, typer.Option("--diffusers", help="A pipeline folder that diffusers opens.")] = False,
    lora: Annotated[bool, typer.Option("--lora", help="The adapter alone, for load_lora_weights.")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="That pipeline, of a student with an adapter.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="An ONNX graph.")] = False,
    dtype: Dtype = "fp32",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder; RUN/export if left out.")] = None,
) -> None:
    """Write the student in a form that loads elsewhere. Example: mfd export --safetensors"""
    from mfd_cli.commands.export import export as command

    command(
        run, checkpoint=checkpoint,
        safetensors=safetensors, diffusers=diffusers, lora=lora, merged=merged, onnx=onnx, dtype=dtype,
        output=output,
    )  # fmt: skip


@app.command()
def doctor(json_target: Json = None) -> None:
    """Show versions, devices, plugins and problems, for a bug report. Example: mfd doctor --json -"""
    from mfd_cli.commands.doctor import doctor as command

    command(json_target)


def main() -> None:
    """Runs the command line and exits with the contract's codes."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    # so that a command tidies up that has no better answer to SIGTERM, as it does after Ctrl-C
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        code = app(_common_first(sys.argv[1:]), standalone_mode=False)
    except MfdError as error:
        if "--debug" in sys.argv:
            raise
        console.error(error)
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except SystemExit as error:
        # Typer ends with 1 where the reader of a pipe has left, as in `mfd ... | head`: that is no failure
        sys.exit(0 if isinstance(error.__context__, BrokenPipeError) else error.code)
    except Exception as error:
        sys.exit(_unexpected(error))
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code if isinstance(code, int) else 0)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
    """Warnings of mfd and of plugins in one line; those of libraries, about their own future, only with --debug."""
    if category is UserWarning:
        console.warn(str(message))
    elif "--debug" in sys.argv:
        console.warn(f"{filename}: {category.__name__}: {message}")


def _common_first(arguments: list[str]) -> list[str]:
    """The command line with options of every command moved to the front, so that they may stand anywhere."""
    common, rest = [], []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            rest += [argument, *remaining]
        elif argument == "--plugin":
            common += [argument, *[value for value in [next(remaining, None)] if value is not None]]
        elif argument in ("--debug", "--version") or argument.startswith("--plugin="):
            common.append(argument)
        else:
            rest.append(argument)
    return [*common, *rest]


def _unexpected(error: Exception) -> int:
    """Usage mistakes as Click words them (exit 2); anything else is a fault of ours, shown in full."""
    if isinstance(error, _UsageError):
        error.show()
        return error.exit_code
    if isinstance(error, OSError) and error.strerror and "--debug" not in sys.argv:
        console.error(MfdError(f"{error.filename or ''}: {error.strerror}"))
        return 2
    raise error


def _device(asked: str | None) -> str:
    """The device asked for, or the best there is.

    Raises:
        MfdError: no such device here.
    """
    import torch

    there = torch.cuda.is_available()
    if asked is None:
        return "cuda" if there else "cpu"
    if asked.split(":")[0] not in ("cpu", "cuda") or (asked.startswith("cuda") and not there):
        raise MfdError(f"--device {asked}: not here", allowed="cpu" + (" or cuda" if there else ""))
    return asked
