"""What moves: the ego vehicle, other vehicles that follow one another in lanes, cyclists and pedestrians.

Letters: F frames, A road users. A vehicle's progress p is measured along its lane, from the middle of the crossing
(from s = 0 without one), in metres; speeds in m/s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teachers.occfm.classes import BICYCLE, BUS, CAR, CONSTRUCTION_VEHICLE, MOTORCYCLE, PEDESTRIAN, TRAILER, TRUCK
from teachers.occfm.world.geometry import BODIES
from teachers.occfm.world.street import LANE, Street

PERIOD = 0.5
"""Seconds from one frame to the next (2 Hz)."""

FASTEST = 11.0
"""Largest speed of the ego vehicle in m/s."""

_WARM_UP = 8  # frames before the first, in which queues form at red lights
_KINDS = (CAR, TRUCK, BUS, MOTORCYCLE, CONSTRUCTION_VEHICLE)
_SHARES = (0.82, 0.08, 0.04, 0.05, 0.01)
_ACCELERATION, _BRAKING, _HARDEST = 1.5, 3.0, 6.0  # m/s^2


@dataclass(frozen=True)
class Lane:
    """One lane: direction of travel against the road's (radians) and distance to the left of the centre line.

    Distances are seen in the direction of travel, so on a street with traffic on the right `left` is negative.
    """

    direction: float
    left: float
    first: float
    last: float
    cycles: bool = False


@dataclass(frozen=True)
class Traffic:
    """All road users over time, in road coordinates.

    Attributes:
        label: class of each, int [A].
        size: length, width and height, [A, 3].
        s: along the road, [F, A].
        d: to its left, [F, A].
        angle: direction against the road's, [F, A].
        ego: s and d of the ego vehicle, which is none of the above, [F, 2].
    """

    label: np.ndarray
    size: np.ndarray
    s: np.ndarray
    d: np.ndarray
    angle: np.ndarray
    ego: np.ndarray


@dataclass(frozen=True)
class _Queue:
    """Vehicles sorted by lane, then by progress; each field [A]. Vehicle `ego` is the one that the grid rides on."""

    lane: np.ndarray
    label: np.ndarray
    progress: np.ndarray
    speed: np.ndarray
    front: np.ndarray  # metres from the middle to the front
    tail: np.ndarray  # metres from the middle to the rear, a trailer included
    turns: np.ndarray  # turns right at the crossing
    ego: int


def simulate(street: Street, frames: int, rng: np.random.Generator) -> Traffic:
    """Traffic on a street over `frames` frames.

    Args:
        street: lanes, crossing and traffic lights.
        frames: F, at least one.
        rng: source of everything random.

    Returns:
        Every road user's place in every frame.
    """
    lanes = _draw_lanes(street, frames, rng)
    queue = _draw_queue(street, lanes, rng)
    progress = _drive(street, lanes, queue, frames, rng)
    s, d, angle = _places(street, lanes, queue, progress)
    hauls = (queue.label == TRUCK) & (queue.tail > queue.front)
    behind = _places(street, lanes, queue, progress - (queue.tail - BODIES[TRAILER][0] / 2))
    others = np.arange(len(queue.label)) != queue.ego
    walkers = _walk(street, s[:, queue.ego], rng)
    label = np.concatenate(
        [queue.label[others], np.full(hauls.sum(), TRAILER), np.full(walkers[0].shape[1], PEDESTRIAN)]
    )
    tables = [
        np.concatenate([own[:, others], towed[:, hauls], walker], axis=1)
        for own, towed, walker in zip((s, d, angle), behind, walkers, strict=True)
    ]
    size = np.array([BODIES[kind] for kind in label.tolist()]).reshape(-1, 3)
    return Traffic(
        label, size, tables[0], tables[1], tables[2], ego=np.stack([s[:, queue.ego], d[:, queue.ego]], axis=1)
    )


def _draw_lanes(street: Street, frames: int, rng: np.random.Generator) -> list[Lane]:
    """The lanes of the street and of the one that crosses, the ego vehicle's first."""
    middle, travel = street.crossing or 0.0, FASTEST * PERIOD * (frames + _WARM_UP)
    own = int(rng.integers(street.lanes))
    order = [own, *(number for number in range(street.lanes) if number != own)]
    offsets = [-(street.median / 2 + (number + 0.5) * LANE) for number in order]
    lanes = [Lane(0.0, left, -middle - travel / 2 - 40, travel - middle + 40) for left in offsets]
    lanes += [Lane(np.pi, left, middle - 2 * travel - 40, middle + 40) for left in offsets]
    if rng.random() < 0.3:
        edge = 0.6 - street.kerb
        lanes.append(Lane(0.0, edge, -middle - travel / 2, travel - middle + 40, cycles=True))
        lanes.append(Lane(np.pi, edge, middle - travel - 40, middle + 40, cycles=True))
    if street.crossing is not None:
        for left in np.arange(LANE / 2, street.crossing_half, LANE):
            lanes += [Lane(angle, -float(left), -travel - 20, 40) for angle in (np.pi / 2, -np.pi / 2)]
    return lanes


def _draw_queue(street: Street, lanes: list[Lane], rng: np.random.Generator) -> _Queue:
    """Vehicles at random distances in every lane, at speeds that hardly differ within one street."""
    start, usual, headway = -(street.crossing or 0.0), rng.uniform(7, FASTEST), rng.uniform(14, 45)
    columns = []
    for number, lane in enumerate(lanes):
        room = headway * (3 if lane.cycles or abs(np.sin(lane.direction)) > 0.5 else 1)
        progress = lane.first + np.cumsum(8 + rng.exponential(room, size=int(2 * (lane.last - lane.first) / room) + 4))
        progress = progress[progress < lane.last]
        if number == 0:
            # The ego vehicle comes in at the place where it will be near s = 0 once the warm-up is over.
            place = start - usual * _WARM_UP * PERIOD
            progress = np.sort(np.append(progress[np.abs(progress - place) > 12], place))
            ego = int(np.searchsorted(progress, place))
        count = len(progress)
        label = np.full(count, BICYCLE) if lane.cycles else rng.choice(_KINDS, size=count, p=_SHARES)
        speed = (rng.uniform(3, 5) if lane.cycles else usual) * rng.uniform(0.85, 1.1, count)
        columns.append((np.full(count, number), label, progress, speed))
    lane_of, label, progress, speed = (np.concatenate(column) for column in zip(*columns, strict=True))
    label[ego] = CAR
    front = np.array([BODIES[kind][0] / 2 for kind in label.tolist()])
    tail = front + (BODIES[TRAILER][0] + 0.4) * ((label == TRUCK) & (rng.random(len(label)) < 0.3))
    turning = (street.crossing is not None) & (lane_of > 0) & (lane_of < 2 * street.lanes) & (label != BUS)
    turns = turning & (rng.random(len(label)) < 0.2)
    return _Queue(lane_of, label, progress, speed, front, tail, turns, ego)


def _drive(street: Street, lanes: list[Lane], queue: _Queue, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Progress of every vehicle, [frames, A]: each keeps its speed unless one ahead or a red light makes it brake."""
    count, steps = len(queue.label), frames + _WARM_UP
    wished = queue.speed * (1 + 0.04 * np.cumsum(rng.standard_normal((steps, count)) * 0.3, axis=0))
    pauses = _draw_pauses(queue.ego, steps, count, rng)
    crosses = np.array([abs(np.sin(lane.direction)) > 0.5 for lane in lanes])[queue.lane]
    stop = np.where(crosses, -street.kerb - 4, -street.crossing_half - 4) - queue.front
    ahead_is_next = np.append(queue.lane[1:] == queue.lane[:-1], False)
    # Progress is counted on the centre line; on the outside of a bend a lane is longer than that.
    fastest = FASTEST / (1 + abs(street.road.curvature) * street.kerb)
    progress, speed = queue.progress.copy(), np.minimum(queue.speed, fastest)
    track = np.empty((steps, count))
    for step in range(steps):
        track[step] = progress
        gap = np.append(progress[1:] - queue.tail[1:], 0) - progress - queue.front - 1.5
        safe = np.where(ahead_is_next, _safe_speed(gap, np.append(speed[1:], 0)), np.inf)
        if street.crossing is not None:
            left = stop - progress
            red = crosses == street.green(step - _WARM_UP)
            halts = red & (left > -0.5) & (speed**2 < 2 * _HARDEST * np.maximum(left, 0.1))
            safe = np.where(halts, np.minimum(safe, _safe_speed(left, 0 * left)), safe)
        aim = np.minimum(np.where(pauses[step], 0.0, wished[step]), speed + _ACCELERATION * PERIOD)
        easing = np.maximum(aim, speed - 0.6 * _BRAKING * PERIOD)
        faster = np.clip(np.minimum(easing, safe), np.maximum(0, speed - _HARDEST * PERIOD), fastest)
        progress = progress + (speed + faster) / 2 * PERIOD
        speed = faster
    return track[_WARM_UP:]


def _draw_pauses(ego: int, steps: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """When a vehicle wants to stand still, bool [steps, count]: a few stop on the way, some egos only set off late."""
    begin = rng.integers(_WARM_UP, max(steps, _WARM_UP + 1), count)
    length = np.where(rng.random(count) < 0.08, rng.integers(3, 10, count), 0)
    kind, late = rng.random(), int(rng.integers(2, 12))
    if kind < 0.16:
        begin[ego], length[ego] = 0, _WARM_UP + late
    elif kind < 0.26:
        length[ego] = late
    step = np.arange(steps)[:, None]
    return (step >= begin) & (step < begin + length)


def _safe_speed(gap: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    """Speed at which a vehicle can still stop behind one that brakes, one frame being its time to react.

    Source: Krauss, Microscopic modeling of traffic flow (1998), the safe speed of a car-following model.
    """
    reaction = _BRAKING * PERIOD
    return np.maximum(0, np.sqrt(reaction**2 + ahead**2 + 2 * _BRAKING * np.maximum(gap, 0)) - reaction)


def _places(street: Street, lanes: list[Lane], queue: _Queue, progress: np.ndarray) -> tuple[np.ndarray, ...]:
    """s, d and angle, each [F, A], of vehicles that have come `progress` [F, A] along their lanes."""
    direction = np.array([lane.direction for lane in lanes])[queue.lane]
    left = np.array([lane.left for lane in lanes])[queue.lane]
    # A right turn is a straight line, a quarter of a circle that ends in the crossing street's lane, a straight line.
    radius = street.crossing_half + 2.0
    begin = np.where(queue.turns, -LANE / 2 - radius, np.inf)
    turned = np.clip((progress - begin) / radius, 0, np.pi / 2)
    beyond = np.maximum(progress - begin - radius * np.pi / 2, 0)
    ahead = np.minimum(progress, begin) + radius * np.sin(turned)
    aside = left - radius * (1 - np.cos(turned)) - beyond
    s = (street.crossing or 0.0) + ahead * np.cos(direction) - aside * np.sin(direction)
    d = ahead * np.sin(direction) + aside * np.cos(direction)
    return s, d, direction - turned


def _walk(street: Street, ego: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """s, d and angle, each [F, P], of pedestrians on pavements and on the crossing near the ego vehicle's way [F]."""
    frames = np.arange(len(ego))[:, None]
    density = rng.choice([1.0, 4.0, 10.0])
    count = rng.poisson(density * (ego[-1] - ego[0] + 60) / 60)
    right = rng.random(count) < 0.5
    edge = np.where(right, -street.sides[1].edge, street.sides[0].edge)
    width = np.where(right, -street.sides[1].pavement, street.sides[0].pavement)
    speed = rng.choice([-1, 1], count) * rng.uniform(0.5, 2, count) * (rng.random(count) > 0.15)
    strides = speed * (1 + 0.15 * rng.standard_normal((len(ego), count))) * PERIOD
    s = rng.uniform(ego[0] - 30, ego[-1] + 30, count) + np.cumsum(strides, axis=0)
    d = np.broadcast_to(edge + width * rng.uniform(0.15, 0.85, count), s.shape)
    angle = np.where(speed < 0, np.pi, 0.0) + 0 * s
    if street.crossing is None:
        return s, d, angle
    # On the crossing they start once this street's lights are red.
    count = rng.poisson(density / 3)
    waits = street.signal if street.green_first else rng.integers(-8, max(1, street.signal), count)
    walked = rng.uniform(1, 1.8, count) * PERIOD * np.maximum(frames - waits - rng.uniform(0, 4, count), 0)
    heading = rng.choice([-1, 1], count)
    edges = np.where(heading > 0, street.sides[1].edge, street.sides[0].edge) + 1
    over_s = (
        street.crossing + rng.choice([-1, 1], count) * (street.crossing_half + rng.uniform(1, 2.5, count)) + 0 * walked
    )
    over_d = heading * (walked - edges)
    return (
        np.concatenate([s, over_s], axis=1),
        np.concatenate([d, over_d], axis=1),
        np.concatenate([angle, heading * np.pi / 2 + 0 * walked], axis=1),
    )
