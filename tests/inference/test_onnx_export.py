"""ONNX graphs: the sampler's own samples at any batch size, whole or absent, with nothing of the machine in them."""

import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mfd_cli.errors import MfdError, RunStopped
from mfd_cli.flow import time_grid
from mfd_cli.inference import onnx_export, onnx_graph
from mfd_cli.inference.onnx_export import export_onnx, require_packages
from mfd_cli.inference.sampler import load_student
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import save_student
from teachers.networks.dit import DiT
from teachers.networks.flow_map import FlowMapNetwork
from teachers.networks.mlp import PointMLP

POINTS = {"dim": 2, "width": 16, "depth": 2, "frequencies": 2}
DIGITS = {"image_size": 8, "channels": 1, "patch_size": 4, "width": 16, "depth": 1, "heads": 2, "num_classes": 10}


def stored(root, teacher, steps, sampler="euler", shift=1.0):
    """A student with random weights, far from constant."""
    torch.manual_seed(0)
    network = PointMLP(**POINTS) if teacher == "gmm" else DiT(**DIGITS)
    flow_map = sampler == "flow-map"
    if flow_map:
        network = FlowMapNetwork(network, "layers.0" if teacher == "gmm" else "time")
    state = {name: value + 0.1 * torch.randn(value.shape) for name, value in network.state_dict().items()}
    student = {"steps": steps, "shift": shift, "sampler": sampler, "grid": time_grid(steps, shift).tolist(),
               "flow_map": flow_map, "weights": "full"}  # fmt: skip
    config = {"teacher": {"type": teacher}, "architecture": POINTS if teacher == "gmm" else DIGITS, "update": 3,
              "student": student, "data": {"type": teacher}, "method": "mfd", "identity": {"hash": "abc"},
              "recipe": {"name": "tiny", "data": {"path": "/home/somebody/pictures"}}}  # fmt: skip
    root.mkdir()
    run = RunFolder(root)
    run.update_record(status="done")
    save_student(run.student, config, state)
    return load_student(root)


def sampled(student, count, seed):
    """Inputs of the graph, and the sampler's samples by its public way."""
    condition = student.teacher.encode(student.teacher.examples(count))
    source = student.fresh(count, seed=seed)
    fresh = None
    if student.kind == "renoise" and student.steps > 1:
        fresh = torch.stack([source(point) for point in range(1, student.steps)], dim=1)
    inputs = onnx_graph.graph_inputs(student, student.noise(count, seed=seed), fresh, condition)
    return {name: value.numpy() for name, value in inputs.items()}, student.sample(count, seed=seed).numpy()


@pytest.fixture
def student(tmp_path):
    return stored(tmp_path / "run", "gmm", 3, shift=2.0)


@pytest.fixture
def unchecked(monkeypatch):
    monkeypatch.setattr(onnx_export, "check_graph", lambda *arguments: "not checked")


@pytest.mark.parametrize(
    ("teacher", "steps", "sampler", "names"),
    [("gmm", 1, "euler", ["noise"]), ("gmm", 3, "euler", ["noise"]), ("gmm", 3, "flow-map", ["noise"]),
     ("gmm", 1, "renoise", ["noise"]), ("gmm", 3, "renoise", ["noise", "fresh_noise"]),
     ("digits", 1, "euler", ["noise", "label"]),
     pytest.param("digits", 3, "euler", ["noise", "label"], marks=pytest.mark.slow),
     pytest.param("digits", 2, "flow-map", ["noise", "label"], marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_graph_gives_the_sampler_s_samples_at_every_batch_size(tmp_path, teacher, steps, sampler, names):
    student = stored(tmp_path / "run", teacher, steps, sampler)
    example = {name: torch.from_numpy(value) for name, value in sampled(student, 2, 0)[0].items()}
    onnx_graph.write_graph(student, example, tmp_path / "g.onnx", dtype="fp32", notes={})
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx")
    assert [entry.name for entry in session.get_inputs()] == names
    assert session.get_inputs()[0].shape[0] == "batch" and session.get_outputs()[0].name == "sample"
    for count in (1, 2, 5):
        inputs, expected = sampled(student, count, seed=count)
        (found,) = session.run(None, inputs)
        assert expected.std() > 0.05
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_an_export_is_whole_says_what_it_is_and_its_card_s_code_was_run(student, tmp_path):
    done = export_onnx(student, tmp_path / "out" / "onnx")
    assert re.fullmatch(r"batches of 1 and 3 within \S+ of the student's samples \(0.0001 allowed\)", done.check)
    assert sorted(file.name for file in done.file.parent.iterdir()) == ["README.md", "tiny.onnx"]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["onnx"], "nothing hidden is left"
    model = onnx.load(done.file)
    onnx.checker.check_model(model)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["recipe"] == "tiny" and said["method"] == "mfd" and said["guidance"] == "absorbed: 1.0"
    assert json.loads(said["schedule"]) == time_grid(3, 2.0).tolist() and said["steps"] == "3"
    assert json.loads(said["inputs"])["noise"].endswith("float32 [batch, 2]")
    assert json.loads(said["outputs"]) == {"sample": "points"}
    card = done.card.read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert len(code.splitlines()) <= 10 and "tiny.onnx" in code and done.sha256 in card and done.check in card
    for content in (done.file.read_bytes(), card.encode()):
        assert str(tmp_path).encode() not in content and b".py" not in content and b"somebody" not in content


def test_the_same_export_again_is_checked_again_another_one_is_refused(student, tmp_path):
    first = export_onnx(student, tmp_path / "out")
    before = first.file.read_bytes()
    again = export_onnx(student, tmp_path / "out")
    assert again.already_there and again.sha256 == first.sha256
    with pytest.raises(MfdError, match="holds something else"):
        export_onnx(student, tmp_path / "out", dtype="fp16")
    model = onnx.load(first.file)
    weight = next(entry for entry in model.graph.initializer if list(entry.dims) == [16, 16])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 1.0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, first.file)
    with pytest.raises(RunStopped, match="differ from the student's"):
        export_onnx(student, tmp_path / "out")
    first.file.write_bytes(before)
    assert export_onnx(student, tmp_path / "out").already_there


def test_a_graph_with_one_other_weight_is_not_kept(student, tmp_path, monkeypatch):
    other = load_student(tmp_path / "run").network
    with torch.no_grad():
        other.layers[-1].weight[0, 0] += 0.05
    monkeypatch.setattr(onnx_graph, "plain_network", lambda *arguments: other)
    with pytest.raises(RunStopped, match="differ from the student's"):
        export_onnx(student, tmp_path / "out" / "onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_half_precision_is_stored_and_leaves_the_student_as_it_is(student, tmp_path, dtype, unchecked):
    before = {name: value.clone() for name, value in student.network.state_dict().items()}
    file = export_onnx(student, tmp_path / "out", dtype=dtype).file
    kind = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[dtype]
    weights = [entry for entry in onnx.load(file).graph.initializer if list(entry.dims) == [16, 16]]
    assert weights and {entry.data_type for entry in weights} == {kind}
    assert all(torch.equal(value, before[name]) for name, value in student.network.state_dict().items())
    inputs, expected = sampled(student, 4, seed=1)
    (found,) = onnxruntime.InferenceSession(file).run(None, inputs)
    difference = float(np.sqrt(np.square(found - expected).mean()) / expected.std())
    assert 1e-6 < difference < onnx_export.TOLERANCE[dtype]


def test_large_weights_get_a_file_of_their_own(student, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "_INLINE_BYTES", 1000)
    done = export_onnx(student, tmp_path / "out")
    assert sorted(file.name for file in done.file.parent.iterdir()) == ["README.md", "tiny.onnx", "tiny.onnx.data"]
    assert "`tiny.onnx.data`, SHA-256" in done.card.read_text()


class Branching(nn.Module):
    """Decides by the values of its input, which no graph can."""

    def forward(self, x, t):
        return x if float(x.sum()) > 0 else -x


def test_what_cannot_be_traced_is_refused_and_nothing_is_left(student, tmp_path):
    student.network = Branching()
    with pytest.raises(MfdError, match="cannot be traced: ") as refused:
        export_onnx(student, tmp_path / "out" / "onnx")
    assert refused.value.exit_code == 2 and "--safetensors" in refused.value.do
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(onnx_export, "_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(MfdError, match="no_such_package") as refused:
        require_packages()
    assert refused.value.do == "pip install 'mfd[onnx]'"
    monkeypatch.setattr(onnx_export, "_PACKAGES", ("onnx",))
    require_packages()


def test_samples_that_are_not_finite_or_other_classes_fail(monkeypatch):
    with pytest.raises(RunStopped, match="not finite"):
        onnx_export._difference(np.array([np.nan], np.float32), np.array([0.0], np.float32), "fp32")
    classes = np.zeros(1000, np.uint8)
    other = classes.copy()
    other[0] = 1
    with pytest.raises(RunStopped, match="share of class indices"):
        onnx_export._difference(other, classes, "fp32")
    assert onnx_export._difference(other, classes, "fp16") == 0.001
