"""`mfd export`: where it writes, what it prints, what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from mfd_cli.commands.export import export
from mfd_cli.errors import MfdError
from mfd_cli.inference import exporters, pipeline_exports
from mfd_cli.inference.sampler import load_student
from mfd_cli.store.checkpoint import save_checkpoint
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import save_student
from teachers.networks.mlp import PointMLP

ARCHITECTURE = {"dim": 2, "width": 8, "depth": 1, "frequencies": 2}
CONFIG = {
    "teacher": {"type": "gmm"},
    "architecture": ARCHITECTURE,
    "student": {"steps": 1, "shift": 1.0, "sampler": "euler", "grid": [0.0, 1.0]},
    "data": {"type": "gmm"},
    "method": "mfd",
    "update": 10,
    "recipe": {"name": "toy", "seed": 0},
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "runs" / "toy")
    folder.root.mkdir(parents=True)
    folder.update_record(status="done")
    torch.manual_seed(0)
    save_student(folder.student, CONFIG, PointMLP(**ARCHITECTURE).state_dict())
    return folder


@pytest.fixture
def unchecked(monkeypatch):
    """Leaves out the fresh process, which test_exporters.py covers."""
    monkeypatch.setattr(exporters, "check_export", lambda file, student, dtype: "not checked")


def test_newest_run_becomes_a_checked_file_that_samples_alike(run, capsys):
    (done,) = export()
    assert done.file.resolve() == run.root / "export" / "toy.safetensors"
    said = capsys.readouterr().out
    assert "toy.safetensors" in said and done.sha256[:12] in said and "equal bit for bit" in said
    assert torch.equal(load_student(done.file.parent).sample(9, seed=4), load_student(run.root).sample(9, seed=4))
    assert sorted(file.name for file in done.file.parent.iterdir()) == ["README.md", "toy.safetensors"]


def test_benchmark_figures_reach_the_card(run, unchecked):
    rows = [{"model": "student", "steps": 1, "evaluations": 1, "batch_size": 8, "fps": 123.456, "metrics": {"sw": 0.5}}]
    (run.root / "benchmark.json").write_text(json.dumps({"schema": 1, "device": "cpu", "rows": rows}))
    assert "| student | 1 | 1 | 8 | 123.5 | 0.5 |" in export(str(run.root))[0].card.read_text()


def test_a_damaged_benchmark_report_is_an_error(run, unchecked):
    (run.root / "benchmark.json").write_text("{")
    with pytest.raises(MfdError, match="cannot be read"):
        export(str(run.root))
    assert not (run.root / "export").exists()


@pytest.mark.parametrize(
    ("flag", "why"),
    [("lora", "nothing to export as LoRA"), ("merged", "no adapter to merge"), ("diffusers", "no diffusers pipeline")],
)  # fmt: skip
def test_formats_this_student_cannot_have(run, flag, why):
    with pytest.raises(MfdError, match=why):
        export(str(run.root), safetensors=True, **{flag: True})
    assert not (run.root / "export").exists()


def test_several_formats_get_folders_of_their_own(run, monkeypatch, tmp_path, unchecked, capsys):
    def pipeline(student, folder, kind, *, dtype, benchmark):
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(dtype)
        return exporters.Export(folder / "README.md", folder / "README.md", "0" * 64, f"checked {kind}")

    monkeypatch.setattr(pipeline_exports, "refusal", lambda flag, student: None)
    monkeypatch.setattr(pipeline_exports, "export_pipeline", pipeline)
    folders = lambda **asked: [done.card.parent.relative_to(tmp_path) for done in export(str(run.root), **asked)]  # noqa: E731
    every = {"safetensors": True, "lora": True, "merged": True, "diffusers": True}
    default = Path("runs/toy/export")
    assert folders(**every) == [default, default / "lora", default / "diffusers"]
    named = [Path("a/safetensors"), Path("a/lora"), Path("a/diffusers")]
    assert folders(**every, output=tmp_path / "a") == named
    assert folders(lora=True, output=tmp_path / "b") == [Path("b")]
    said = capsys.readouterr().out
    assert "checked lora" in said and "checked diffusers" in said


def test_dtype_and_folder_are_checked_first(run, tmp_path):
    with pytest.raises(MfdError, match="fp32, bf16, fp16"):
        export(str(run.root), dtype="int8")
    (tmp_path / "file").touch()
    with pytest.raises(MfdError, match="is a file"):
        export(str(run.root), output=tmp_path / "file")


def test_a_checkpoint_gets_a_folder_of_its_own(run, unchecked):
    weights = PointMLP(**ARCHITECTURE).state_dict()
    path = save_checkpoint(
        run.checkpoints, update=5, inside=0, parts={"student": weights}, state={"student": CONFIG}, keep=2
    )
    assert export(str(path))[0].file == run.root / "export" / path.name / "toy.safetensors"


def test_an_export_is_exported_again_only_with_a_place(run, unchecked, tmp_path):
    (first,) = export(str(run.root))
    with pytest.raises(MfdError, match="-o DIR"):
        export(str(first.file))
    assert export(str(first.file), dtype="bf16", output=tmp_path / "half")[0].file.is_file()
