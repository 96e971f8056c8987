"""Ctrl-C and SIGTERM at any moment: a checkpoint, the contract's exit code, and an end as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from mfd_cli import cli
from mfd_cli.errors import Interrupted
from mfd_cli.methods.mfd import MeanFlowDistillation
from mfd_cli.store.checkpoint import newest_valid
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import read_student
from mfd_cli.training import checkpoints
from mfd_cli.training import run as story
from mfd_cli.training.batches import Batches
from mfd_cli.training.run import distill
from mfd_cli.training.signals import StopRequest
from mfd_cli.training.tracking import MetricsFile
from mfd_cli.training.trainer import Trainer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Ctrl-C is heard, as in a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def signalling(function: Callable[..., Any], number: signal.Signals, call: int, times: int = 1) -> Callable[..., Any]:
    """The function, during whose `call`-th call this process receives a signal."""
    calls = []

    def wrapped(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return function(*arguments, **more)

    return wrapped


MOMENTS = {
    "first preview": (story, "save_preview", 1),
    "wait for data": (Batches, "condition", 3),
    "forward of the auxiliary": (MeanFlowDistillation, "auxiliary_loss", 4),
    "integration of the teacher": (MeanFlowDistillation, "velocities", 2),
    "backward of the auxiliary": (Accelerator, "backward", 5),
    "backward of the student": (Accelerator, "backward", 6),
    "optimizer": (torch.optim.AdamW, "step", 5),
    "check of the gradient": (Trainer, "_check", 5),
    "metrics": (MetricsFile, "write", 2),
    "preview": (story, "save_preview", 2),
    "save": (checkpoints, "save_checkpoint", 1),
    "last step": (MeanFlowDistillation, "student_loss", 6),
    "last save": (checkpoints, "save_checkpoint", 3),
    "student": (story, "save_student", 1),
    "last preview": (story, "save_preview", 4),
    "closing check": (story, "closing_report", 1),
    "report of the closing check": (story, "write_json", 1),
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_saves_and_the_run_continues_to_the_same_end(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["log.checkpoint_every=2", "log.preview_every=2"]
    if "closing" in moment:
        settings += ["evaluate.num=64"]
        monkeypatch.setattr(story, "closing_report", lambda *_, **__: {"schema": 1})
    number = signal.SIGINT if len(moment) % 2 else signal.SIGTERM
    owner, name, call = MOMENTS[moment]
    before = [signal.getsignal(each) for each in CODES]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalling(getattr(owner, name), number, call))
        with pytest.raises(Interrupted) as caught:
            distill("tiny.yaml", output="my run", overrides=settings)
    assert [signal.getsignal(each) for each in CODES] == before
    assert caught.value.exit_code == CODES[number]
    assert str(caught.value.do) == "continue with `mfd distill 'my run/recipe.yaml' -o 'my run' --resume`"
    run = RunFolder(Path("my run"))
    record = run.read_record()
    assert record["status"] == "interrupted" and number.name in record["reason"]
    checkpoint, damaged = newest_valid(run.checkpoints)
    assert checkpoint is not None and checkpoint.state["update"] == record["update"] and not damaged
    distill("tiny.yaml", output="my run", overrides=settings, resume=True)
    whole = distill("tiny.yaml", output="whole", overrides=settings)
    assert read_student(run.root).config["weights_sha256"] == read_student(whole.root).config["weights_sha256"]
    assert run.read_record()["status"] == "finished"


#: what a command does before training begins, and between training and its end
OUTSIDE = {
    "model load": (story, "build", []),
    "models on their devices": (story, "Session", []),
    "first files": (story.Session, "open", []),
    "checkpoint load": (checkpoints, "restore", ["--resume"]),
    "end of training": (story.Session, "finish", []),
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("moment", OUTSIDE)
def test_a_signal_outside_of_training_ends_the_command_at_once(
    moment: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["log.checkpoint_every=2"]
    owner, name, flags = OUTSIDE[moment]
    if flags:
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(Trainer, "step", signalling(Trainer.step, signal.SIGTERM, 10))
            distill("tiny.yaml", output="run", overrides=settings)
    before = [signal.getsignal(each) for each in CODES]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalling(getattr(owner, name), number, 1))
        patch.setattr(sys, "argv", ["mfd", "distill", "tiny.yaml", "-o", "run", "--set", settings[0], *flags])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert caught.value.code == CODES[number]
    assert [signal.getsignal(each) for each in CODES] == before
    assert not list(Path().rglob(".*")), "no lock and no temporary file stays"
    run = RunFolder(Path("run"))
    assert run.is_run() == (moment not in ("model load", "models on their devices", "first files"))
    if run.is_run() and not flags:
        assert run.read_record()["status"] == "interrupted"
    distill("tiny.yaml", output="run", overrides=settings, resume=run.is_run())
    whole = distill("tiny.yaml", output="whole", overrides=settings)
    assert read_student(run.root).config["weights_sha256"] == read_student(whole.root).config["weights_sha256"]


@pytest.mark.usefixtures("tiny")
def test_a_stop_costs_one_step_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        MeanFlowDistillation, "student_loss", signalling(MeanFlowDistillation.student_loss, signal.SIGTERM, 2)
    )
    with pytest.raises(Interrupted):
        distill("tiny.yaml", output="run")
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["update-000002.1"]


@pytest.mark.usefixtures("tiny")
def test_a_second_ctrl_c_stops_at_once_and_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["log.checkpoint_every=1"]
    with monkeypatch.context() as patch:
        patch.setattr(
            "mfd_cli.store.checkpoint.write_tensors",
            # the second part of the third save
            signalling(checkpoints.save_checkpoint.__globals__["write_tensors"], signal.SIGINT, 10, times=2),
        )
        with pytest.raises(KeyboardInterrupt):
            distill("tiny.yaml", output="run", overrides=settings)
    run = RunFolder(Path("run"))
    assert run.read_record()["status"] == "interrupted"
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["update-000001", "update-000002"]
    distill("tiny.yaml", output="run", overrides=settings, resume=True)
    whole = distill("tiny.yaml", output="whole", overrides=settings)
    assert read_student(run.root).config["weights_sha256"] == read_student(whole.root).config["weights_sha256"]


def test_handlers_are_put_back_and_the_first_signal_is_remembered() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        stop.at_once = True
        os.kill(os.getpid(), signal.SIGTERM)


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < 60
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
def test_the_command_exits_with_the_contracts_code(number: signal.Signals, start: Any) -> None:
    process = start("distill", "tiny.yaml", "--set", "train.updates=100000")
    metrics = Path("runs/tiny/metrics.jsonl")
    until(lambda: metrics.is_file() and metrics.stat().st_size > 0, process)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == CODES[number]
    assert f"stopped by {number.name} after update" in told and "Traceback" not in told
    found, _ = newest_valid(Path("runs/tiny/checkpoints"))
    assert found is not None and found.state["update"] > 0
    assert not list(Path("runs/tiny").rglob(".*")), "no lock and no temporary file stays"


@pytest.mark.slow
def test_a_kill_while_saving_loses_at_most_one_interval(start: Any) -> None:
    settings = ["--set", "log.checkpoint_every=1", "--set", "train.updates=40"]
    process = start("distill", "tiny.yaml", *settings)
    folder = Path("runs/tiny/checkpoints")
    until(lambda: folder.is_dir() and len(list(folder.glob("update-*"))) > 1, process)
    process.kill()
    process.communicate()
    found, damaged = newest_valid(folder)
    assert found is not None and not damaged
    again = start("distill", "tiny.yaml", *settings, "--resume")
    _, told = again.communicate(timeout=60)
    assert again.returncode == 0, told
    assert f"continues from {found.path.name}" in told
    whole = distill("tiny.yaml", output="whole", overrides=settings[1::2])
    assert (
        read_student(Path("runs/tiny")).config["weights_sha256"] == (read_student(whole.root).config["weights_sha256"])
    )
    assert not list(Path("runs/tiny").rglob(".*"))
