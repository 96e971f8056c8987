"""Exports: complete, checked in a fresh process, never over something else, free of the machine they came from."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mfd_cli.errors import MfdError, RunStopped
from mfd_cli.inference import exporters
from mfd_cli.inference.exporters import cast_weights, export_student
from mfd_cli.inference.sampler import load_student
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import fingerprint, read_student, save_student
from teachers.networks.mlp import PointMLP

ROOT = Path(__file__).parents[2]
ARCHITECTURE = {"dim": 2, "width": 16, "depth": 2, "frequencies": 2}
CONFIG = {
    "teacher": {"type": "gmm"},
    "architecture": ARCHITECTURE,
    "student": {"steps": 1, "shift": 1.0, "sampler": "euler", "grid": [0.0, 1.0]},
    "data": {"type": "gmm"},
    "method": "mfd",
    "update": 10,
    "ema": 0.99,
    "identity": {"mixture": "abc"},
    "recipe": {"name": "toy", "seed": 0, "data": {"path": "/home/somebody/pictures", "prompt": "a/b"}},
}


@pytest.fixture
def student(tmp_path):
    torch.manual_seed(0)
    return stored_student(tmp_path / "run", CONFIG, PointMLP(**ARCHITECTURE))


def stored_student(root, config, network):
    root.mkdir()
    run = RunFolder(root)
    run.update_record(status="done")
    save_student(run.student, config, network.state_dict())
    return load_student(root)


@pytest.fixture
def unchecked(monkeypatch):
    monkeypatch.setattr(exporters, "check_export", lambda file, student, dtype: "not checked")


def test_file_holds_config_and_weights_and_passes_its_check(student, tmp_path):
    done = export_student(student, tmp_path / "out")
    assert done.check == "8 samples equal bit for bit" and not done.already_there
    found = read_student(done.file)
    assert found.config["student"] == CONFIG["student"] and found.config["architecture"] == ARCHITECTURE
    assert found.config["recipe"]["name"] == "toy" and found.config["identity"] == {"mixture": "abc"}
    assert found.config["dtype"] == "fp32" and found.config["weights_sha256"] == fingerprint(found.weights)
    assert fingerprint(student.network.state_dict()) == fingerprint(found.weights)


def test_half_precision_is_smaller_and_within_its_tolerance(student, tmp_path):
    done = export_student(student, tmp_path / "out", dtype="bf16")
    assert "within" in done.check
    assert {value.dtype for value in read_student(done.file).weights.values()} == {torch.bfloat16}


def test_a_file_that_samples_differently_is_not_kept(student, tmp_path, monkeypatch):
    original = exporters.save_student_file
    changed = lambda path, config, weights: original(path, config, {k: v * 1.001 for k, v in weights.items()})  # noqa: E731
    monkeypatch.setattr(exporters, "save_student_file", changed)
    with pytest.raises(RunStopped, match="samples differ"):
        export_student(student, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_fresh_process_that_fails_is_reported(student, tmp_path, monkeypatch):
    monkeypatch.setattr(exporters, "_CHECK", "raise SystemExit('no such thing')")
    with pytest.raises(RunStopped, match="no such thing"):
        export_student(student, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_export_twice_is_fine_another_one_is_refused(student, tmp_path, unchecked):
    first = export_student(student, tmp_path / "out")
    before = first.file.read_bytes()
    assert export_student(student, tmp_path / "out").already_there
    with pytest.raises(MfdError, match="holds something else"):
        export_student(student, tmp_path / "out", dtype="bf16")
    with torch.no_grad():
        next(student.network.parameters()).add_(1)
    with pytest.raises(MfdError, match="-o"):
        export_student(student, tmp_path / "out")
    assert first.file.read_bytes() == before


@pytest.mark.parametrize("name", ["README.md", "other.safetensors", "toy.safetensors"])
def test_foreign_files_are_left_alone(student, tmp_path, unchecked, name):
    (tmp_path / name).write_text("# mine")
    with pytest.raises(MfdError, match=name):
        export_student(student, tmp_path)
    assert (tmp_path / name).read_text() == "# mine"


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(MfdError, match="fp16 cannot hold the values of w"):
        cast_weights({"w": torch.tensor([1e6])}, "fp16")
    with pytest.raises(MfdError, match="NaN or infinite"):
        cast_weights({"w": torch.tensor([float("nan")])}, "fp32")
    assert cast_weights({"w": torch.tensor([1e6]), "n": torch.tensor([3])}, "bf16")["n"].dtype == torch.int64


def test_nothing_written_tells_where_it_was_made(student, tmp_path, unchecked):
    done = export_student(student, tmp_path / "out")
    for text in (done.card.read_text(), json.dumps(read_student(done.file).config)):
        assert "somebody" not in text and str(tmp_path) not in text
        assert "pictures" in text and "a/b" in text


def test_the_documentation_s_plain_pytorch_gives_the_student_s_samples(tmp_path):
    from teachers.networks.dit import DiT

    assets = ROOT / "teachers/assets/digits/teacher.safetensors"
    pytest.importorskip("teachers.digits")
    if not assets.is_file():
        pytest.skip("no digits teacher")
    with safe_open(assets, framework="pt") as file:
        architecture = json.loads(file.metadata()["mfd"])["architecture"]
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    network = DiT(**architecture)
    network.load_state_dict(weights)
    config = CONFIG | {"teacher": {"type": "digits"}, "architecture": architecture, "data": {"type": "digits"}}
    config["recipe"] = {"name": "digits"}
    student = stored_student(tmp_path / "run", config, network)
    export_student(student, tmp_path / "runs/digits/export")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(encoding="utf-8"), re.DOTALL)
    plain = next(block for block in blocks if "DiT(" in block)
    assert len([line for line in plain.splitlines() if line.strip() and "import" not in line]) <= 10
    script = f"import torch\ntorch.manual_seed(0)\n{plain}\nimport numpy\n"
    script += "numpy.savez('found.npz', z=z.numpy(), images=images.numpy())\n"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=120)
    import numpy as np

    found = np.load(tmp_path / "found.npz")
    condition = student.teacher.encode(list(range(10)))
    expected = student.decode(student.generate(torch.from_numpy(found["z"]), condition))
    assert np.allclose(found["images"], expected.numpy(), atol=1e-5)
    api = next(block for block in blocks if "load_student(" in block)
    subprocess.run([sys.executable, "-c", api], check=True, cwd=tmp_path, timeout=120)
