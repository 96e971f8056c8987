"""Clips as data: what conditions, states, truth and baselines are of clips made by hand, and the published files."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from teachers.errors import TeacherError
from teachers.occfm.clips import convert_cache
from teachers.occfm.data import ForecastData, OccFMData, OccFMDataSettings, RandomClips

SEEN = 4


class Made:
    """Three clips; each value of a latent says which clip and frame it is of, each label its frame."""

    def __init__(self, history_last=SEEN):
        self.values = torch.arange(1.0, 37).reshape(3, 12, 1, 1, 1).expand(3, 12, 2, 3, 3).clone()
        self.ways = torch.arange(72.0).reshape(3, 12, 2) + 1
        for each in (self.values, self.ways):
            each[:, : 6 - history_last] = 0
        self.labels = torch.randint(0, 18, (3, 12, 4, 4, 16), generator=torch.Generator().manual_seed(0)).byte()

    def __len__(self):
        return 3

    def latents(self, index):
        return self.values[index]

    def trajectory(self, index):
        return self.ways[index]

    def scene(self, index):
        return torch.tensor([7, 7, 9])[index]

    def truth(self, index):
        return self.labels[index, 6:]

    def history_labels(self, index):
        return self.labels[index, :6]


def teacher(rescale=10.0, shape=(6, 2, 3, 3)):
    return SimpleNamespace(settings=SimpleNamespace(rescale=rescale), sample_shape=shape, clips=None)


def refusal(call, *arguments):
    with pytest.raises(TeacherError) as caught:
        call(*arguments)
    return caught.value


def test_conditions_and_states_are_the_halves_of_the_clips_times_rescale():
    data, items = ForecastData(Made, 10.0), torch.tensor([2, 0])
    condition, states = data.condition(items), data.states(items)
    history = torch.tensor([[0, 0, 27, 28, 29, 30], [0, 0, 3, 4, 5, 6]]) * 10.0
    assert torch.equal(condition["history"], history[:, :, None, None, None].expand(2, 6, 2, 3, 3))
    future = torch.tensor([[31, 32, 33, 34, 35, 36], [7, 8, 9, 10, 11, 12]]) * 10.0
    assert torch.equal(states, future[:, :, None, None, None].expand(2, 6, 2, 3, 3))
    assert torch.equal(condition["trajectory"], Made().ways[items]) and condition.keys() == {"history", "trajectory"}
    assert not condition["trajectory"][:, :2].any(), "metres, and only of frames that are seen"
    assert data.size == 3 and data.paired


def test_the_clips_themselves_are_left_as_they_are():
    clips = Made()
    data, before = ForecastData(lambda: clips, 10.0), clips.values.clone()
    for index in range(2):
        data.condition(torch.arange(3))["history"].add_(index)
        data.states(torch.arange(3)).mul_(2)
    assert torch.equal(clips.values, before)


@pytest.mark.parametrize("history_last", [1, 4, 6])
def test_the_context_is_what_the_network_sees(history_last):
    clips = Made(history_last)
    items = torch.tensor([1, 2])
    context = ForecastData(lambda: clips, 10.0).context(items)
    assert torch.equal(context, clips.labels[items, 6 - history_last : 6])


def test_the_baseline_repeats_the_last_frame_seen():
    clips, items = Made(), torch.tensor([1, 0])
    data = ForecastData(lambda: clips, 10.0)
    ((name, answer),) = data.baselines(items).items()
    assert name == "copy the last frame" and answer.shape == data.truth(items).shape
    assert all(torch.equal(answer[:, frame], clips.labels[items, 5]) for frame in range(6))
    assert torch.equal(data.truth(items), clips.labels[items, 6:])


def test_clips_of_one_drive_are_one_group():
    assert ForecastData(Made, 1.0).groups(torch.tensor([2, 0, 1])).tolist() == [9, 7, 7]


def test_held_out_clips_are_made_once_when_they_are_asked_for():
    made = []

    def judges():
        made.append(ForecastData(Made, 10.0))
        return made[-1]

    data, family = ForecastData(Made, 10.0, judges), teacher()
    assert data.attach(family) is data and not made
    assert data.held_out() is data.held_out() is family.clips() is made[0] and len(made) == 1
    alone = ForecastData(Made, 10.0)
    assert alone.held_out() is alone and alone.attach(None) is alone


def test_what_sources_have_in_common_is_no_source():
    assert "occfm or driving" in refusal(ForecastData.load, None, None).allowed


def _save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))
    return path


def published(root, latents="x16", shape=(2, 3, 3)):
    """The published files below `root`: 13 frames to train on, of value n, and 12 of validation, of value 100 + n."""
    for part, infos, count, first in (("training", "train", 13, 0), ("validation", "val", 12, 100)):
        entries = [
            {
                "x_sampled": np.full((1, *shape), first + number, np.float32),
                "gt_path": f"data/nuscenes/gts/{part}/{part}{number}/labels.npz",
                "gt_trajs": np.array([[number, 0]], np.float32),
            }
            for number in range(count)
        ]
        listed = {part: [{"token": f"{part}{number}"} for number in range(count)]}
        _save(root / "data" / "nusc_latent_vae" / latents / f"nus_sem_occ_{part}.pkl", entries)
        _save(root / "data" / "nuscenes" / f"nuscenes_infos_{infos}_temporal_v3_scene.pkl", {"infos": listed})
    return root


def settings(root, **more):
    return OccFMDataSettings(type="occfm", root=str(root), **more)


def test_the_published_files_are_read_and_the_teacher_is_told_of_its_clips(tmp_path):
    family = teacher(rescale=5.0)
    data = OccFMData.load(settings(published(tmp_path), history_last=6), family)
    assert (data.size, data.held_out().size) == (2, 1) and family.clips() is data.held_out()
    assert data.condition(torch.tensor([1]))["history"][0, :, 0, 0, 0].tolist() == [5, 10, 15, 20, 25, 30]
    assert data.held_out().states(torch.tensor([0]))[0, :, 1, 2, 2].tolist() == [530, 535, 540, 545, 550, 555]
    early = OccFMData.load(settings(tmp_path), family).condition(torch.tensor([1]))["history"]
    assert early[0, :, 0, 0, 0].tolist() == [0, 0, 15, 20, 25, 30], "two of six frames are not seen by default"


def test_labels_are_found_below_the_root(tmp_path):
    data = OccFMData.load(settings(published(tmp_path)), teacher()).held_out()
    assert str(tmp_path) in refusal(data.truth, torch.tensor([0])).found
    for number in range(6, 12):
        path = tmp_path / "data" / "nuscenes" / "gts" / "validation" / f"validation{number}" / "labels.npz"
        path.parent.mkdir(parents=True)
        np.savez_compressed(path, semantics=np.full((200, 200, 16), number, np.uint8))
    assert data.truth(torch.tensor([0]))[0, :, 3, 2, 1].tolist() == [6, 7, 8, 9, 10, 11]


def test_missing_files_are_named_all_at_once(tmp_path):
    published(tmp_path)
    OccFMData.check(settings(tmp_path))
    gone = ["nusc_latent_vae/x16/nus_sem_occ_validation.pkl", "nuscenes/nuscenes_infos_train_temporal_v3_scene.pkl"]
    for name in gone:
        (tmp_path / "data" / name).unlink()
    for call in (OccFMData.check, lambda chosen: OccFMData.load(chosen, teacher())):
        error = refusal(call, settings(tmp_path))
        assert all(str(tmp_path / "data" / name) in error.found for name in gone) and error.found.count(".pkl") == 2
        assert "docs/occfm.md" in error.do
    assert refusal(OccFMData.check, settings(tmp_path, latents="x8")).found.count("x8") == 2


def test_a_converted_folder_is_preferred_to_the_pickle(tmp_path):
    folder = published(tmp_path) / "data" / "nusc_latent_vae" / "x16"
    for part in ("training", "validation"):
        convert_cache(folder / f"nus_sem_occ_{part}.pkl", folder / part)
        (folder / f"nus_sem_occ_{part}.pkl").write_bytes(b"no pickle")
    data = OccFMData.load(settings(tmp_path), teacher())
    assert isinstance(data.clips.frames, np.memmap) and data.held_out().size == 1
    assert data.states(torch.tensor([0]))[0, 0, 0, 0, 0] == 60


def test_latents_of_another_compressor_are_refused(tmp_path):
    published(tmp_path)
    data = OccFMData.load(settings(tmp_path), teacher(shape=(6, 2, 5, 5)))
    error = refusal(data.prepare, lambda done, total: None)
    assert error.found.endswith("latents of [2, 3, 3]") and error.allowed == "the teacher's: [2, 5, 5]"
    published(tmp_path, "other", (2, 5, 5))
    (tmp_path / "data/nusc_latent_vae/other/nus_sem_occ_validation.pkl").write_bytes(
        (tmp_path / "data/nusc_latent_vae/x16/nus_sem_occ_validation.pkl").read_bytes()
    )
    data = OccFMData.load(settings(tmp_path, latents="other"), teacher(shape=(6, 2, 5, 5)))
    data.prepare(lambda done, total: None)
    assert "validation.pkl: latents of [2, 3, 3]" in refusal(lambda: data.held_out().size).found


def test_latents_without_a_teacher_are_refused(tmp_path):
    assert "a teacher comes first" in refusal(OccFMData.load, settings(published(tmp_path)), None).found


def test_what_stands_in_has_the_teacher_s_shapes_and_no_truth(tmp_path):
    family = teacher(shape=(6, 4, 5, 5))
    data = OccFMData.stand_in(settings(tmp_path / "none"), family)
    items = torch.tensor([0, data.size - 1])
    condition = data.condition(items)
    assert condition["history"].shape == data.states(items).shape == (2, 6, 4, 5, 5)
    assert condition["trajectory"].shape == (2, 12, 2) and family.clips() is data.held_out() is data
    assert data.states(torch.arange(data.size)).std() == pytest.approx(1, abs=0.05), "as the network sees latents"
    for call in (data.truth, data.context, data.baselines):
        assert "no labels" in refusal(call, items).found
    assert data.groups(items).tolist() == items.tolist()
    assert torch.equal(RandomClips((4, 5, 5), 3).latents(items[:1]), RandomClips((4, 5, 5), 3).latents(items[:1]))
