"""`mfd teachers`: what it lists, what a check prints and refuses, where training writes."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mfd_cli.commands import teachers
from mfd_cli.errors import MfdError
from teachers import conformance
from teachers.conformance import Finding
from teachers.weights import read_header, read_tensors

RECIPE = """name: dots
teacher: {{type: images, weights: {weights}}}
network: {{patch_size: 2, width: 8, depth: 1}}
train: {{updates: 2, batch_size: 4, threads: 1}}
data: {{type: images, path: dots.npz}}
"""


@pytest.fixture
def dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("dots.npz", images=np.zeros((4, 4, 4), np.uint8), labels=np.arange(4) % 2)


def test_the_list_names_every_teacher_and_where_it_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    teachers.list_teachers("-")
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"gmm", "digits", "images"} <= listed.keys()
    assert listed["gmm"]["origin"] == "built in" and listed["gmm"]["what"]


@pytest.mark.usefixtures("dots")
def test_training_writes_where_the_recipe_says_unless_told_otherwise() -> None:
    Path("t.yaml").write_text(RECIPE.format(weights="named.safetensors"))
    assert teachers.train("t.yaml") == Path("named.safetensors")
    assert teachers.train("t.yaml", output=Path("other.safetensors")) == Path("other.safetensors")
    assert Path("named.safetensors").is_file() and Path("other.safetensors").is_file()
    with pytest.raises(MfdError, match="exists"):
        teachers.train("t.yaml")


def test_a_broken_adapter_is_named_with_the_line_it_breaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Finding("shape", True, "fine", "a"), Finding("sign", False, "turned", "u = X_1 - X_0")]
    monkeypatch.setattr(conformance, "check", lambda teacher, data, seed: found)
    with pytest.raises(MfdError, match="1 of 2 checks failed: sign") as error:
        teachers.check("gmm")
    assert error.value.allowed == "u = X_1 - X_0"
    assert "BROKEN" in capsys.readouterr().out


def test_a_teacher_that_needs_settings_wants_a_recipe() -> None:
    with pytest.raises(MfdError, match="needs settings that only a recipe can give"):
        teachers.check("images")


def checkpoint(path: Path) -> Path:
    """A checkpoint as OccFM's training writes it; the averaged weight is 2, the last one 1."""
    raw = {"module.encoder.w": torch.ones(1)}
    averaged = {"module.module.encoder.w": torch.full((1,), 2.0), "n_averaged": torch.tensor(3)}
    torch.save({"state_dict": raw, "ema_model": averaged, "epoch": 199}, path)
    return path


@pytest.mark.parametrize(("weights", "value"), [(None, 2.0), ("ema", 2.0), ("raw", 1.0)])
def test_a_checkpoint_is_converted_beside_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], weights: str | None, value: float
) -> None:
    path = teachers.convert("occfm", checkpoint(tmp_path / "published.ckpt"), weights=weights)
    assert path == tmp_path / "published.safetensors"
    assert {name: tensor.item() for name, tensor in read_tensors(path).items()} == {"encoder.w": value}
    assert read_header(path)["weights"] == (weights or "ema")
    said = capsys.readouterr()
    assert said.out.replace("\n", "") == str(path)
    assert f"1 tensors, {weights or 'ema'} weights of epoch 199" in said.err and "--set teacher.weights=" in said.err


def test_a_cache_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(MfdError, match="--force of a cache") as caught:
        teachers.convert("occfm", tmp_path / "nus_sem_occ_training.pkl", force=True)
    assert "remove the folder" in caught.value.do


def test_a_converted_file_is_not_replaced_without_force(tmp_path: Path) -> None:
    source, target = checkpoint(tmp_path / "published.ckpt"), tmp_path / "mine.safetensors"
    target.write_text("mine")
    with pytest.raises(MfdError, match="exists"):
        teachers.convert("occfm", source, output=target)
    assert target.read_text() == "mine"
    assert teachers.convert("occfm", source, output=target, force=True) == target
    assert read_tensors(target)["encoder.w"].item() == 2


def test_a_cache_becomes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [
        {
            "x_sampled": np.full((1, 2, 3, 3), number, np.float32),
            "gt_path": f"data/nuscenes/gts/scene/frame{number}/labels.npz",
            "gt_trajs": np.zeros((1, 2), np.float32),
        }
        for number in range(5)
    ]
    source = tmp_path / "nus_sem_occ_training.pkl"
    source.write_bytes(pickle.dumps(entries))
    folder = teachers.convert("occfm", source)
    assert folder == tmp_path / "training", "where the data source looks for it"
    assert np.load(folder / "latents.npy")[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    said = capsys.readouterr()
    assert "5 frames" in said.err and said.out.replace("\n", "") == str(folder)
    with pytest.raises(MfdError, match="exists"):
        teachers.convert("occfm", source)
    assert teachers.convert("occfm", source, output=tmp_path / "other") == tmp_path / "other"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "sana"}, "no converter for 'sana'"),
        ({"weights": "last"}, "--weights last"),
        ({"weights": "ema", "source": "cache.pkl"}, "--weights ema of a cache"),
        ({"source": "none.pkl"}, "no such file"),
        ({"source": "none.ckpt"}, "no such file"),
        ({"source": "text.ckpt"}, "nothing in it was run"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_nothing_written(
    tmp_path: Path, arguments: dict[str, str], message: str
) -> None:
    checkpoint(tmp_path / "published.ckpt")
    for name in ("cache.pkl", "text.ckpt"):
        (tmp_path / name).write_text("text")
    asked = {"family": "occfm", "weights": None, "source": "published.ckpt"} | arguments
    with pytest.raises(MfdError, match=message):
        teachers.convert(str(asked["family"]), tmp_path / str(asked["source"]), weights=asked["weights"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cache.pkl", "published.ckpt", "text.ckpt"]
