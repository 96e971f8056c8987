"""One writer of a run folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mfd_cli.errors import MfdError
from mfd_cli.store.lock import locked

pytest.importorskip("fcntl")

HOLDER = """
import sys, time
from pathlib import Path
from mfd_cli.store.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_with_the_first_ones_name_until_that_one_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(MfdError, match=f"in use by process {process.pid} on "), locked(tmp_path):
            pass
        assert (tmp_path / ".lock").is_file(), "a refused one must not take the holder's lock away"
        process.kill()
    with locked(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / ".lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_it_is_released_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path), pytest.raises(MfdError), locked(tmp_path):
        pass


def test_a_lock_file_that_is_removed_meanwhile_guards_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    original = fcntl.flock

    def slow(*arguments: object) -> None:
        (tmp_path / ".lock").unlink()  # the holder ended between our open and our lock
        original(*arguments)

    monkeypatch.setattr(fcntl, "flock", slow)
    with pytest.raises(MfdError, match="in use"), locked(tmp_path):
        pass
