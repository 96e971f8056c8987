"""Do the speeds of `mfd benchmark` repeat, and does a loop of ten lines that knows nothing of mfd find the same?

    python benchmarks/repeat_benchmark.py [digits] [--rounds 40] [--seconds 0.4] [--updates 20] [--sleep 0.02]
                                          [--set key=value]... [--json PATH] [--plot PATH] [--quick]

A student is trained for a few updates, which changes its weights and not its speed. Every round then measures each
model twice: by the code behind `mfd benchmark --fps`, for `--seconds` a model, and by `tests/inference/timing_loop.py`
for as long; the two take turns at being first, so that a machine that slows down does so for both. Many short rounds
tell more than few long ones where a machine is shared, since what disturbs it comes and goes within seconds.

    repeats   two figures of a model are the medians over the rounds of even and of odd number: how far they are apart
    agrees    median over rounds of the loop's median latency over that of the benchmark, less 1
    sleep     what a known sleep in every evaluation (`--sleep` seconds) adds to the teacher's latency, over what it
              should add, less 1
    spread    how far a single round is from the median of all, at most: what a reader of one report has to expect

The first three are to stay within 5 %, else the script ends with exit code 3. The last is reported alone, since it is
the machine's as much as the benchmark's: nothing else should run. `speed-up` is teacher over student.
"""

from __future__ import annotations

import runpy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from workbench import check_targets, deliver, machine, options, run, trainer_of

from mfd_cli import console
from mfd_cli.config.load import load_recipe
from mfd_cli.errors import RunStopped
from mfd_cli.inference.benchmark import Contestant, Effort, contestants, report
from teachers.base import Data
from teachers.conditions import to as condition_to

LIMIT = 0.05
LOOP = Path(__file__).resolve().parents[1] / "tests" / "inference" / "timing_loop.py"

#: seconds of a call, found by repeating it for so many seconds
Loop = Callable[[Callable[[], Any], float], float]
Figures = dict[str, float]


def benchmarked(rows: Sequence[Contestant], data: Data, seconds: float) -> Figures:
    """Latency in ms of every row by the code behind `mfd benchmark --fps`, and the speed-up that it reports."""
    effort = Effort(min_seconds=seconds, max_seconds=15 * seconds)
    found = report(rows, data, effort, reference=None)
    latencies = {row.label: filled["latency_ms"]["median"] for row, filled in zip(rows, found["rows"], strict=True)}
    return {**latencies, "speed-up": found["speedup"]["value"]}


def looped(rows: Sequence[Contestant], data: Data, seconds: float, loop: Loop) -> Figures:
    """The same figures by a loop around sampling and decoding."""
    found = {row.label: 1000 * loop(_call(row, data), seconds) for row in rows}
    teacher, student = (next(row for row in rows if _is(row, name)) for name in ("teacher", "student"))
    return {**found, "speed-up": found[teacher.label] / found[student.label]}


def compared(benchmark: Sequence[Figures], loop: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """What the rounds say of every figure: see the top of this file."""
    return {
        name: {
            "benchmark": statistics.median(one[name] for one in benchmark),
            "loop": statistics.median(one[name] for one in loop),
            "repeats": _apart(*(statistics.median(one[name] for one in benchmark[start::2]) for start in (0, 1))),
            "agrees": statistics.median(b[name] / a[name] for a, b in zip(benchmark, loop, strict=True)) - 1,
            "spread": _spread([one[name] for one in benchmark]),
        }
        for name in benchmark[0]
    }


def slept(rows: Sequence[Contestant], data: Data, seconds: float, sleep: float) -> dict[str, float]:
    """What the benchmark finds of a sleep of so many seconds in every evaluation of the teacher, in ms a sample."""
    row = next(row for row in rows if _is(row, "teacher"))
    adapter, name = row.sampler.teacher, row.label
    velocity, calls = adapter.velocity, 0

    def slowed(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        time.sleep(sleep)
        return velocity(*given, **named)

    before = benchmarked(rows, data, seconds)[name]
    adapter.velocity = slowed  # type: ignore[method-assign]
    try:
        _call(row, data)()
        expected = 1000 * sleep * calls
        found = benchmarked(rows, data, seconds)[name] - before
    finally:
        adapter.velocity = velocity  # type: ignore[method-assign]
    return {"expected_ms": expected, "found_ms": found, "off": found / expected - 1}


def missed(found: Mapping[str, Mapping[str, float]], off: float) -> list[str]:
    """The figures that do not repeat, or on which the loop or a known sleep does not agree, in words."""
    return [
        f"{name} {what}: {figures[what]:+.1%}"
        for name, figures in {**found, "known sleep": {"agrees": off}}.items()
        for what in ("repeats", "agrees")
        if not abs(figures.get(what, 0.0)) <= LIMIT
    ]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes; returns the report.

    Raises:
        RunStopped: a figure missed the limit.
    """
    parser = options(__doc__)
    parser.add_argument("recipe", nargs="?", default="digits", help="recipe file or name (default: digits)")
    parser.add_argument("--rounds", type=int, default=40, help="measurements each way, at least 2 (default: 40)")
    parser.add_argument("--seconds", type=float, default=0.4, help="timed seconds a model and way (default: 0.4)")
    parser.add_argument("--updates", type=int, default=20, help="student updates before (default: 20)")
    parser.add_argument("--sleep", type=float, default=0.02, help="seconds put into every evaluation (default: 0.02)")
    args = parser.parse_args(arguments)
    check_targets(args)
    workshop, trainer = trainer_of(load_recipe(args.recipe, args.overrides), args.device)
    for _ in range(args.updates * trainer.schedule.cycle):
        trainer.step()
    teacher, student = workshop.samplers()
    where = machine(student)
    rows = contestants(teacher, [Contestant(student, student.steps)])
    rounds, seconds = (2, 0.05) if args.quick else (max(2, args.rounds), args.seconds)
    loop: Loop = runpy.run_path(str(LOOP))["median_seconds"]
    ways: dict[str, Callable[[], Figures]] = {
        "benchmark": lambda: benchmarked(rows, workshop.data, seconds),
        "loop": lambda: looped(rows, workshop.data, seconds, loop),
    }
    by_way: dict[str, list[Figures]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in sorted(ways, reverse=number // 2 % 2 == 1):
            by_way[name].append(ways[name]())
    found = compared(by_way["benchmark"], by_way["loop"])
    sleep = slept(rows, workshop.data, 5 * seconds, args.sleep)
    result = {
        "schema": 1, "recipe": args.recipe, **where, "rounds": rounds, "seconds": seconds, "limit": LIMIT,
        "figures": found, "sleep": sleep, **by_way,
    }  # fmt: skip
    _print(result)
    deliver(result, args, lambda figure: _draw(figure, result))
    if (beyond := missed(found, sleep["off"])) and not args.quick:
        raise RunStopped(f"beyond {LIMIT:.0%}: {'; '.join(beyond)}", do="measure where nothing else runs")
    return result


def _call(row: Contestant, data: Data) -> Callable[[], Any]:
    """Sampling and decoding of one batch of one, from fresh noise."""
    sampler, item = row.sampler, torch.zeros(1, dtype=torch.long)
    condition, shape = condition_to(data.condition(item), sampler.device), (1, *sampler.teacher.sample_shape)

    def draw(point: int = 0) -> torch.Tensor:
        return torch.randn(shape, device=sampler.device)

    def call() -> None:
        sampler.decode(sampler.generate(draw(), condition, steps=row.steps, fresh=draw))
        if sampler.device.type != "cpu":
            torch.accelerator.synchronize(sampler.device)

    return call


def _is(row: Contestant, name: str) -> bool:
    """Whether a row is the model of that name at its own number of steps."""
    return row.sampler.name == name and row.steps == row.sampler.steps


def _apart(first: float, second: float) -> float:
    return (second - first) / ((first + second) / 2)


def _spread(values: Sequence[float]) -> float:
    middle = statistics.median(values)
    return max(abs(value - middle) for value in values) / middle


def _print(report: dict[str, Any]) -> None:
    console.table(
        f"{report['recipe']}: {report['rounds']} rounds of {report['seconds']:g} s a model; latency in ms",
        ["figure", "benchmark", "loop", "repeats", "agrees", "spread"],
        [
            [name, row["benchmark"], row["loop"], f"{row['repeats']:+.1%}", f"{row['agrees']:+.1%}",
             f"{row['spread']:.1%}"]
            for name, row in report["figures"].items()
        ],
        below=[
            "a sleep of {expected_ms:.4g} ms a sample: {found_ms:.4g} ms found, {off:+.1%}".format(**report["sleep"]),
            "repeats, agrees and sleep: "
            f"{'BEYOND' if missed(report['figures'], report['sleep']['off']) else 'within'} the limit of {LIMIT:.0%}",
        ],
    )  # fmt: skip


def _draw(figure: Figure, report: dict[str, Any]) -> None:
    axes = figure.subplots()
    for name, row in report["figures"].items():
        for way, marker in (("benchmark", "o"), ("loop", "x")):
            values = [one[name] / row["benchmark"] for one in report[way]]
            axes.plot(values, marker=marker, linewidth=0.8, label=f"{name}, {way}")
    axes.set_xlabel("round")
    axes.set_ylabel("over the benchmark's median")
    axes.legend(fontsize=7, ncols=2)


if __name__ == "__main__":
    run(main)
