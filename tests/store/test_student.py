"""The stored student: whole, self-describing, and the one that was saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mfd_cli.errors import MfdError
from mfd_cli.store.checkpoint import save_checkpoint
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import (
    content,
    fingerprint,
    read_student,
    save_student,
    save_student_file,
    student_tensors,
)
from mfd_cli.store.tensors import read_header, write_tensors

CONFIG = {"architecture": {"width": 3}, "student": {"steps": 1}, "prompt": "Fréchet"}
WEIGHTS = {"w": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bfloat16)}


def test_folder_and_file_give_back_config_and_weights(tmp_path: Path) -> None:
    save_student(tmp_path / "student", CONFIG, WEIGHTS)
    save_student_file(tmp_path / "one.safetensors", CONFIG, WEIGHTS)
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == ["config.json", "model.safetensors"]
    for path in (tmp_path / "student", tmp_path / "student/model.safetensors", tmp_path / "one.safetensors"):
        found = read_student(path)
        assert content(found.config) == CONFIG
        assert found.config["format"] == 1 and found.config["weights_sha256"] == fingerprint(WEIGHTS)
        assert all(torch.equal(found.weights[name], value) for name, value in WEIGHTS.items())
    assert json.loads((tmp_path / "student/config.json").read_text("utf-8")) == found.config


def test_a_second_save_replaces_the_first(tmp_path: Path) -> None:
    save_student(tmp_path / "student", CONFIG, WEIGHTS)
    save_student(tmp_path / "student", CONFIG, {"w": torch.zeros(1)})
    assert read_student(tmp_path / "student").weights.keys() == {"w"}
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_the_fingerprint_sees_name_type_shape_and_value() -> None:
    base = torch.arange(4.0)
    variants = [
        {"w": base}, {"v": base}, {"w": base.reshape(2, 2)}, {"w": base.int()}, {"w": base + 1}, {"w": base, "v": base},
    ]  # fmt: skip
    assert len({fingerprint(weights) for weights in variants}) == len(variants)
    assert fingerprint({"a": base, "b": -base}) == fingerprint({"b": -base, "a": base.clone()})
    assert fingerprint({"w": base.reshape(2, 2).t()}) == fingerprint({"w": base.reshape(2, 2).t().contiguous()})


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_student_file(path, CONFIG, WEIGHTS)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(MfdError, match="the weights have changed"):
        read_student(path)


def test_foreign_and_newer_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_tensors(path, WEIGHTS, {"format": 2, **CONFIG})
    with pytest.raises(MfdError, match="student format 2, this mfd reads up to 1"):
        read_student(path)
    for header in ({"architecture": {}}, {"format": 1}, {"format": "1", "architecture": {}}):
        write_tensors(path, WEIGHTS, header)
        with pytest.raises(MfdError, match="not a student's weights"):
            read_student(path)
    write_tensors(path, WEIGHTS)
    with pytest.raises(MfdError, match="not one that mfd wrote"):
        read_student(path)


def test_a_run_without_a_student_says_how_to_get_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.root.mkdir()
    run.update_record(status="interrupted")
    with pytest.raises(MfdError, match="no finished student yet") as caught:
        read_student(run.root)
    assert "--resume" in str(caught.value.do)


@pytest.mark.parametrize(("decay", "expected"), [(0.99, 2.0), (None, 1.0)])
def test_a_checkpoint_gives_the_average_if_there_is_one(tmp_path: Path, decay: float | None, expected: float) -> None:
    parts = {"student": {"w": torch.tensor([1.0])}} | ({"ema": {"w": torch.tensor([2.0])}} if decay else {})
    path = save_checkpoint(
        tmp_path, update=1, inside=0, parts=parts, state={"student": {**CONFIG, "ema": decay}}, keep=2
    )
    found = read_student(path)
    assert found.weights["w"].item() == expected and found.config["student"] == {"steps": 1}


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, update=1, inside=0, parts={"student": WEIGHTS}, state={"student": CONFIG}, keep=2)
    (path / "student.safetensors").unlink()
    with pytest.raises(MfdError, match=r"student\.safetensors is missing"):
        read_student(path)


def test_a_changed_config_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_student_file(path, CONFIG, WEIGHTS)
    changed = read_header(path) | {"student": {"steps": 2}}
    write_tensors(path, WEIGHTS, changed)
    with pytest.raises(MfdError, match="the config has changed"):
        read_student(path)


def test_what_decoding_needs_is_stored_beside_the_network(tmp_path: Path) -> None:
    network = nn.Linear(2, 3)
    # the same name on both sides, so that one would replace the other
    carried = {"weight": torch.arange(4), "decoder.bias": torch.ones(2)}
    tensors = student_tensors(network, carried)
    assert tensors.keys() == {"weight", "bias", "carried.weight", "carried.decoder.bias"}
    save_student(tmp_path / "student", CONFIG, tensors)
    save_student_file(tmp_path / "one.safetensors", CONFIG, tensors)
    for path in (tmp_path / "student", tmp_path / "one.safetensors"):
        found = read_student(path)
        assert found.network.keys() == {"weight", "bias"} and torch.equal(found.network["weight"], network.weight)
        assert found.carried.keys() == carried.keys()
        assert all(torch.equal(found.carried[name], value) for name, value in carried.items())
        assert found.config["weights_sha256"] == fingerprint(tensors), "what is carried is sealed too"


def test_a_student_that_needs_nothing_else_carries_nothing(tmp_path: Path) -> None:
    network = nn.Linear(2, 3)
    assert student_tensors(network, {}).keys() == network.state_dict().keys()
    path = save_checkpoint(tmp_path, update=1, inside=0, parts={"student": WEIGHTS}, state={"student": CONFIG}, keep=2)
    found = read_student(path)
    assert found.carried == {} and found.network.keys() == WEIGHTS.keys()


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/b", "a\0b", "", "..", ".hidden", 3, None, ["a"]])
def test_a_recipe_s_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: object) -> None:
    config = CONFIG | {"recipe": {"name": name}}
    save_student(tmp_path / "student", config, WEIGHTS)
    state = {"student": config}
    saved = save_checkpoint(tmp_path, update=1, inside=0, parts={"student": WEIGHTS}, state=state, keep=2)
    for path in (tmp_path / "student", saved):
        with pytest.raises(MfdError, match="the student's recipe has a name that is none"):
            read_student(path)
