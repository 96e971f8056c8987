"""`mfd distill`: a run from recipe to finished student, or a rehearsal of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mfd_cli import console
from mfd_cli.errors import MfdError


def distill(
    recipe: str,
    *,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
    dry_run: bool = False,
    random_weights: bool = False,
    processes: int | None = None,
    device: str | None = None,
    arguments: Sequence[str] = (),
) -> int:
    """Distills as the recipe says, then prints what came of it. Returns the exit code.

    Args:
        recipe: YAML file or name of a bundled recipe.
        output: run folder.
        overrides: texts of --set.
        resume: continue the run in the folder.
        force: replace the run in the folder.
        dry_run: build everything, run updates of each kind, write nothing.
        random_weights: with `dry_run`, random weights of the right shapes instead of the teacher's.
        processes: ranks to start; one per CUDA device if None.
        device: "cpu" or "cuda".
        arguments: this command's own command line, for ranks to be started with.
    """
    from mfd_cli.config.load import load_recipe
    from mfd_cli.training.launch import inside_launch, launch

    loaded = load_recipe(recipe, overrides)
    if random_weights and not dry_run:
        raise MfdError("--random-weights", allowed="only with --dry-run: a student of random weights is worth nothing")
    if not inside_launch():
        ranks = _ranks(processes, device)
        if ranks > 1 and not dry_run:
            return launch(arguments, ranks, cpu=device == "cpu" or not _cuda_devices())
    from mfd_cli.progress import ConsoleReporter

    first = os.environ.get("RANK", "0") == "0"
    if dry_run:
        from mfd_cli.training.rehearsal import rehearse

        plan = rehearse(loaded, device, random_weights=random_weights, say=console.note)
        console.table(plan.title, ["what", "value"], plan.facts)
        columns = ["phase", "seconds", "count", "in all", "forward passes a sample", "peak memory"]
        title = "it is tight" if plan.tight else "if it does not fit"
        console.table("", columns, plan.table(), below=[f"{title}: --set, largest saving first", *plan.advice])
        return 0
    from mfd_cli.training.reporting import Reporter
    from mfd_cli.training.run import distill as run_recipe

    reporter = ConsoleReporter() if first else Reporter()
    run = run_recipe(loaded, output=output, resume=resume, force=force, device=device, reporter=reporter)
    if first:
        _show(run.root)
    return 0


def _show(root: Path) -> None:
    """What a finished run left, and what to do with it."""
    from mfd_cli.inference.benchmark import summary, table
    from mfd_cli.store.layout import WEIGHTS, RunFolder

    run = RunFolder(root)
    if (report := run.read_report()) is not None:
        console.table(*table(report), below=summary(report))
    pictures = sorted(run.previews.glob("*.png"))
    rows = [("student", run.student / WEIGHTS)]
    rows += [("picture", pictures[-1])] if pictures else []
    rows += [("metrics", run.metrics), ("recipe", run.recipe)]
    console.table("written", ["what", "where"], rows)
    console.note("next: `mfd sample`, `mfd benchmark`, `mfd export`")


def _ranks(processes: int | None, device: str | None) -> int:
    if processes is not None and processes < 1:
        raise MfdError(f"--processes {processes}", allowed="1 or more")
    if processes is None:
        return max(1, _cuda_devices()) if device != "cpu" else 1
    if device != "cpu" and 0 < _cuda_devices() < processes:
        raise MfdError(f"--processes {processes}: {_cuda_devices()} CUDA devices here", do="or add --device cpu")
    return processes


def _cuda_devices() -> int:
    import torch

    return torch.cuda.device_count()
