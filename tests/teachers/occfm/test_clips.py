"""Clips of the published cache format: the original's numbers, gaps, labels, variants and damage."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from teachers.errors import TeacherError
from teachers.occfm.clips import Clips, convert_cache, read_clips

GOLDEN = Path(__file__).parents[2] / "golden" / "occfm" / "dataset"
CACHE = GOLDEN / "data" / "nusc_latent_vae" / "x16" / "nus_sem_occ_validation.pkl"
INFOS = GOLDEN / "data" / "nuscenes" / "nuscenes_infos_val_temporal_v3_scene.pkl"


def label_path(scene, token):
    return f"data/nuscenes/gts/{scene}/{token}/labels.npz"


def entry(scene, number, **change):
    latent = np.full((1, 2, 3, 3), number, dtype=np.float32)
    step = np.array([[number, -number]], dtype=np.float32)
    return {"x_sampled": latent, "gt_path": [[label_path(scene, f"t{number}")]], "gt_trajs": step} | change


def save(path, value):
    path.write_bytes(pickle.dumps(value))
    return path


def infos(folder, **scenes):
    listed = {
        name: [{"token": f"t{number}", "gt_ego_fut_trajs": np.zeros((6, 2), np.float32)} for number in numbers]
        for name, numbers in scenes.items()
    }
    return save(folder / "infos.pkl", {"infos": listed, "metadata": {}})


def small(folder, entries=None, count=14, **settings):
    """Clips of one scene of frames t0, t1, ..."""
    entries = entries if entries is not None else [entry("s", number) for number in reversed(range(count))]
    return read_clips(save(folder / "cache.pkl", entries), infos(folder, s=range(count)), **settings)


def numbers(clips):
    """The frame numbers of each clip, which are the values of its latents."""
    whole = Clips(**{name: getattr(clips, name) for name in clips.__dataclass_fields__} | {"history_last": 6})
    return whole.latents(torch.arange(len(clips)))[:, :, 0, 0, 0].int().tolist()


def put_labels(root, shape=(4, 4, 2), kind=np.uint8, largest=17, count=14, **more):
    dice = np.random.default_rng(0)
    labels = dice.integers(0, largest + 1, (count, *shape)).astype(kind)
    labels[:, 0, 0, 0] = largest
    for number in range(count):
        path = root / label_path("s", f"t{number}")
        path.parent.mkdir(parents=True)
        np.savez_compressed(path, **({"semantics": labels[number], "mask_lidar": labels[number]} | more))
    return labels


def refusal(call, *arguments, **settings):
    with pytest.raises(TeacherError) as caught:
        call(*arguments, **settings)
    return caught.value


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("history_last", [4, 6])
def test_clips_are_those_of_the_original(tmp_path, history_last, converted):
    cache = CACHE
    if converted:
        cache = tmp_path / "latents"
        assert convert_cache(CACHE, cache) == 38
    clips = read_clips(cache, INFOS, history_last, GOLDEN)
    expected, paths = (
        load_file(GOLDEN / "expected.safetensors"),
        json.loads((GOLDEN / "expected_paths.json").read_text()),
    )
    assert len(clips) == paths[f"hist{history_last}.len"] == 5 and clips.latent_shape == (3, 2, 2)
    every = torch.arange(5)
    latents, steps = clips.latents(every), clips.trajectory(every)
    assert latents.dtype == steps.dtype == torch.float32
    for number in range(5):
        name = f"hist{history_last}.{number}"
        assert torch.equal(latents[number], expected[f"{name}.x_sampled"])
        assert torch.equal(steps[number], expected[f"{name}.trajectory"])
        assert clips.label_paths(number) == [GOLDEN / path for path in paths[f"{name}.paths"]]
    assert clips.scene(every).tolist() == [0, 0, 0, 2, 2] and clips.scene(every).dtype == torch.int64
    assert clips.scene_names == ["scene-0103", "scene-0003", "scene-0916"]
    assert (clips.missing, clips.skipped) == (0, 0)


def test_any_choice_of_clips_is_the_same_as_each_alone(tmp_path):
    clips = small(tmp_path)
    index = torch.tensor([2, 0, 2])
    for read in (clips.latents, clips.trajectory):
        assert torch.equal(read(index), torch.cat([read(index[i : i + 1]) for i in range(3)]))
    clips.latents(index).add_(1)
    assert numbers(clips) == [list(range(start, start + 12)) for start in range(3)]


@pytest.mark.parametrize("history_last", [1, 4, 6])
def test_frames_before_the_kept_ones_are_zeros(tmp_path, history_last):
    clips = small(tmp_path, history_last=history_last)
    values = clips.latents(torch.tensor([1]))[0]
    assert values[:, 0, 0, 0].tolist() == [0] * (6 - history_last) + list(range(1 + 6 - history_last, 13))
    assert torch.equal(clips.trajectory(torch.tensor([1]))[0, :, 0], values[:, 0, 0, 0])
    assert torch.equal(clips.trajectory(torch.tensor([1]))[0, :, 1], -values[:, 0, 0, 0])


@pytest.mark.parametrize("history_last", [0, 7])
def test_a_history_of_other_length_is_refused(tmp_path, history_last):
    assert refusal(small, tmp_path, history_last=history_last).allowed == "1 to 6"


def test_no_clip_joins_frames_on_both_sides_of_a_gap(tmp_path):
    clips = small(tmp_path, [entry("s", number) for number in range(30) if number != 13], count=30)
    assert numbers(clips) == [list(range(start, start + 12)) for start in (0, 1, 14, 15, 16, 17, 18)]
    assert (clips.missing, clips.skipped) == (1, 12)


def test_no_clip_joins_two_scenes_and_scenes_of_another_split_are_not_missing(tmp_path):
    entries = [entry("a", number) for number in range(12)] + [entry("b", number) for number in range(20, 33)]
    listed = infos(tmp_path, a=range(12), other=range(50, 70), b=range(20, 33))
    clips = read_clips(save(tmp_path / "cache.pkl", entries[::-1]), listed)
    assert numbers(clips) == [list(range(12)), list(range(20, 32)), list(range(21, 33))]
    assert clips.scene_names == ["a", "b"] and clips.scene(torch.arange(3)).tolist() == [0, 1, 1]
    assert (clips.missing, clips.skipped) == (0, 0)


def test_of_two_entries_with_one_token_the_first_counts(tmp_path):
    entries = [entry("s", number) for number in range(12)]
    later = entry("s", 99, gt_path=entries[3]["gt_path"])
    assert numbers(small(tmp_path, [*entries, later], count=12)) == [list(range(12))]


@pytest.mark.parametrize(
    "nested", [lambda path: path, lambda path: [path], lambda path: [[path]], lambda path: [(path,)]]
)
def test_label_paths_may_be_nested(tmp_path, nested):
    entries = [entry("s", number, gt_path=nested(label_path("s", f"t{number}"))) for number in range(12)]
    assert small(tmp_path, entries, count=12).label_paths(0)[11] == Path(label_path("s", "t11"))


def test_latents_are_drawn_from_a_distribution_by_token(tmp_path):
    def spread(number):
        old = entry("s", number)
        sigmas = np.full((1, 2, 3, 3), 0.5, dtype=np.float32)
        return {"mu": old["x_sampled"], "sigmas": sigmas, "gt_path": old["gt_path"], "gt_trajs": old["gt_trajs"]}

    first = small(tmp_path, [spread(number) for number in range(13)], count=13, history_last=6)
    again = small(tmp_path, [spread(number) for number in reversed(range(13))], count=13, history_last=6)
    index = torch.arange(2)
    assert torch.equal(first.latents(index), again.latents(index))
    noise = (first.latents(index)[0] - torch.arange(12.0)[:, None, None, None]) / 0.5
    assert abs(noise.mean()) < 0.25 and abs(noise.std() - 1) < 0.2
    seed = np.frombuffer(hashlib.sha256(b"t4").digest(), dtype="<u4")
    expected = 4 + 0.5 * np.random.RandomState(seed).standard_normal((2, 3, 3))
    assert np.allclose(first.latents(index)[0, 4], expected, atol=1e-6)
    convert_cache(tmp_path / "cache.pkl", tmp_path / "latents")
    folder = read_clips(tmp_path / "latents", tmp_path / "infos.pkl", 6)
    assert torch.equal(folder.latents(index), first.latents(index))


def test_a_converted_cache_is_read_from_disk_and_holds_no_pickle(tmp_path):
    convert_cache(CACHE, tmp_path / "latents")
    clips = read_clips(tmp_path / "latents", INFOS)
    assert isinstance(clips.frames, np.memmap) and not clips.frames.flags.writeable
    assert sorted(file.name for file in (tmp_path / "latents").iterdir()) == ["index.json", "latents.npy"]
    assert [file.name for file in tmp_path.iterdir()] == ["latents"]


def test_a_folder_is_made_whole_or_not_at_all(tmp_path):
    bad = save(tmp_path / "cache.pkl", [entry("s", 0), entry("s", 1, x_sampled=np.zeros((1, 2, 9, 9), np.float32))])
    assert "[2, 9, 9]" in refusal(convert_cache, bad, tmp_path / "latents").found
    assert "cannot be written" in refusal(convert_cache, CACHE, tmp_path / "none" / "latents").found
    assert [file.name for file in tmp_path.iterdir()] == ["cache.pkl"]
    (tmp_path / "latents").mkdir()
    assert "exists" in refusal(convert_cache, CACHE, tmp_path / "latents").found


@pytest.mark.parametrize(
    "damage", ["no index", "no latents", "short", "fewer", "float64", "steps", "leads out", "json"]
)
def test_damaged_folders_are_refused(tmp_path, damage):
    folder = tmp_path / "latents"
    convert_cache(CACHE, folder)
    latents, index = folder / "latents.npy", folder / "index.json"
    content = json.loads(index.read_text())
    if damage in ("no index", "no latents"):
        (index if damage == "no index" else latents).unlink()
    elif damage == "short":
        latents.write_bytes(latents.read_bytes()[:-8])
    elif damage in ("fewer", "float64"):
        array = np.load(latents)
        np.save(latents, array[:-1] if damage == "fewer" else array.astype(np.float64))
    elif damage == "steps":
        index.write_text(json.dumps(content | {"steps": [[1.0, float("nan")]] * 38}))
    elif damage == "leads out":
        index.write_text(json.dumps(content | {"paths": ["../s/t/labels.npz", *content["paths"][1:]]}))
    else:
        index.write_text("{")
    assert str(folder) in refusal(read_clips, folder, INFOS).found


class Harm:
    """A pickle that would run a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("where", ["cache", "infos"])
def test_a_pickle_that_asks_for_code_is_refused_and_nothing_runs(tmp_path, where):
    harm = save(tmp_path / "harm.pkl", [entry("s", 0), Harm(tmp_path / "ran")])
    files = {"cache": CACHE, "infos": INFOS} | {where: harm}
    assert "nothing was run" in refusal(read_clips, **files).found
    if where == "cache":
        assert "nothing was run" in refusal(convert_cache, harm, tmp_path / "latents").found
    assert [file.name for file in tmp_path.iterdir()] == ["harm.pkl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_sampled": None}, "x_sampled"),
        ({"x_sampled": np.zeros((1, 2, 3, 3), dtype=np.int64)}, "x_sampled"),
        ({"x_sampled": np.zeros((2, 2, 3, 3), dtype=np.float32)}, "[2, 2, 3, 3]"),
        ({"x_sampled": np.full((1, 2, 3, 3), np.nan, dtype=np.float32)}, "NaN"),
        ({"x_sampled": np.zeros((1, 2, 4, 4), dtype=np.float32)}, "[2, 4, 4]"),
        ({"gt_trajs": np.zeros((1, 3), dtype=np.float32)}, "gt_trajs"),
        ({"gt_trajs": [0.0, 0.0]}, "gt_trajs"),
        ({"gt_path": "somewhere"}, "label path 'somewhere'"),
        ({"gt_path": [["a", "b"]]}, "label path"),
        ({"gt_path": "/data/gts/s/t3/labels.npz"}, "leads out"),
        ({"gt_path": "data/../../s/t3/labels.npz"}, "leads out"),
        ({"gt_path": label_path("elsewhere", "t3")}, "frame of s"),
    ],
)
def test_entries_that_are_no_frames_are_refused(tmp_path, change, message):
    entries = [entry("s", number, **(change if number == 3 else {})) for number in range(12)]
    error = refusal(small, tmp_path, entries, count=12)
    assert message in error.found and "cache.pkl" in error.found


@pytest.mark.parametrize("value", [{}, [], [1], {"infos": []}, {"infos": {"s": [{}]}}, {"infos": {"s": 3}}, None])
def test_pickles_of_something_else_are_refused(tmp_path, value):
    other = save(tmp_path / "other.pkl", value)
    assert "not a cache" in refusal(read_clips, other, INFOS).found
    error = refusal(read_clips, CACHE, other)
    assert "not scene infos" in error.found or value == {}
    assert "other.pkl" in error.found


def test_a_cache_of_another_split_is_told_so(tmp_path):
    error = refusal(read_clips, CACHE, infos(tmp_path, s=range(20)))
    assert "none of its frames" in error.found and "same split" in error.do


def test_a_cache_without_twelve_neighbours_is_told_so(tmp_path):
    error = refusal(small, tmp_path, [entry("s", number) for number in range(14) if number != 6])
    assert "1 frames are missing" in error.found and "costs 3 clips" in error.found


def test_labels_of_history_and_forecast_are_read(tmp_path):
    clips = small(tmp_path, labels_root=tmp_path, label_shape=(4, 4, 2))
    labels = put_labels(tmp_path)
    truth, history = clips.truth(torch.tensor([2, 0])), clips.history_labels(torch.tensor([2, 0]))
    assert truth.dtype == history.dtype == torch.uint8 and truth.shape == history.shape == (2, 6, 4, 4, 2)
    assert np.array_equal(truth, np.stack([labels[8:14], labels[6:12]]))
    assert np.array_equal(history, np.stack([labels[2:8], labels[0:6]]))
    assert clips.missing_labels() == []


def test_labels_of_the_published_size_are_the_default(tmp_path):
    clips = small(tmp_path, count=12, labels_root=tmp_path)
    labels = put_labels(tmp_path, shape=(200, 200, 16), largest=0, count=12)
    assert clips.truth(torch.tensor([0])).shape == (1, 6, 200, 200, 16)
    assert np.array_equal(clips.truth(torch.tensor([0]))[0], labels[6:])


def test_labels_are_looked_for_below_the_current_folder_by_default(tmp_path, monkeypatch):
    put_labels(tmp_path)
    clips = small(tmp_path, label_shape=(4, 4, 2))
    monkeypatch.chdir(tmp_path)
    assert clips.truth(torch.tensor([0])).shape == (1, 6, 4, 4, 2)


def test_missing_labels_are_counted_and_what_to_download_is_said(tmp_path):
    clips = small(tmp_path, labels_root=tmp_path, label_shape=(4, 4, 2))
    put_labels(tmp_path)
    for number in (6, 9):
        (tmp_path / label_path("s", f"t{number}")).unlink()
    error = refusal(clips.truth, torch.tensor([0]))
    assert "2 of 6 label files" in error.found and str(tmp_path / label_path("s", "t6")) in error.found
    assert str(tmp_path) in error.allowed and "Occ3D-nuScenes" in error.do and "gts" in error.do
    assert clips.missing_labels() == [tmp_path / label_path("s", f"t{number}") for number in (6, 9)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"shape": (4, 4, 3)}, "[4, 4, 3]"),
        ({"kind": np.int64}, "int64"),
        ({"largest": 18}, "label 18"),
        ({"semantics": np.array([None])}, "no readable labels"),
    ],
)
def test_labels_of_another_shape_or_type_are_refused(tmp_path, labels, message):
    clips = small(tmp_path, labels_root=tmp_path, label_shape=(4, 4, 2))
    put_labels(tmp_path, **labels)
    error = refusal(clips.truth, torch.tensor([0]))
    assert message in error.found and "t6" in error.found


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"\x93NUMPY", b"text"])
def test_damaged_label_files_are_refused(tmp_path, content):
    clips = small(tmp_path, labels_root=tmp_path, label_shape=(4, 4, 2))
    put_labels(tmp_path)
    (tmp_path / label_path("s", "t6")).write_bytes(content)
    assert "no readable labels" in refusal(clips.truth, torch.tensor([0])).found


def test_label_files_without_semantics_or_as_plain_arrays_are_refused(tmp_path):
    clips = small(tmp_path, labels_root=tmp_path, label_shape=(4, 4, 2))
    put_labels(tmp_path)
    path = tmp_path / label_path("s", "t6")
    np.savez(path, other=np.zeros(3))
    assert "no readable labels" in refusal(clips.truth, torch.tensor([0])).found
    with open(path, "wb") as file:
        np.save(file, np.zeros((4, 4, 2), dtype=np.uint8))
    assert "no readable labels" in refusal(clips.truth, torch.tensor([0])).found
