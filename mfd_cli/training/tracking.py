"""Where numbers of a run go: metrics.jsonl always, TensorBoard or W&B when the recipe asks for them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mfd_cli.errors import MfdError
from mfd_cli.store.files import disk_errors, write_bytes

Tracker = Callable[[dict[str, Any]], None]


class MetricsFile:
    """Appends one JSON object a line; on resume, lines past the checkpoint are dropped first.

    Args:
        path: metrics.jsonl.
        update: last update whose lines are kept.
    """

    def __init__(self, path: Path, update: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        kept = [line for line in lines if _update_of(line) <= update]
        write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
        # unbuffered: a line is readable by others at once, and nothing is left to fail at the end
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)

    def write(self, numbers: dict[str, Any]) -> None:
        """Appends a line.

        Raises:
            RunStopped: the disk is full.
        """
        with disk_errors(Path(self._file.name)):
            self._file.write((json.dumps(numbers) + "\n").encode())

    def sync(self) -> None:
        """Has the lines on the disk.

        Raises:
            RunStopped: the disk is full or fails.
        """
        with disk_errors(Path(self._file.name)):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _update_of(line: str) -> float:
    try:
        return json.loads(line)["update"]
    except (ValueError, KeyError, TypeError):  # a line cut by a crash
        return float("inf")


def require_trackers(names: Sequence[str]) -> None:
    """Raises MfdError, naming the extra, if a tracker is not installed; asked before anything is written."""
    for name in names:
        if find_spec(name) is None:
            raise MfdError(f"log.trackers: {name} is not installed", do=f"pip install 'mfd[{name}]'")


def open_trackers(names: Sequence[str], folder: Path, run: str, recipe: dict[str, Any]) -> list[Tracker]:
    """Functions that take a line of metrics, one for each tracker named."""
    return [_OPEN[name](folder, run, recipe) for name in names]


def scalars(numbers: dict[str, Any]) -> dict[str, float]:
    """A line of metrics without what is no number: quality as `quality/<metric>`, warnings as their count."""
    plain = {name: value for name, value in numbers.items() if isinstance(value, (int, float))}
    quality = {f"quality/{name}": value for name, value in numbers.get("quality", {}).get("metrics", {}).items()}
    return plain | quality | ({"warnings": len(numbers["warnings"])} if "warnings" in numbers else {})


def _tensorboard(folder: Path, run: str, recipe: dict[str, Any]) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def track(numbers: dict[str, Any]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, numbers["update"])
        writer.flush()

    return track


def _wandb(folder: Path, run: str, recipe: dict[str, Any]) -> Tracker:
    import wandb

    session = wandb.init(project="mfd", name=run, config=recipe, dir=str(folder))
    return lambda numbers: session.log(numbers, step=numbers["update"])


_OPEN: dict[str, Callable[[Path, str, dict[str, Any]], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb}
