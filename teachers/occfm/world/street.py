"""What kind of street a scene has: lanes, parking, pavements, what stands beside it, and a crossing.

Everything here is in road coordinates (s along, d to the left) and metres. Traffic keeps to the right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teachers.occfm.classes import DRIVEABLE_SURFACE, OTHER_FLAT, SIDEWALK, TERRAIN
from teachers.occfm.world.geometry import Grid, Road

LANE = 3.5
"""Width of a lane in metres."""

FRONTAGES = ("houses", "green", "car park", "wall")
"""What may stand along one side of a street."""

_SHARES = (0.47, 0.33, 0.08, 0.12)


@dataclass(frozen=True)
class Side:
    """One side of the street, from the carriageway outwards.

    Attributes:
        sign: +1 for the left side, -1 for the right side.
        edge: distance from the centre line to the kerb, behind the parking strip.
        parking: width of the parking strip, 0 for none.
        parking_label: class of its surface.
        pavement: width of the pavement.
        verge: width between pavement and frontage.
        verge_label: class of its surface.
        frontages: what stands behind, before and after the crossing.
        trees: distance between street trees, 0 for none.
        poles: distance between lamp posts, 0 for none.
    """

    sign: int
    edge: float
    parking: float
    parking_label: int
    pavement: float
    verge: float
    verge_label: int
    frontages: tuple[str, str]
    trees: float
    poles: float

    @property
    def front(self) -> float:
        """Distance from the centre line to the frontage."""
        return self.edge + self.pavement + self.verge


@dataclass(frozen=True)
class Street:
    """The whole cross-section, the line of the road and the crossing.

    Attributes:
        road: centre line.
        lanes: lanes in each direction.
        median: width of the strip between the directions, 0 for none.
        median_label: class of its surface.
        sides: left and right.
        crossing: s of the middle of the street that crosses; None without one.
        crossing_half: half the width of its carriageway.
        signal: frame at which the traffic lights of the crossing change.
        green_first: the lights let this street go before `signal` and the other one from then on; or the reverse.
    """

    road: Road
    lanes: int
    median: float
    median_label: int
    sides: tuple[Side, Side]
    crossing: float | None
    crossing_half: float
    signal: int
    green_first: bool

    @property
    def kerb(self) -> float:
        """Half the width of the carriageway without parking strips."""
        return self.median / 2 + self.lanes * LANE

    def green(self, frame: int) -> bool:
        """Whether the traffic lights let this street go, not the one that crosses it."""
        return (frame < self.signal) == self.green_first

    def stretches(self, start: float, end: float) -> list[tuple[float, float]]:
        """The parts of [start, end] before and after the crossing and its pavements; an empty one has no length."""
        if self.crossing is None:
            return [(start, end)]
        gap = self.crossing_half + 3
        parts = [(start, min(end, self.crossing - gap)), (max(start, self.crossing + gap), end)]
        return [(low, high) if low < high else (start, start) for low, high in parts]


def draw_street(rng: np.random.Generator, grid: Grid, travel: float) -> Street:
    """A street on which the ego vehicle starts near s = 0 and goes at most `travel` metres."""
    lanes = 1 if rng.random() < 0.7 else 2
    median = float(rng.uniform(1.5, 3)) if rng.random() < 0.25 else 0.0
    kerb = median / 2 + lanes * LANE
    crossing = float(rng.uniform(8, 0.8 * travel + 20)) if rng.random() < 0.45 else None
    return Street(
        road=_draw_road(rng, grid, travel),
        lanes=lanes,
        median=median,
        median_label=int(rng.choice([OTHER_FLAT, TERRAIN])),
        sides=(_draw_side(rng, 1, kerb), _draw_side(rng, -1, kerb)),
        crossing=crossing,
        crossing_half=float(rng.choice([LANE, 2 * LANE], p=[0.7, 0.3])),
        signal=int(rng.integers(-10, 30)),
        green_first=bool(rng.random() < 0.5),
    )


def _draw_road(rng: np.random.Generator, grid: Grid, travel: float) -> Road:
    bend = float(rng.uniform(-20, travel))
    if rng.random() < 0.4:
        return Road(0.0, bend)
    # The arc may not come round to where it began, nor fold the inner corner of the grid over its centre.
    tightest = min(1 / 45, 0.8 / grid.reach, 2.2 / (travel + 2 * grid.reach + 20))
    return Road(float(rng.choice([-1, 1]) * rng.uniform(0.25, 1) * tightest), bend)


def _draw_side(rng: np.random.Generator, sign: int, kerb: float) -> Side:
    parking = 2.5 if rng.random() < 0.5 else 0.0
    first, second = rng.choice(len(FRONTAGES), size=2, p=_SHARES)
    if rng.random() < 0.6:
        second = first
    return Side(
        sign=sign,
        edge=kerb + parking,
        parking=parking,
        parking_label=OTHER_FLAT if rng.random() < 0.3 else DRIVEABLE_SURFACE,
        pavement=float(rng.uniform(2, 4)),
        verge=float(rng.choice([0.0, 2.5, 4.0])),
        verge_label=SIDEWALK if rng.random() < 0.3 else TERRAIN,
        frontages=(FRONTAGES[first], FRONTAGES[second]),
        trees=float(rng.uniform(6, 10)) if rng.random() < 0.5 else 0.0,
        poles=float(rng.uniform(14, 24)) if rng.random() < 0.6 else 0.0,
    )
