"""What kind of street a scene has: lanes, parking, pavements, what mostly stands beside it, and a crossing.

Everything here is in road coordinates (s along, d to the left) and metres. Traffic keeps to the right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teachers.occfm.classes import DRIVEABLE_SURFACE, OTHER_FLAT
from teachers.occfm.world.geometry import Grid, Road

LANE = 3.5
"""Width of a lane in metres."""

SIDE_STREET = "side street"
FRONTAGES = ("houses", "green", "car park", "wall", SIDE_STREET)
"""What a plot along the street may hold."""

SHARES = (0.4, 0.26, 0.1, 0.1, 0.14)
"""How often each of them is met."""


@dataclass(frozen=True)
class Side:
    """One side of the street, from the carriageway outwards: what holds all along it, and what most of its plots have.

    Attributes:
        sign: +1 for the left side, -1 for the right side.
        edge: distance from the centre line to the kerb, behind the parking strip.
        parking: width of the parking strip, 0 for none.
        parking_label: class of its surface where vehicles may stand.
        pavement: width of the pavement.
        verge: width between pavement and frontage on most plots.
        frontage: what stands behind on most plots.
        trees: distance between street trees, 0 for none.
        poles: share of plots with a lamp post.
    """

    sign: int
    edge: float
    parking: float
    parking_label: int
    pavement: float
    verge: float
    frontage: str
    trees: float
    poles: float

    def across(self, near: float, far: float) -> tuple[float, float]:
        """The d of a strip that lies `near` to `far` metres from the centre line on this side."""
        return (near, far) if self.sign > 0 else (-far, -near)


@dataclass(frozen=True)
class Street:
    """The whole cross-section, the line of the road and the crossing.

    Attributes:
        road: centre line.
        lanes: lanes in each direction.
        median: width of the strip between the directions, 0 for none.
        sides: left and right.
        crossing: s of the middle of the street that crosses; None without one.
        crossing_half: half the width of its carriageway.
        signal: frame at which the traffic lights of the crossing change.
        green_first: the lights let this street go before `signal` and the other one from then on; or the reverse.
    """

    road: Road
    lanes: int
    median: float
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
    return Side(
        sign=sign,
        edge=kerb + parking,
        parking=parking,
        parking_label=OTHER_FLAT if rng.random() < 0.4 else DRIVEABLE_SURFACE,
        pavement=float(rng.uniform(2, 4)),
        verge=float(rng.choice([0.0, 2.5, 4.0])),
        # No street is lined with side streets.
        frontage=str(rng.choice(FRONTAGES[:3], p=[0.55, 0.35, 0.1])),
        trees=float(rng.uniform(6, 10)) if rng.random() < 0.5 else 0.0,
        poles=0.6 if rng.random() < 0.6 else 0.0,
    )
