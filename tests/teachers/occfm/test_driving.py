"""Clips of made-up drives: which frames they are of, whose latents they have, and what a seed and a number decide."""

import numpy as np
import pytest
import torch

from teachers.errors import TeacherError
from teachers.gmm import GaussianMixtureSettings, GaussianMixtureTeacher
from teachers.occfm.driving import DrivingClips, DrivingData, DrivingSettings
from teachers.occfm.world.geometry import Grid
from teachers.occfm.world.scene import Scene

FRAMES = 13
EVERY = torch.arange(4)


def settings(**changes):
    return DrivingSettings(**{"type": "driving", "scenes": 2, "held_out": 2, "frames": FRAMES} | changes)


@pytest.fixture(scope="module")
def scenes():
    """The world itself: the first two drives, and the first two that are held out."""
    return [Scene(0, number, FRAMES, Grid(size=32, cell=40 / 32)) for number in (0, 1, 1_000_000, 1_000_001)]


def refusal(call, *arguments):
    with pytest.raises(TeacherError) as caught:
        call(*arguments)
    return caught.value


def clip_of(scenes, number):
    """Labels [12, ...] and ways [12, 2] of a clip, cut from its scene by hand."""
    scene, start = scenes[number // 2], number % 2
    return torch.from_numpy(scene.all_labels()[start : start + 12]), torch.from_numpy(scene.displacements)[start:][:12]


def test_every_frame_but_the_last_eleven_begins_a_clip(drives):
    assert len(drives.clips) == drives.size == 2 * (FRAMES - 11) == 4
    assert DrivingData(settings(frames=12, scenes=5)).size == 5 and DrivingData(settings(frames=20)).size == 18


def test_truth_and_history_are_the_labels_of_the_world(drives, scenes):
    truth, history = drives.truth(EVERY), drives.clips.history_labels(EVERY)
    assert truth.shape == history.shape == (4, 6, 32, 32, 16) and truth.dtype == torch.uint8
    for number in range(4):
        labels, _ = clip_of(scenes, number)
        assert torch.equal(history[number], labels[:6]) and torch.equal(truth[number], labels[6:])
    judged = drives.held_out().truth(torch.tensor([3]))
    assert torch.equal(judged[0], torch.from_numpy(scenes[3].all_labels()[7:13]))


def test_the_trajectory_is_the_way_driven_from_the_frames_seen(drives, scenes):
    found = drives.clips.trajectory(EVERY)
    for number in range(4):
        ways = clip_of(scenes, number)[1]
        assert torch.equal(found[number, 2:], ways[2:]) and not found[number, :2].any()
    assert found.dtype == torch.float32 and torch.equal(drives.clips.trajectory(EVERY), found)


def test_drives_have_numbers(drives):
    assert drives.groups(EVERY).tolist() == [0, 0, 1, 1]
    assert drives.held_out().groups(EVERY).tolist() == [1_000_000, 1_000_000, 1_000_001, 1_000_001]


@pytest.mark.parametrize(("held_out", "first"), [(False, 0), (True, 1_000_000)])
def test_latents_are_draws_of_the_compressor_named_by_seed_and_drive(drives, tiny_teacher, scenes, held_out, first):
    data = drives.held_out() if held_out else drives
    found = data.clips.latents(EVERY)
    compressor = tiny_teacher.compressor()
    for number in (0, 1):
        random = np.random.Generator(np.random.Philox(key=np.array([0, 2**32 + first + number], dtype=np.uint64)))
        noise = random.standard_normal((FRAMES, *compressor.latent_shape), dtype=np.float32)
        labels = scenes[number + 2 * held_out].all_labels()
        with torch.no_grad():
            expected = compressor.encode(torch.from_numpy(labels), torch.from_numpy(noise))
        for start in (0, 1):
            assert torch.equal(found[2 * number + start, 2:], expected[start + 2 : start + 12])
    assert not found[:, :2].any() and torch.equal(data.clips.latents(EVERY), found)
    scaled = data.states(EVERY[:1])
    assert torch.equal(scaled[0], found[0, 6:] * tiny_teacher.settings.rescale)


@pytest.mark.parametrize("history_last", [1, 6])
def test_frames_before_the_seen_ones_are_zero(tiny_teacher, history_last):
    data = DrivingData.load(settings(history_last=history_last, scenes=1), tiny_teacher)
    latents, ways = data.clips.latents(EVERY[:1])[0], data.clips.trajectory(EVERY[:1])[0]
    seen = latents.flatten(1).any(dim=1)
    assert seen.tolist() == [False] * (6 - history_last) + [True] * (6 + history_last)
    assert not ways[: 6 - history_last].any() and ways[6:].any()
    assert data.context(EVERY[:1]).shape[1] == history_last


def test_held_out_drives_are_others_and_the_same_however_many_are_trained_on(tiny_teacher, drives):
    few = drives.held_out()
    many = DrivingData.load(settings(scenes=3, held_out=1), tiny_teacher).held_out()
    assert (few.size, many.size) == (4, 2)
    pair = EVERY[:2]
    assert torch.equal(few.truth(pair), many.truth(pair)) and torch.equal(few.states(pair), many.states(pair))
    assert not any(torch.equal(few.truth(pair)[0], each) for each in drives.truth(EVERY))
    assert not torch.equal(few.states(pair), drives.states(pair))


def test_the_seed_names_the_world(tiny_teacher, drives):
    other = DrivingData.load(settings(seed=1, scenes=1), tiny_teacher)
    again = DrivingData.load(settings(), tiny_teacher)
    first = EVERY[:1]
    assert not torch.equal(other.truth(first), drives.truth(first))
    assert torch.equal(again.truth(EVERY), drives.truth(EVERY))
    assert torch.equal(again.states(EVERY), drives.states(EVERY))


def test_frames_are_counted_through_all_drives(drives, scenes):
    assert drives.frame_count == 2 * FRAMES
    found = drives.frames(torch.tensor([FRAMES, 3, 2 * FRAMES - 1]))
    expected = [scenes[1].all_labels()[0], scenes[0].all_labels()[3], scenes[1].all_labels()[12]]
    assert np.array_equal(found, np.stack(expected))


def test_preparing_encodes_every_drive_once(tiny_teacher, monkeypatch):
    drives, done = DrivingData.load(settings(), tiny_teacher), []
    drives.prepare(lambda *counts: done.append(counts))
    assert done == [(1, 2), (2, 2)]
    monkeypatch.setattr(tiny_teacher.compressor(), "encode", lambda *arguments: pytest.fail("encoded again"))
    drives.prepare(lambda *counts: done.append(counts))
    assert drives.states(EVERY).any() and len(done) == 2


def test_drives_without_a_compressor_have_labels_but_no_latents():
    clips = DrivingClips(settings(), 0, 1)
    assert clips.truth(EVERY[:1]).shape == (1, 6, 32, 32, 16)
    assert "without a teacher's compressor" in refusal(clips.latents, EVERY[:1]).found


def test_a_teacher_of_another_grid_or_kind_is_refused(tiny_teacher):
    error = refusal(DrivingData.load, settings(size=16), tiny_teacher)
    assert error.found == "data.size 16" and error.allowed == "the teacher's grid: 32"
    other = GaussianMixtureTeacher(GaussianMixtureSettings(type="gmm"), {})
    error = refusal(DrivingData.load, settings(), other)
    assert "'gmm'" in error.found and error.allowed == "occfm-tiny"
