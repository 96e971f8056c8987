"""What the measuring scripts share: their options, a trainer built from a recipe, the machine, and where results go."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mfd_cli import console
from mfd_cli.config.load import LoadedRecipe
from mfd_cli.errors import MfdError
from mfd_cli.inference.benchmark import environment
from mfd_cli.inference.sampler import Sampler
from mfd_cli.training.trainer import Trainer
from mfd_cli.training.workshop import Workshop, build
from teachers.errors import TeacherError

Main = Callable[[Sequence[str] | None], dict[str, Any]]


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every script takes: changes of the recipe, results, and a smoke run."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--set", dest="overrides", metavar="KEY.PATH=VALUE", action="append", default=[])
    parser.add_argument("--json", metavar="PATH", help="write the results as JSON")
    parser.add_argument("--plot", metavar="PATH", type=Path, help="write a picture (PNG)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; its figures mean nothing")
    return parser


def check_targets(args: argparse.Namespace) -> None:
    """Refuses results that could not be written, before the work.

    Raises:
        MfdError: a folder is missing.
    """
    console.check_json_target(args.json)
    if args.plot is not None and not args.plot.parent.is_dir():
        raise MfdError(f"--plot {args.plot}: the folder {args.plot.parent} does not exist")


def trainer_of(loaded: LoadedRecipe, device: str) -> tuple[Workshop, Trainer]:
    """Everything that a recipe builds, and the loop over it, before its first step."""
    workshop = build(loaded, device)
    return workshop, workshop.trainer()


def machine(sampler: Sampler) -> dict[str, Any]:
    """Device, threads and versions that a sampler's figures hold for; also printed."""
    found = environment(sampler)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    console.out.print(f"machine: {found['device']}, {found['threads']} threads, {found['dtype']}, {versions}")
    return found


def deliver(report: dict[str, Any], args: argparse.Namespace, draw: Callable[[Figure], None]) -> dict[str, Any]:
    """Writes the JSON and the picture that were asked for, and returns the report."""
    if args.quick:
        console.warn("--quick: too few repetitions for the figures to mean anything")
    console.emit_json(report, args.json)
    if args.plot is not None:
        picture(args.plot, draw)
    return report


def picture(path: Path, draw: Callable[[Figure], None]) -> None:
    """Writes a PNG of what `draw` puts into a figure."""
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    figure.savefig(path, dpi=120)


def run(main: Main) -> None:
    """Runs a script; a user's mistake is told in words and exit code 2, as `mfd` does."""
    try:
        main(None)
    except (MfdError, TeacherError) as problem:
        console.error(problem)
        sys.exit(getattr(problem, "exit_code", 2))
