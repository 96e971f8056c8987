"""One process per device: the command starts itself again, once for every rank.

Each rank is an ordinary `mfd distill` that finds RANK, WORLD_SIZE and the like in its environment, which Accelerate
reads; `accelerate launch` and `torchrun` set the same, and then nothing is started here.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

_GRACE = 30.0  # seconds that the other ranks get to end after one has failed


def inside_launch() -> bool:
    """Whether this process is already a rank of a launched job."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(arguments: Sequence[str], processes: int, *, cpu: bool) -> int:
    """Runs `mfd` with the arguments once per rank, and returns the job's exit code.

    Ctrl-C and SIGTERM are passed on to every rank, which save and end by themselves. A rank that fails ends the job:
    the others get half a minute to end by themselves and are then killed.

    Args:
        arguments: command line without the program's name.
        processes: number of ranks on this machine.
        cpu: whether ranks compute on the CPU.
    """
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    } | ({"ACCELERATE_USE_CPU": "true"} if cpu else {})  # fmt: skip
    ranks: list[subprocess.Popen[bytes]] = []
    told: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        for started in ranks:
            _tell(started, number)

    # before the first rank: a signal while they are being started must leave none behind
    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for rank in range(processes):
            told_before = len(told)
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", "mfd_cli", *arguments],
                    env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=None if rank == 0 else subprocess.DEVNULL,
                )
            )
            if len(told) > told_before:  # it was not in the list yet
                _tell(ranks[-1], told[-1])
            if told:
                break
        return _wait(ranks)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for started in ranks:
            if started.poll() is None:
                started.kill()


def _tell(rank: subprocess.Popen[bytes], number: int) -> None:
    # a terminal's Ctrl-C reaches the ranks by itself; one sent to this process alone does not
    if rank.poll() is None and (number != signal.SIGINT or not sys.stdin.isatty()):
        rank.send_signal(number)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Waits for every rank; returns the code of the one that failed first, whose end the others' may only follow."""
    deadline: float | None = None
    first = 0
    while None in (states := [rank.poll() for rank in ranks]):  # all of them: a look at one says nothing of the next
        if deadline is None and any(states):
            first = next(code for code in states if code)
            deadline = time.monotonic() + _GRACE
        if deadline is not None and time.monotonic() > deadline:
            for rank in ranks:
                if rank.poll() is None:
                    rank.kill()
        time.sleep(0.1)
    code = first or next((rank.returncode for rank in ranks if rank.returncode), 0)
    return 128 - code if code < 0 else code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
