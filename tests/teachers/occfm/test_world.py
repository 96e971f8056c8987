"""The driving world: the same scene every time, a world that stands still while the ego vehicle moves, all classes."""

import itertools

import numpy as np
import pytest

from teachers.errors import TeacherError
from teachers.occfm.classes import CLASSES, DRIVEABLE_SURFACE, FREE, OTHER_FLAT, SIDEWALK, TERRAIN
from teachers.occfm.world.geometry import Grid, Road
from teachers.occfm.world.plots import LONGEST, SHORTEST, draw_plots
from teachers.occfm.world.scene import Scene
from teachers.occfm.world.street import draw_street
from teachers.occfm.world.traffic import FASTEST, PERIOD

GROUND = (DRIVEABLE_SURFACE, OTHER_FLAT, SIDEWALK, TERRAIN)
MIDDLE = 20  # the ego vehicle stands on the corner of this cell of the default grid


@pytest.fixture(scope="module")
def scenes():
    """Forty drives of one world and their labels."""
    drives = [Scene(7, index) for index in range(40)]
    return [(scene, scene.all_labels()) for scene in drives]


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def share_found_again(scene, frame, extra=0.0):
    """Share of still things near the ego vehicle that are one frame later where its motion puts them, to one cell."""
    now, later = scene.static_labels(frame), scene.static_labels(frame + 1)
    row, column, level = np.nonzero((now != FREE) & ~np.isin(now, GROUND))
    place = np.stack([row, column], axis=1) + 0.5 - MIDDLE
    inner = (np.abs(place) < 9).all(axis=1)
    row, column, level, place = row[inner], column[inner], level[inner], place[inner]
    turn = scene.poses[frame + 1, 2] - scene.poses[frame, 2]
    moved = (place - scene.displacements[frame] - [extra, 0]) @ rotation(turn)
    cells = np.floor(moved).astype(int) + MIDDLE
    label, found = now[row, column, level], np.zeros(len(row), dtype=bool)
    for ahead in (-1, 0, 1):
        for aside in (-1, 0, 1):
            found |= later[cells[:, 0] + ahead, cells[:, 1] + aside, level] == label
    return found.sum(), len(found)


def test_a_scene_is_the_same_whatever_was_made_before():
    first = Scene(3, 5)
    expected = first.all_labels()
    Scene(3, 4).all_labels()
    again = Scene(3, 5)
    assert np.array_equal(again.labels(7), expected[7])
    assert np.array_equal(again.all_labels(), expected)
    assert np.array_equal(again.displacements, first.displacements)


@pytest.mark.parametrize(("seed", "index"), [(3, 6), (4, 5)])
def test_another_index_or_seed_is_another_scene(seed, index):
    assert (Scene(3, 5).labels(0) != Scene(seed, index).labels(0)).mean() > 0.02


@pytest.mark.parametrize("grid", [Grid(), Grid(size=24, height=8, cell=1.5, cell_z=0.8), Grid(size=64, cell=0.4)])
def test_shapes_and_types(grid):
    scene = Scene(0, 0, frames=3, grid=grid)
    labels = scene.all_labels()
    assert labels.shape == (3, grid.size, grid.size, grid.height) and labels.dtype == np.uint8
    assert labels.max() == FREE == len(CLASSES) - 1
    assert np.array_equal(scene.labels(2), labels[2])
    assert scene.displacements.shape == (3, 2) and scene.displacements.dtype == np.float32
    assert scene.poses.shape == (4, 3)


def test_below_the_ground_is_free_and_the_ground_has_no_holes(scenes):
    ground = Grid().ground
    for _, labels in scenes:
        assert (labels[..., :ground] == FREE).all()
        assert np.isin(labels[..., ground], (*GROUND, CLASSES.index("manmade"))).all()
        # One cell thick, two where a bank rises.
        assert not np.isin(labels[..., ground + 2 :], GROUND).any()


def test_most_cells_are_free(scenes):
    shares = [(labels == FREE).mean() for _, labels in scenes]
    assert 0.84 < np.mean(shares) < 0.92
    assert min(shares) > 0.75 and max(shares) < 0.95


def test_every_class_occurs_and_the_common_ones_are_those_of_a_street():
    counts = np.zeros(len(CLASSES), dtype=np.int64)
    for index in range(120):
        scene = Scene(0, index)
        for frame in (0, 6, 12, 18):
            counts += np.bincount(scene.labels(frame).ravel(), minlength=len(CLASSES))
    assert (counts > 0).all(), [name for name, count in zip(CLASSES, counts, strict=True) if not count]
    share = dict(zip(CLASSES, counts / counts[:FREE].sum(), strict=True))
    common = ("driveable_surface", "sidewalk", "terrain", "manmade", "vegetation")
    assert sum(share[name] for name in common) > 0.75
    assert all(share[name] < 0.01 for name in ("others", "barrier", "bicycle", "motorcycle", "traffic_cone"))
    assert share["pedestrian"] < share["truck"] < share["car"] < share["manmade"]


def test_still_things_move_rigidly_with_the_ego_vehicle(scenes):
    found = np.array([share_found_again(scene, frame) for scene, _ in scenes for frame in (0, 6, 13)])
    assert found[:, 1].sum() > 10_000
    assert found[:, 0].sum() / found[:, 1].sum() > 0.95
    ample = found[found[:, 1] > 100]
    assert (ample[:, 0] / ample[:, 1] > 0.85).all()


def test_a_wrong_motion_does_not_fit(scenes):
    right = np.array([share_found_again(scene, 6) for scene, _ in scenes]).sum(axis=0)
    wrong = np.array([share_found_again(scene, 6, extra=3.0) for scene, _ in scenes]).sum(axis=0)
    assert wrong[0] / wrong[1] < right[0] / right[1] - 0.1


def test_displacements_add_up_to_the_way_of_the_ego_vehicle(scenes):
    for scene, _ in scenes:
        place = scene.poses[0, :2]
        for frame, step in enumerate(scene.displacements):
            place = place + rotation(scene.poses[frame, 2]) @ step
            assert np.allclose(place, scene.poses[frame + 1, :2], atol=1e-4)


def test_the_ego_vehicle_drives_forward_at_town_speeds_and_changes_them_smoothly(scenes):
    speed = np.stack([np.hypot(*scene.displacements.T) for scene, _ in scenes]) / PERIOD
    assert speed.max() <= FASTEST + 1e-4 and 5 < speed.mean() < 9
    assert np.abs(np.diff(speed)).max() < 6 * PERIOD + 0.1
    assert (speed[:, 0] < 0.2).any() and (speed.max(axis=1) - speed.min(axis=1) > 3).any()
    for scene, _ in scenes:
        forward, left = scene.displacements.T
        # A vehicle that follows an arc leaves its old heading by half the angle by which it turns.
        turn = np.diff(scene.poses[:, 2])
        assert np.allclose(left, np.tan(turn / 2) * forward, atol=0.1)
        assert (forward >= 0).all()


def test_some_roads_bend_to_either_side_and_some_do_not(scenes):
    turns = np.array([scene.poses[-1, 2] - scene.poses[0, 2] for scene, _ in scenes])
    assert (turns > 0.3).any() and (turns < -0.3).any() and (turns == 0).any()


def test_the_last_frame_is_a_poor_forecast_of_three_seconds_later(scenes):
    both = either = 0
    for _, labels in scenes:
        copied, truth = labels[3] != FREE, labels[9] != FREE
        both, either = both + (copied & truth).sum(), either + (copied | truth).sum()
    assert 0.25 < both / either < 0.55


def test_the_ground_of_the_last_frame_is_a_poor_forecast_of_pavements_and_greens(scenes):
    ground = Grid().ground
    now = np.stack([labels[3, ..., ground] for _, labels in scenes])
    later = np.stack([labels[9, ..., ground] for _, labels in scenes])
    for label, most in ((DRIVEABLE_SURFACE, 0.8), (SIDEWALK, 0.5), (TERRAIN, 0.6), (OTHER_FLAT, 0.5)):
        copied, truth = now == label, later == label
        assert (copied & truth).sum() / (copied | truth).sum() < most, CLASSES[label]


def test_surfaces_change_along_a_street_but_not_from_cell_to_cell(scenes):
    """Beside straight roads a line along the street crosses several surfaces; the ego vehicle's lane has only one."""
    straight = [scene for scene, _ in scenes if not scene.poses[:, 2].any()]
    assert len(straight) > 8
    views = np.stack([scene.static_labels(0)[..., Grid().ground] for scene in straight])
    changes = (views[:, 1:] != views[:, :-1]).sum(axis=1)
    assert not changes[:, MIDDLE - 1 : MIDDLE + 1].any() and (views[:, :, MIDDLE] == DRIVEABLE_SURFACE).all()
    # Traffic keeps to the right, so the pavement is near on the right, where the lines of cells begin.
    beside = changes[:, : MIDDLE - 6]
    lengths = views.shape[1] / (beside + 1)
    assert beside.mean() > 2 and 4 < lengths.mean() < 25
    assert (beside.max(axis=1) >= 2).mean() > 0.8


def test_plots_follow_one_another_and_are_long_enough_to_be_seen():
    rng = np.random.default_rng(0)
    for _ in range(50):
        side = draw_street(rng, Grid(), travel=90.0).sides[0]
        start, end = -40.0, float(rng.uniform(-20, 150))
        plots = draw_plots(side, (start, end), rng)
        assert plots[0].start == start and plots[-1].end == end
        assert all(one.end == after.start for one, after in itertools.pairwise(plots))
        assert all(SHORTEST <= plot.end - plot.start <= LONGEST for plot in plots)
        assert all(plot.start < plot.built[1] <= plot.end for plot in plots)
        # Verges are left out or two and a half metres wide or more, as driveways are three and a half.
        assert all(plot.verge in (0.0, 2.5, 4.0, 5.0) and (not plot.drive or plot.drive >= 3.5) for plot in plots)
        assert draw_plots(side, (end, end), rng) == []


def test_most_plots_are_like_their_side_and_some_are_not():
    rng = np.random.default_rng(1)
    side = draw_street(rng, Grid(), travel=90.0).sides[1]
    plots = draw_plots(side, (0.0, 20_000.0), rng)
    assert 0.5 < np.mean([plot.frontage == side.frontage for plot in plots]) < 0.85
    assert 0.7 < np.mean([plot.pavement_label == SIDEWALK for plot in plots]) < 0.9
    assert {plot.frontage for plot in plots} == {"houses", "green", "car park", "wall", "side street"}


def test_road_users_move_on_their_own(scenes):
    """Where the ego vehicle stands still the houses stay, and something else in view does not."""
    still = [
        (scene.static_labels(frame), scene.static_labels(frame + 1), labels[frame], labels[frame + 1])
        for scene, labels in scenes
        for frame in range(scene.frames - 1)
        if np.hypot(*scene.displacements[frame]) < 1e-6
    ]
    assert len(still) > 5
    assert all(np.array_equal(now, later) for now, later, _, _ in still)
    assert np.mean([not np.array_equal(now, later) for _, _, now, later in still]) > 0.5


def test_hardly_anything_stands_where_the_ego_vehicle_is(scenes):
    near = slice(MIDDLE - 1, MIDDLE + 1)
    above = [(labels[:, near, near, Grid().ground + 1 :] != FREE).any(axis=(1, 2, 3)) for _, labels in scenes]
    assert np.mean(above) < 0.02


@pytest.mark.parametrize("curvature", [0.0, 0.02, -0.02])
def test_road_coordinates_turn_into_world_coordinates_and_back(curvature):
    road = Road(curvature, bend=10.0)
    s, d = np.meshgrid(np.linspace(-30, 100, 131), np.linspace(-28, 28, 15), indexing="ij")
    x, y, _ = road.to_world(s, d)
    back_s, back_d = road.to_road(x, y)
    assert np.allclose(back_s, s) and np.allclose(back_d, d)


def test_a_bent_road_is_a_circle_of_its_radius():
    road = Road(0.02, bend=10.0)
    s = np.linspace(10, 100, 50)
    x, y, heading = road.to_world(s, np.full(50, 5.0))
    assert np.allclose(np.hypot(x - 10, y - 50), 45)
    assert np.allclose(heading, (s - 10) / 50)


def test_grid_holds_the_ground_and_has_its_middle_at_the_ego_vehicle():
    grid = Grid()
    x, y = grid.centres()
    assert grid.ground == 2  # -0.2 m to 0.2 m
    assert x[0, 0] == -19.5 and x[-1, 0] == 19.5 and np.array_equal(x.T, y)


@pytest.mark.parametrize("change", [{"floor": 0.5}, {"height": 2}, {"cell": 0.0}, {"size": 0}])
def test_a_grid_that_cannot_hold_a_street_is_refused(change):
    with pytest.raises(TeacherError):
        Grid(**change)


@pytest.mark.parametrize("wrong", [(-1, 0, 5), (0, -1, 5), (0, 0, 0)])
def test_a_scene_that_cannot_be_is_refused(wrong):
    with pytest.raises(TeacherError, match="0 or more"):
        Scene(*wrong)


@pytest.mark.parametrize("frame", [-1, 4])
def test_a_frame_outside_the_scene_is_refused(frame):
    with pytest.raises(TeacherError, match="0 to 3"):
        Scene(0, 0, frames=4).labels(frame)
