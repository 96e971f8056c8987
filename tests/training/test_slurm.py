"""The Slurm script of the documentation, with stand-ins for Slurm's commands and two CPU processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mfd_cli.store.checkpoint import newest_valid
from mfd_cli.store.layout import RunFolder

SCALE = Path(__file__).parents[2] / "docs" / "scale.md"

#: starts the tasks and hands signals on to them, as srun does; its exit code is the largest of theirs
SRUN = """#!{python}
import os, signal, subprocess, sys
command = [word for word in sys.argv[1:] if not word.startswith("--")]
tasks = [
    subprocess.Popen(command, env=os.environ | {{"SLURM_PROCID": str(k), "SLURM_LOCALID": str(k), "SLURM_NTASKS": "2"}})
    for k in range(2)
]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> scontrol.txt; fi
"""
MFD = """#!/bin/bash
exec {python} -m mfd_cli --plugin quick.py "$@"
"""


def script() -> str:
    """The job script of the documentation."""
    blocks = SCALE.read_text("utf-8").split("```bash\n")[1:]
    (found,) = (block.split("```")[0] for block in blocks if block.startswith("#!/bin/bash"))
    return found


def submitted(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(["bash", "job.sh"], env=environment, text=True, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs bash and POSIX signals")
def test_a_job_that_is_told_to_leave_saves_is_requeued_and_goes_on(tiny: Path, alone: dict[str, str]) -> None:
    Path("job.sh").write_text(script())
    Path("quick.py").write_text("import teachers.gmm\nteachers.gmm._FIT_UPDATES = 20\n")
    Path("bin").mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "mfd": MFD}.items():
        (Path("bin") / name).write_text(text.format(python=sys.executable) if "{python}" in text else text)
        (Path("bin") / name).chmod(0o755)
    environment = alone | {
        "PATH": f"{Path('bin').absolute()}{os.pathsep}{os.environ['PATH']}", "RECIPE": "tiny.yaml", "RUN": "a run",
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "here", "OPTIONS": "--device cpu",
    }  # fmt: skip
    run = RunFolder(Path("a run"))
    text = tiny.read_text()
    tiny.write_text(text.replace("updates: 6", "updates: 400"))
    job = submitted(environment)
    began = time.monotonic()
    while not (run.metrics.is_file() and run.metrics.stat().st_size):
        assert job.poll() is None and time.monotonic() - began < 200, job.communicate()
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)  # to the batch script alone, as --signal=B:TERM does
    _, told = job.communicate(timeout=200)
    assert job.returncode == 143, told
    assert Path("scontrol.txt").read_text() == f"requeue {os.getpid()}\n"
    found, _ = newest_valid(run.checkpoints)
    assert found is not None and 0 < found.state["update"] < 400 and run.read_record()["status"] == "interrupted"
    again = submitted(environment)
    _, told = again.communicate(timeout=300)
    assert again.returncode == 0, told
    assert f"continues from {found.path.name}" in told
    record = run.read_record()
    assert record["status"] == "finished" and record["update"] == 400 and record["processes"] == 2
    assert Path("scontrol.txt").read_text().count("requeue") == 1
