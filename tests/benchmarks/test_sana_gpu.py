"""Without a GPU: the refusal, and the whole script on the tiny pipeline."""

import json
import sys

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")


@pytest.fixture
def module(script):
    return script("sana_gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_and_ends_with_2(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sana_gpu.py"])
    with pytest.raises(SystemExit) as end:
        module.run(module.main)
    assert end.value.code == 2 and "no CUDA device" in capsys.readouterr().err


def test_running_out_of_memory_is_a_row(module, monkeypatch):
    def full(trainer, count):
        raise torch.OutOfMemoryError

    class Workshop:
        class accelerator:
            device = torch.device("cpu")

        class recipe:
            class train:
                checkpointing = False

        batches = None

        def trainer(self):
            return None

    monkeypatch.setattr(module, "cycles", full)
    monkeypatch.setattr(module, "replace", lambda batches, batch_size: batches)
    row = module.updates(Workshop(), 8, 1, 24)
    assert row == {"batch": 8, "checkpointing": False, "out_of_memory": True}
    assert module._update_cells(row)[-1] == "out of memory"


@pytest.mark.slow
def test_a_quick_run_on_the_cpu(module, tmp_path, monkeypatch):
    monkeypatch.setenv("MFD_CACHE", str(tmp_path))
    path, picture = tmp_path / "found.json", tmp_path / "found.png"
    module.main([
        "--device", "cpu", "--recipe", "sana-tiny", "--quick", "--batches", "1", "2", "--json", str(path),
        "--plot", str(picture), "--set", "method.solver={type: euler, step_size: 0.5}",
    ])  # fmt: skip
    found = json.loads(path.read_text())
    assert [(row["batch"], row["checkpointing"]) for row in found["updates"]] == [
        (1, False), (2, False), (1, True), (2, True)
    ]  # fmt: skip
    assert all(row["student_seconds"] > 0 and row["auxiliary_seconds"] > 0 for row in found["updates"])
    evaluations = {row["model"]: (row["steps"], row["evaluations"]) for row in found["sampling"]}
    assert evaluations == {"student": (1, 1), "teacher": (20, 40)}
    assert picture.read_bytes().startswith(b"\x89PNG")
