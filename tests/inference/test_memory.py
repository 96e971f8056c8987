"""Memory as the system tells it."""

import sys

import pytest
import torch

from mfd_cli.inference.memory import peak_memory_mb, reset_peak, total_memory_mb


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux forgets a peak")
def test_a_peak_is_what_was_held_since_it_was_reset():
    block = torch.ones(50_000_000)  # 200 MB
    assert peak_memory_mb("cpu") > 200
    del block
    assert reset_peak("cpu")
    before = peak_memory_mb("cpu")
    block = torch.ones(50_000_000)
    during = peak_memory_mb("cpu")
    assert 180 < during - before < 260
    del block
    assert peak_memory_mb("cpu") > during - 5  # a peak stays; the kernel counts in small batches


def test_the_machine_has_more_than_this_process_holds():
    assert total_memory_mb("cpu") > peak_memory_mb("cpu")
