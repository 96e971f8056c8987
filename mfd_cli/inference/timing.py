"""How fast models are: interleaved, synchronised runs of complete sampling, noise to decoded samples.

Inside the timed region: noise drawn on the device, every network evaluation (guidance included), the solver's
arithmetic, decoding. Outside: loading, encoding of conditions, copies to and from the device, saving, metrics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.inference.memory import peak_memory_mb, reset_peak
from mfd_cli.inference.sampler import Sampler
from teachers.conditions import Condition
from teachers.conditions import to as condition_to

#: untimed runs first: caches, lazy initialisation, autotuning
WARM_UP = {"cpu": 3, "cuda": 10}

#: timed runs that a median and its percentiles are given for by default; never fewer than LEAST
REPEATS = {"cpu": 10, "cuda": 50}
LEAST = 10

#: seconds in a row that a model is timed for before another has its turn
TURN = 0.05


@dataclass(frozen=True)
class TimedRun:
    """What is timed as one model.

    Attributes:
        generate: noise to states at t = 1.
        decode: those states to finished samples.
        batch_size: samples per run.
        evaluations: reads the counter of forward passes; None if there is none.
        fetch: reads what a run is conditioned on and brings it to the device; None if that is not timed.
        deliver: brings finished samples to where they are used.
    """

    generate: Callable[[], Any]
    decode: Callable[[Any], Any]
    batch_size: int = 1
    evaluations: Callable[[], int] | None = None
    fetch: Callable[[], Any] | None = None
    deliver: Callable[[Any], Any] = lambda samples: samples


@dataclass(frozen=True)
class Timing:
    """Figures of one model; times in milliseconds per batch, from noise to decoded samples.

    Attributes:
        median: middle latency; `p10` and `p90` are the tenth and ninetieth percentile.
        decode: median time of the decoder, part of `median`.
        fps: finished samples per second, batch size / median.
        evaluations: forward passes per sample; a guided evaluation is 2. None if nothing counts them.
        peak_memory_mb: on CUDA the largest memory allocated during a run, all resident models included; on a CPU the
            process's largest resident memory so far; None where the system does not tell.
        runs: timed runs the figures come from.
        end_to_end: median of the same runs with reading of conditions and copies to and from the device; None where
            that is not timed.
        warm_up: seconds of the untimed runs before, which hold compilation and autotuning.
    """

    median: float
    p10: float
    p90: float
    decode: float
    fps: float
    evaluations: int | None
    peak_memory_mb: float | None
    runs: int
    end_to_end: float | None = None
    warm_up: float = 0.0


@dataclass
class _Clock:
    """Times of one model so far, in seconds."""

    totals: list[float] = field(default_factory=list)
    decodes: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    spent: float = 0.0

    def progress(self, repeats: int, min_seconds: float, max_seconds: float) -> float:
        """1 when enough runs were timed: `repeats` and `min_seconds`, or LEAST and `max_seconds`."""
        wanted = min(len(self.totals) / repeats, self.spent / min_seconds if min_seconds else 1.0)
        allowed = min(len(self.totals) / LEAST, self.spent / max_seconds)
        return max(wanted, allowed)


def timed_sampler(
    sampler: Sampler,
    condition: Condition,
    *,
    steps: int | None,
    batch_size: int,
    fetch: Callable[[], Condition] | None = None,
) -> TimedRun:
    """Complete sampling of one batch, with noise drawn on the sampler's device, as something to time.

    Args:
        sampler: teacher or student.
        condition: encoded condition of the batch, on the sampler's device.
        steps: Euler steps; the sampler's own if None.
        batch_size: samples B per run.
        fetch: reads the batch's condition again, where the time from there to samples on the CPU is wanted too.
    """
    shape = (batch_size, *sampler.teacher.sample_shape)

    def generate() -> Tensor:
        def draw(point: int = 0) -> Tensor:
            return torch.randn(shape, device=sampler.device)

        return sampler.generate(draw(), condition, steps=steps, fresh=draw)

    return TimedRun(
        generate,
        sampler.decode,
        batch_size,
        lambda: sampler.evaluations.rows,
        None if fetch is None else lambda: condition_to(fetch(), sampler.device),
        lambda samples: samples.cpu(),
    )


def measure(
    runs: Sequence[TimedRun],
    *,
    device: torch.device | str = "cpu",
    min_seconds: float = 2.0,
    max_seconds: float = 30.0,
    repeats: int | None = None,
) -> list[Timing]:
    """Times models against each other, in turns, so that a clock that drifts or heats up is the same for all.

    Each turn goes to the model that is furthest from done; so all advance together and end together. A turn is TURN
    seconds of runs in a row, one at least. Before it comes a run that is not timed: the one before was another model's,
    whose weights fill the caches. Runs of TURN seconds or more do without, since it makes no difference to them.

    Args:
        runs: the models.
        device: where they run; on CUDA the device is waited for around every run.
        min_seconds: least time spent on each model.
        max_seconds: time after which a model is done with LEAST runs, though `repeats` or `min_seconds` are not met.
        repeats: least number of timed runs of each model; the device's usual if None.

    Raises:
        MfdError: fewer repeats than a median and percentiles can be given for.
    """
    kind = torch.device(device).type
    repeats = REPEATS.get(kind, REPEATS["cuda"]) if repeats is None else repeats
    if repeats < LEAST:
        raise MfdError(f"{repeats} timed runs are too few for a speed", allowed=f"at least {LEAST}")
    if max_seconds <= 0 or min_seconds < 0:
        raise MfdError(f"timing for {min_seconds} to {max_seconds} s", allowed="at least 0, and more than 0")
    wait = _waiter(device)
    first = [_warm_up(run, WARM_UP.get(kind, WARM_UP["cuda"]), wait, device) for run in runs]
    clocks = [_Clock() for _ in runs]
    while clocks:
        progress = [clock.progress(repeats, min_seconds, max_seconds) for clock in clocks]
        if min(progress) >= 1:
            break
        turn = progress.index(min(progress))
        if len(runs) > 1 and first[turn].last < TURN:
            runs[turn].decode(runs[turn].generate())
        clock = clocks[turn]
        until = clock.spent + TURN
        _time_once(runs[turn], clock, wait)
        while clock.spent < until and clock.progress(repeats, min_seconds, max_seconds) < 1:
            _time_once(runs[turn], clock, wait)
    return [_timing(run, clock, found) for run, clock, found in zip(runs, clocks, first, strict=True)]


class _Warm(NamedTuple):
    """What runs before the timed ones say.

    Attributes:
        evaluations: per sample; None if nothing counts them.
        memory: peak of the last run, in MB; None where the system does not tell.
        last: seconds of the last run.
        whole: seconds of all.
    """

    evaluations: int | None
    memory: float | None
    last: float
    whole: float


def _warm_up(run: TimedRun, times: int, wait: Callable[[], None], device: torch.device | str) -> _Warm:
    began = time.perf_counter()
    for _ in range(times - 1):
        run.decode(run.generate())
    wait()
    reset_peak(device)
    before = run.evaluations() if run.evaluations else 0
    between = time.perf_counter()
    run.decode(run.generate())
    wait()
    end = time.perf_counter()
    evaluations = (run.evaluations() - before) // run.batch_size if run.evaluations else None
    return _Warm(evaluations, peak_memory_mb(device), end - between, end - began)


def _time_once(run: TimedRun, clock: _Clock, wait: Callable[[], None]) -> None:
    wait()
    before = time.perf_counter()
    if run.fetch is not None:
        run.fetch()
        wait()
    start = time.perf_counter()
    states = run.generate()
    wait()
    between = time.perf_counter()
    samples = run.decode(states)
    wait()
    end = time.perf_counter()
    clock.totals.append(end - start)
    clock.decodes.append(end - between)
    if run.fetch is not None:
        run.deliver(samples)
        clock.whole.append(time.perf_counter() - before)
    clock.spent += end - start


def _timing(run: TimedRun, clock: _Clock, warm: _Warm) -> Timing:
    totals = torch.tensor(clock.totals, dtype=torch.float64) * 1000
    whole = float(torch.tensor(clock.whole, dtype=torch.float64).quantile(0.5)) * 1000 if clock.whole else None
    p10, median, p90 = totals.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    # quantile, as for the total: Tensor.median would give the lower of two middle values
    decode = float(torch.tensor(clock.decodes, dtype=torch.float64).quantile(0.5)) * 1000
    fps = 1000 * run.batch_size / median
    return Timing(median, p10, p90, decode, fps, warm.evaluations, warm.memory, len(clock.totals), whole, warm.whole)


def _waiter(device: torch.device | str) -> Callable[[], None]:
    """What waits until the device has finished everything asked of it; nothing to wait for on a CPU."""
    if torch.device(device).type == "cpu":
        return lambda: None
    return lambda: torch.accelerator.synchronize(device)
