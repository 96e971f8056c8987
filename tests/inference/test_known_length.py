"""A teacher whose evaluations take a known time: `mfd benchmark` and a loop of its own find that time."""

import importlib.util
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mfd_cli.inference import timing
from mfd_cli.inference.benchmark import Contestant, Effort, contestants, report
from mfd_cli.inference.sampler import Sampler, teacher_sampler
from teachers.gmm import GaussianMixtureData, GaussianMixtureSettings, GaussianMixtureTeacher
from teachers.settings import Settings

EVALUATION, DECODING = 0.03, 0.01


@pytest.fixture
def median_seconds():
    """The loop of timing_loop.py, read anew."""
    spec = importlib.util.spec_from_file_location("timing_loop", Path(__file__).with_name("timing_loop.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.median_seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when it is told to, in place of the machine's, for the benchmark and for the loop."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(time, "perf_counter", lambda: now.seconds)
    assert timing.time is time, "the benchmark reads this clock"
    return now


@pytest.fixture
def teacher(clock, monkeypatch) -> Sampler:
    """The mixture's teacher of 10 steps: an evaluation takes 30 ms of that clock and decoding 10 ms."""
    made = teacher_sampler(GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm", steps=10)))

    def slowed(method, seconds):
        def call(*given, **named):
            clock.seconds += seconds
            return method(*given, **named)

        return call

    monkeypatch.setattr(made.teacher, "velocity", slowed(made.teacher.velocity, EVALUATION))
    monkeypatch.setattr(made.teacher, "decode", slowed(made.teacher.decode, DECODING))
    return made


def _rows(teacher):
    student = Sampler("student", teacher.teacher, teacher.network, 1)
    data = GaussianMixtureData.load(Settings(type="gmm"), teacher.teacher)
    return contestants(teacher, [Contestant(student, 1)]), data


def test_a_known_length_is_found_by_the_benchmark(teacher):
    rows, data = _rows(teacher)
    found = report(rows, data, Effort(min_seconds=1.0), reference=None)
    for row in found["rows"]:
        latency = 1000 * (row["steps"] * EVALUATION + DECODING)
        assert row["latency_ms"] == pytest.approx({"median": latency, "p10": latency, "p90": latency}, rel=1e-9)
        assert row["fps"] == pytest.approx(1000 / latency, rel=1e-9)
        assert row["decode_ms"] == pytest.approx(1000 * DECODING, rel=1e-9) and row["evaluations"] == row["steps"]
    assert found["speedup"]["value"] == pytest.approx((10 * EVALUATION + DECODING) / (EVALUATION + DECODING))


def test_and_by_the_loop(teacher, median_seconds):
    for row in _rows(teacher)[0]:
        sampler = row.sampler
        call = lambda: sampler.decode(sampler.generate(torch.randn(1, 2), {}, steps=row.steps))  # noqa: B023, E731
        assert median_seconds(call, 1.0) == pytest.approx(row.steps * EVALUATION + DECODING, rel=1e-9)


def test_the_loop_leaves_three_calls_out_and_takes_at_least_ten(clock, median_seconds):
    lengths = iter([9.0] * 3 + [0.1] * 6 + [0.2] * 5)
    taken = []

    def call():
        taken.append(next(lengths))
        clock.seconds += taken[-1]

    assert median_seconds(call, 0.0) == pytest.approx(0.1) and len(taken) == 13
