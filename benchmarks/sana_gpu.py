"""What a large SANA takes on a GPU: seconds and memory of an update, latency of a sample. Random weights, no download.

    python benchmarks/sana_gpu.py [--recipe sana] [--model REPOSITORY] [--batches 1 4 8] [--updates 10] [--card 24]
                                  [--set key=value]... [--json PATH] [--plot PATH]
    python benchmarks/sana_gpu.py --device cpu --recipe sana-tiny --quick          tries the script itself

The recipe's model with random weights in its shapes, which cost what trained ones do: 1.6 billion parameters at 1024
pixels unless `--model` and `--set` say otherwise. For each batch, with and without checkpointing: median seconds of an
auxiliary and a student update by mfd's own loop, and the peak of the memory, allocated by tensors and reserved from the
device. A card of `--card` GB holds it if what is reserved, and a gigabyte for the driver's context, fit in. Embeddings
are computed before training, so no text encoder is there, in training as here.

Then the student in one step and the teacher in its own number of steps, from noise to decoded images.
Without a CUDA device the script says so and ends with exit code 2.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from loop_overhead import _waiting
from matplotlib.figure import Figure
from workbench import check_targets, deliver, machine, options, run

from mfd_cli import console
from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError
from mfd_cli.inference.memory import peak_memory_mb, reset_peak
from mfd_cli.inference.sampler import PRECISIONS, Sampler
from mfd_cli.inference.timing import LEAST, measure, timed_sampler
from mfd_cli.training.trainer import Trainer
from mfd_cli.training.workshop import Workshop, build
from teachers.conditions import to as condition_to

#: bytes that a CUDA process takes beside PyTorch's allocator: context and kernels
CONTEXT = 1e9
KINDS = ("auxiliary", "student")


def settings_of(args: Any, checkpointing: bool) -> list[str]:
    """What the measurement changes in the recipe."""
    return [
        *([f"teacher.model={args.model}"] if args.model else []),
        f"train.batch_size={max(args.batches)}", "train.accumulation=1", "method.aux_updates=1",
        f"train.checkpointing={str(checkpointing).lower()}", *args.overrides,
    ]  # fmt: skip


def updates(workshop: Workshop, batch: int, count: int, card: float) -> dict[str, Any]:
    """Seconds, evaluations and memory of updates at a batch; what fits is judged on CUDA alone."""
    device = workshop.accelerator.device
    workshop.batches = replace(workshop.batches, batch_size=batch)
    trainer = workshop.trainer()
    row: dict[str, Any] = {"batch": batch, "checkpointing": workshop.recipe.train.checkpointing}
    try:
        cycles(trainer, 1)
        fresh = reset_peak(device)
        before = sum(trainer.snapshot().evaluations.values())
        seconds = cycles(trainer, count)
    except torch.OutOfMemoryError:
        return row | {"out_of_memory": True}
    evaluations = sum(trainer.snapshot().evaluations.values()) - before
    row |= {f"{kind}_seconds": statistics.median(values) for kind, values in seconds.items()}
    row |= {"evaluations_per_sample_and_cycle": evaluations / (count * batch), "out_of_memory": False}
    row["peak_allocated_mb"] = peak_memory_mb(device) if fresh else None
    if device.type == "cuda":
        reserved = torch.cuda.max_memory_reserved(device)
        row |= {"peak_reserved_mb": reserved / 1e6, "fits_card": reserved + CONTEXT <= card * 2**30}
    return row


def cycles(trainer: Trainer, count: int) -> dict[str, list[float]]:
    """Seconds of every update of some cycles, by kind."""
    measured = _waiting(time.perf_counter, trainer.accelerator.device)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(count):
        for kind in KINDS:
            seconds[kind].append(measured(trainer.step))
    return seconds


def training(args: Any) -> tuple[list[dict[str, Any]], Workshop]:
    """Rows of all batches and both settings of checkpointing, and the last workshop."""
    rows, workshop = [], None
    for checkpointing in (False, True):
        workshop = None
        empty_cache()
        loaded = load_recipe(args.recipe, settings_of(args, checkpointing))
        workshop = build(loaded, args.device, random_weights=True)
        for batch in args.batches:
            console.note(f"updates at batch {batch}, checkpointing {'on' if checkpointing else 'off'}")
            rows.append(updates(workshop, batch, args.updates, args.card))
            for role in (workshop.roles.student, workshop.roles.auxiliary):
                role.optimizer.zero_grad(set_to_none=True)
            empty_cache()
    assert workshop is not None
    return rows, workshop


def sampling(workshop: Workshop, batches: Sequence[int], quick: bool) -> list[dict[str, Any]]:
    """Latency and images a second of student and teacher, decoding included; they take turns."""
    dtype = PRECISIONS[workshop.recipe.train.precision]
    teacher, student = (replace(sampler, dtype=dtype) for sampler in workshop.samplers())
    rows = []
    for batch in batches:
        console.note(f"sampling at batch {batch}")
        try:
            rows += _timed([student, teacher], batch, quick)
        except torch.OutOfMemoryError:
            rows += [{"model": sampler.name, "batch": batch, "out_of_memory": True} for sampler in (student, teacher)]
        empty_cache()
    return rows


def _timed(samplers: Sequence[Sampler], batch: int, quick: bool) -> list[dict[str, Any]]:
    device = samplers[0].device
    adapter = samplers[0].teacher
    condition = condition_to(adapter.encode(adapter.examples(batch)), device)
    runs = [timed_sampler(sampler, condition, steps=sampler.steps, batch_size=batch) for sampler in samplers]
    timings = measure(runs, device=device, repeats=LEAST, min_seconds=0.0 if quick else 2.0)
    return [
        {
            "model": sampler.name, "steps": sampler.steps, "evaluations": timing.evaluations, "batch": batch,
            "latency_ms": {"median": timing.median, "p10": timing.p10, "p90": timing.p90},
            "decode_ms": timing.decode, "images_per_second": timing.fps, "peak_memory_mb": timing.peak_memory_mb,
            "out_of_memory": False,
        }
        for sampler, timing in zip(samplers, timings, strict=True)
    ]  # fmt: skip


def empty_cache() -> None:
    """Gives what nobody holds back to the device, so that the next peak is its own."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes; returns the report."""
    parser = options(__doc__)
    parser.set_defaults(device="cuda")
    parser.add_argument("--recipe", default="sana", help="recipe file or name (default: sana)")
    parser.add_argument("--model", help="another model than the recipe's")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8], help="samples of an update")
    parser.add_argument("--sample-batches", type=int, nargs="+", default=[1, 8], help="images sampled at once")
    parser.add_argument("--updates", type=int, default=10, help="updates timed of each kind (default: 10)")
    parser.add_argument("--card", type=float, default=24, help="GB of the card that should hold it (default: 24)")
    args = parser.parse_args(arguments)
    check_targets(args)
    if args.quick:
        args.batches, args.sample_batches, args.updates = args.batches[:2], args.sample_batches[:1], 1
    if args.device == "cuda" and not torch.cuda.is_available():
        raise MfdError(
            "no CUDA device here", do="to try the script itself: --device cpu --recipe sana-tiny --quick"
        )  # fmt: skip
    rows, workshop = training(args)
    where = machine(workshop.samplers()[1])
    network = workshop.teacher.network
    assert network is not None
    weights = next(iter(network.parameters()))
    report = {
        "schema": 1, "recipe": args.recipe, **where, "base_dtype": str(weights.dtype).removeprefix("torch."),
        "precision": workshop.recipe.train.precision, "model": workshop.recipe.teacher.model,
        "sample_shape": list(workshop.teacher.sample_shape), "card_gb": args.card,
        "adapter_parameters": sum(value.numel() for value in workshop.roles.student.parameters),
        "updates": rows, "sampling": sampling(workshop, args.sample_batches, args.quick),
    }  # fmt: skip
    _print(report)
    return deliver(report, args, lambda figure: _draw(figure, report))


def _print(report: dict[str, Any]) -> None:
    console.table(
        f"{report['model']}, latents {'x'.join(map(str, report['sample_shape']))}, base {report['base_dtype']}, "
        f"{report['adapter_parameters'] / 1e6:.1f} million parameters an adapter",
        [
            "batch", "checkpointing", "s auxiliary", "s student", "samples/s student", "allocated MB", "reserved MB",
            f"fits {report['card_gb']:g} GB",
        ],
        [_update_cells(row) for row in report["updates"]],
    )  # fmt: skip
    console.table(
        "sampling, noise to decoded images",
        ["model", "steps", "batch", "latency ms (p10 - p90)", "of it decoding", "images/s", "peak MB"],
        [_sample_cells(row) for row in report["sampling"]],
    )


def _update_cells(row: dict[str, Any]) -> list[object]:
    cells: list[object] = [row["batch"], "on" if row["checkpointing"] else "off"]
    if row["out_of_memory"]:
        return [*cells, None, None, None, None, None, "out of memory"]
    fits = {None: "-", True: "yes", False: "no"}[row.get("fits_card")]
    return [
        *cells, row["auxiliary_seconds"], row["student_seconds"], row["batch"] / row["student_seconds"],
        row["peak_allocated_mb"], row.get("peak_reserved_mb"), fits,
    ]  # fmt: skip


def _sample_cells(row: dict[str, Any]) -> list[object]:
    if row["out_of_memory"]:
        return [row["model"], None, row["batch"], "out of memory", None, None, None]
    spread = row["latency_ms"]
    latency = f"{spread['median']:.4g} ({spread['p10']:.4g} - {spread['p90']:.4g})"
    return [
        row["model"], row["steps"], row["batch"], latency, row["decode_ms"], row["images_per_second"],
        row["peak_memory_mb"],
    ]  # fmt: skip


def _draw(figure: Figure, report: dict[str, Any]) -> None:
    figure.set_size_inches(9, 3.5)
    time_axes, memory_axes = figure.subplots(1, 2)
    for checkpointing in (False, True):
        rows = [row for row in report["updates"] if row["checkpointing"] is checkpointing and not row["out_of_memory"]]
        batches, label = [row["batch"] for row in rows], f"checkpointing {'on' if checkpointing else 'off'}"
        time_axes.plot(batches, [row["student_seconds"] / row["batch"] for row in rows], "o-", label=label)
        memory_axes.plot(batches, [(row["peak_allocated_mb"] or 0) / 1000 for row in rows], "o-", label=label)
    memory_axes.axhline(report["card_gb"], color="black", linestyle="--", linewidth=1)
    time_axes.set_ylabel("s a sample, student update")
    memory_axes.set_ylabel("peak GB")
    for axes in (time_axes, memory_axes):
        axes.set_xlabel("batch")
        axes.legend()


if __name__ == "__main__":
    run(main)
