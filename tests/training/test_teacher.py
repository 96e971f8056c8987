"""`mfd teachers train`: a weights file that the teacher loads, the same for the same recipe, never over another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfd_cli.config.load import load_recipe, load_teacher_recipe
from mfd_cli.errors import MfdError, RunStopped
from mfd_cli.flow import interpolate
from mfd_cli.inference.sampler import load_teacher
from mfd_cli.seeds import Stream
from mfd_cli.store.tensors import read_header, read_tensors
from mfd_cli.training import teacher as module
from mfd_cli.training.reporting import Reporter
from mfd_cli.training.run import distill
from mfd_cli.training.teacher import train_teacher
from teachers.images import ImagesData, ImagesTeacher

RECIPE = """name: tiny-images
teacher: {type: images, weights: made.safetensors, guidance: 1.5, steps: 3}
network: {patch_size: 2, width: 16, depth: 1, heads: 2, mlp_ratio: 2.0}
optim: {lr: 1e-2, schedule: cosine}
train: {updates: 30, batch_size: 8, ema: 0.9, drop_condition: 0.2, threads: 1}
data: {type: images, path: images.npz, largest: 16}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images 4x4 of three classes: bright at the top, at the bottom, nowhere."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    labels = np.arange(30) % 3
    images = random.integers(0, 4, (30, 4, 4)).astype(np.uint8)
    images[labels == 0, :2] += 12
    images[labels == 1, 2:] += 12
    np.savez("images.npz", images=images, labels=labels)
    Path("teacher.yaml").write_text(RECIPE)


def train(path: str = "made.safetensors", *settings: str, **more: Any) -> Path:
    train_teacher(load_teacher_recipe("teacher.yaml", settings), Path(path), **more)
    return Path(path)


def test_the_file_is_a_teacher_that_samples_and_can_be_distilled() -> None:
    path = train()
    header = read_header(path)
    assert header["type"] == "images" and header["training"]["train"]["updates"] == 30
    assert header["architecture"]["image_size"] == 4 and header["architecture"]["num_classes"] == 3
    Path("student.yaml").write_text("""name: tiny-student
teacher: {type: images, weights: made.safetensors, guidance: 1.5, steps: 3}
method: {type: mfd, solver: {steps: 2}, aux_updates: 1}
train: {updates: 2, batch_size: 6}
data: {type: images, path: images.npz, largest: 16}
evaluate: {num: 0}
""")
    x = load_teacher("student.yaml").sample(6)
    assert x.shape == (6, 1, 4, 4) and x.min() >= 0 and x.max() <= 1
    run = distill("student.yaml")
    # auxiliary: 1 + 1 for its own update, 2 for the student's; guided evaluations of the teacher count twice
    assert run.read_record()["evaluations"] == {"student": 2 * 6 * 2, "aux": 2 * 6 * 3, "teacher": 2 * 6 * 4}
    assert set(run.read_record()["teacher"]) == {"weights_sha256"}


def test_it_learns() -> None:
    loaded = load_teacher_recipe("teacher.yaml", ["train.updates=300"])
    teacher = train_teacher(loaded, Path("a.safetensors"))
    recipe: Any = loaded.recipe
    from teachers.registry import data

    images = data.get("images").load(recipe.data, None)  # type: ignore[attr-defined]
    items = torch.arange(30)
    noise = Stream(1, 0, 0, 30).normal("x0", (1, 4, 4))
    t = torch.full((30,), 0.5)
    states = images.states(items)
    with torch.no_grad():
        velocity = teacher.velocity(
            teacher.network, interpolate(noise, states, t), t, images.condition(items)  # type: ignore[arg-type]
        )  # fmt: skip
    error = (velocity - (states - noise)).square().mean()
    assert error < 0.6 * (states - noise).square().mean()


def test_the_same_recipe_gives_the_same_weights_bit_for_bit() -> None:
    first, again, other = (
        read_tensors(train(f"{index}.safetensors", *settings)) for index, settings in enumerate(([], [], ["seed=1"]))
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_a_file_is_not_overwritten_without_force() -> None:
    path = Path("made.safetensors")
    path.write_text("mine")
    with pytest.raises(MfdError, match=r"made\.safetensors: exists") as caught:
        train()
    assert "--force" in str(caught.value.do) and path.read_text() == "mine"
    train(force=True)
    assert read_header(path)["type"] == "images"


def test_where_it_cannot_be_written_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fit", lambda *arguments: pytest.fail("trained first"))
    with pytest.raises(MfdError, match="there is no folder missing"):
        train("missing/a.safetensors")
    Path("folder").mkdir()
    for force in (False, True):
        with pytest.raises(MfdError, match="folder: "):
            train("folder", force=force)


def test_a_loss_that_is_not_finite_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    original = module._loss

    def poisoned(*arguments: Any) -> Any:
        loss, t = original(*arguments)
        return (loss * float("nan") if arguments[-1] == 3 else loss), t

    monkeypatch.setattr(module, "_loss", poisoned)
    with pytest.raises(RunStopped, match="teacher: not finite at update 3: loss nan"):
        train()
    assert sorted(os.listdir()) == ["images.npz", "teacher.yaml"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["network.patch_size=3"], "network: "),
        (["network.heads=3"], "network: "),
        (["data.path=missing.npz"], "missing.npz: no such images"),
        (["teacher.type=gmm", "data={type: digits}"], "a teacher of type 'gmm' cannot be trained"),
    ],
)
def test_what_does_not_fit_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(MfdError, match=words):
        train("made.safetensors", *settings)
    assert not Path("made.safetensors").exists()


def test_a_teacher_recipe_is_no_distillation() -> None:
    with pytest.raises(MfdError, match="trains a teacher"):
        load_recipe("teacher.yaml")


def test_what_comes_before_the_velocity_network_is_trained_first(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Log(Reporter):
        def preparing(self, title: str, items: int, done: int) -> None:
            told.append((title, items))

        def started(self, title: str, updates: int, done: int) -> None:
            told.append(title)

    def pretrain(self: Any, data: Any, seed: int, report: Any) -> None:
        assert isinstance(data, ImagesData)
        told.append(f"seed {seed}")
        report(1, 7)

    monkeypatch.setattr(ImagesTeacher, "pretrain", pretrain)
    monkeypatch.setattr(ImagesData, "prepare", lambda self, report: report(1, 3))
    train("made.safetensors", "seed=5", "train.updates=2", reporter=Log())
    assert told == ["seed 5", ("pretrain", 7), ("prepare data", 3), "tiny-images: 2 updates of 8"]


def test_nothing_to_prepare_is_not_spoken_of() -> None:
    told: list[str] = []

    class Log(Reporter):
        def preparing(self, title: str, items: int, done: int) -> None:
            told.append(title)

    train("made.safetensors", "train.updates=1", reporter=Log())
    assert told == []


def test_the_file_holds_what_the_family_says_its_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def weights(self: Any, network: Any) -> dict[str, torch.Tensor]:
        seen.append(network.state_dict())
        return {f"network.{name}": value.half() for name, value in network.state_dict().items()} | {
            "more": torch.ones(2)
        }

    monkeypatch.setattr(ImagesTeacher, "weights", weights)
    found = read_tensors(train("made.safetensors", "train.updates=2"))
    assert torch.equal(found.pop("more"), torch.ones(2)) and len(seen) == 1
    assert found.keys() == {f"network.{name}" for name in seen[0]}
    assert all(torch.equal(found[f"network.{name}"], value.half()) for name, value in seen[0].items())


def test_a_small_forecaster_is_trained_with_its_compressor() -> None:
    Path("teacher.yaml").write_text("""name: forecaster
teacher: {type: occfm-tiny}
network:
  {base: 8, heads: 2, head_width: 8,
   compressor: {channels: 2, encoder_width: 8, decoder_width: 8, heads: 2, updates: 1, batch_size: 1}}
optim: {lr: 1e-3}
train: {updates: 1, batch_size: 2, threads: 1}
data: {type: driving, scenes: 1, held_out: 1, frames: 12, size: 16}
""")
    path = train("forecaster.safetensors")
    header = read_header(path)
    assert header["type"] == "occfm-tiny" and header["architecture"]["compressor"]["size"] == 16
    Path("student.yaml").write_text("""name: small
teacher: {type: occfm-tiny, weights: forecaster.safetensors, steps: 1}
method: {type: mfd}
train: {updates: 1, batch_size: 1}
data: {type: driving, scenes: 1, held_out: 1, frames: 12, size: 16}
""")
    assert load_teacher("student.yaml").sample(1).shape == (1, 6, 16, 16, 16)
