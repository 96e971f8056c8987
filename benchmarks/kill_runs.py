"""Kills a run at random moments, resumes it each time, and compares its end with that of an undisturbed run.

    python benchmarks/kill_runs.py [--kills 200] [--seed 0] [--set key=value]... [--json PATH] [--plot PATH] [--quick]

One toy run of 400 updates with a checkpoint every 10 is made undisturbed. Then the same run is begun, killed by SIGKILL
after a random time, resumed, killed again, and so on; when it comes to its end, another is begun. The times are drawn
so that kills land everywhere: while the recipe is read, the teacher built, a checkpoint loaded, in steps, saves,
previews and at the end. After every kill

    a checkpoint verifies, and is at most one interval behind the last update   (once a first one had been saved)

and at the end of every run weights, averages, optimizers, position and `metrics.jsonl` are those of the undisturbed
run, bit for bit (times of day and durations apart). Anything else ends the script with exit code 3.

The fit of the toy's network, with which every start begins anew, is cut to 20 updates: it is not what is tested here.
Each attempt is a child forked from a process that has imported everything, which saves the seconds that imports take;
the child then does what the command `mfd distill` does, from its command line on. Needs a system with fork.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from workbench import check_targets, deliver, options, run

import mfd_cli.commands.distill
import mfd_cli.progress  # noqa: F401 (what is imported here, children need not import)
import teachers.gmm
from mfd_cli import cli, console
from mfd_cli.config.load import load_recipe
from mfd_cli.errors import RunStopped
from mfd_cli.store.checkpoint import newest_valid
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import read_student
from mfd_cli.training import checkpoints
from mfd_cli.training import run as story
from mfd_cli.training.tracking import MetricsFile
from mfd_cli.training.trainer import Trainer

EVERY = 10  # updates between checkpoints
RECIPE = f"""name: killed
teacher: {{type: gmm, network: {{width: 16, depth: 2, frequencies: 2}}}}
method: {{type: mfd, solver: {{steps: 2}}, aux_updates: 2}}
optim: {{student: {{lr: 1e-3, schedule: cosine}}, aux: {{lr: 2e-3, schedule: cosine}}}}
train: {{updates: 400, batch_size: 64, threads: 1}}
data: {{type: gmm}}
log: {{every: 1, preview_every: 200, checkpoint_every: {EVERY}}}
evaluate: {{num: 0}}
"""

PHASES = ("start", "build", "open", "step", "metrics", "checkpoint", "preview", "student", "end")
#: what a process is doing while one of these functions runs
PLACES = (
    (story, "build", "build"),
    (story.Session, "open", "open"),
    (Trainer, "step", "step"),
    (MetricsFile, "write", "metrics"),
    (checkpoints, "save_checkpoint", "checkpoint"),
    (story, "save_preview", "preview"),
    (story, "save_student", "student"),
)


class Board:
    """What a child writes down and its parent can read after it was killed: phase, updates done, time of the first."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 32)
        self.phase, self.update, self.first = 0, 0, 0.0

    def _get(self, form: str, at: int) -> Any:
        return struct.unpack_from(form, self._memory, at)[0]

    phase = property(
        lambda board: board._get("b", 0), lambda board, value: struct.pack_into("b", board._memory, 0, value)
    )
    update = property(
        lambda board: board._get("q", 8), lambda board, value: struct.pack_into("q", board._memory, 8, value)
    )
    first = property(
        lambda board: board._get("d", 16), lambda board, value: struct.pack_into("d", board._memory, 16, value)
    )

    def watch(self) -> None:
        """Has the functions of PLACES say when they run, in this process."""
        for owner, name, phase in PLACES:
            setattr(owner, name, self._telling(getattr(owner, name), PHASES.index(phase)))

    def _telling(self, function: Callable[..., Any], phase: int) -> Callable[..., Any]:
        def told(*arguments: Any, **more: Any) -> Any:
            outer, self.phase = self.phase, phase
            try:
                return function(*arguments, **more)
            finally:
                self.phase = outer
                if PHASES[phase] == "step":
                    self.first = self.first or time.monotonic()
                    self.update = arguments[0].update
                if PHASES[phase] == "student":
                    self.phase = PHASES.index("end")

        return told


@dataclass
class Tally:
    """What came of the kills.

    Attributes:
        kills: attempts that were killed.
        phases: what they were doing.
        ends: runs that came to their end, each compared.
        anew: starts from the beginning, for want of a checkpoint.
        lost: the most updates that a kill cost.
    """

    kills: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    ends: int = 0
    anew: int = 0
    lost: int = 0


class Attempts:
    """Starts one run again and again.

    Args:
        home: a folder for recipe, runs and logs.
        overrides: changes of the recipe.
    """

    def __init__(self, home: Path, overrides: Sequence[str]) -> None:
        self.home = home
        self.recipe = home / "killed.yaml"
        self.recipe.write_text(RECIPE, encoding="utf-8")
        self.overrides = [word for text in overrides for word in ("--set", text)]
        self.every = load_recipe(str(self.recipe), overrides).recipe.log.checkpoint_every

    def start(self, output: str, *flags: str) -> tuple[int, Board]:
        """A child that runs `mfd distill`, and what it tells."""
        board = Board()
        child = os.fork()
        if child == 0:
            os._exit(self._child(board, ["mfd", "distill", str(self.recipe), "-o", output, *self.overrides, *flags]))
        return child, board

    def _child(self, board: Board, arguments: list[str]) -> int:
        teachers.gmm._FIT_UPDATES = 20
        os.chdir(self.home)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
        board.watch()
        sys.argv = [*arguments, "--device", "cpu", "--processes", "1"]
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            return 1
        return 0

    def undisturbed(self, output: str) -> tuple[float, float]:
        """Makes a whole run; returns seconds to its first step, and after it."""
        began = time.monotonic()
        child, board = self.start(output)
        self.require_success(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output)
        return board.first - began, time.monotonic() - board.first

    def require_success(self, code: int, output: str) -> None:
        """Raises RunStopped, with what the child said last, if it failed."""
        if code:
            said = (self.home / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            raise RunStopped(f"{output}: ended with exit code {code}: {' | '.join(said)}")


def killing(attempts: Attempts, kills: int, start: float, rest: float, chance: random.Random) -> Tally:
    """Kills runs, and compares those that come to their end with the undisturbed one.

    Raises:
        RunStopped: a checkpoint was lost, a resumed run failed, or one ended differently.
    """
    tally, output = Tally(), "killed-0"
    while tally.kills < kills or tally.ends == 0:
        flags = _continue(attempts.home / output)
        tally.anew += flags != ["--resume"]
        child, board = attempts.start(output, *flags)
        if tally.kills < kills:
            # a quarter of them before the first step, one in twenty near the end of a run
            early, late = chance.random() < 0.25, chance.random() < 0.05
            delay = chance.uniform(0, start) if early else start + chance.uniform(0, rest * (1.1 if late else 0.25))
            _wait(child, delay)
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == -signal.SIGKILL:
            tally.kills += 1
            tally.phases[PHASES[board.phase]] += 1
            tally.lost = max(tally.lost, _lost(attempts, output, board))
            continue
        attempts.require_success(code, output)
        require_same(attempts.home / "undisturbed", attempts.home / output)
        tally.ends += 1
        output = f"killed-{tally.ends}"
    return tally


def _wait(child: int, seconds: float) -> None:
    """Sleeps, but not past the end of the child (which stays to be waited for)."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(min(left, 0.02))


def _continue(folder: Path) -> list[str]:
    """Flags with which a run goes on: --resume, or --force where it was killed before its first checkpoint."""
    if newest_valid(folder / "checkpoints")[0] is not None:
        return ["--resume"]
    return ["--force"] if folder.is_dir() else []


def _lost(attempts: Attempts, output: str, board: Board) -> int:
    """Updates that a kill cost. Raises RunStopped if they are more than an interval."""
    found, damaged = newest_valid(attempts.home / output / "checkpoints")
    kept = found.state["update"] if found is not None else 0
    lost = max(0, board.update - kept)
    if damaged or lost > attempts.every:
        raise RunStopped(f"{output}: killed after update {board.update}, newest checkpoint {kept}; {damaged}")
    return lost


def require_same(one: Path, two: Path) -> None:
    """Raises RunStopped unless two runs ended the same: student, last checkpoint, metrics."""
    ends = [_end(RunFolder(path)) for path in (one, two)]
    for what in ends[0]:
        if ends[0][what] != ends[1][what]:
            raise RunStopped(f"{two}: its {what} differ from those of {one}")


def _end(folder: RunFolder) -> dict[str, Any]:
    found, _ = newest_valid(folder.checkpoints)
    if found is None:
        raise RunStopped(f"{folder.root}: no checkpoint at its end")
    parts = sorted(path.stem for path in found.path.glob("*.safetensors"))
    tensors = {part: {name: value.tolist() for name, value in found.tensors(part).items()} for part in parts}
    progress = {key: value for key, value in found.state["progress"].items() if key != "seconds"}
    lines = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    return {
        "weights": read_student(folder.root).config["weights_sha256"],
        "checkpoints": (found.path.name, tensors),
        "positions": progress,
        "metrics": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        "leftovers": [str(path.relative_to(folder.root)) for path in folder.root.rglob(".*")],
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Kills, compares, prints and writes; returns the report."""
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=200, help="processes killed (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    args = parser.parse_args(arguments)
    check_targets(args)
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        attempts = Attempts(Path(home), args.overrides)
        start, rest = attempts.undisturbed("undisturbed")
        tally = killing(attempts, 5 if args.quick else args.kills, start, rest, random.Random(args.seed))
    report = {
        "schema": 1, "kills": tally.kills, "during": dict(tally.phases.most_common()), "ends": tally.ends,
        "starts_anew": tally.anew, "most_updates_lost": tally.lost, "interval": attempts.every, "equal": True,
        "start_seconds": start, "run_seconds": rest, "seconds": time.monotonic() - began,
    }  # fmt: skip
    console.table(
        f"{tally.kills} processes killed; {tally.ends} runs came to their end, all equal to the undisturbed one",
        ["killed during", "times"],
        list(report["during"].items()),
        below=[f"at most {tally.lost} updates lost at once, of {attempts.every} between checkpoints"],
    )
    return deliver(report, args, lambda figure: _draw(figure, report))


def _draw(figure: Figure, report: dict[str, Any]) -> None:
    axes = figure.subplots()
    axes.barh(list(report["during"]), list(report["during"].values()))
    axes.set_xlabel("kills")


if __name__ == "__main__":
    run(main)
