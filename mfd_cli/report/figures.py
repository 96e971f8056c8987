"""The plots of a page: quality against steps and time, and curves over the updates of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mfd_cli.inference.benchmark import headline
from mfd_cli.metrics.contract import higher_is_better
from mfd_cli.report.curves import Curve, Group, grouped
from mfd_cli.report.plots import BLUE, GREEN, ORANGE, PURPLE, Band, Series, line_plot, with_prefix
from mfd_cli.report.verdict import ERRORS, with_error


class Plot(NamedTuple):
    """One plot with the text above it."""

    title: str
    svg: str


class PlotGroup(NamedTuple):
    """Plots that belong together."""

    title: str
    plots: list[Plot]


def quality_plots(report: Mapping[str, Any] | None) -> list[PlotGroup]:
    """For every measure, one plot over numbers of steps and, where speed was timed, one over time."""
    rows = (report or {}).get("rows") or []
    names = headline(dict.fromkeys(name for row in rows for name in row["metrics"]))
    baselines = (report or {}).get("baselines") or {}
    groups: list[PlotGroup] = []
    for name in names:
        direction = "more" if higher_is_better(name) else "less"
        levels = [(what, found[name]) for what, found in baselines.items() if found.get(name) is not None]
        plots = [_plot(name, rows, levels, "steps", groups)]
        if all(row["latency_ms"] for row in rows):
            plots.append(_plot(name, rows, levels, "time", groups))
        groups.append(PlotGroup(f"{name} ({direction} is better)", plots))
    return groups


def training_plots(lines: Sequence[Mapping[str, Any]]) -> list[PlotGroup]:
    """Curves over updates, by kind."""
    groups: list[PlotGroup] = []
    for group in grouped(lines):
        prefix = f"t{len(groups)}"
        if group.title == "Learning rates" and len(group.curves) > 1:
            plots = [_together(group, prefix)]
        else:
            plots = [_curve(curve, f"{prefix}-{number}-") for number, curve in enumerate(group.curves)]
        groups.append(PlotGroup(group.title, plots))
    return groups


def _plot(
    name: str, rows: Sequence[Mapping[str, Any]], levels: Sequence[tuple[str, float]], along: str, before: list[Any]
) -> Plot:
    series, told = [], []
    for model, colour, marker, line in (("teacher", BLUE, "o", "-"), ("student", ORANGE, "s", "--")):
        mine = [row for row in rows if row["model"] == model and row["metrics"].get(name) is not None]
        if not mine:
            continue
        mine.sort(key=lambda row: row["steps"])
        x = [float(row["steps"]) if along == "steps" else row["latency_ms"]["median"] for row in mine]
        errors = [ERRORS * (row["standard_errors"].get(name) or 0.0) for row in mine]
        series.append(Series(model, x, [row["metrics"][name] for row in mine], errors, colour, marker, line))
        told += [
            f"{model} in {row['steps']}: {with_error((row['metrics'][name], row['standard_errors'].get(name) or 0.0))}"
            for row in mine
        ]
    what = "number of steps" if along == "steps" else "milliseconds a batch"
    ticks = sorted({tick for one in series for tick in one.x}) if along == "steps" else None
    svg = line_plot(
        series, x_label="steps" if along == "steps" else "latency, ms", y_label=name, levels=levels, log_x=True,
        x_ticks=_apart(ticks), alt=f"{name} against the {what}. {'; '.join(told)}.",
    )  # fmt: skip
    return Plot(f"against {along}", with_prefix(svg, f"q{len(before)}{along[0]}-"))


def _apart(ticks: Sequence[float] | None) -> list[float] | None:
    """Ticks without those that would run into the one before, on a logarithmic axis."""
    if ticks is None:
        return None
    kept: list[float] = []
    for tick in reversed(ticks):
        if not kept or kept[-1] / tick > (ticks[-1] / ticks[0]) ** 0.08 or tick == kept[-1]:
            kept.append(tick)
    return kept[::-1]


def _curve(curve: Curve, prefix: str) -> Plot:
    series = [Series("as logged", curve.updates, curve.values, colour=BLUE, marker=_dots(curve), width=0.9, faint=True)]
    bands = []
    if curve.windows:
        middle, low, median, high = (list(each) for each in zip(*curve.windows, strict=True))
        bands = [Band("10 to 90 %", middle, low, high, BLUE)]
        series.append(Series("median", middle, median, colour=ORANGE, marker="", width=1.8))
    else:
        series[0] = Series("", curve.updates, curve.values, colour=BLUE, marker=_dots(curve))
    log_y = False if curve.name == "evaluations" else None
    svg = line_plot(series, bands=bands, x_label="update", y_label="", alt=_told(curve), log_y=log_y)
    return Plot(curve.name, with_prefix(svg, prefix))


def _together(group: Group, prefix: str) -> Plot:
    styles = ((BLUE, "-"), (ORANGE, "--"), (GREEN, ":"), (PURPLE, "-."))
    series = [
        Series(curve.name, curve.updates, curve.values, colour=colour, line=line, marker=_dots(curve))
        for curve, (colour, line) in zip(group.curves, styles, strict=False)
    ]
    svg = line_plot(
        series,
        x_label="update",
        y_label="learning rate",
        log_y=False,
        alt=" ".join(_told(curve) for curve in group.curves),
    )
    return Plot(", ".join(curve.name for curve in group.curves), with_prefix(svg, f"{prefix}-"))


def _dots(curve: Curve) -> str:
    """A marker where there are so few points that a line alone would hide them."""
    return "o" if len(curve.values) <= 12 else ""


def _told(curve: Curve) -> str:
    first, last = curve.values[0], curve.values[-1]
    return f"{curve.name}: {first:.4g} at update {curve.updates[0]:g}, {last:.4g} at update {curve.updates[-1]:g}."
