"""Folders for diffusers: checked with diffusers alone, whole or absent, never over something else."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mfd_cli.config.schema import Lora
from mfd_cli.errors import MfdError, RunStopped
from mfd_cli.flow import time_grid
from mfd_cli.inference import export_folders, pipeline_exports
from mfd_cli.inference.pipeline_exports import check_folder, export_pipeline, refusal
from mfd_cli.inference.sampler import load_student
from mfd_cli.networks.roles import share_base
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import save_student
from teachers.networks.mlp import PointMLP
from teachers.pipelines import plain, saving
from teachers.pipelines.sana import SanaSettings, SanaTeacher

pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning")

STEPS = 2


def stored(root, tiny_sana, weights="lora", **changes):
    """A run folder with a student far from its teacher, without training."""
    settings = SanaSettings(**{"type": "sana", "model": str(tiny_sana), "dtype": "fp32", "encoder_dtype": "fp32",
                               "resolution": 64} | changes)  # fmt: skip
    teacher = SanaTeacher.load(settings)
    identity, architecture = teacher.identity(), teacher.architecture
    lora = {"rank": 2, "alpha": 6.0, "targets": ["to_q", "to_v"]}
    if weights == "lora":
        network = share_base(teacher, Lora(**lora), ["student"]).networks["student"]
    else:
        network = teacher.initial_network(0)
    generator = torch.Generator().manual_seed(0)
    state = {name: value + 0.1 * torch.randn(value.shape, generator=generator)
             for name, value in network.state_dict().items()}  # fmt: skip
    student = {"steps": STEPS, "shift": 3.0, "sampler": "euler", "grid": time_grid(STEPS, 3.0).tolist(),
               "weights": weights, "first_time": teacher.first_time}  # fmt: skip
    if weights == "lora":
        student["lora"] = lora
    config = {"teacher": settings.model_dump(), "architecture": architecture, "student": student, "update": 3,
              "data": {"type": "prompts"}, "method": "mfd", "identity": identity,
              "recipe": {"name": "tiny", "teacher": settings.model_dump()}}  # fmt: skip
    root.mkdir(parents=True)
    run = RunFolder(root)
    run.update_record(status="done")
    save_student(run.student, config, state)
    return root


@pytest.fixture
def student(tiny_sana, tmp_path):
    return load_student(stored(tmp_path / "run", tiny_sana))


@pytest.fixture
def unchecked(monkeypatch):
    monkeypatch.setattr(pipeline_exports, "check_folder", lambda *arguments, **named: "not checked")


@pytest.fixture
def here(monkeypatch):
    """Does in this process what the fresh one does, which saves the imports."""
    monkeypatch.setattr(plain, "_OURS", ())
    monkeypatch.setattr(
        pipeline_exports, "run_fresh", lambda script, arguments, **named: plain.main(Path(arguments[0]))
    )


@pytest.mark.parametrize("kind", ["lora", "diffusers"])
def test_an_export_has_passed_its_check_and_is_whole(student, tmp_path, here, kind):
    done = export_pipeline(student, tmp_path / "out" / kind, kind)
    assert re.fullmatch(r"latents within \de-0[789] \(from embeddings.*, \de-0[789] \(from prompts.*", done.check)
    assert done.card == tmp_path / "out" / kind / "README.md" and done.check in done.card.read_text()
    assert done.file.is_file() and done.sha256 in done.card.read_text()
    assert [file.name for file in (tmp_path / "out").iterdir()] == [kind], "nothing hidden is left"
    assert str(tmp_path) not in done.card.read_text()


def test_full_weights_make_a_pipeline(tiny_sana, tmp_path, here):
    full = load_student(stored(tmp_path / "run", tiny_sana, weights="full"))
    done = export_pipeline(full, tmp_path / "out", "diffusers")
    assert all(torch.equal(value, full.network.state_dict()[name]) for name, value in load_file(done.file).items())


def test_half_precision_is_stored_and_measured(student, tmp_path, here):
    done = export_pipeline(student, tmp_path / "out", "diffusers", dtype="bf16")
    assert {value.dtype for value in load_file(done.file).values()} == {torch.bfloat16}
    assert "0.05 allowed" in done.check


def test_a_base_in_half_precision_is_merged_in_float32_and_stays_as_it_is(tiny_sana, tmp_path, here):
    student = load_student(stored(tmp_path / "run", tiny_sana, dtype="bf16"))
    noise, condition = student.noise(2, seed=1), student.teacher.encode(["a", "b"])
    before = student.generate(noise, condition)
    for kind in ("lora", "diffusers"):
        assert "e-0" in export_pipeline(student, tmp_path / kind, kind).check.split("(")[0]
    assert student.teacher.network.dtype == torch.bfloat16
    assert torch.equal(student.generate(noise, condition), before)


@pytest.mark.parametrize("kind", ["lora", "diffusers"])
def test_what_samples_differently_is_not_kept(student, tmp_path, here, kind, monkeypatch):
    original = saving.scheduler_config
    monkeypatch.setattr(
        saving, "scheduler_config", lambda *rest, **named: original(*rest, **named) | {"shift_terminal": 0.7}
    )
    with pytest.raises(RunStopped, match="latents from embeddings differ"):
        export_pipeline(student, tmp_path / "out" / kind, kind)
    assert not (tmp_path / "out").exists()


def test_prompts_read_otherwise_are_noticed(student, tmp_path, here, monkeypatch):
    original = saving.call
    monkeypatch.setattr(saving, "call", lambda *rest: original(*rest) | {"complex_human_instruction": None})
    with pytest.raises(RunStopped, match="latents from prompts differ"):
        export_pipeline(student, tmp_path / "out", "lora")


def test_the_same_export_twice_is_fine_another_one_is_refused(student, tmp_path, unchecked):
    target = tmp_path / "out"
    target.mkdir()
    first = export_pipeline(student, target, "lora")
    before = first.file.read_bytes()
    assert export_pipeline(student, target, "lora").already_there
    for kind, dtype in (("lora", "bf16"), ("diffusers", "fp32")):
        with pytest.raises(MfdError, match="holds something else"):
            export_pipeline(student, target, kind, dtype=dtype)
    with torch.no_grad():
        next(student.network.parameters()).add_(1)
    with pytest.raises(MfdError, match="-o"):
        export_pipeline(student, target, "lora")
    assert first.file.read_bytes() == before


@pytest.mark.parametrize("name", ["README.md", "notes.txt"])
def test_foreign_files_are_left_alone(student, tmp_path, unchecked, name):
    target = tmp_path / "out"
    target.mkdir()
    (target / name).write_text("# mine")
    with pytest.raises(MfdError, match="holds something else"):
        export_pipeline(student, target, "diffusers")
    assert [file.name for file in target.iterdir()] == [name] and (target / name).read_text() == "# mine"


def test_space_is_asked_for_first(student, tmp_path, unchecked, monkeypatch):
    monkeypatch.setattr(export_folders, "free_bytes", lambda path: 900_000)
    export_pipeline(student, tmp_path / "small", "lora")
    with pytest.raises(RunStopped, match=r"1.0 MB needed, 900.0 kB free"):
        export_pipeline(student, tmp_path / "a" / "b", "diffusers")
    assert not (tmp_path / "a").exists()


def test_formats_are_refused_with_the_reason(student, tiny_sana, tmp_path, monkeypatch):
    assert [refusal(flag, student) for flag in ("--lora", "--merged", "--diffusers")] == [None] * 3
    assert "absolute path" in str(refusal("--safetensors", student)) and refusal("--onnx", student) is None
    full = load_student(stored(tmp_path / "full", tiny_sana, weights="full"))
    assert refusal("--diffusers", full) is None
    assert "nothing to export as LoRA" in str(refusal("--lora", full))
    assert "--diffusers already is all of it" in str(refusal("--merged", full))
    monkeypatch.setattr(saving, "adapter_refusal", lambda teacher: "no LoRA loader")
    assert "no LoRA loader" in str(refusal("--lora", student)) and refusal("--merged", student) is None
    assert "nothing to export as LoRA" in str(refusal("--lora", full))
    monkeypatch.undo()
    monkeypatch.setattr(SanaTeacher, "stock", None)
    for flag in ("--lora", "--merged", "--diffusers"):
        assert "does not say how its SanaPipeline is called" in str(refusal(flag, student))


def test_families_without_a_pipeline_keep_to_the_single_file(tmp_path):
    shape = {"dim": 2, "width": 8, "depth": 1, "frequencies": 2}
    config = {"teacher": {"type": "gmm"}, "architecture": shape, "data": {"type": "gmm"}, "update": 1,
              "student": {"steps": 1, "shift": 1.0, "grid": [0.0, 1.0]}, "recipe": {"name": "toy"}}  # fmt: skip
    run = RunFolder(tmp_path / "run")
    run.root.mkdir()
    run.update_record(status="done")
    save_student(run.student, config, PointMLP(**shape).state_dict())
    toy = load_student(run.root)
    assert refusal("--safetensors", toy) is None
    assert "no diffusers pipeline" in str(refusal("--diffusers", toy))
    assert refusal("--diffusers", toy).allowed == "--safetensors, --onnx"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "diffusers"])
def test_a_process_without_mfd_agrees_and_notices_what_was_spoilt(student, tiny_sana, tmp_path, kind):
    done = export_pipeline(student, tmp_path / "out", kind)
    assert re.match(r"latents within \de-0[789] ", done.check)
    (code,) = re.findall(r"```python\n(.*?)```", done.card.read_text(), re.DOTALL)
    code = "import sys; sys.modules['mfd_cli'] = None\n" + code.replace("path/to/the/base", str(tiny_sana))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out", check=True, capture_output=True, timeout=120)
    assert (tmp_path / "out/image.png").is_file()
    config = tmp_path / "out/scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_train_timesteps": 900}))
    with pytest.raises(RunStopped, match="latents from embeddings differ"):
        check_folder(tmp_path / "out", student, "fp32", adapter=kind == "lora")
