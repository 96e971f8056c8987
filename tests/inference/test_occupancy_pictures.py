"""Pictures of occupancy: where things are drawn, what covers what, the legend, and a film that shows each frame."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from mfd_cli.errors import MfdError
from mfd_cli.inference.occupancy_pictures import (
    COLOURS,
    Row,
    birds_eye,
    forecast_frames,
    forecast_picture,
    gif_bytes,
)

CAR, ROAD, TREE, FREE = 4, 11, 16, 17
SIDE, HEIGHT = 40, 8
PANEL = 160  # 40 columns at 4 pixels


def _empty(frames):
    return torch.full((frames, SIDE, SIDE, HEIGHT), FREE, dtype=torch.uint8)


def _with(label, frames, *places):
    """Frames with nothing but voxels of one class in the highest layer, where colours are not darkened."""
    labels = _empty(frames)
    for x, y in places:
        labels[:, x, y, HEIGHT - 1] = label
    return labels


def _pixels(page, label):
    """Rows and columns [N, 2] of the pixels that have a class's own colour."""
    return np.argwhere((np.asarray(page) == COLOURS[label]).all(-1))


def test_every_label_has_a_colour_of_its_own_and_free_is_white():
    assert len(set(COLOURS)) == 18
    assert COLOURS[FREE] == (255, 255, 255)


def test_an_empty_frame_is_white():
    assert (birds_eye(_empty(1)[0]) == 255).all()


def test_the_highest_layer_has_the_colour_itself():
    for label in range(17):
        assert birds_eye(_with(label, 1, (5, 7))[0])[SIDE - 1 - 5, SIDE - 1 - 7].tolist() == list(COLOURS[label])


def test_what_lies_lower_is_darker_but_keeps_its_hue():
    greens = []
    for layer in range(HEIGHT):
        labels = _empty(1)[0]
        labels[:, :, layer] = TREE
        picture = birds_eye(labels)
        assert (picture == picture[0, 0]).all()
        assert picture[0, 0, 0] == picture[0, 0, 2] == 0
        greens.append(int(picture[0, 0, 1]))
    assert greens == sorted(set(greens))
    assert greens[0] > 0.6 * greens[-1] and greens[-1] == COLOURS[TREE][1]


def test_the_topmost_voxel_wins():
    labels = _empty(1)[0]
    labels[:, :, 0] = ROAD
    labels[10, 12, 1:3] = CAR
    labels[10, 12, HEIGHT - 1] = TREE
    picture = birds_eye(labels)
    assert picture[29, 27].tolist() == list(COLOURS[TREE])
    labels[10, 12, HEIGHT - 1] = FREE
    red, green, blue = birds_eye(labels)[29, 27].tolist()
    assert red == 0 and green / blue == pytest.approx(150 / 245, abs=0.01)


def test_ahead_is_up_and_left_is_left():
    ahead = birds_eye(_with(CAR, 1, (35, 20))[0])
    left = birds_eye(_with(CAR, 1, (20, 35))[0])
    assert np.argwhere((ahead != 255).any(-1)).tolist() == [[4, 19]]
    assert np.argwhere((left != 255).any(-1)).tolist() == [[19, 4]]


def test_a_thing_throws_its_shadow_back_and_to_the_right_and_on_nothing_else():
    labels = _empty(1)[0]
    labels[:, :, 0] = ROAD
    plain = birds_eye(labels)
    labels[20, 20, :4] = CAR
    changed = np.argwhere((birds_eye(labels) != plain).any(-1)).tolist()
    assert changed == [[19, 19], [19, 20], [20, 19]]
    road = birds_eye(labels)[20, 19]
    assert 0 < road[0] < plain[20, 19, 0]


def test_arrays_and_tensors_look_the_same():
    labels = torch.randint(0, 18, (6, 5, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert (birds_eye(labels) == birds_eye(labels.numpy())).all()
    assert birds_eye(labels).shape == (6, 5, 3)


def _page(*futures, past=None):
    rows = [Row(f"row {number}", frames) for number, frames in enumerate(futures)]
    return forecast_picture([rows], [_empty(2) if past is None else past])


def test_panels_stand_in_rows_below_the_history_and_in_columns_of_time():
    # a car ahead in the last history frame, a tree ahead of it in each forecast: 4 x 4 pixels a voxel
    future = _with(TREE, 6, (30, 20), (30, 21))
    page = _page(future, future, past=torch.cat([_empty(3), _with(CAR, 1, (30, 20))]))
    trees, cars = _pixels(page, TREE), _pixels(page, CAR)
    swatch = trees[:, 0].max()
    trees, cars = trees[trees[:, 0] < swatch - 20], cars[cars[:, 0] < swatch - 20]
    assert len(trees) == 2 * 6 * 2 * 16 and len(cars) == 16
    rows, columns = (sorted(set(trees[:, axis].tolist())) for axis in (0, 1))
    assert len(rows) == 2 * 4 and rows[4] - rows[0] == PANEL + 6
    starts = columns[::8]
    assert [later - earlier for earlier, later in pairwise(starts)] == [PANEL + 6] * 5
    # the history's fourth frame stands above the fourth forecast, at the same place of its panel
    assert cars[:, 1].min() == starts[3] + 4
    assert cars[:, 0].max() < rows[0] - 100


def test_the_ego_stands_in_the_middle_of_each_panel_and_ahead_is_above_it():
    # the panel is all tree, so that it shows the triangle
    ground = torch.full((1, SIDE, SIDE, HEIGHT), TREE, dtype=torch.uint8)
    page = np.asarray(_page(ground, past=_empty(1)))
    trees = _pixels(page, TREE)
    trees = trees[trees[:, 0] < trees[:, 0].max() - 20]
    top, left = trees.min(0)
    assert trees.max(0).tolist() == [top + PANEL - 1, left + PANEL - 1]
    panel = page[top : top + PANEL, left : left + PANEL]
    marked = np.argwhere((panel != COLOURS[TREE]).any(-1))
    assert np.abs(marked.mean(0) - PANEL / 2).max() < 3
    widths = [(marked[:, 0] == row).sum() for row in sorted(set(marked[:, 0].tolist()))]
    assert widths[0] < widths[-1], "it points up"


@pytest.mark.parametrize("present", [[CAR], [ROAD, TREE], list(range(17)), []])
def test_the_legend_lists_exactly_the_classes_that_occur(present):
    # in the lowest layer colours are darkened, and a voxel has 16 pixels: a swatch is what has 50 of the class's own
    labels = _empty(1)
    for label in present:
        labels[0, 2 * label, 3, 0] = label
    for page in (_page(labels, past=_empty(1)), forecast_frames([Row("truth", labels)], _empty(1))[0]):
        assert [label for label in range(17) if len(_pixels(page, label)) >= 50] == present


def test_a_frame_that_is_not_known_is_a_grey_field():
    future = torch.full((2, SIDE, SIDE, HEIGHT), TREE, dtype=torch.uint8)
    both, one = _page(future), _page([future[0], None])
    assert both.size == one.size
    missing = len(_pixels(both, TREE)) - len(_pixels(one, TREE))
    assert 0.95 * PANEL**2 < missing <= PANEL**2
    fields = [(np.asarray(page) == 238).all(-1).sum() for page in (both, one)]
    assert fields[1] - fields[0] == pytest.approx(PANEL**2, abs=50)


def test_large_grids_are_drawn_one_to_one():
    labels = torch.full((1, 200, 200, 2), TREE, dtype=torch.uint8)
    page = _page(labels, past=labels)
    assert 2 * 200**2 * 0.99 < len(_pixels(page, TREE)) < 2 * 200**2 + 400


def test_a_page_has_a_block_for_each_clip():
    future = _with(CAR, 2, (30, 20))
    rows = [Row("truth", future), Row("student, 1 step", future)]
    one, two = forecast_picture([rows], [_empty(1)]), forecast_picture([rows, rows], [_empty(1)] * 2)
    assert one.width == two.width and two.height > one.height + 3 * PANEL
    assert len(_pixels(two, CAR)) - len(_pixels(one, CAR)) == 2 * 2 * 16


def test_a_film_shows_the_history_then_the_rows_side_by_side():
    past = torch.cat([_empty(2), _with(CAR, 1, (30, 20))])
    rows = [Row("truth", _with(TREE, 6, (30, 20))), Row("teacher, 10 steps", _with(ROAD, 6, (30, 20)))]
    frames = forecast_frames(rows, past)
    assert len(frames) == 3 + 6 and len({frame.size for frame in frames}) == 1
    swatches = {label: len(_pixels(frames[0], label)) for label in (CAR, TREE, ROAD)}
    drawn = [[len(_pixels(frame, label)) - swatches[label] for label in (CAR, TREE, ROAD)] for frame in frames]
    assert drawn == [[0, 0, 0]] * 2 + [[2 * 16, 0, 0]] + [[0, 16, 16]] * 6
    tree, road = _pixels(frames[4], TREE)[0], _pixels(frames[4], ROAD)[0]
    assert tree[0] == road[0] and road[1] - tree[1] == PANEL + 6


def test_an_animation_has_every_frame_in_its_colours_and_repeats():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 18, (5, SIDE, SIDE, HEIGHT), generator=generator).to(torch.uint8)
    frames = forecast_frames([Row("truth", labels[2:]), Row("student, 1 step", labels[2:].flip(1))], labels[:2])
    film = Image.open(io.BytesIO(gif_bytes(frames, milliseconds=200)))
    assert film.n_frames == 5 and film.info["loop"] == 0
    durations = []
    for number, frame in enumerate(frames):
        film.seek(number)
        durations.append(film.info["duration"])
        off = np.abs(np.asarray(film.convert("RGB")).astype(int) - np.asarray(frame)).max(-1)
        assert off.max() <= 48 and (off > 0).mean() < 0.01
    assert durations == [200] * 4 + [600]


def test_an_animation_of_few_colours_is_exact():
    frames = [Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)) for number in range(3)]
    film = Image.open(io.BytesIO(gif_bytes(frames)))
    for number, frame in enumerate(frames):
        film.seek(number)
        assert (np.asarray(film.convert("RGB")) == np.asarray(frame)).all()


@pytest.mark.parametrize(
    "labels",
    [_empty(1), _empty(1)[0].long(), _empty(1)[0] + 1, _empty(1)[0][..., :0]],
    ids=["four axes", "wide integers", "no label", "no voxels"],
)
def test_what_is_no_frame_is_refused(labels):
    with pytest.raises(MfdError, match="uint8 labels"):
        birds_eye(labels)


@pytest.mark.parametrize(
    ("clips", "history"),
    [
        ([], []),
        ([[Row("truth", _empty(2))]], []),
        ([[]], [_empty(2)]),
        ([[Row("truth", _empty(0))]], [_empty(2)]),
        ([[Row("truth", _empty(2))]], [_empty(0)]),
        ([[Row("truth", _empty(2)), Row("student", _empty(3))]], [_empty(2)]),
        ([[Row("truth", _empty(2)), Row("student", _empty(2)[:, 1:])]], [_empty(2)]),
        ([[Row("truth", _empty(2))]], [_empty(2)[:, :, 1:]]),
        ([[Row("truth", _empty(2) + 1)]], [_empty(2)]),
    ],
)
def test_frames_that_do_not_belong_together_are_refused(clips, history):
    with pytest.raises(MfdError):
        forecast_picture(clips, history)


def test_an_animation_of_nothing_or_of_several_sizes_is_refused():
    with pytest.raises(MfdError):
        gif_bytes([])
    with pytest.raises(MfdError):
        gif_bytes([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))])
