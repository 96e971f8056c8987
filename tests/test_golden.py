"""What earlier versions wrote is still read: checkpoints are continued, students and exports sample the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mfd_cli.errors import MfdError
from mfd_cli.inference.sampler import load_student
from mfd_cli.store import checkpoint, student
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.tensors import read_header, read_tensors, write_tensors
from mfd_cli.training.run import distill

GOLDEN = Path(__file__).parent / "golden"
FORMATS = sorted(GOLDEN.glob("format-*"))


@pytest.fixture(params=FORMATS, ids=lambda folder: folder.name)
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A copy of a stored run."""
    monkeypatch.chdir(tmp_path)
    return RunFolder(Path(shutil.copytree(request.param / "run", tmp_path / "run")))


def samples(folder: RunFolder, part: str) -> np.ndarray:
    return load_student(folder.root / part).sample(4, seed=5).numpy()


def stored(request: pytest.FixtureRequest) -> np.ndarray:
    with np.load(request.node.callspec.params["run"] / "samples.npz", allow_pickle=False) as file:
        return file["samples"]


def test_every_format_up_to_the_present_one_is_stored() -> None:
    assert checkpoint.FORMAT == student.FORMAT, "one folder is stored for both"
    assert [folder.name for folder in FORMATS] == [f"format-{number + 1}" for number in range(checkpoint.FORMAT)]


@pytest.mark.parametrize("part", ["", "student", "student/model.safetensors", "export", "checkpoints/update-000006"])
def test_a_stored_student_gives_its_samples(part: str, run: RunFolder, request: pytest.FixtureRequest) -> None:
    np.testing.assert_allclose(samples(run, part), stored(request), atol=1e-5)


@pytest.mark.usefixtures("quick")
def test_a_stored_checkpoint_is_continued(run: RunFolder, request: pytest.FixtureRequest) -> None:
    last = read_tensors(run.checkpoints / "update-000006" / "optim.safetensors")
    lines = run.metrics.read_text().splitlines()
    # as if it had been killed on the way from update 4 to 6
    shutil.rmtree(run.checkpoints / "update-000006")
    shutil.rmtree(run.student)
    run.update_record(status="running")
    distill(run.recipe, output=run.root, resume=True)
    np.testing.assert_allclose(samples(run, "student"), stored(request), atol=1e-5)
    again = read_tensors(run.checkpoints / "update-000006" / "optim.safetensors")
    assert again.keys() == last.keys()
    for name, value in last.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-3, atol=1e-6, err_msg=name)
    for line, before in zip(run.metrics.read_text().splitlines(), lines, strict=True):
        for name, value in json.loads(before).items():
            assert name == "seconds" or json.loads(line)[name] == pytest.approx(value, rel=1e-3), name


def test_a_newer_format_is_refused_politely(run: RunFolder) -> None:
    manifest = run.checkpoints / "update-000006" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    file = run.student / "model.safetensors"
    write_tensors(file, read_tensors(file), read_header(file) | {"format": 99})
    for part in ("checkpoints/update-000006", "student", ""):
        with pytest.raises(MfdError, match="format 99, this mfd reads up to") as caught:
            load_student(run.root / part)
        assert caught.value.do == "use a newer mfd" and caught.value.exit_code == 2
