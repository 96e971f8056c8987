"""Markdown tables of reports of compare_methods.py, as docs/comparison.md shows them.

    python benchmarks/compare_methods.py digits --json digits.json
    python benchmarks/comparison_tables.py digits.json [further.json ...] [--plot PATH]

Reports that differ in methods, seeds and steps alone are one comparison. Figures are means over seeds ± their standard
deviation (divisor N - 1). Of each metric the best mean is bold, and so is every other whose difference from it is less
than two standard errors over seeds: nothing tells those apart.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compare_methods import LEVELS, draw, groups, reached
from workbench import picture, run

from mfd_cli import console
from mfd_cli.errors import MfdError
from mfd_cli.metrics.contract import higher_is_better
from mfd_cli.report.verdict import plural

Rows = list[dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Prints the tables of every report that is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reports", type=Path, nargs="+", help="files that compare_methods.py --json wrote")
    parser.add_argument("--plot", type=Path, help="write a picture (PNG) of the first comparison")
    args = parser.parse_args(arguments)
    reports = merged([_read(path) for path in args.reports])
    console.out.print("\n\n".join(tables(report) for report in reports), markup=False, soft_wrap=True)
    if args.plot is not None:
        picture(args.plot, lambda figure: draw(figure, reports[0]))
    return {"reports": len(reports)}


def merged(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reports of the same recipe, budget and samples as one, in the order of the first of each.

    Raises:
        MfdError: two tell of the same run.
    """
    found: dict[str, dict[str, Any]] = {}
    for report in reports:
        own = report["teacher"][str(report["teacher_steps"])]
        key = json.dumps([*(report[name] for name in ("recipe", "overrides", "budget", "unit", "num")), own])
        if report["schema"] < 2:  # told the peak memory of this process
            report = report | {"rows": [row | {"peak_memory_mb": None} for row in report["rows"]]}
        found[key] = _joined(found[key], report) if key in found else report
    return list(found.values())


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two reports of one comparison."""
    runs = [{(row["method"], row["steps"], row["seed"]) for row in report["rows"]} for report in (first, second)]
    if twice := sorted(runs[0] & runs[1]):
        names = (f"{method}, {steps} steps, seed {seed}" for method, steps, seed in twice)
        raise MfdError(f"two reports tell of the same run: {'; '.join(names)}", do="give one of them")
    teacher = first["teacher"] | second["teacher"]
    return first | {
        "rows": first["rows"] + second["rows"], "costs": first["costs"] | second["costs"],
        "seeds": sorted({*first["seeds"], *second["seeds"]}),
        "teacher": {steps: teacher[steps] for steps in sorted(teacher, key=int)},
    }  # fmt: skip


def tables(report: dict[str, Any]) -> str:
    """Quality and cost of one report."""
    seeds = plural(len(report["seeds"]), "seed")
    head = (
        f"`{report['recipe']}`, {_plain(report['budget'])} {report['unit']} a run, {seeds}, "
        f"{report['num']} samples; {report['device']}, torch {report['versions']['torch']}."
    )
    return "\n\n".join([head, _quality(report), _cost(report)])


def _quality(report: dict[str, Any]) -> str:
    names = [name for name in report["rows"][0]["metrics"] if name in _shown(report)]
    lines = [["model", "steps", *names, f"gap recovered, {names[0]}"]]
    for steps, metrics in report["teacher"].items():
        lines.append(["teacher", steps, *(f"{metrics[name]:.4g}" for name in names), ""])
    found = groups(report)
    for steps in sorted({steps for steps, _ in found}):
        of_steps = {method: rows for (count, method), rows in found.items() if count == steps}
        best = {name: undistinguished(of_steps, name) for name in names}
        for method, rows in of_steps.items():
            cells = [
                f"**{_spread(_values(rows, name))}**" if method in best[name] else _spread(_values(rows, name))
                for name in names
            ]
            gaps = [row["gap_recovered"][names[0]] for row in rows]
            cells.append("no gap" if None in gaps else _spread(gaps))
            lines.append([_named(report, method, rows), str(steps), *cells])
    return _markdown(lines)


def undistinguished(of_methods: dict[str, Rows], name: str) -> set[str]:
    """The method with the best mean of a metric, and those less than two standard errors of the difference away."""
    means = {method: statistics.mean(_values(rows, name)) for method, rows in of_methods.items()}
    best = (max if higher_is_better(name) else min)(means, key=lambda method: means[method])

    def variance(method: str) -> float:
        values = _values(of_methods[method], name)
        return statistics.variance(values) / len(values) if len(values) > 1 else math.nan

    def close(method: str) -> bool:
        return abs(means[method] - means[best]) < 2 * math.sqrt(variance(method) + variance(best))

    return {method for method in means if method == best or close(method)}


def _cost(report: dict[str, Any]) -> str:
    main_metric = next(iter(report["rows"][0]["metrics"]))
    levels = [f"evaluations to {level:.0%} of the gap" for level in LEVELS]
    lines = [
        ["method", "steps", "seconds an update", "evaluations an update", "peak MB", "noise of a gradient", *levels]
    ]
    for (steps, method), rows in groups(report).items():
        cost = report["costs"].get(f"{method} {steps}")
        if cost is None:  # a student for any number of steps was distilled once
            continue
        points = [_reached(report, rows, main_metric, level) for level in LEVELS]
        noise = _spread([row["gradient_noise"]["value"] for row in rows])
        held = [row["peak_memory_mb"] for row in rows if row["peak_memory_mb"] is not None]
        memory = f"{statistics.mean(held):.0f}" if held else ""
        update = [f"{cost['seconds']:.3g}", f"{cost['evaluations']:.0f}"]
        lines.append([_named(report, method, rows), str(steps), *update, memory, noise, *points])
    return _markdown(lines)


def _reached(report: dict[str, Any], rows: Rows, name: str, level: float) -> str:
    """Evaluations to a share of the gap, mean over seeds; nothing for runs that were not judged on the way."""
    if not all(row["curve"] for row in rows):
        return ""
    there = [reached(report, row, name, level, "evaluations") for row in rows]
    return "not reached" if None in there else _count(statistics.mean(there))


def _named(report: dict[str, Any], method: str, rows: Rows) -> str:
    """A method, and how many seeds it has had where that is not all of them."""
    return f"`{method}`" + (f", {plural(len(rows), 'seed')}" if len(rows) < len(report["seeds"]) else "")


def _plain(number: float) -> str:
    return f"{number:,}".removesuffix(".0")


def _count(evaluations: float) -> str:
    return f"{evaluations / 1e6:.2f} M" if evaluations >= 1e5 else f"{evaluations / 1e3:.3g} k"


def _shown(report: dict[str, Any]) -> list[str]:
    """The metrics that a page has room for: of forecasts, the means over all horizons."""
    names = list(report["rows"][0]["metrics"])
    return [name for name in names if name in ("iou", "miou")] or names


def _values(rows: Rows, name: str) -> list[float]:
    return [row["metrics"][name] for row in rows]


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3g}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2g}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rest])


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text("utf-8"))
        report["rows"][0]["gradient_noise"]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise MfdError(
            f"{path}: no report of compare_methods.py ({error})", do="give a file that --json wrote"
        ) from error
    return report


if __name__ == "__main__":
    run(main)
