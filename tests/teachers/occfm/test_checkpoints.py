"""Published checkpoints: small files in their layout become safetensors, and what is none is refused."""

import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from teachers.errors import MfdError, TeacherError
from teachers.occfm.checkpoints import convert, published_names, read_weights
from teachers.weights import HEADER, read_header


class Wrapped(nn.Module):
    """As DDP: the model under the name `module`."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def compressor():
    torch.manual_seed(0)
    parts = nn.ModuleDict({"embedding": nn.Embedding(3, 2), "encoder": nn.Linear(2, 4), "decoder": nn.Linear(4, 2)})
    parts["decoder"].register_buffer("relative_position_index", torch.arange(4))
    parts["decoder"].register_buffer("table", torch.ones(2, dtype=torch.float16))
    return parts


def world_model():
    parts = compressor()
    parts["transition_model"] = nn.Linear(2, 2)
    return parts


def published(path, model=None, ema=True, epoch=199):
    """A file as OccFM's training writes it; returns the raw model and the averaged state, if any."""
    model = model or world_model()
    parallel = Wrapped(model)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    with torch.no_grad():
        for value in averaged.parameters():
            value.add_(1)
    optimizer = torch.optim.AdamW(model.parameters())
    content = {
        "state_dict": parallel.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "epoch": epoch,
        "scaler_state_dict": {"scale": 65536.0},
        "lr_scheduler": {"_step_count": 3},
    }
    if ema is not False:
        content["ema_model"] = averaged.state_dict() if ema else None
    torch.save(content, path)
    return model.state_dict(), averaged.module.state_dict()


def same(found, expected):
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in expected.items()
    )


@pytest.fixture
def target(tmp_path):
    return tmp_path / "occfm.safetensors"


def test_names_lose_what_wrappers_put_before_them():
    weight, other = torch.ones(1), torch.zeros(1)
    state = {"n_averaged": torch.tensor(3), "module.module.encoder.a": weight, "decoder.module.b": other, "epoch": 3}
    assert published_names(state) == {"encoder.a": weight, "decoder.module.b": other}
    with pytest.raises(TeacherError, match=r"two tensors are named encoder\.a"):
        published_names({"encoder.a": weight, "module.encoder.a": other})


@pytest.mark.parametrize(("weights", "kind"), [(None, "ema"), ("ema", "ema"), ("raw", "raw")])
def test_averaged_weights_are_taken_unless_raw_ones_are_asked_for(tmp_path, target, weights, kind):
    raw, averaged = published(tmp_path / "epoch=000199.ckpt")
    report = convert(tmp_path / "epoch=000199.ckpt", target, weights)
    expected = {"raw": raw, "ema": averaged}[kind]
    assert same(read_weights(target), expected) and report.pop("tensors") == len(expected)
    assert expected["decoder.relative_position_index"].dtype == torch.int64
    digest = hashlib.sha256((tmp_path / "epoch=000199.ckpt").read_bytes()).hexdigest()
    assert report == read_header(target)
    assert report == {
        "type": "occfm", "source_sha256": digest, "source_name": "epoch=000199.ckpt", "weights": kind, "epoch": 199,
    }  # fmt: skip
    assert sorted(file.name for file in tmp_path.iterdir()) == ["epoch=000199.ckpt", "occfm.safetensors"]


def test_averages_taken_around_the_parallel_model_have_both_prefixes_taken_off(tmp_path, target):
    model = world_model()
    averaged = torch.optim.swa_utils.AveragedModel(Wrapped(model))
    torch.save({"state_dict": {}, "ema_model": averaged.state_dict()}, tmp_path / "a.ckpt")
    assert convert(tmp_path / "a.ckpt", target)["epoch"] is None
    assert same(read_weights(target), model.state_dict())


@pytest.mark.parametrize("ema", [None, False])
def test_raw_weights_are_taken_where_there_are_no_averaged_ones(tmp_path, target, ema):
    raw, _ = published(tmp_path / "a.ckpt", ema=ema)
    with pytest.raises(TeacherError, match="no averaged") as caught:
        convert(tmp_path / "a.ckpt", target, "ema")
    assert "--weights raw" in caught.value.do and not target.exists()
    assert convert(tmp_path / "a.ckpt", target)["weights"] == "raw"
    assert same(read_weights(target), raw)


def test_a_file_of_the_compressor_alone_is_enough(tmp_path, target):
    model = compressor()
    torch.save({"state_dict": Wrapped(model).state_dict(), "iteration": 7, "loss": [0.5]}, tmp_path / "vae.ckpt")
    assert convert(tmp_path / "vae.ckpt", target)["weights"] == "raw"
    assert same(read_weights(target), model.state_dict())


@pytest.mark.parametrize("zipped", [True, False])
def test_bare_state_dicts_are_taken_in_the_old_format_too(tmp_path, target, zipped):
    model = compressor()
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    torch.save(model.state_dict(), tmp_path / "raw.pth", _use_new_zipfile_serialization=zipped)
    torch.save(averaged, tmp_path / "ema.pth", _use_new_zipfile_serialization=zipped)
    assert convert(tmp_path / "raw.pth", target)["weights"] == "raw"
    assert same(read_weights(target), model.state_dict())
    assert convert(tmp_path / "ema.pth", target, force=True)["weights"] == "ema"
    with pytest.raises(TeacherError, match="no raw weights"):
        convert(tmp_path / "ema.pth", target, "raw", force=True)


def test_tensors_that_share_memory_are_each_written(tmp_path, target):
    table = torch.arange(6.0).reshape(2, 3)
    state = {"encoder.a": table, "encoder.b": table.T, "decoder.c": table[0], "decoder.d": torch.ones(1).expand(4)}
    torch.save(state, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", target)
    assert same(read_weights(target), state)


def test_a_file_is_replaced_only_when_asked(tmp_path, target):
    raw, _ = published(tmp_path / "a.ckpt", ema=None)
    target.write_bytes(b"before")
    with pytest.raises(TeacherError, match="exists"):
        convert(tmp_path / "a.ckpt", target)
    assert target.read_bytes() == b"before"
    convert(tmp_path / "a.ckpt", target, force=True)
    assert same(read_weights(target), raw)


def test_a_failed_write_leaves_what_was_there(tmp_path, target, monkeypatch):
    published(tmp_path / "a.ckpt")
    target.write_bytes(b"before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(TeacherError, match="No space left"):
        convert(tmp_path / "a.ckpt", target, force=True)
    assert target.read_bytes() == b"before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ckpt", "occfm.safetensors"]


def test_the_folder_must_exist(tmp_path):
    published(tmp_path / "a.ckpt")
    with pytest.raises(TeacherError, match="cannot be written"):
        convert(tmp_path / "a.ckpt", tmp_path / "none" / "a.safetensors")


class Harm:
    """A pickle that would run a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_asks_for_code_is_refused_and_nothing_runs(tmp_path, target, zipped):
    harm = {"state_dict": world_model().state_dict(), "lr_scheduler": Harm(tmp_path / "ran")}
    torch.save(harm, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(TeacherError, match=r"nothing in it was run \(it asks for \w+\.system\)") as caught:
        convert(tmp_path / "a.ckpt", target)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists() and not target.exists()


@pytest.mark.parametrize("length", [0, 3, 100, 2000, -30])
def test_damaged_checkpoints_are_refused(tmp_path, target, length):
    published(tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:length])
    with pytest.raises(TeacherError, match="not a checkpoint"):
        convert(tmp_path / "a.ckpt", target)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "not a checkpoint but a list"),
        ({"state_dict": {"fc.weight": torch.ones(1)}}, "no weights of OccFM .1 tensors, such as fc.weight"),
        ({"epoch": 3}, "no tensors at all"),
        ({"state_dict": {}, "ema_model": {}}, "no tensors at all"),
        ({"encoder.a": torch.tensor([1.0, float("nan")])}, "NaN or infinite values in encoder.a"),
        ({"encoder.a": torch.eye(2).to_sparse()}, "sparse"),
    ],
)
def test_what_is_no_checkpoint_of_occfm_is_refused(tmp_path, target, content, message):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(TeacherError, match=message):
        convert(tmp_path / "a.ckpt", target)
    assert not target.exists()


def test_a_missing_checkpoint_is_named(tmp_path, target):
    with pytest.raises(TeacherError, match="no such file"):
        convert(tmp_path / "a.ckpt", target)
    with pytest.raises(TeacherError, match="cannot be read"):
        convert(tmp_path, target)


def test_plain_safetensors_with_or_without_prefix_are_weights(tmp_path):
    state = world_model().state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    save_file({f"module.{name}": value for name, value in state.items()}, tmp_path / "prefixed.safetensors")
    assert same(read_weights(tmp_path / "plain.safetensors"), state)
    assert same(read_weights(tmp_path / "prefixed.safetensors"), state)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".pkl", ".CKPT"])
def test_a_pickle_as_weights_is_answered_with_the_command_that_converts_it(tmp_path, suffix):
    path = tmp_path / f"epoch=000199{suffix}"
    with pytest.raises(TeacherError) as caught:
        read_weights(path)
    assert f"mfd teachers convert occfm {path} -o epoch=000199.safetensors" in caught.value.do


def test_safetensors_of_another_model_or_none_are_refused(tmp_path):
    save_file({"fc.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(TeacherError, match="no weights of OccFM"):
        read_weights(tmp_path / "a.safetensors")
    with pytest.raises(MfdError, match="no such file"):
        read_weights(tmp_path / "none.safetensors")


def test_the_header_is_json_under_the_common_key(tmp_path, target):
    published(tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", target)
    content = target.read_bytes()
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    assert json.loads(metadata[HEADER])["type"] == "occfm" and len(load_file(target)) > 5
