"""Speed by batch size: where a device is busy enough that more samples at once no longer pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mfd_cli.inference.benchmark import Contestant, Effort, Say, timings
from teachers.base import Data


def by_batch_size(
    rows: Sequence[Contestant], data: Data, effort: Effort, sizes: Sequence[int], say: Say
) -> list[dict[str, Any]]:
    """One entry for each model and batch size; models of one size are timed in turns.

    Returns:
        JSON objects with `model`, `run`, `steps`, `batch_size`, `fps`, `latency_ms` (median, p10, p90), `decode_ms`,
        `peak_memory_mb`, `warm_up_s`.
    """
    found = []
    for size in sizes:
        for row, timing in zip(rows, timings(rows, data, replace(effort, timed_batch=size), say), strict=True):
            assert timing is not None, "timed above"
            found.append({
                "model": row.sampler.name, "run": row.run, "steps": row.steps, "batch_size": size, "fps": timing.fps,
                "latency_ms": {"median": timing.median, "p10": timing.p10, "p90": timing.p90},
                "decode_ms": timing.decode, "peak_memory_mb": timing.peak_memory_mb, "warm_up_s": timing.warm_up,
            })  # fmt: skip
    return found


def batch_table(entries: Sequence[dict[str, Any]]) -> tuple[str, list[str], list[list[object]]]:
    """Title, columns and rows: samples a second of each model, by batch size."""
    sizes = list(dict.fromkeys(entry["batch_size"] for entry in entries))
    models: dict[tuple[str, str, int], dict[int, float]] = {}
    for entry in entries:
        key = (entry["model"], entry["run"] or "", entry["steps"])
        models.setdefault(key, {})[entry["batch_size"]] = entry["fps"]
    cells = [[model, steps, *(speeds[size] for size in sizes)] for (model, _, steps), speeds in models.items()]
    return "samples a second, by batch size", ["model", "steps", *map(str, sizes)], cells
