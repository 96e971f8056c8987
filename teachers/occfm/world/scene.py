"""A scene: a drive along one street, seen frame by frame as labels [size, size, height] around the ego vehicle."""

from __future__ import annotations

import numpy as np

from teachers.errors import TeacherError
from teachers.occfm.world.geometry import Grid
from teachers.occfm.world.layout import paint
from teachers.occfm.world.street import draw_street
from teachers.occfm.world.traffic import FASTEST, PERIOD, simulate


class Scene:
    """Scene `index` of the world `seed`; the same whatever else was made before it.

    The world stands still and the ego vehicle drives through it: a frame looks every cell centre up at its place in
    the world, then draws the road users.

    Args:
        seed: which world, 0 or more.
        index: which scene of it, 0 or more.
        frames: F, how many frames at 2 Hz.
        grid: the cells.

    Attributes:
        frames: F.
        grid: the cells.
        poses: x, y in metres and yaw in radians of the ego vehicle in the world, float64 [F + 1, 3]; the last row is
            one frame further than the last frame.
        displacements: float32 [F, 2]; row k is the way in metres from frame k to frame k + 1 in the ego coordinates
            of frame k.

    Raises:
        TeacherError: a negative seed or index, or no frames.
    """

    def __init__(self, seed: int, index: int, frames: int = 20, grid: Grid | None = None) -> None:
        if seed < 0 or index < 0 or frames < 1:
            raise TeacherError(
                f"scene {index} of seed {seed} with {frames} frames", allowed="0 or more, and at least one frame"
            )
        self.frames, self.grid = frames, grid or Grid()
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
        street = draw_street(rng, self.grid, FASTEST * PERIOD * frames)
        self._traffic = simulate(street, frames + 1, rng)
        s, d = self._traffic.ego.T
        self._road, self._centres = street.road, self.grid.centres()
        self._chart = paint(street, self.grid, s[0] - self.grid.reach - 4, s[-1] + self.grid.reach + 4, rng)
        self.poses = np.stack(self._road.to_world(s, d), axis=1)
        self.displacements = self._displacements()

    def labels(self, frame: int) -> np.ndarray:
        """The classes of all cells in one frame, uint8 [size, size, height]; 17 is free."""
        labels = self.static_labels(frame)
        self._draw_traffic(labels, frame)
        return labels

    def all_labels(self) -> np.ndarray:
        """The classes of all cells in all frames, uint8 [F, size, size, height]."""
        return np.stack([self.labels(frame) for frame in range(self.frames)])

    def static_labels(self, frame: int) -> np.ndarray:
        """The same without what moves.

        Raises:
            TeacherError: no such frame.
        """
        if not 0 <= frame < self.frames:
            raise TeacherError(f"frame {frame}", allowed=f"0 to {self.frames - 1}")
        x, y = self._centres
        ego_x, ego_y, yaw = self.poses[frame]
        cos, sin = np.cos(yaw), np.sin(yaw)
        return self._chart.look_up(*self._road.to_road(ego_x + x * cos - y * sin, ego_y + x * sin + y * cos))

    def _displacements(self) -> np.ndarray:
        step, yaw = np.diff(self.poses[:, :2], axis=0), self.poses[:-1, 2]
        forward = step[:, 0] * np.cos(yaw) + step[:, 1] * np.sin(yaw)
        left = step[:, 1] * np.cos(yaw) - step[:, 0] * np.sin(yaw)
        return np.stack([forward, left], axis=1).astype(np.float32)

    def _draw_traffic(self, labels: np.ndarray, frame: int) -> None:
        """Fills the cells whose centre lies in a road user, and the one that holds its middle, however thin it is."""
        x, y, angle, near = self._visible(frame)
        length, width, height = self._traffic.size[near].T
        along, across = self._centres[0] - x[:, None, None], self._centres[1] - y[:, None, None]
        cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
        covered = np.abs(along * cos + across * sin) <= length[:, None, None] / 2
        covered &= np.abs(across * cos - along * sin) <= width[:, None, None] / 2
        covered |= np.maximum(np.abs(along), np.abs(across)) <= self.grid.cell / 2
        user, row, column = np.nonzero(covered)
        level = np.arange(self.grid.height) - self.grid.ground
        tops = np.array([self.grid.levels(tall) for tall in height.tolist()], dtype=int)[user]
        filled = (level >= 1) & (level <= tops[:, None])
        label = self._traffic.label[near][user].astype(np.uint8)
        labels[row, column] = np.where(filled, label[:, None], labels[row, column])

    def _visible(self, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """x, y and angle in ego coordinates of the road users near the grid, and their indices."""
        traffic, reach = self._traffic, self.grid.reach + 12
        near = np.flatnonzero(np.abs(traffic.s[frame] - traffic.ego[frame, 0]) < 2 * reach)
        x, y, heading = self._road.to_world(traffic.s[frame, near], traffic.d[frame, near])
        ego_x, ego_y, yaw = self.poses[frame]
        cos, sin = np.cos(yaw), np.sin(yaw)
        x, y = x - ego_x, y - ego_y
        x, y = x * cos + y * sin, y * cos - x * sin
        seen = np.flatnonzero(np.maximum(np.abs(x), np.abs(y)) < self.grid.size * self.grid.cell / 2 + 6)
        return x[seen], y[seen], (heading + traffic.angle[frame, near] - yaw)[seen], near[seen]
