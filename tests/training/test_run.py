"""A whole run: what it leaves, what it counts, and what happens when the disk is full."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError, RunStopped
from mfd_cli.store import files
from mfd_cli.store.checkpoint import newest_valid
from mfd_cli.store.layout import RunFolder, find
from mfd_cli.store.student import read_student
from mfd_cli.training import tracking
from mfd_cli.training.run import distill
from mfd_cli.training.trainer import Trainer
from mfd_cli.training.workshop import build

pytestmark = pytest.mark.usefixtures("tiny")


def lines(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_a_run_folder_holds_what_the_contract_says() -> None:
    run = distill("tiny.yaml")
    assert run.root == Path("runs/tiny") == find(None)
    assert {path.name for path in run.root.iterdir()} == {
        "recipe.yaml", "run.json", "metrics.jsonl", "previews", "checkpoints", "student",
    }  # fmt: skip
    assert {path.name for path in run.student.iterdir()} == {"model.safetensors", "config.json"}
    assert [path.name for path in run.checkpoints.iterdir()] == ["update-000006"]
    assert {path.name for path in (run.checkpoints / "update-000006").iterdir()} == {
        "student.safetensors", "aux.safetensors", "ema.safetensors", "optim.safetensors", "state.json", "manifest.json",
    }  # fmt: skip
    assert load_recipe(str(run.recipe)).resolved == load_recipe("tiny.yaml").resolved


def test_the_record_says_how_it_went() -> None:
    record = distill("tiny.yaml").read_record()
    assert record["status"] == "finished" and record["update"] == 6 and record["seconds"] > 0
    assert record["recipe"] == "tiny" and record["method"] == "mfd" and record["processes"] == 1
    assert record["threads"] == 1 and record["device"] and set(record["teacher"]) == {"mixture"}
    assert {"mfd", "python", "torch", "accelerate", "safetensors"} <= record["versions"].keys()
    assert record["started"] <= record["finished"]
    assert record["parameters"] == 6 * 16 + 16 + 16 * 2 + 2


def test_the_student_is_the_average_if_there_is_one() -> None:
    averaged, raw = distill("tiny.yaml", output="a"), distill("tiny.yaml", output="b", overrides=["train.ema=null"])
    for run, part in ((averaged, "ema"), (raw, "student")):
        checkpoint, _ = newest_valid(run.checkpoints)
        assert checkpoint is not None
        expected = checkpoint.tensors(part)
        assert all(torch.equal(value, expected[name]) for name, value in read_student(run.root).weights.items())
    assert not (raw.checkpoints / "update-000006" / "ema.safetensors").exists()
    assert not torch.equal(*(read_student(run.root).weights["layers.0.weight"] for run in (averaged, raw)))


BATCH, UPDATES, AUX = 16, 6, 2


@pytest.mark.parametrize(
    ("settings", "student", "aux", "teacher"),
    [
        # a student update: 1 generation, 2 solver steps of each field; an auxiliary one: 1 generation, 1 evaluation
        ([], 1 + AUX, 2 + AUX, 2),
        (["method.solver.steps=4"], 1 + AUX, 4 + AUX, 4),
        (["method.solver={type: rk4, steps: 3}"], 1 + AUX, 12 + AUX, 12),
        (["student.steps=3", "train.accumulation=4"], 3 * (1 + AUX), 2 + AUX, 2),
        (["method.type=diff-instruct"], 1 + AUX, 1 + AUX, 1),
    ],
)
def test_evaluations_are_counted_exactly(settings: list[str], student: int, aux: int, teacher: int) -> None:
    run = distill("tiny.yaml", overrides=settings)
    per_update = BATCH * (student + aux + teacher)
    assert [line["evaluations"] for line in lines(run)] == [per_update * (1 + n) for n in range(UPDATES)]
    assert run.read_record()["evaluations"] == {
        "student": UPDATES * BATCH * student, "aux": UPDATES * BATCH * aux, "teacher": UPDATES * BATCH * teacher,
    }  # fmt: skip


def test_metrics_have_the_fields_of_the_contract() -> None:
    found = lines(distill("tiny.yaml", overrides=["log.every=4", "optim.student={lr: 1e-3, schedule: linear}"]))
    assert [line["update"] for line in found] == [4, 6]
    for line in found:
        assert {"update", "loss", "aux_loss", "grad_norm", "lr", "seconds", "evaluations"} <= line.keys()
        assert all(isinstance(value, (int, float)) for value in line.values())
        assert line["loss"] > 0 and line["aux_loss"] > 0 and line["grad_norm"] > 0
    assert found[0]["seconds"] < found[1]["seconds"]
    rates = [1e-3 * (0.1 + 0.9 * (1 - update / 6)) for update in range(6)]
    assert found[0]["lr"] == pytest.approx(sum(rates[:4]) / 4) and found[1]["lr"] == pytest.approx(sum(rates[4:]) / 2)


def test_a_second_run_in_the_process_may_want_another_precision_or_device() -> None:
    for index, settings in enumerate((["train.precision=fp32"], ["train.precision=bf16"], ["train.precision=fp32"])):
        distill("tiny.yaml", output=str(index), overrides=settings, device=["cpu", None, "cpu"][index])
    first, half, again = (read_student(Path(str(index))) for index in range(3))
    assert first.config["weights_sha256"] == again.config["weights_sha256"] != half.config["weights_sha256"]
    assert {value.dtype for value in half.weights.values()} == {torch.float32}


def gradients(settings: list[str], step: int) -> list[torch.Tensor]:
    """Gradients of one step's role."""
    from mfd_cli.methods.registry import methods

    workshop = build(load_recipe("tiny.yaml", settings), "cpu")
    recipe = workshop.recipe
    method = methods.get(recipe.method.type)(recipe.method)
    trainer = Trainer(recipe, method, workshop.teacher, workshop.roles, workshop.batches, workshop.accelerator)
    role = workshop.roles.student if trainer.schedule.is_student(step) else workshop.roles.auxiliary
    loss = trainer._gradient(step, [role], role is workshop.roles.student)
    return [loss.value, loss.report, *(value.grad for value in role.network.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("method", ["mfd", "diff-instruct"])
@pytest.mark.parametrize("step", [1, 2])
def test_accumulation_gives_the_same_loss_and_gradient(method: str, step: int) -> None:
    whole = gradients([f"method.type={method}"], step)
    for parts in (2, 16):
        cut = gradients([f"method.type={method}", f"train.accumulation={parts}"], step)
        for one, other in zip(whole, cut, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_gradient_left_by_the_teachers_fit_does_not_reach_the_first_step() -> None:
    from mfd_cli.methods.registry import methods

    workshop = build(load_recipe("tiny.yaml"), "cpu")
    for role in (workshop.roles.student, workshop.roles.auxiliary):
        for value in role.network.parameters():
            value.grad = torch.full_like(value, 1e3)
    recipe = workshop.recipe
    trainer = Trainer(
        recipe, methods.get("mfd")(recipe.method), workshop.teacher, workshop.roles, workshop.batches,
        workshop.accelerator,
    )  # fmt: skip
    for _ in range(trainer.schedule.cycle):
        trainer.step()
    assert trainer.metrics()["grad_norm"] < 100


def test_only_the_role_whose_turn_it_is_learns() -> None:
    from mfd_cli.methods.registry import methods

    workshop = build(load_recipe("tiny.yaml"), "cpu")
    roles, recipe = workshop.roles, workshop.recipe
    trainer = Trainer(
        recipe, methods.get("mfd")(recipe.method), workshop.teacher, roles, workshop.batches, workshop.accelerator
    )

    def copies() -> list[list[torch.Tensor]]:
        networks = (roles.student.network, roles.auxiliary.network, roles.final(), workshop.teacher.network)
        return [[value.clone() for value in network.state_dict().values()] for network in networks]

    def moved(before: list[list[torch.Tensor]]) -> list[bool]:
        return [
            any(not torch.equal(*pair) for pair in zip(*two, strict=True)) for two in zip(before, copies(), strict=True)
        ]

    for inside in range(trainer.schedule.cycle):
        before = copies()
        trainer.step()
        student = inside == trainer.schedule.cycle - 1
        assert moved(before) == [student, not student, student, False]


@pytest.mark.parametrize("device", ["cuda", "mps", "gpu", "cpu:1"])
def test_a_device_that_is_not_here_is_refused_and_nothing_is_written(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MfdError, match=f"--device {device}: not here") as caught:
        distill("tiny.yaml", device=device)
    assert caught.value.allowed == "cpu" and not Path("runs").exists()


def test_a_tracker_that_is_missing_is_found_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    distill("tiny.yaml", output="run")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(MfdError, match=r"log\.trackers: wandb is not installed") as caught:
        distill("tiny.yaml", output="run", overrides=["log.trackers=[wandb]"], force=True)
    assert caught.value.do == "pip install 'mfd[wandb]'"
    assert read_student(Path("run")), "the earlier run is still there"


def test_trackers_get_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    monkeypatch.setattr(tracking, "find_spec", lambda name: True)
    monkeypatch.setitem(tracking._OPEN, "tensorboard", lambda *about: lambda numbers: heard.append(numbers["update"]))
    distill("tiny.yaml", overrides=["log.trackers=[tensorboard]", "log.every=2"])
    assert heard == [2, 4, 6]


class Full:
    """A file on a disk that is full after some writes."""

    def __init__(self, file: Any, writes: int) -> None:
        self.file, self.left, self.name = file, writes, file.name

    def write(self, content: bytes) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(content)

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


def test_a_disk_that_fills_up_during_a_checkpoint_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["log.checkpoint_every=2"]
    original, calls = files.write_bytes, []

    def filling(path: Path, content: bytes) -> None:
        if path.name == "aux.safetensors" and calls.append(1) is None and len(calls) == 2:
            with files.disk_errors(path, len(content)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("mfd_cli.store.tensors.write_bytes", filling)
        with pytest.raises(RunStopped, match=r"aux\.safetensors: No space left on device, .* needed") as caught:
            distill("tiny.yaml", output="run", overrides=settings)
    run = RunFolder(Path("run"))
    assert caught.value.exit_code == 3 and run.read_record()["status"] == "stopped"
    assert [path.name for path in run.checkpoints.iterdir()] == ["update-000002"]
    distill("tiny.yaml", output="run", overrides=settings, resume=True)
    whole = distill("tiny.yaml", output="whole", overrides=settings)
    assert read_student(run.root).config["weights_sha256"] == read_student(whole.root).config["weights_sha256"]


def test_a_disk_that_fills_up_during_a_line_of_metrics_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    original = tracking.MetricsFile.__init__

    def init(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        self._file = Full(self._file, 3)

    monkeypatch.setattr(tracking.MetricsFile, "__init__", init)
    with pytest.raises(RunStopped, match=r"metrics\.jsonl: No space left on device"):
        distill("tiny.yaml", output="run", overrides=["log.checkpoint_every=2"])
    run = RunFolder(Path("run"))
    assert newest_valid(run.checkpoints)[0] is not None and run.read_record()["status"] == "stopped"


def test_a_failure_of_ours_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **more: Any) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("mfd_cli.training.run.save_student", broken)
    with pytest.raises(ZeroDivisionError):
        distill("tiny.yaml", output="run")
    record = RunFolder(Path("run")).read_record()
    assert record["status"] == "failed" and record["reason"] == "ZeroDivisionError: oh"
    assert not Path("run/.lock").exists()
