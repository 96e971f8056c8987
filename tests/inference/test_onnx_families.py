"""ONNX graphs of the larger families: forecasts down to classes, prompts of any length, an adapter merged in."""

import re

import numpy as np
import onnxruntime
import pytest
import torch

from mfd_cli.config.schema import Lora
from mfd_cli.flow import time_grid
from mfd_cli.inference.onnx_export import export_onnx
from mfd_cli.inference.sampler import load_student
from mfd_cli.networks.roles import share_base
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import save_student, student_tensors
from teachers.occfm.driving import TinySettings, TinyTeacher
from teachers.pipelines.sana import SanaSettings, SanaTeacher

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning")]


def stored(root, teacher, state, data, steps=1, **student):
    block = {"steps": steps, "shift": 3.0, "sampler": "euler", "grid": time_grid(steps, 3.0).tolist(),
             "weights": "full", "first_time": teacher.first_time} | student  # fmt: skip
    settings = teacher.settings.model_dump()
    config = {"teacher": settings, "architecture": teacher.architecture, "student": block, "update": 3, "data": data,
              "method": "mfd", "identity": teacher.identity(),
              "recipe": {"name": "tiny", "teacher": settings}}  # fmt: skip
    root.mkdir()
    run = RunFolder(root)
    run.update_record(status="done")
    save_student(run.student, config, state)
    return load_student(root)


def test_a_forecast_comes_out_as_classes(tiny_occfm, tmp_path):
    teacher = TinyTeacher.load(TinySettings(type="occfm-tiny", weights=str(tiny_occfm)))
    data = {"type": "driving", "scenes": 1, "held_out": 2, "frames": 13}
    state = student_tensors(teacher.network, teacher.carried())
    student = stored(tmp_path / "run", teacher, state, data)
    done = export_onnx(student, tmp_path / "out")
    assert sorted(file.name for file in done.file.parent.iterdir()) == ["README.md", "example.npz", "tiny.onnx"]
    session = onnxruntime.InferenceSession(done.file)
    assert {entry.name for entry in session.get_inputs()} == {"noise", "history", "trajectory"}
    expected = student.sample(2, seed=5, asked=[0, 1]).numpy()
    condition = student.teacher.encode([0, 1])
    inputs = {"noise": student.noise(2, seed=5), **condition}
    (found,) = session.run(["sample"], {name: value.numpy() for name, value in inputs.items()})
    assert found.dtype == np.uint8 and len(np.unique(expected)) > 1
    assert (found != expected).mean() < 1e-4


def test_an_adapter_is_merged_and_prompts_have_any_length(tiny_sana, tmp_path):
    settings = SanaSettings(type="sana", model=str(tiny_sana), dtype="bf16", encoder_dtype="fp32", resolution=64)
    teacher = SanaTeacher.load(settings)
    lora = {"rank": 2, "alpha": 6.0, "targets": ["to_q", "to_v"]}
    adapter = share_base(teacher, Lora(**lora), ["student"]).networks["student"].state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in adapter.items()}
    student = stored(tmp_path / "run", teacher, state, {"type": "prompts"}, steps=2, weights="lora", lora=lora)
    done = export_onnx(student, tmp_path / "out")
    assert re.match(r"batches of 1 and 3 within \de-0[5-9] ", done.check), done.check
    card = done.card.read_text()
    assert "float32 [batch, tokens, 32]" in card and "`latents`" in card and str(tiny_sana) not in card
    assert (done.file.parent / "example.npz").is_file()
    assert student.teacher.network.dtype == torch.bfloat16, "put back as it was"
