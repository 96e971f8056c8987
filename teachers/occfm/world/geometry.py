"""Where things are: the grid of cells around the ego vehicle, the line of the road, and the sizes of road users.

Three kinds of coordinates, all in metres. Ego: x forward, y left, z up from the road, origin under the ego vehicle.
World: fixed, the x axis along the beginning of the road. Road: s along the centre line, d to its left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from teachers.errors import TeacherError
from teachers.occfm.classes import (
    BICYCLE,
    BUS,
    CAR,
    CONSTRUCTION_VEHICLE,
    MOTORCYCLE,
    PEDESTRIAN,
    TRAFFIC_CONE,
    TRAILER,
    TRUCK,
)

BODIES = {
    CAR: (4.6, 2.0, 1.6),
    TRUCK: (7.5, 2.6, 3.2),
    BUS: (11.0, 2.9, 3.2),
    TRAILER: (8.0, 2.6, 3.6),
    CONSTRUCTION_VEHICLE: (6.0, 2.8, 2.8),
    MOTORCYCLE: (2.2, 0.9, 1.6),
    BICYCLE: (1.8, 0.7, 1.6),
    PEDESTRIAN: (0.7, 0.7, 1.8),
    TRAFFIC_CONE: (0.5, 0.5, 0.8),
}
"""Length, width and height in metres of what stands or moves on the road, by label."""


@dataclass(frozen=True)
class Grid:
    """The box of cells around the ego vehicle, which stands in its middle; axes are x, y, z.

    Attributes:
        size: cells along x and along y.
        height: cells along z.
        cell: width of a cell along x and y in metres.
        cell_z: height of a cell in metres.
        floor: z of the lowest cell's underside in metres; the road is at z = 0.
    """

    size: int = 40
    height: int = 16
    cell: float = 1.0
    cell_z: float = 0.4
    floor: float = -1.0

    def __post_init__(self) -> None:
        if self.size < 1 or self.cell <= 0 or self.cell_z <= 0:
            raise TeacherError(f"a grid of {self.size} cells, {self.cell} m and {self.cell_z} m", allowed="above 0")
        if not 0 <= self.ground < self.height:
            raise TeacherError(
                f"a grid from z = {self.floor} m up, {self.height} cells of {self.cell_z} m",
                allowed="one that holds z = 0, the surface of the road",
            )

    @property
    def ground(self) -> int:
        """Index along z of the cell that holds z = 0."""
        return math.floor(-self.floor / self.cell_z)

    @property
    def reach(self) -> float:
        """Distance in metres from the middle to a corner."""
        return self.size * self.cell / math.sqrt(2)

    def levels(self, height: float) -> int:
        """Number of cells above the ground cell that a thing of `height` metres fills, at least one."""
        return max(1, round(height / self.cell_z))

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """The x and y of the cell centres in ego coordinates, each [size, size]."""
        along = (np.arange(self.size) + 0.5 - self.size / 2) * self.cell
        x, y = np.meshgrid(along, along, indexing="ij")
        return x, y


@dataclass(frozen=True)
class Road:
    """The centre line of a road: straight along the world's x axis up to `bend`, a circular arc from there on.

    Attributes:
        curvature: of the arc in 1/m, positive to the left; 0 for a straight road.
        bend: s at which the arc begins.
    """

    curvature: float = 0.0
    bend: float = 0.0

    def to_world(self, s: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The x, y and direction of the road in radians, at road coordinates `s`, `d` (any one shape)."""
        arc = np.maximum(s - self.bend, 0)
        turn = self.curvature * arc
        # np.sinc(u) = sin(pi u) / (pi u), so a straight road needs no case of its own.
        x = np.minimum(s, self.bend) + arc * np.sinc(turn / np.pi)
        y = arc * turn / 2 * np.sinc(turn / (2 * np.pi)) ** 2
        return x - d * np.sin(turn), y + d * np.cos(turn), turn

    def to_road(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The s and d of world coordinates: the inverse of `to_world` while the arc turns by less than pi."""
        if self.curvature == 0:
            return x, y
        across, towards = self.curvature * (x - self.bend), 1 - self.curvature * y
        s = self.bend + np.arctan2(across, towards) / self.curvature
        d = (1 - np.hypot(across, towards)) / self.curvature
        return np.where(x < self.bend, x, s), np.where(x < self.bend, y, d)
