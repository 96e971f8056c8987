"""Where numbers of a run go: metrics.jsonl always, TensorBoard or W&B when the recipe asks for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mfd_cli.errors import MfdError
from mfd_cli.store.files import write_bytes

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
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open as long as the run)

    def write(self, numbers: dict[str, Any]) -> None:
        """Appends a line, readable by others at once."""
        self._file.write(json.dumps(numbers) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _update_of(line: str) -> float:
    try:
        return json.loads(line)["update"]
    except (ValueError, KeyError, TypeError):  # a line cut by a crash
        return float("inf")


def open_trackers(names: Sequence[str], folder: Path, run: str, recipe: dict[str, Any]) -> list[Tracker]:
    """Functions that take a line of metrics, one for each tracker named.

    Raises:
        MfdError: a tracker is not installed; names the extra.
    """
    return [_OPEN[name](folder, run, recipe) for name in names]


def _tensorboard(folder: Path, run: str, recipe: dict[str, Any]) -> Tracker:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("tensorboard") from error
    writer = SummaryWriter(str(folder / "tensorboard"))

    def track(numbers: dict[str, Any]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, numbers["update"])
        writer.flush()

    return track


def _wandb(folder: Path, run: str, recipe: dict[str, Any]) -> Tracker:
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb") from error
    session = wandb.init(project="mfd", name=run, config=recipe, dir=str(folder))
    return lambda numbers: session.log(numbers, step=numbers["update"])


def _missing(name: str) -> MfdError:
    return MfdError(f"log.trackers: {name} is not installed", do=f"pip install 'mfd[{name}]'")


_OPEN: dict[str, Callable[[Path, str, dict[str, Any]], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb}
