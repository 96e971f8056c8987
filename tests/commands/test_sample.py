"""`mfd sample`: what is written where, and every request that does not fit."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mfd_cli.commands.sample import sample
from mfd_cli.errors import MfdError
from mfd_cli.inference.sampler import load_student, load_teacher
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import save_student, save_student_file
from teachers.base import Teacher, TeacherError
from teachers.registry import register


class Shifted(nn.Module):
    """Pulls noise towards an image that depends on the class."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(-0.7))
        self.shift = nn.Parameter(torch.linspace(-1, 1, 4))

    def forward(self, x, t, label):
        return self.scale * x + self.shift[label][:, None, None, None]


@register("tiny-labels")
class TinyLabels(Teacher):
    condition_kind = "label"
    sample_shape = (1, 8, 8)

    @classmethod
    def load(cls, settings):
        teacher = cls(settings, {})
        teacher.network = Shifted()
        return teacher

    def build_network(self):
        return Shifted()

    def null_condition(self, condition):
        return {"label": torch.full_like(condition["label"], 3)}

    def encode(self, asked):
        if wrong := [item for item in asked if item not in (0, 1, 2)]:
            raise TeacherError(f"no class {wrong[0]}", allowed="0 to 2")
        return {"label": torch.tensor(list(asked))}

    def examples(self, count):
        return [index % 3 for index in range(count)]

    def decode(self, latents):
        return ((latents + 1) / 2).clamp(0, 1)

    def identity(self):
        return {}


@register("tiny-prompts")
class TinyPrompts(TinyLabels):
    condition_kind = "prompt"
    sample_shape = (3, 16, 16)

    def null_condition(self, condition):
        return None

    def encode(self, asked):
        return {"label": torch.tensor([len(text) % 3 for text in asked])}

    def examples(self, count):
        return ["a cat"] * count


def stored(family):
    settings = {"type": family, "steps": 4}
    if family == "gmm":
        from teachers.networks.mlp import PointMLP

        architecture = {"dim": 2, "width": 8, "depth": 1, "frequencies": 2}
        weights, data = PointMLP(**architecture).state_dict(), {"type": "gmm"}
    else:
        architecture, data, weights = {}, {"type": family}, Shifted().state_dict()
    recipe = {"name": f"my-{family}"}
    student = {"steps": 1, "shift": 1.0}
    config = {"teacher": settings, "architecture": architecture, "student": student, "data": data, "recipe": recipe}
    return config, weights


@pytest.fixture
def run(tmp_path, monkeypatch, request):
    """A finished run of the family the test asks for (labels by default), as runs/here."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "runs" / "here")
    folder.root.mkdir(parents=True)
    folder.update_record(status="done")
    torch.manual_seed(0)
    save_student(folder.student, *stored(getattr(request, "param", "tiny-labels")))
    return folder.root


def nothing_written(run):
    return sorted(entry.name for entry in run.iterdir()) == ["run.json", "student"]


def test_newest_run_and_a_picture_in_it_by_default(run, capsys):
    path = sample()
    assert path.resolve() == run / "samples" / "my-tiny-labels-steps1-seed0.png"
    said = capsys.readouterr()
    assert said.out.strip() == str(path)
    assert "20 samples, 1 step, 1 evaluation each" in said.err
    with Image.open(path) as picture:
        assert picture.info["seed"] == "0" and picture.info["models"] == "student, 1 step"


def test_an_exported_file_puts_its_picture_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_student_file(tmp_path / "x.safetensors", *stored("tiny-labels"))
    assert str(sample("x.safetensors", seed=3)) == "my-tiny-labels-steps1-seed3.png"
    assert (tmp_path / "my-tiny-labels-steps1-seed3.png").is_file()


def test_numbers_are_the_sampler_s(run):
    path = sample(str(run), num=5, seed=2, label=[2, 0], output="x/out.npz")
    found = np.load(path, allow_pickle=False)
    assert found["labels"].tolist() == [2, 0, 2, 0, 2]
    expected = load_student(run).sample(5, seed=2, asked=[2, 0, 2, 0, 2])
    assert np.array_equal(found["samples"], expected.numpy())
    assert (int(found["seed"]), int(found["steps"])) == (2, 1)


def test_teacher_uses_its_own_steps_and_the_same_seeds(run):
    found = np.load(sample(str(run), num=3, seed=1, teacher=True, output="both.npz"), allow_pickle=False)
    assert (int(found["steps"]), int(found["teacher_steps"])) == (1, 4)
    assert np.array_equal(found["teacher_samples"], load_teacher(run).sample(3, seed=1).numpy())
    assert np.array_equal(found["samples"], load_student(run).sample(3, seed=1).numpy())
    both, alone = sample(str(run), teacher=True), sample(str(run))
    assert both.name == "my-tiny-labels-teacher-steps1-seed0.png"
    assert Image.open(both).height > Image.open(alone).height


def test_guidance_goes_to_the_teacher_where_it_samples_too(run, capsys):
    found = np.load(sample(str(run), num=3, teacher=True, guidance=2.0, output="both.npz"), allow_pickle=False)
    assert (float(found["guidance"]), float(found["teacher_guidance"])) == (1.0, 2.0)
    assert "guidance" not in capsys.readouterr().err
    sample(str(run), num=3, guidance=2.0)
    assert "guidance 2: students are distilled to sample without" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["folder", "folder.d/"])
def test_a_folder_of_pictures(run, output):
    path = sample(str(run), num=3, seed=1, output=output)
    assert sorted(file.name for file in path.iterdir()) == ["000000.png", "000001.png", "000002.png"]
    expected = (load_student(run).sample(3, seed=1)[2, 0] * 255).round().numpy()
    with Image.open(path / "000002.png") as picture:
        assert picture.mode == "L" and np.array_equal(np.asarray(picture), expected)


def test_a_folder_for_both(run):
    path = sample(str(run), num=2, teacher=True, output="both")
    assert sorted(str(file.relative_to(path)) for file in path.rglob("*.png")) == [
        "student/000000.png", "student/000001.png", "teacher/000000.png", "teacher/000001.png",
    ]  # fmt: skip


def test_leftovers_of_a_longer_sampling_are_not_mixed(run):
    sample(str(run), num=4, output="folder")
    sample(str(run), num=4, seed=1, output="folder")
    with pytest.raises(MfdError, match="1 pictures of an earlier"):
        sample(str(run), num=3, output="folder")


def test_other_steps_than_trained_are_allowed_with_a_warning(run, capsys):
    sample(str(run), steps=3)
    assert "made for 1 step; with 3" in capsys.readouterr().err
    sample(str(run), steps=1)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("run", ["tiny-prompts"], indirect=True)
def test_prompts_come_from_flags_and_file(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffa fox\n\n  two birds  \n", encoding="utf-8")
    path = sample(str(run), prompt=["ein Bär"], prompts=tmp_path / "prompts.txt", output="p.npz")
    assert np.load(path, allow_pickle=False)["prompts"].tolist() == ["ein Bär", "a fox", "two birds"]
    assert sample(str(run), prompt=["one", "two"], num=5).is_file()


@pytest.mark.parametrize("run", ["tiny-prompts"], indirect=True)
@pytest.mark.parametrize("content", [None, b"\n \n", b"\xff\xfe\x00"])
def test_a_prompt_file_without_prompts_is_refused(run, tmp_path, content):
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(MfdError, match="--prompts"):
        sample(str(run), prompts=tmp_path / "prompts.txt")
    assert nothing_written(run)


@pytest.mark.parametrize("run", ["gmm"], indirect=True)
def test_points(run, capsys):
    path = sample(str(run), num=50, teacher=True)
    assert "no target" not in capsys.readouterr().err
    with Image.open(path) as picture:
        assert picture.width > 3 * picture.height  # noise, target, teacher, student
    found = np.load(sample(str(run), num=50, output="p.npz"), allow_pickle=False)
    assert found["samples"].shape == (50, 2) and "labels" not in found


@pytest.mark.parametrize(
    ("run", "request_", "message"),
    [
        ("tiny-labels", {"steps": 0}, "--steps 0"),
        ("tiny-labels", {"num": 0}, "--num 0"),
        ("tiny-labels", {"batch_size": 0}, "--batch-size 0"),
        ("tiny-labels", {"guidance": -1.0}, "--guidance -1"),
        ("tiny-labels", {"guidance": float("nan")}, "--guidance nan"),
        ("tiny-labels", {"output": "x.jpg"}, "no format '.jpg'"),
        ("tiny-labels", {"prompt": ["a cat"]}, "takes no prompts"),
        ("tiny-labels", {"label": [0, 1, 2], "num": 2}, "at least 3"),
        ("tiny-labels", {"num": 1001}, "at most 1000"),
        ("tiny-prompts", {"label": [1]}, "takes no labels"),
        ("tiny-labels", {"clip": [1]}, "takes no clips"),
        ("tiny-labels", {"output": "x.gif"}, "whose samples do not move"),
        ("gmm", {"label": [1]}, "takes no labels"),
        ("gmm", {"output": "folder"}, "samples are points"),
    ],
    indirect=["run"],
)
def test_what_does_not_fit_is_refused_and_nothing_written(run, request_, message):
    with pytest.raises(MfdError, match=message):
        sample(str(run), **request_)
    assert nothing_written(run)


@pytest.mark.parametrize(
    ("run", "request_", "message"),
    [
        ("tiny-labels", {"label": [0, 9]}, "0 to 2"),
        ("tiny-prompts", {"guidance": 2.0}, "without an unconditional branch"),
        ("gmm", {"guidance": 2.0}, "without an unconditional branch"),
    ],
    indirect=["run"],
)
def test_what_the_family_refuses(run, request_, message):
    with pytest.raises(TeacherError, match=message):
        sample(str(run), **request_)
    assert nothing_written(run)
