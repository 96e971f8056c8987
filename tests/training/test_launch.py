"""Two processes do the work of one: the same items and noise, the same student, one exit."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mfd_cli.errors import Interrupted, MfdError
from mfd_cli.store.checkpoint import newest_valid
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import read_student
from mfd_cli.training import launch as module
from mfd_cli.training.run import distill
from mfd_cli.training.trainer import Progress, Trainer

TWO = ("--processes", "2", "--device", "cpu")

#: writes down what each process sees, and after every 10 updates the weights it holds
LISTENING = """
import os
from mfd_cli.store.student import fingerprint
from mfd_cli.training.trainer import Trainer
from mfd_cli.training.batches import Batches
stream = Batches.stream
def listening(batches, step, index):
    random = stream(batches, step, index)
    with open(f"seen-{os.environ.get('RANK', '0')}.txt", "a") as file:
        print(step, random.first, random.count, float(random.normal("z", (2,)).double().sum()), file=file)
    return random
Batches.stream = listening
step = Trainer.step
def weighed(trainer, stop=False):
    told = step(trainer, stop)
    if trainer.progress.step % 10 == 0:
        roles = trainer.roles
        networks = [*(role.network for role in roles.trained()), roles.average.network]
        with open(f"weights-{os.environ.get('RANK', '0')}.txt", "a") as file:
            print(trainer.progress.step, *(fingerprint(network.state_dict()) for network in networks), file=file)
    return told
Trainer.step = weighed
"""

#: rank 1 meets a NaN in the fourth student step
POISONED = """
import os
from dataclasses import replace
from mfd_cli.methods.mfd import MeanFlowDistillation as Method
original, calls = Method.student_loss, []
def loss(method, batch):
    calls.append(1)
    found = original(method, batch)
    bad = len(calls) == 4 and os.environ.get("RANK") == "1"
    return replace(found, value=found.value * float("nan")) if bad else found
Method.student_loss = loss
"""

#: rank 1 fails alone in the fourth student step
FAILING = """
import os, time
from mfd_cli.errors import RunStopped
from mfd_cli.methods.mfd import MeanFlowDistillation as Method
original, calls = Method.student_loss, []
def loss(method, batch):
    calls.append(1)
    if len(calls) == 4 and os.environ.get("RANK") == "1":
        open("failed-at.txt", "w").write(str(time.time()))
        raise ERROR
    return original(method, batch)
Method.student_loss = loss
"""

#: rank 1 alone gets a signal in the fourth student step; each rank writes down where it ended
SIGNALLED = """
import os, signal
from mfd_cli.methods.mfd import MeanFlowDistillation as Method
from mfd_cli.training.trainer import Trainer
original, run, calls = Method.student_loss, Trainer.run, []
def loss(method, batch):
    calls.append(1)
    if len(calls) == 4 and os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return original(method, batch)
def watched(trainer, *arguments):
    try:
        run(trainer, *arguments)
    finally:
        open(f"stopped-{os.environ['RANK']}.txt", "w").write(str(trainer.progress.step))
Method.student_loss, Trainer.run = loss, watched
"""


def settings(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--set", text)]


def seen(rank: int) -> dict[int, tuple[int, int, float]]:
    lines = [line.split() for line in Path(f"seen-{rank}.txt").read_text().splitlines()]
    return {int(step): (int(first), int(count), float(total)) for step, first, count, total in lines}


@pytest.mark.slow
def test_two_processes_end_with_the_student_of_one(start: Any) -> None:
    longer = "train.updates=10"
    process = start("distill", "tiny.yaml", "-o", "two", *TWO, *settings(longer), plugin=LISTENING)
    out, told = process.communicate(timeout=240)
    two = RunFolder(Path("two"))
    assert two.is_run(), told
    one = distill("tiny.yaml", output="one", overrides=[longer])
    assert two.read_record()["processes"] == 2
    assert two.read_record()["evaluations"] == one.read_record()["evaluations"]
    mine, theirs = read_student(one.root).weights, read_student(two.root).weights
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-5)
    first, second = (
        [json.loads(line) for line in run.metrics.read_text().splitlines()] for run in (one, two)
    )  # fmt: skip
    for line, other in zip(first, second, strict=True):
        assert line["evaluations"] == other["evaluations"] and line["update"] == other["update"]
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-3)
    # what the processes saw together is what one sees
    from mfd_cli.seeds import Stream

    for step in range(30):
        (start_0, count_0, sum_0), (start_1, count_1, sum_1) = seen(0)[step], seen(1)[step]
        assert (start_0, count_0, start_1, count_1) == (0, 8, 8, 8)
        assert sum_0 + sum_1 == pytest.approx(float(Stream(0, step, 0, 16).normal("z", (2,)).double().sum()))
    weights = [Path(f"weights-{rank}.txt").read_text() for rank in (0, 1)]
    assert weights[0] == weights[1] and [line.split()[0] for line in weights[0].splitlines()] == ["10", "20", "30"]
    assert out.count("two/student/model.safetensors") == 1 and "Traceback" not in told


@pytest.mark.slow
def test_a_bad_value_in_one_process_stops_both(start: Any) -> None:
    process = start(
        "distill", "tiny.yaml", *TWO, *settings("log.checkpoint_every=2"), plugin=POISONED
    )  # fmt: skip
    _, told = process.communicate(timeout=120)
    assert process.returncode == 3, told
    # gradients are shared, so the other process sees the NaN in its norm; the culprit in its loss too
    assert told.count("student: not finite at update 3") == 2 and "loss nan" in told and "Traceback" not in told
    found, _ = newest_valid(Path("runs/tiny/checkpoints"))
    assert found is not None and found.state["update"] == 2
    assert RunFolder(Path("runs/tiny")).read_record()["status"] == "stopped"


@pytest.mark.slow
def test_one_process_judges_and_both_end_early(start: Any) -> None:
    process = start(
        "distill", "tiny.yaml", *TWO,
        *settings("train.updates=500", "optim.student.lr=1e-30", "guards.unmoved=null", "guards.after=1",
                  "guards.lag=0.001", "evaluate.every=2", "evaluate.quick_num=100", "evaluate.patience=2"),
    )  # fmt: skip
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    run = RunFolder(Path("runs/tiny"))
    record = run.read_record()
    assert record["status"] == "finished" and record["update"] == 4 and "2 quick judgements" in record["ended_early"]
    assert told.count("aux: has lost track") == 1, "a warning is told once, not by every process"
    assert [path.name for path in run.best.iterdir()] == [f"update-{record['best']['update']:06d}"]


@pytest.mark.slow
def test_a_signal_stops_both_at_the_same_step(start: Any) -> None:
    process = start("distill", "tiny.yaml", *TWO, *settings("train.updates=100000"))
    metrics = Path("runs/tiny/metrics.jsonl")
    began = time.monotonic()
    while not (metrics.is_file() and metrics.stat().st_size):
        assert process.poll() is None and time.monotonic() - began < 100
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in told, told
    found, _ = newest_valid(Path("runs/tiny/checkpoints"))
    assert found is not None and found.state["update"] > 0


@pytest.mark.usefixtures("tiny")
def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 3)
    with pytest.raises(MfdError, match=r"train\.batch_size 16 cannot be shared by 3 processes"):
        distill("tiny.yaml")


def test_values_noted_by_one_number_of_processes_are_shared_by_another() -> None:
    progress = Progress(pending=[{"loss": [1.0, 2.0], "lr": [0.5]}, {"loss": [3.0, 6.0], "lr": [0.5]}])
    assert progress.noted(1, 2) == {"loss": [3.0, 6.0], "lr": [0.5]}
    assert progress.noted(0, 1) == progress.noted(2, 3) == {"loss": [2.0, 4.0], "lr": [0.5]}
    assert Progress().noted(1, 2) == {}


class Rank:
    """A process that ends with a code after some polls; None: only when killed."""

    def __init__(self, code: int | None, polls: int = 1) -> None:
        self.code, self.left, self.returncode = code, polls, None
        self.killed = False

    def poll(self) -> int | None:
        self.left -= 1
        if self.left < 0 and self.code is not None:
            self.returncode = self.code  # type: ignore[assignment]
        return self.returncode

    def kill(self) -> None:
        self.killed, self.code = True, -9


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((0, 2), 2), ((3, 3), 3), ((0, -9), 137), ((143, 143), 143), ((130, 0), 130)]
)
def test_the_exit_code_is_that_of_the_first_rank_that_failed(codes: tuple[int, int], expected: int) -> None:
    assert module._wait([Rank(code) for code in codes]) == expected  # type: ignore[arg-type, misc]


def test_a_rank_that_hangs_after_another_failed_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GRACE", 0.2)
    ranks = [Rank(None), Rank(2)]
    assert module._wait(ranks) == 2 and ranks[0].killed  # type: ignore[arg-type]


def test_the_rank_that_failed_first_says_why_the_job_ended() -> None:
    assert module._wait([Rank(1, polls=3), Rank(3)]) == 3  # type: ignore[list-item]
    assert module._wait([Rank(0), Rank(-11), Rank(1, polls=3)]) == 139  # type: ignore[list-item]


def test_a_signal_while_ranks_are_being_started_reaches_them_and_no_more_are(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Starting(Rank):
        def __init__(self, command: list[str], **how: Any) -> None:
            super().__init__(None)
            started.append(self)
            os.kill(os.getpid(), signal.SIGTERM)  # before the caller knows this rank

        def send_signal(self, number: int) -> None:
            self.code, self.left = -number, 0

    monkeypatch.setattr(module.subprocess, "Popen", Starting)
    before = signal.getsignal(signal.SIGTERM)
    assert module.launch(["distill", "toy"], 2, cpu=True) == 143
    assert len(started) == 1 and not started[0].killed
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plugin", "code", "words"),
    [
        (FAILING.replace("ERROR", "ZeroDivisionError('rank one only')"), 1, "ZeroDivisionError: rank one only"),
        (FAILING.replace("ERROR", "RunStopped('rank one only')"), 3, "error: rank one only"),
    ],
    ids=["a fault", "an error of ours"],
)
def test_a_rank_that_fails_alone_ends_the_job_with_its_message(plugin: str, code: int, words: str, start: Any) -> None:
    process = start("distill", "tiny.yaml", *TWO, *settings("log.checkpoint_every=2"), plugin=plugin)
    _, told = process.communicate(timeout=240)
    # the time until training begins is not counted in the minute that the job has left
    failed = float(Path("failed-at.txt").read_text())
    assert time.time() - failed < 60
    assert process.returncode == code, told
    assert words in told and "timed out" not in told.lower()
    assert not list(Path("runs/tiny").rglob(".*.*")), "no temporary file stays"


@pytest.mark.slow
def test_a_signal_to_one_rank_alone_stops_both_at_the_same_step(start: Any) -> None:
    process = start("distill", "tiny.yaml", *TWO, plugin=SIGNALLED)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 143 and "Traceback" not in told, told
    found, damaged = newest_valid(Path("runs/tiny/checkpoints"))
    assert found is not None and not damaged
    stopped = {Path(f"stopped-{rank}.txt").read_text() for rank in (0, 1)}
    assert stopped == {str(found.state["progress"]["step"])}
    run = RunFolder(Path("runs/tiny"))
    assert run.read_record()["status"] == "interrupted"
    # one process goes on where two have stopped
    distill("tiny.yaml", resume=True)
    assert_close(distill("tiny.yaml", output="whole"), run)


def assert_close(one: RunFolder, two: RunFolder) -> None:
    """The last checkpoints hold the same weights and moments, as far as rounding goes."""
    last, other = (newest_valid(run.checkpoints)[0] for run in (one, two))
    assert last is not None and other is not None and last.path.name == other.path.name
    for part in ("student", "aux", "ema", "optim"):
        mine, theirs = last.tensors(part), other.tensors(part)
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_go_on_where_one_has_stopped_whatever_a_kill_left(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leftovers at the very steps that are saved next: nobody waits for anybody who met them."""
    every = settings("log.checkpoint_every=2", "log.every=4")
    original = Trainer.run
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(
            Trainer, "run", lambda trainer, border, stop: original(trainer, border, lambda: trainer.progress.step >= 7)
        )
        distill("tiny.yaml", overrides=every[1::2])
    checkpoints = Path("runs/tiny/checkpoints")
    assert sorted(path.name for path in checkpoints.iterdir()) == ["update-000002", "update-000002.2"]
    for name in ("update-000004", ".update-000004.0123abcd", ".update-000006.old", "update-000006"):
        (checkpoints / name).mkdir()
        (checkpoints / name / "student.safetensors").write_bytes(b"cut")
    process = start("distill", "tiny.yaml", *TWO, *every, "--resume")
    _, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    assert "continues from update-000002.2" in told and "Traceback" not in told
    run, whole = RunFolder(Path("runs/tiny")), distill("tiny.yaml", output="whole", overrides=every[1::2])
    assert_close(whole, run)
    assert not list(run.root.rglob(".*")), "nothing hidden stays"
    # what one process had noted since its last line is in the line that two write
    for line, other in zip(
        *([json.loads(text) for text in each.metrics.read_text().splitlines()] for each in (whole, run)), strict=True
    ):
        assert line.keys() == other.keys() and line["loss"] == pytest.approx(other["loss"], rel=1e-3)
