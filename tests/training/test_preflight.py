"""What cannot be is refused before anything is loaded, fetched or written."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest

from mfd_cli.errors import MfdError
from mfd_cli.training.run import distill
from teachers.pipelines.sana import SanaTeacher


@pytest.fixture(autouse=True)
def nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without files, where nothing can be loaded and no connection opened."""

    def refused(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("asked for before the contradiction was seen")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(SanaTeacher, "load", refused)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", refused)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["student.steps=65"], "student.steps: is 65"),
        (["student.lora.rank=0"], "student.lora.rank: is 0"),
        (["student.weights=full"], "lora is given but weights is full"),
        (["train.ema=1"], "train.ema: is 1"),
        (["train.ema=0"], "train.ema: is 0"),
        (["train.precision=fp16"], "train.precision"),
        (["train.accumulation=3"], "batch_size 8 is not divisible by accumulation 3"),
        (["log.keep=1"], "log.keep: is 1"),
        (["evaluate.patience=2"], "patience counts quick judgements"),
        (["method.solver.step_size=0.1"], "give step_size or steps"),
        (["method.type=dmd2"], "method dmd2 learns from real samples, and data 'prompts' gives none"),
        (["method.adversarial={}"], "learns from real samples"),
        (["method.type=meanflow"], "student is a flow map"),
        (["evaluate.every=10"], "nothing to hold samples against, and evaluate.metrics lists no metric"),
        (["optim.student.type=adamw8bit"], "bitsandbytes is not installed"),
        (["optim.aux.type=adamw8bit"], "bitsandbytes is not installed"),
    ],
)
def test_a_contradiction_is_refused_before_any_download(
    settings: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MfdError) as caught:
        distill("sana", overrides=settings)
    assert words in str(caught.value) and caught.value.exit_code == 2
    assert caught.value.allowed or caught.value.do
    assert not list(Path().iterdir())


def test_a_batch_that_processes_cannot_share_is_refused_before_any_download(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(MfdError, match="cannot be shared by 3 processes"):
        distill("sana")


def test_without_a_contradiction_the_teacher_is_asked_for() -> None:
    Path("prompts.tsv").write_text("0\ta fox\n")
    with pytest.raises(AssertionError, match="asked for"):
        distill("sana")
