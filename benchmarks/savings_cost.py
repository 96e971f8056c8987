"""What checkpoints cost a run, and whether its memory stays flat.

    python benchmarks/savings_cost.py [digits] [--rounds 20] [--updates 20000] [--set key=value]... [--json PATH]
                                      [--plot PATH] [--quick]

The first part times student updates (with the auxiliary updates before each) and saves of the recipe, in turn, and
gives the share of a run's wall time that saving takes at the recipe's `log.checkpoint_every`:

    share = save / (interval x update + save)                     limit: 2 %

A save is all that the run waits for: copying, writing, syncing, reading back to verify, removing the oldest. The second
part makes `--updates` student updates of the recipe `toy` with a small batch, metrics and checkpoints as in a run, and
reads the memory of the process at a hundred points. It is flat if the most held in the second half of the run is at
most 2 MB above the most held in its second quarter.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from workbench import check_targets, deliver, machine, options, run, trainer_of

from mfd_cli import console
from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError
from mfd_cli.training import checkpoints
from mfd_cli.training.tracking import MetricsFile
from mfd_cli.training.trainer import Trainer
from mfd_cli.training.workshop import Workshop

LIMIT = 0.02
GROWTH = 2e6  # bytes
TOY = ("train.batch_size=16", "method.aux_updates=1", "teacher.network.width=16", "teacher.network.depth=1")


def updated(trainer: Trainer) -> None:
    """One student update with the auxiliary updates before it."""
    for _ in range(trainer.schedule.cycle):
        trainer.step()


def saved(folder: Path, workshop: Workshop, trainer: Trainer) -> Path:
    """A checkpoint, as a run saves it."""
    return checkpoints.save(
        folder, parts=checkpoints.collect(workshop.roles), progress=trainer.snapshot(), update=trainer.update,
        inside=trainer.inside, student=workshop.student_config(trainer.update), keep=workshop.recipe.log.keep,
    )  # fmt: skip


def cost(workshop: Workshop, trainer: Trainer, rounds: int) -> dict[str, float]:
    """Seconds of an update and of a save (medians), and what they come to at the recipe's interval."""
    updates, saves, size = [], [], 0
    updated(trainer)
    with tempfile.TemporaryDirectory() as home:
        for _ in range(rounds):
            began = time.perf_counter()
            updated(trainer)
            between = time.perf_counter()
            path = saved(Path(home), workshop, trainer)
            updates.append(between - began)
            saves.append(time.perf_counter() - between)
            size = sum(file.stat().st_size for file in path.iterdir())
    update, save, interval = statistics.median(updates), statistics.median(saves), workshop.recipe.log.checkpoint_every
    return {
        "update_seconds": update, "save_seconds": save, "save_seconds_worst": max(saves), "bytes": size,
        "interval": interval, "share": save / (interval * update + save),
    }  # fmt: skip


def memory(updates: int) -> list[tuple[int, float]]:
    """Megabytes that the process holds after each hundredth of a toy run."""
    workshop, trainer = trainer_of(load_recipe("toy", [*TOY, f"train.updates={updates}"]), "cpu")
    found, every = [], max(1, updates // 100)
    with tempfile.TemporaryDirectory() as home:
        lines = MetricsFile(Path(home) / "metrics.jsonl", 0)
        while trainer.update < updates:
            updated(trainer)
            if trainer.update % workshop.recipe.log.every == 0:
                lines.write(trainer.metrics())
            if trainer.update % workshop.recipe.log.checkpoint_every == 0:
                saved(Path(home) / "checkpoints", workshop, trainer)
            if trainer.update % every == 0:
                found.append((trainer.update, resident() / 1e6))
        lines.close()
    return found


def resident() -> int:
    """Bytes of memory that this process holds now.

    Raises:
        MfdError: the system does not say.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError as error:
        raise MfdError("the memory of a process is read from /proc, which is not here", do="use Linux") from error
    return pages * 4096


def growth(points: Sequence[tuple[int, float]]) -> float:
    """Megabytes by which the most held in the second half exceeds the most held in the second quarter."""
    quarter, half = len(points) // 4, len(points) // 2
    return max(size for _, size in points[half:]) - max(size for _, size in points[quarter:half])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes; returns the report."""
    parser = options(__doc__)
    parser.add_argument("recipe", nargs="?", default="digits", help="recipe file or name (default: digits)")
    parser.add_argument("--rounds", type=int, default=20, help="updates and saves timed (default: 20)")
    parser.add_argument("--updates", type=int, default=20_000, help="toy updates for the memory (default: 20000)")
    args = parser.parse_args(arguments)
    check_targets(args)
    workshop, trainer = trainer_of(load_recipe(args.recipe, args.overrides), args.device)
    where = machine(workshop.samplers()[1])
    found = cost(workshop, trainer, 2 if args.quick else args.rounds)
    points = memory(40 if args.quick else args.updates)
    report = {
        "schema": 1, "recipe": args.recipe, **where, **found, "limit": LIMIT, "updates": points[-1][0],
        "memory_mb": points, "growth_mb": growth(points),
    }  # fmt: skip
    console.table(
        f"{args.recipe}: a checkpoint of {found['bytes'] / 1e6:.1f} MB every {found['interval']} updates",
        ["update s", "save s", "slowest save s", "share of the run"],
        [[found["update_seconds"], found["save_seconds"], found["save_seconds_worst"], f"{found['share']:.2%}"]],
        below=[
            f"saving is {'within' if found['share'] <= LIMIT else 'ABOVE'} the limit of {LIMIT:.0%}",
            f"memory over {points[-1][0]} toy updates: {points[-1][1]:.0f} MB at the end, "
            f"{report['growth_mb']:+.1f} MB in the second half, {'flat' if _flat(report) else 'NOT FLAT'}",
        ],
    )
    return deliver(report, args, lambda figure: _draw(figure, report))


def _flat(report: dict[str, Any]) -> bool:
    return report["growth_mb"] * 1e6 <= GROWTH


def _draw(figure: Figure, report: dict[str, Any]) -> None:
    axes = figure.subplots()
    axes.plot(*zip(*report["memory_mb"], strict=True))
    axes.set_xlabel("student updates")
    axes.set_ylabel("memory of the process, MB")
    axes.set_ylim(0, 1.1 * max(value for _, value in report["memory_mb"]))


if __name__ == "__main__":
    run(main)
