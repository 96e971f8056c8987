"""Timing against runs of known length, counted evaluations, and turns that are fair."""

import time

import pytest
import torch

from mfd_cli.errors import MfdError
from mfd_cli.inference.sampler import teacher_sampler
from mfd_cli.inference.timing import LEAST, TURN, WARM_UP, TimedRun, measure, timed_sampler
from teachers.gmm import GaussianMixtureSettings, GaussianMixtureTeacher


def _sleeper(seconds: float, decoding: float = 0.0, batch_size: int = 1, log: list | None = None, name: str = ""):
    def generate() -> None:
        if log is not None:
            log.append(name)
        time.sleep(seconds)

    return TimedRun(generate, lambda states: time.sleep(decoding), batch_size)


@pytest.fixture
def told_clock(monkeypatch):
    """A clock that moves while models sleep, and not otherwise."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


def test_a_known_length_is_measured(told_clock):
    (found,) = measure([_sleeper(0.02, 0.005, batch_size=4)], min_seconds=0.3)
    assert found.median == pytest.approx(25)
    assert found.decode == pytest.approx(5)
    assert found.fps == pytest.approx(4 / 0.025)
    assert found.fps == pytest.approx(4000 / found.median)
    assert found.p10 == pytest.approx(25) and found.p90 == pytest.approx(25)
    assert found.runs >= LEAST and found.evaluations is None


def test_the_clock_is_that_of_the_wall():
    """Whatever else the machine does, a sleep never ends early."""
    (found,) = measure([_sleeper(0.02)], min_seconds=0)
    assert found.p10 > 0.95 * 20 and found.warm_up > 0.95 * 0.02 * WARM_UP["cpu"]


def test_percentiles_show_the_slow_runs(told_clock):
    lengths = iter([0.001] * (WARM_UP["cpu"] + 8) + [0.05] * 2)
    run = TimedRun(lambda: time.sleep(next(lengths)), lambda states: None)
    (found,) = measure([run], min_seconds=0)
    assert found.runs == 10 and found.median < 10 < found.p90


def test_warm_up_is_not_timed(told_clock):
    lengths = iter([0.1] * WARM_UP["cpu"] + [0.002] * LEAST)
    (found,) = measure([TimedRun(lambda: time.sleep(next(lengths)), lambda states: None)], min_seconds=0)
    assert found.runs == LEAST and found.p90 == pytest.approx(2)
    assert found.warm_up == pytest.approx(0.1 * WARM_UP["cpu"])


def test_models_take_turns_over_the_whole_time(told_clock):
    log: list[str] = []
    slow, fast = measure([_sleeper(0.1, log=log, name="slow"), _sleeper(0.01, log=log, name="fast")], min_seconds=0.99)
    timed = log[2 * WARM_UP["cpu"] :]
    assert slow.runs == timed.count("slow") == 10 and fast.runs == pytest.approx(100, abs=5)
    half = len(timed) // 2
    assert timed[:half].count("slow") == pytest.approx(timed[half:].count("slow"), abs=2)
    assert "slow" in timed[-15:], "the slow model is not done long before the fast one"


def test_equal_models_alternate(told_clock):
    log: list[str] = []
    measure([_sleeper(1.2 * TURN, log=log, name="a"), _sleeper(1.2 * TURN, log=log, name="b")], min_seconds=0)
    assert log[2 * WARM_UP["cpu"] :] == ["a", "b"] * LEAST


def test_short_runs_come_in_turns_whose_first_run_is_not_timed(told_clock):
    log: list[str] = []
    share = 0.4 * TURN
    found = measure([_sleeper(share, log=log, name="a"), _sleeper(share, log=log, name="b")], min_seconds=0)
    # three timed runs are a turn; the tenth ends the measurement
    whole = ["a"] * 4 + ["b"] * 4
    assert log[2 * WARM_UP["cpu"] :] == 3 * whole + ["a"] * 2 + ["b"] * 2
    assert [one.runs for one in found] == [LEAST, LEAST]


def test_the_first_run_after_another_models_is_slow_and_does_not_count(told_clock):
    before = [""]

    def model(name):
        def generate():
            time.sleep(0.010 if before[0] == name else 0.018)
            before[0] = name

        return TimedRun(generate, lambda states: None)

    for found in measure([model("a"), model("b")], min_seconds=0.5):
        assert (found.p10, found.median, found.p90) == pytest.approx((10, 10, 10))


def test_a_model_by_itself_is_timed_from_its_first_run_on(told_clock):
    log: list[str] = []
    (found,) = measure([_sleeper(0.001, log=log)], min_seconds=0)
    assert len(log) == WARM_UP["cpu"] + LEAST and found.median == pytest.approx(1)


def test_the_cap_ends_timing_after_the_least_number_of_runs(told_clock):
    (found,) = measure([_sleeper(0.01)], min_seconds=60, max_seconds=0.05, repeats=1000)
    assert found.runs == LEAST


def test_too_few_repeats_are_refused():
    with pytest.raises(MfdError, match="3 timed runs are too few") as caught:
        measure([_sleeper(0)], repeats=3)
    assert caught.value.allowed == f"at least {LEAST}"
    with pytest.raises(MfdError, match="timing for"):
        measure([_sleeper(0)], max_seconds=0)


def test_a_sampler_counts_its_evaluations_per_sample_and_reports_memory():
    teacher = GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm"))
    run = timed_sampler(teacher_sampler(teacher), {}, steps=7, batch_size=5)
    assert run.generate().shape == (5, 2)
    (found,) = measure([run], min_seconds=0)
    assert found.evaluations == 7
    assert found.peak_memory_mb is None or found.peak_memory_mb > 50  # PyTorch alone takes that


def test_reading_and_copying_are_timed_apart_from_latency(told_clock):
    log: list[str] = []

    def step(name: str, seconds: float):
        def work(*given: object) -> str:
            log.append(name)
            time.sleep(seconds)
            return name

        return work

    run = TimedRun(
        step("generate", 0.004), step("decode", 0.002), fetch=step("fetch", 0.01), deliver=step("copy", 0.005)
    )
    (found,) = measure([run], min_seconds=0)
    assert found.median == pytest.approx(6) and found.end_to_end == pytest.approx(21)
    assert found.fps == pytest.approx(1000 / found.median)
    assert log[2 * WARM_UP["cpu"] :] == ["fetch", "generate", "decode", "copy"] * LEAST
    assert measure([_sleeper(0.001)], min_seconds=0)[0].end_to_end is None


def test_what_is_fetched_is_read_again_for_every_run():
    teacher = GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm"))
    read: list[int] = []
    run = timed_sampler(teacher_sampler(teacher), {}, steps=1, batch_size=2, fetch=lambda: read.append(1) or {})
    (found,) = measure([run], min_seconds=0)
    assert len(read) == found.runs and found.end_to_end >= found.median
    assert run.deliver(torch.ones(2)).device.type == "cpu"


@pytest.mark.gpu
def test_the_device_is_waited_for():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    matrix = torch.randn(8192, 8192, device="cuda")

    def product() -> torch.Tensor:
        for _ in range(10):
            result = matrix @ matrix
        return result

    (found,) = measure([TimedRun(product, lambda states: states)], device="cuda", min_seconds=0.1)
    # ten such products are 11 TFLOP: no device does that in 2 ms, but asking for it takes less
    assert found.median > 2 and found.peak_memory_mb >= 2 * 8192**2 * 4 / 1e6
