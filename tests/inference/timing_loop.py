"""How long calls take, by a loop that knows nothing of mfd: what `mfd benchmark` is held against."""

import statistics
import time


def median_seconds(call, seconds):
    """Median seconds of a call, repeated for so many seconds after three calls that do not count."""
    taken, end = [], time.perf_counter() + seconds
    while len(taken) < 13 or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[3:])
