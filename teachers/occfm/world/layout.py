"""The part of the world that stands still, painted along the road: ground, plots, parked vehicles, road works.

Distances in metres, in road coordinates (s along, d to the left); heights above the road.
"""

from __future__ import annotations

import numpy as np

from teachers.occfm.classes import (
    BARRIER,
    BICYCLE,
    BUS,
    CAR,
    CONSTRUCTION_VEHICLE,
    DRIVEABLE_SURFACE,
    FREE,
    MANMADE,
    MOTORCYCLE,
    OTHER_FLAT,
    OTHERS,
    SIDEWALK,
    TERRAIN,
    TRAFFIC_CONE,
    TRAILER,
    TRUCK,
    VEGETATION,
)
from teachers.occfm.world.chart import Chart
from teachers.occfm.world.frontages import build, plant
from teachers.occfm.world.geometry import BODIES, Grid
from teachers.occfm.world.plots import Plot, draw_plots
from teachers.occfm.world.street import SIDE_STREET, Side, Street

_PARKED = (CAR, TRUCK, TRAILER, BUS)
_PARKED_SHARES = (0.9, 0.06, 0.03, 0.01)


def paint(street: Street, grid: Grid, start: float, end: float, rng: np.random.Generator) -> Chart:
    """The still world of a street for s in [start, end]."""
    chart = Chart(grid, start, end)
    _pave(chart, street)
    _furnish_median(chart, street, rng)
    works = _draw_works(street, chart, rng)
    for side in street.sides:
        for stretch in street.stretches(start, end):
            for plot in draw_plots(side, stretch, rng):
                _pave_plot(chart, plot)
                build(chart, plot, rng)
                if plot.frontage != SIDE_STREET:
                    _furnish_pavement(chart, plot, rng)
                    _park(chart, plot, works if works and works[0] is side else None, rng)
    if works:
        _dig(chart, street, works, rng)
    return chart


def _pave(chart: Chart, street: Street) -> None:
    """What is the same along the whole street: its carriageway, and the street that crosses it."""
    everywhere, whole = (-chart.side, chart.side), (chart.start, chart.end)
    chart.pave(whole, everywhere, TERRAIN)
    if street.crossing is not None:
        middle, half = street.crossing, street.crossing_half
        chart.pave((middle - half - 3, middle + half + 3), everywhere, SIDEWALK)
        chart.pave((middle - half, middle + half), everywhere, DRIVEABLE_SURFACE)
    chart.pave(whole, (-street.kerb, street.kerb), DRIVEABLE_SURFACE)


def _pave_plot(chart: Chart, plot: Plot) -> None:
    side, part, back = plot.side, (plot.start, plot.end), plot.side.edge + plot.side.pavement
    chart.pave(part, side.across(side.edge, back), plot.pavement_label)
    if plot.verge:
        chart.pave(part, side.across(back, plot.front), plot.verge_label)
    if side.parking:
        chart.pave(part, side.across(side.edge - side.parking, side.edge), plot.strip_label)


def _furnish_median(chart: Chart, street: Street, rng: np.random.Generator) -> None:
    """A strip between the directions, in pieces with a hedge, a barrier or nothing on them and gaps to turn in."""
    if not street.median:
        return
    across, kind = (-street.median / 2, street.median / 2), rng.random()
    for start, end in street.stretches(chart.start, chart.end):
        s = start + rng.uniform(0, 8)
        while s < end:
            part = (s, min(s + rng.uniform(8, 16), end))
            chart.pave(part, across, OTHER_FLAT if rng.random() < 0.5 else TERRAIN)
            if kind < 0.3:
                chart.box(part, (-0.4, 0.4), (0, 0.9), BARRIER)
            elif kind < 0.6:
                chart.box(part, (-0.6, 0.6), (0, 1.2), VEGETATION)
            s = part[1] + rng.uniform(5, 8)


def _furnish_pavement(chart: Chart, plot: Plot, rng: np.random.Generator) -> None:
    """Street trees at regular distances, a lamp post, and now and then a bin, a bicycle or a motorcycle."""
    side, part = plot.side, plot.built
    if plot.trees:
        line = side.edge + (side.pavement + 1.2 if plot.verge else 1.0)
        for s in np.arange(part[0] + side.trees / 2, part[1] - 1, side.trees):
            plant(chart, s + rng.uniform(-0.5, 0.5), side.sign * line, rng.uniform(1.3, 1.8), rng)
    if rng.random() < side.poles:
        s = part[0] + rng.uniform(1, 3)
        chart.box((s, s + 0.6), side.across(side.edge + 0.1, side.edge + 0.7), (0, 6), MANMADE)
    for label, mean, length, height in (
        (OTHERS, 1.2, 1.0, 1.2),
        (BICYCLE, 0.25, 1.8, 1.2),
        (MOTORCYCLE, 0.2, 2.2, 1.2),
    ):
        for _ in range(rng.poisson(mean * (part[1] - part[0]) / 50)):
            s, near = rng.uniform(*part), side.edge + side.pavement - 1
            chart.box((s, s + length), side.across(near, near + 0.8), (0, height), label)


def _park(chart: Chart, plot: Plot, works: tuple[Side, float, float] | None, rng: np.random.Generator) -> None:
    """Fills the parking strip of a plot, bay after bay."""
    if not plot.parks:
        return
    side, (start, end), share = plot.side, plot.built, rng.uniform(0.3, 0.95)
    s = start + 0.7
    while s < end - 2:
        label = int(rng.choice(_PARKED, p=_PARKED_SHARES))
        length, width, height = BODIES[label]
        dug = works is not None and s < works[2] and s + length > works[1]
        if rng.random() < share and not dug and s + length < end:
            near = side.edge - side.parking / 2 - width / 2
            chart.box((s, s + length), side.across(near, near + width), (0, height), label)
        s += length + 1.4


def _draw_works(street: Street, chart: Chart, rng: np.random.Generator) -> tuple[Side, float, float] | None:
    """The side of the street that is dug up, and where the works begin and end; mostly None."""
    if rng.random() > 0.22:
        return None
    side = street.sides[int(rng.random() < 0.6)]
    length = rng.uniform(12, 24)
    start = rng.uniform(chart.start + 10, max(chart.start + 11, chart.end - 10 - length))
    inside = any(low < start and start + length < high for low, high in street.stretches(chart.start, chart.end))
    return (side, start, start + length) if inside else None


def _dig(chart: Chart, street: Street, works: tuple[Side, float, float], rng: np.random.Generator) -> None:
    """Barriers and cones along the works, which take parking strip and pavement, and often a machine inside."""
    side, start, end = works
    near, far = street.kerb + 0.2, side.edge + side.pavement
    rows, lines = chart.part((start, end), side.across(near, far))
    chart.columns[rows, lines, chart.grid.ground + 1 :] = FREE
    chart.pave((start, end), side.across(near, far), OTHER_FLAT)
    for s in (start, end - 0.8):
        chart.box((s, s + 0.8), side.across(near, far), (0, 1.2), BARRIER)
    long_barrier = rng.random() < 0.5
    if long_barrier:
        chart.box((start, end), side.across(near, near + 0.6), (0, 1.2), BARRIER)
    length, width, tall = BODIES[TRAFFIC_CONE]
    first, last = (start - 8, start - 1) if long_barrier else (start - 6, end)
    for s in np.arange(first, last, 2.0):
        chart.box((s, s + length), side.across(near, near + width), (0, tall), TRAFFIC_CONE)
    if rng.random() < 0.6:
        length, width, tall = BODIES[CONSTRUCTION_VEHICLE]
        s, line = rng.uniform(start + 2, end - 2 - length), (near + far) / 2 + 0.3
        chart.box((s, s + length), side.across(line - width / 2, line + width / 2), (0, tall), CONSTRUCTION_VEHICLE)
