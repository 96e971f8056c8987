"""Plots: each side of a street is cut into pieces of 8 to 16 m that differ in what they are paved with and built on.

Distances in metres, in road coordinates (s along, d to the left).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teachers.occfm.classes import DRIVEABLE_SURFACE, OTHER_FLAT, SIDEWALK, TERRAIN
from teachers.occfm.world.chart import Span
from teachers.occfm.world.street import FRONTAGES, SHARES, Side

SHORTEST, LONGEST = 8.0, 16.0
"""Length of a plot in metres; only a stretch that is shorter than one makes a shorter plot."""

_AS_USUAL = 0.5  # share of plots that look like most of their side


@dataclass(frozen=True)
class Plot:
    """A piece of one side of a street, from the carriageway outwards.

    Attributes:
        side: the side it belongs to.
        start: s where it begins.
        end: s where it ends.
        strip_label: surface between carriageway and kerb, where the side has a parking strip.
        pavement_label: surface of the pavement.
        verge: width between pavement and frontage.
        verge_label: its surface.
        frontage: what stands behind.
        drive: width of the driveway at the plot's end, 0 for none.
        trees: whether street trees stand here.
    """

    side: Side
    start: float
    end: float
    strip_label: int
    pavement_label: int
    verge: float
    verge_label: int
    frontage: str
    drive: float
    trees: bool

    @property
    def front(self) -> float:
        """Distance from the centre line to the frontage."""
        return self.side.edge + self.side.pavement + self.verge

    @property
    def built(self) -> Span:
        """The plot without its driveway."""
        return self.start, self.end - self.drive

    @property
    def parks(self) -> bool:
        """Whether vehicles may stand between carriageway and kerb."""
        return self.side.parking > 0 and self.strip_label in (DRIVEABLE_SURFACE, OTHER_FLAT)


def draw_plots(side: Side, stretch: Span, rng: np.random.Generator) -> list[Plot]:
    """The plots of one side along a stretch without a crossing, one next to the other; none where it has no length."""
    if stretch[0] >= stretch[1]:
        return []
    cuts = [stretch[0]]
    while stretch[1] - cuts[-1] > LONGEST:
        cuts.append(cuts[-1] + float(rng.uniform(SHORTEST, min(LONGEST, stretch[1] - cuts[-1] - SHORTEST))))
    return [_draw_plot(side, part, rng) for part in zip(cuts, [*cuts[1:], stretch[1]], strict=True)]


def _draw_plot(side: Side, part: Span, rng: np.random.Generator) -> Plot:
    frontage = side.frontage if rng.random() < _AS_USUAL else FRONTAGES[rng.choice(len(FRONTAGES), p=SHARES)]
    drives = frontage in ("houses", "wall") and part[1] - part[0] > 9 and rng.random() < 0.5
    return Plot(
        side=side,
        start=part[0],
        end=part[1],
        # Where nobody may park, the pavement or a green bed comes out to the carriageway.
        strip_label=side.parking_label if rng.random() < 0.6 else _either(rng, SIDEWALK, TERRAIN),
        pavement_label=SIDEWALK if rng.random() < 0.8 else _either(rng, TERRAIN, OTHER_FLAT),
        verge=side.verge if rng.random() < _AS_USUAL else float(rng.choice([0.0, 2.5, 5.0])),
        verge_label=int(rng.choice([TERRAIN, SIDEWALK, OTHER_FLAT], p=[0.5, 0.3, 0.2])),
        frontage=frontage,
        drive=float(rng.uniform(3.5, 5)) if drives else 0.0,
        trees=side.trees > 0 and bool(rng.random() < 0.7),
    )


def _either(rng: np.random.Generator, first: int, second: int) -> int:
    return first if rng.random() < 0.5 else second
