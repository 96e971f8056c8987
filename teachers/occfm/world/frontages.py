"""What stands on the plots along a street: houses, greens, car parks, walls, and side streets that open between them.

Distances in metres, in road coordinates (s along, d to the left); heights above the road.
"""

from __future__ import annotations

import numpy as np

from teachers.occfm.classes import CAR, DRIVEABLE_SURFACE, MANMADE, OTHER_FLAT, SIDEWALK, TERRAIN, VEGETATION
from teachers.occfm.world.chart import Chart
from teachers.occfm.world.geometry import BODIES
from teachers.occfm.world.plots import Plot
from teachers.occfm.world.street import SIDE_STREET

_DEPTH = 10.0  # of a house


def build(chart: Chart, plot: Plot, rng: np.random.Generator) -> None:
    """Puts up what stands behind a plot's pavement and verge."""
    _FRONTAGES[plot.frontage](chart, plot, rng)
    if plot.drive:
        _driveway(chart, plot, rng)


def plant(chart: Chart, s: float, d: float, radius: float, rng: np.random.Generator) -> None:
    """A tree whose crown has this radius."""
    middle = 2.6 + 0.5 * rng.random()
    chart.box((s - 0.4, s + 0.4), (d - 0.4, d + 0.4), (0, middle), VEGETATION)
    chart.ball(s, d, (middle - 1.3, middle + 2), radius, VEGETATION)


def _houses(chart: Chart, plot: Plot, rng: np.random.Generator) -> None:
    """One house, up to the next plot or with a tree in the gap: the front, the flanks, a roof if it is low."""
    (start, end), near, height = plot.built, plot.front, float(rng.uniform(3.2, 8))
    gap = 0.0 if plot.drive or rng.random() < 0.4 else min(float(rng.uniform(3, 5)), (end - start) / 3)
    s, d = (start, end - gap), plot.side.across(near, near + _DEPTH)
    chart.pave(s, d, MANMADE)
    chart.box(s, plot.side.across(near, near + 1), (0, height), MANMADE)
    for flank in (s[0] + 0.5, s[1] - 0.5):
        chart.box((flank - 0.5, flank + 0.5), d, (0, height), MANMADE)
    if chart.grid.ground + chart.grid.levels(height) < chart.grid.height:
        chart.box(s, d, (height - chart.grid.cell_z, height), MANMADE)
    if gap:
        plant(chart, end - gap / 2, plot.side.sign * (near + 4), rng.uniform(1.5, 2), rng)


def _driveway(chart: Chart, plot: Plot, rng: np.random.Generator) -> None:
    """From the carriageway across the pavement to beside the house, often with a car at its end."""
    s, (length, width, height) = (plot.end - plot.drive, plot.end), BODIES[CAR]
    chart.pave(s, plot.side.across(plot.side.edge - plot.side.parking, plot.front + _DEPTH), OTHER_FLAT)
    if rng.random() < 0.5:
        middle, near = (s[0] + s[1]) / 2, plot.front + float(rng.uniform(0, _DEPTH - length))
        across = plot.side.across(near, near + length)
        chart.box((middle - width / 2, middle + width / 2), across, (0, height), CAR)


def _green(chart: Chart, plot: Plot, rng: np.random.Generator) -> None:
    """A park: a hedge or a bank, and rows of trees."""
    side, part = plot.side, plot.built
    if rng.random() < 0.5:
        chart.box(part, side.across(plot.front, plot.front + 1), (0, 1.2), VEGETATION)
    elif rng.random() < 0.5:
        chart.box(part, side.across(plot.front + 1, chart.side), (0, chart.grid.cell_z), TERRAIN)
    spacing = rng.uniform(5, 8)
    for row in np.arange(plot.front + 3, chart.side, spacing):
        for s in np.arange(part[0] + spacing / 2, part[1] - 1, spacing):
            if rng.random() < 0.8:
                ahead, aside, radius = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(1.6, 2.6)
                plant(chart, s + ahead, side.sign * (row + aside), radius, rng)


def _car_park(chart: Chart, plot: Plot, rng: np.random.Generator) -> None:
    """Rows of cars that stand across the street, with lanes between them."""
    chart.pave(plot.built, plot.side.across(plot.front, chart.side), OTHER_FLAT)
    length, width, height = BODIES[CAR]
    share = rng.uniform(0.4, 0.9)
    for near in np.arange(plot.front + 1, chart.side - length, 2 * length):
        for s in np.arange(plot.start + 2, plot.end - 2, 3.0):
            if rng.random() < share:
                across = plot.side.across(near, near + length)
                chart.box((s - width / 2, s + width / 2), across, (0, height), CAR)


def _wall(chart: Chart, plot: Plot, rng: np.random.Generator) -> None:
    """A wall along the street with bushes behind it."""
    part = plot.built
    chart.box(part, plot.side.across(plot.front, plot.front + 1), (0, rng.uniform(1.2, 3.0)), MANMADE)
    spacing = rng.uniform(4, 7)
    for s in np.arange(part[0] + 2, part[1] - 2, spacing):
        plant(chart, s + rng.uniform(-1, 1), plot.side.sign * (plot.front + 4), rng.uniform(1.4, 2.2), rng)


def _side_street(chart: Chart, plot: Plot, rng: np.random.Generator) -> None:
    """A street that ends here: its carriageway in the middle of the plot, pavements beside it."""
    near, far = plot.side.edge - plot.side.parking, chart.side
    margin = min(2.5, (plot.end - plot.start) / 4)
    chart.pave((plot.start, plot.end), plot.side.across(plot.side.edge, far), SIDEWALK)
    chart.pave((plot.start + margin, plot.end - margin), plot.side.across(near, far), DRIVEABLE_SURFACE)


_FRONTAGES = {
    "houses": _houses,
    "green": _green,
    "car park": _car_park,
    "wall": _wall,
    SIDE_STREET: _side_street,
}
