"""What a one-step forecast of OccFM costs, stage by stage, against the published code's way of computing it.

    python benchmarks/occfm_forecast.py [--device cpu|cuda] [--repeats N] [--threads 2] [--compile] [--steps 1,10]
                                        [--json PATH] [--quick]

Published sizes, random weights from a seed, a batch of one clip. `occfm_straight.py` holds the other way and says what
is different about it, `occfm_routes.py` puts stages together; both ways have the same weights, so that their classes
can be compared. Stages of a forecast:

    network   the velocity of six future frames at t = 0
    decoder   their latents to features of every voxel
    classes   features to the most similar of 18 classes

Paths are timed in turns in one process; the peak of the memory is measured in a process for each. `published` evaluates
both branches of guidance, as its sampler does at any scale; `one branch` shows what the gain is without that.
`--steps` times whole forecasts from noise to classes by that many Euler steps: on CUDA 1 and 10 unless told otherwise.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from occfm_routes import OURS, PUBLISHED, Case, Route, case_of, forecast, precision_of, published, routes_of
from torch import Tensor
from workbench import run

from mfd_cli import __version__, console
from mfd_cli.errors import MfdError
from mfd_cli.flow import time_grid
from mfd_cli.inference.benchmark import device_name
from mfd_cli.inference.memory import peak_memory_mb, reset_peak
from mfd_cli.inference.sampler import Sampler
from teachers.occfm.transition import FUTURE

STAGES = ("network", "decoder", "classes")
_REPEATS = {"cpu": 3, "cuda": 30}
_WARM_UP = {"cpu": 1, "cuda": 5}


class Clock:
    """Seconds of stages; a device is waited for around each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    def timed(self, stage: str, work: Callable[[], Any]) -> Any:
        """Does the work and adds its time to the stage's."""
        self._wait()
        start = time.perf_counter()
        found = work()
        self._wait()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        return found

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


def in_turns(works: Mapping[str, Callable[[Clock], Any]], device: torch.device, repeats: int) -> dict[str, Any]:
    """Median, tenth and ninetieth percentile of every stage's seconds; one run of each work after the other's."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in works}
    for turn in range(_WARM_UP[device.type] + repeats):
        for name, work in works.items():
            clock = Clock(device)
            clock.timed("total", partial(work, clock))
            if turn >= _WARM_UP[device.type]:
                found[name].append(clock.seconds)
    return {
        name: {stage: _spread([run[stage] for run in runs]) for stage in runs[0]} for name, runs in found.items()
    }  # fmt: skip


def stages(case: Case, routes: dict[str, Route], repeats: int) -> list[dict[str, Any]]:
    """A row for each route: seconds of its stages, and how much faster it is than the published one."""
    works = {name: partial(forecast, case, route) for name, route in routes.items()}
    timed = in_turns(works, case.noise.device, repeats)
    first = timed[PUBLISHED]
    return [
        {
            "path": name, "seconds": seconds,
            "speedup": {stage: first[stage]["median"] / seconds[stage]["median"] for stage in seconds},
        }
        for name, seconds in timed.items()
    ]  # fmt: skip


def guided(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Both branches of guidance: in one batch as published, one after the other, and with what they share."""
    x, t, history, trajectory = case.inputs
    straight = published(case).velocity

    def one_by_one(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return case.network(x, t, torch.zeros_like(history), trajectory), case.network(*inputs)

    ways = {
        f"{PUBLISHED}, one batch of both": straight,
        f"{OURS}, two evaluations": one_by_one,
        f"{OURS}, with_and_without_history": case.network.with_and_without_history,
    }
    with torch.inference_mode():
        works = {name: partial(_on_inputs, case, way) for name, way in ways.items()}
        timed = in_turns(works, case.noise.device, repeats)
    first = next(iter(timed.values()))["total"]["median"]
    return [
        {"path": name, "seconds": seconds["total"], "speedup": first / seconds["total"]["median"]}
        for name, seconds in timed.items()
    ]


def _on_inputs(case: Case, way: Callable[..., Any], clock: Clock) -> Any:
    return way(*case.inputs)


def agreement(case: Case, routes: dict[str, Route]) -> list[dict[str, Any]]:
    """Share of voxels with the published path's classes, and how near to a tie the others are.

    `largest_gap` is the difference of the two best similarities, the published path's, where the classes differ.
    """
    straight = routes[PUBLISHED]
    expected = forecast(case, straight)
    with torch.inference_mode():
        latents = (case.noise + straight.velocity(*case.inputs)) / case.teacher.settings.rescale
        features = straight.features(latents[0])
        voxels = features.permute(0, 2, 3, 1).reshape(-1, 8)
        rows = []
        for name, route in routes.items():
            differs = (forecast(case, route) != expected).flatten()
            best = (voxels[differs] @ case.compressor.embedding.class_embeds.weight.t()).topk(2, dim=-1).values
            gap = float((best[:, 0] - best[:, 1]).max()) if len(best) else 0.0
            equal = 1 - int(differs.sum()) / differs.numel()
            rows.append({"path": name, "equal": equal, "different": int(differs.sum()), "largest_gap": gap})
    return rows


def complete(case: Case, steps: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Whole forecasts, noise to classes: teacher with guidance, student without, and the published path."""
    device, teacher, network = case.noise.device, case.teacher, case.network
    condition = {"history": case.history, "trajectory": case.trajectory}
    shift, scale = teacher.settings.shift, teacher.settings.guidance
    works: dict[str, Callable[[Clock], Any]] = {}

    def sampled(sampler: Sampler, count: int, clock: Clock) -> Tensor:
        return sampler.decode(sampler.generate(torch.randn_like(case.noise), condition, steps=count))

    for dtype in (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,):
        half = dtype == torch.bfloat16
        kind = "bf16" if half else "fp32"
        models = {"teacher, guided": scale, "student": 1.0}
        for count in steps:
            works[f"{PUBLISHED}, guided|{kind}|{count}"] = partial(_published_steps, case, count, half)
            for name, guidance in models.items():
                sampler = Sampler(name, teacher, network, count, shift, guidance, device=device, dtype=dtype)
                works[f"{OURS} {name}|{kind}|{count}"] = partial(sampled, sampler, count)
    rows = []
    for name, seconds in in_turns(works, device, repeats).items():
        path, kind, number = name.split("|")
        latency = seconds["total"]
        rows.append(
            {
                "path": path, "dtype": kind, "steps": int(number), "seconds": latency,
                "forecasts_per_second": 1 / latency["median"], "frames_per_second": FUTURE / latency["median"],
            }
        )  # fmt: skip
    return rows


def _published_steps(case: Case, steps: int, half: bool, clock: Clock) -> Tensor:
    """The published sampler: both branches at every step, then all frames' classes."""
    settings, grid = case.teacher.settings, time_grid(steps, case.teacher.settings.shift).tolist()
    route = published(case, half=half)
    x = torch.randn_like(case.noise)
    with torch.inference_mode(), precision_of(x.device, half):
        for start, end in pairwise(grid):
            t = torch.full((1,), start, device=x.device)
            x = x + (end - start) * route.velocity(x, t, case.history, case.trajectory, scale=settings.guidance).float()
        return route.classes(route.features(x[0] / settings.rescale))


def memory(names: Sequence[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """MB that a forecast takes at its peak, and what of it comes on top of weights and libraries; a process each."""
    rows = []
    for name in names:
        command = [sys.executable, str(Path(__file__).resolve()), "--device", args.device, "--alone", name]
        command += ["--threads", str(torch.get_num_threads()), *(["--quick"] if args.quick else [])]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            raise MfdError(f"the process that measures '{name}' failed: {found.stderr[-500:]}")
        rows.append({"path": name, **json.loads(found.stdout.splitlines()[-1])})
    return rows


def alone(args: argparse.Namespace) -> dict[str, float | None]:
    """One forecast in this process: MB held before it and at the peak."""
    case = case_of(args.device, args.quick)
    route = routes_of(case, compiled=False)[args.alone]
    gc.collect()
    fresh = reset_peak(args.device)
    before = peak_memory_mb(args.device) if fresh else None
    forecast(case, route)
    peak = peak_memory_mb(args.device)
    added = peak - before if peak is not None and before is not None else None
    return {"loaded_mb": before, "peak_mb": peak, "added_mb": added}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes; returns the report."""
    args = _arguments(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise MfdError("no CUDA device here", do="--device cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.alone:
        found: dict[str, Any] = alone(args)
        print(json.dumps(found))
        return found
    case = case_of(args.device, args.quick)
    routes = routes_of(case, args.compile)
    repeats = args.repeats or (1 if args.quick else _REPEATS[args.device])
    steps = [1, 10] if args.steps is None and args.device == "cuda" else args.steps or []
    report = {
        "schema": 1, "device": device_name(case.noise.device), "threads": torch.get_num_threads(),
        "versions": {"mfd": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "repeats": repeats, "memory": memory([PUBLISHED, f"{PUBLISHED}, one branch", OURS, f"{OURS}, bf16"], args),
        "agreement": agreement(case, routes), "stages": stages(case, routes, repeats),
        "guided": guided(case, repeats), "complete": complete(case, steps, repeats) if steps else [],
    }  # fmt: skip
    _print(report)
    if args.quick:
        console.warn("--quick: small networks; the figures mean nothing")
    console.emit_json(report, args.json)
    return report


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, help="timed runs of each (default: 3 on a CPU, 30 on CUDA)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument("--steps", type=lambda text: [int(part) for part in text.split(",")], metavar="N,N")
    parser.add_argument("--compile", action="store_true", help="adds torch.compile of every path; takes minutes")
    parser.add_argument("--json", metavar="PATH", help="write the results as JSON")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; its figures mean nothing")
    parser.add_argument("--alone", metavar="PATH", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    console.check_json_target(args.json)
    if (
        min([number for number in (*(args.steps or []), args.repeats, args.threads) if number is not None], default=1)
        < 1
    ):
        raise MfdError("--steps, --repeats or --threads below 1", allowed="whole numbers from 1")
    return args


def _print(report: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    console.out.print(f"machine: {report['device']}, {report['threads']} threads, {versions}")
    console.table(
        f"one-step forecast, seconds, median (p10 - p90) of {report['repeats']}",
        ["path", *STAGES, "total", *(f"{stage} x" for stage in STAGES), "total x"],
        [
            [row["path"], *(_cell(row["seconds"][stage]) for stage in (*STAGES, "total"))]
            + [f"{row['speedup'][stage]:.2f}" for stage in (*STAGES, "total")]
            for row in report["stages"]
        ],
    )
    console.table(
        "both branches of guidance, network alone", ["path", "seconds", "x"],
        [[row["path"], _cell(row["seconds"]), f"{row['speedup']:.2f}"] for row in report["guided"]],
    )  # fmt: skip
    console.table(
        "memory of a process of its own, MB", ["path", "loaded", "peak", "added"],
        [
            [row["path"], *(_rounded(row[key]) for key in ("loaded_mb", "peak_mb", "added_mb"))]
            for row in report["memory"]
        ],
    )  # fmt: skip
    console.table(
        "voxels with the published path's class", ["path", "share", "others", "their largest gap"],
        [[row["path"], f"{row['equal']:.7f}", row["different"], row["largest_gap"]] for row in report["agreement"]],
    )  # fmt: skip
    if report["complete"]:
        console.table(
            "noise to classes", ["path", "dtype", "steps", "seconds", "forecasts/s", "frames/s"],
            [
                [
                    row["path"], row["dtype"], row["steps"], _cell(row["seconds"]), row["forecasts_per_second"],
                    row["frames_per_second"],
                ]
                for row in report["complete"]
            ],
        )  # fmt: skip


def _spread(values: Sequence[float]) -> dict[str, float]:
    quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    p10, median, p90 = torch.tensor(values, dtype=torch.float64).quantile(quantiles).tolist()
    return {"median": median, "p10": p10, "p90": p90}


def _cell(seconds: dict[str, float]) -> str:
    return f"{seconds['median']:.4g} ({seconds['p10']:.4g} - {seconds['p90']:.4g})"


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)


if __name__ == "__main__":
    run(main)
