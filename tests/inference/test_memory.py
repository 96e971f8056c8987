"""Memory as the system tells it. In processes of their own: what this one holds depends on the tests before."""

import subprocess
import sys

import pytest

from mfd_cli.inference.memory import peak_memory_mb, total_memory_mb

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what other systems tell is less")

_BEGIN = """
import resource, sys, torch
from mfd_cli.inference.memory import keep_freed_memory, peak_memory_mb, reset_peak
torch.set_num_threads(1)
"""


def printed(code, *arguments):
    command = [sys.executable, "-c", _BEGIN + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def test_a_peak_is_what_was_held_since_it_was_reset():
    first, before, during, after = printed("""
block = torch.ones(50_000_000)  # 200 MB
first = peak_memory_mb("cpu")
del block
assert reset_peak("cpu")
before = peak_memory_mb("cpu")
block = torch.ones(50_000_000)
during = peak_memory_mb("cpu")
del block
print(first, before, during, peak_memory_mb("cpu"))
""")
    assert first - before > 180 and 180 < during - before < 260
    assert after > during - 5  # a peak stays; the kernel counts in small batches


def test_the_machine_has_more_than_this_process_holds():
    assert total_memory_mb("cpu") > peak_memory_mb("cpu")


def test_large_tensors_come_from_memory_that_is_kept():
    # a block that is mapped goes back to the system as soon as it is freed; one from the heap may stay
    code = """
import ctypes

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]

try:
    mallinfo = ctypes.CDLL(None).mallinfo2
except AttributeError:
    print(-1)
    sys.exit()
mallinfo.restype = Info
if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = mallinfo().hblks
block = torch.ones(7_750_000)  # 31 MB
print(mallinfo().hblks - before)
"""
    (plain,), (kept,) = printed(code, "plain"), printed(code, "keep")
    if plain < 0:
        pytest.skip("this C library does not tell")
    assert (plain, kept) == (1, 0)
