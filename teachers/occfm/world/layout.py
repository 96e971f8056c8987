"""The part of the world that stands still, painted along the road: ground, houses, trees, parked vehicles, road works.

A `Chart` is a raster in road coordinates (s, d), so a straight street and a bent one are painted alike. Distances in
metres; heights above the road.
"""

from __future__ import annotations

import math

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
from teachers.occfm.world.geometry import BODIES, Grid
from teachers.occfm.world.street import Side, Street

_PARKED = (CAR, TRUCK, TRAILER, BUS)
_PARKED_SHARES = (0.9, 0.06, 0.03, 0.01)

Span = tuple[float, float]


class Chart:
    """Columns of labels over a rectangle of road coordinates.

    Args:
        grid: cells that will be looked up; nothing is painted thinner than one of them, or it would come and go.
        start: lowest s.
        end: highest s.
    """

    def __init__(self, grid: Grid, start: float, end: float) -> None:
        self.grid, self.start, self.end = grid, start, end
        self.step = grid.cell / 2
        # To the side, the grid reaches further from a road user at the kerb than from the centre line.
        self.side = grid.reach + 10
        shape = (math.ceil((end - start) / self.step), math.ceil(2 * self.side / self.step), grid.height)
        self.columns = np.full(shape, FREE, dtype=np.uint8)

    def box(self, s: Span, d: Span, z: Span, label: int) -> None:
        """Fills a box that stands on the ground or above; it is at least one grid cell wide and high."""
        rows, lines = self.part(s, d)
        lowest = self.grid.ground + 1 + round(z[0] / self.grid.cell_z)
        self.columns[rows, lines, lowest : lowest + self.grid.levels(z[1] - z[0])] = label

    def pave(self, s: Span, d: Span, label: int) -> None:
        """Gives the ground a surface."""
        rows, lines = self.part(s, d)
        self.columns[rows, lines, self.grid.ground] = label

    def ball(self, s: float, d: float, z: Span, radius: float, label: int) -> None:
        """Fills an upright ellipsoid that is `2 * radius` wide and reaches over `z`; only free cells are taken."""
        rows, lines = self.part((s - radius, s + radius), (d - radius, d + radius))
        along = (np.arange(rows.start, rows.stop) + 0.5) * self.step + self.start - s
        across = (np.arange(lines.start, lines.stop) + 0.5) * self.step - self.side - d
        up = (np.arange(self.grid.height) - self.grid.ground) * self.grid.cell_z - (z[0] + z[1]) / 2
        inside = (along[:, None, None] ** 2 + across[:, None] ** 2) / radius**2 + (2 * up / (z[1] - z[0])) ** 2 <= 1
        part = self.columns[rows, lines]
        part[inside & (part == FREE)] = label

    def look_up(self, s: np.ndarray, d: np.ndarray) -> np.ndarray:
        """The columns [..., height] at road coordinates of one shape; beyond the chart, those of its rim."""
        row = np.clip(((s - self.start) / self.step).astype(np.intp), 0, self.columns.shape[0] - 1)
        line = np.clip(((d + self.side) / self.step).astype(np.intp), 0, self.columns.shape[1] - 1)
        return self.columns[row, line]

    def part(self, s: Span, d: Span) -> tuple[slice, slice]:
        """Rows and lines of the chart under a rectangle."""
        return self._cells(s, self.start, self.columns.shape[0]), self._cells(d, -self.side, self.columns.shape[1])

    def _cells(self, span: Span, origin: float, count: int) -> slice:
        low, high = min(span), max(span)
        if high - low < 1.05 * self.grid.cell:
            low, high = ((low + high - sign * 1.05 * self.grid.cell) / 2 for sign in (1, -1))
        # Both ends are rounded, so that spans which meet leave no gap.
        first, last = round((low - origin) / self.step), round((high - origin) / self.step)
        return slice(min(max(0, first), count), min(max(0, last), count))


def paint(street: Street, grid: Grid, start: float, end: float, rng: np.random.Generator) -> Chart:
    """The still world of a street for s in [start, end]."""
    chart = Chart(grid, start, end)
    _pave(chart, street)
    _furnish_median(chart, street, rng)
    works = _draw_works(street, chart, rng)
    for side in street.sides:
        for part, frontage in zip(street.stretches(start, end), side.frontages, strict=False):
            if part[0] < part[1]:
                _FRONTAGES[frontage](chart, side, part, rng)
                _furnish_pavement(chart, side, part, rng)
                _park(chart, side, part, works if works and works[0] is side else None, rng)
    if works:
        _dig(chart, street, works, rng)
    return chart


def _across(side: Side, near: float, far: float) -> Span:
    """The d of a strip that lies `near` to `far` metres from the centre line on one side."""
    return (near, far) if side.sign > 0 else (-far, -near)


def _pave(chart: Chart, street: Street) -> None:
    everywhere, whole = (-chart.side, chart.side), (chart.start, chart.end)
    chart.pave(whole, everywhere, TERRAIN)
    if street.crossing is not None:
        middle, half = street.crossing, street.crossing_half
        chart.pave((middle - half - 3, middle + half + 3), everywhere, SIDEWALK)
    for side in street.sides:
        chart.pave(whole, _across(side, street.kerb, side.edge + side.pavement), SIDEWALK)
        if side.verge:
            chart.pave(whole, _across(side, side.edge + side.pavement, side.front), side.verge_label)
        if side.parking:
            for part in street.stretches(chart.start, chart.end):
                chart.pave(part, _across(side, side.edge - side.parking, side.edge), side.parking_label)
    chart.pave(whole, (-street.kerb, street.kerb), DRIVEABLE_SURFACE)
    if street.crossing is not None:
        chart.pave((middle - half, middle + half), everywhere, DRIVEABLE_SURFACE)


def _furnish_median(chart: Chart, street: Street, rng: np.random.Generator) -> None:
    if not street.median:
        return
    across, kind = (-street.median / 2, street.median / 2), rng.random()
    for start, end in street.stretches(chart.start, chart.end):
        if start == end:
            continue
        chart.pave((start, end), across, street.median_label)
        if kind < 0.3:
            chart.box((start, end), (-0.4, 0.4), (0, 0.9), BARRIER)
        elif kind < 0.6:
            chart.box((start, end), (-0.6, 0.6), (0, 1.2), VEGETATION)


def _houses(chart: Chart, side: Side, part: Span, rng: np.random.Generator) -> None:
    """A row of houses, one against the next or with a tree in each gap."""
    width, height, terrace = rng.uniform(8, 16), rng.uniform(3.2, 8), rng.random() < 0.4
    s = part[0] - rng.uniform(0, width)
    while s < part[1]:
        begin, end = max(s, part[0]), min(s + width * rng.uniform(0.85, 1.15), part[1])
        near, gap = side.front + rng.choice([0.0, 1.0]), 0.0 if terrace else float(rng.uniform(3, 5))
        if end - begin > 4:
            flanks = (not terrace or begin == part[0], not terrace or end == part[1])
            _house(chart, (begin, end), _across(side, near, near + 10), height + rng.uniform(-0.8, 0.8), flanks)
        if gap and end + gap < part[1]:
            _tree(chart, end + gap / 2, side.sign * (near + 4), rng.uniform(1.5, 2), rng)
        s = end + gap if end < part[1] else part[1]


def _house(chart: Chart, s: Span, d: Span, height: float, flanks: tuple[bool, bool]) -> None:
    """What a street sees of a house: the front, the flanks, a roof if it is low; not the inside."""
    near = d[0] if d[0] > 0 else d[1] - 1
    chart.pave(s, d, MANMADE)
    chart.box(s, (near, near + 1), (0, height), MANMADE)
    for flank, seen in zip((s[0] + 0.5, s[1] - 0.5), flanks, strict=True):
        if seen:
            chart.box((flank - 0.5, flank + 0.5), d, (0, height), MANMADE)
    if chart.grid.ground + chart.grid.levels(height) < chart.grid.height:
        chart.box(s, d, (height - chart.grid.cell_z, height), MANMADE)


def _green(chart: Chart, side: Side, part: Span, rng: np.random.Generator) -> None:
    """A park: a hedge or a bank, and rows of trees."""
    if rng.random() < 0.5:
        chart.box(part, _across(side, side.front, side.front + 1), (0, 1.2), VEGETATION)
    elif rng.random() < 0.5:
        chart.box(part, _across(side, side.front + 1, chart.side), (0, chart.grid.cell_z), TERRAIN)
    spacing = rng.uniform(5, 8)
    for row in np.arange(side.front + 3, chart.side, spacing):
        for s in np.arange(part[0] + spacing / 2, part[1] - 1, spacing):
            if rng.random() < 0.8:
                ahead, aside, radius = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(1.6, 2.6)
                _tree(chart, s + ahead, side.sign * (row + aside), radius, rng)


def _car_park(chart: Chart, side: Side, part: Span, rng: np.random.Generator) -> None:
    """Rows of cars that stand across the street, with lanes between them."""
    chart.pave(part, _across(side, side.front, chart.side), OTHER_FLAT)
    length, width, height = BODIES[CAR]
    share = rng.uniform(0.4, 0.9)
    for near in np.arange(side.front + 1, chart.side - length, 2 * length):
        for s in np.arange(part[0] + 2, part[1] - 2, 3.0):
            if rng.random() < share:
                chart.box((s - width / 2, s + width / 2), _across(side, near, near + length), (0, height), CAR)


def _wall(chart: Chart, side: Side, part: Span, rng: np.random.Generator) -> None:
    """A wall along the street with bushes behind it."""
    chart.box(part, _across(side, side.front, side.front + 1), (0, rng.uniform(1.2, 3.0)), MANMADE)
    spacing = rng.uniform(4, 7)
    for s in np.arange(part[0] + 2, part[1] - 2, spacing):
        _tree(chart, s + rng.uniform(-1, 1), side.sign * (side.front + 4), rng.uniform(1.4, 2.2), rng)


_FRONTAGES = {"houses": _houses, "green": _green, "car park": _car_park, "wall": _wall}


def _tree(chart: Chart, s: float, d: float, radius: float, rng: np.random.Generator) -> None:
    middle = 2.6 + 0.5 * rng.random()
    chart.box((s - 0.4, s + 0.4), (d - 0.4, d + 0.4), (0, middle), VEGETATION)
    chart.ball(s, d, (middle - 1.3, middle + 2), radius, VEGETATION)


def _furnish_pavement(chart: Chart, side: Side, part: Span, rng: np.random.Generator) -> None:
    """Street trees and lamp posts at regular distances, and now and then a bin, a bicycle or a motorcycle."""
    if side.trees:
        line = side.edge + (side.pavement + 1.2 if side.verge else 1.0)
        for s in np.arange(part[0] + side.trees / 2, part[1] - 1, side.trees):
            _tree(chart, s + rng.uniform(-0.5, 0.5), side.sign * line, rng.uniform(1.3, 1.8), rng)
    if side.poles:
        across = _across(side, side.edge + 0.1, side.edge + 0.7)
        for s in np.arange(part[0] + 2, part[1], side.poles):
            chart.box((s, s + 0.6), across, (0, 6), MANMADE)
    for label, mean, length, height in (
        (OTHERS, 1.2, 1.0, 1.2),
        (BICYCLE, 0.25, 1.8, 1.2),
        (MOTORCYCLE, 0.2, 2.2, 1.2),
    ):
        for _ in range(rng.poisson(mean * (part[1] - part[0]) / 50)):
            s, near = rng.uniform(*part), side.edge + side.pavement - 1
            chart.box((s, s + length), _across(side, near, near + 0.8), (0, height), label)


def _park(
    chart: Chart, side: Side, part: Span, works: tuple[Side, float, float] | None, rng: np.random.Generator
) -> None:
    """Fills the parking strip, bay after bay."""
    if not side.parking:
        return
    share, s = rng.uniform(0.3, 0.95), part[0] + 5
    while s < part[1] - 5:
        label = int(rng.choice(_PARKED, p=_PARKED_SHARES))
        length, width, height = BODIES[label]
        dug = works is not None and s < works[2] and s + length > works[1]
        if rng.random() < share and not dug and s + length < part[1] - 2:
            near = side.edge - side.parking / 2 - width / 2
            chart.box((s, s + length), _across(side, near, near + width), (0, height), label)
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
    rows, lines = chart.part((start, end), _across(side, near, far))
    chart.columns[rows, lines, chart.grid.ground + 1 :] = FREE
    chart.pave((start, end), _across(side, near, far), OTHER_FLAT)
    for s in (start, end - 0.8):
        chart.box((s, s + 0.8), _across(side, near, far), (0, 1.2), BARRIER)
    long_barrier = rng.random() < 0.5
    if long_barrier:
        chart.box((start, end), _across(side, near, near + 0.6), (0, 1.2), BARRIER)
    length, width, tall = BODIES[TRAFFIC_CONE]
    first, last = (start - 8, start - 1) if long_barrier else (start - 6, end)
    for s in np.arange(first, last, 2.0):
        chart.box((s, s + length), _across(side, near, near + width), (0, tall), TRAFFIC_CONE)
    if rng.random() < 0.6:
        length, width, tall = BODIES[CONSTRUCTION_VEHICLE]
        s, line = rng.uniform(start + 2, end - 2 - length), (near + far) / 2 + 0.3
        chart.box((s, s + length), _across(side, line - width / 2, line + width / 2), (0, tall), CONSTRUCTION_VEHICLE)
