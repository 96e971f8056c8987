"""The raster that the still part of the world is painted on.

A `Chart` is laid out in road coordinates (s, d), so a straight street and a bent one are painted alike. Distances in
metres; heights above the road.
"""

from __future__ import annotations

import math

import numpy as np

from teachers.occfm.classes import FREE
from teachers.occfm.world.geometry import Grid

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
