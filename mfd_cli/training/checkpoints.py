"""The state of a run to and from checkpoints: every role, the average, both optimizers, the position."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.networks.roles import Roles
from mfd_cli.store.checkpoint import Checkpoint, save_checkpoint
from mfd_cli.store.tensors import load_into, optimizer_tensors, restore_optimizer
from mfd_cli.training.trainer import Progress


def save(
    folder: Path, *, roles: Roles, progress: Progress, update: int, inside: int, student: dict[str, Any], keep: int
) -> Path:
    """Saves everything that the run needs to continue bit for bit.

    Args:
        folder: the run's checkpoints folder.
        roles: networks and optimizers.
        progress: the run's position.
        update: student updates done.
        inside: auxiliary updates done since.
        student: config with which a checkpoint can be sampled from.
        keep: checkpoints to leave.
    """
    parts: dict[str, dict[str, Tensor]] = {
        **{role.name: role.network.state_dict() for role in roles.trained()},
        "optim": _optimizers(roles),
    }
    if roles.average is not None:
        parts["ema"] = roles.average.network.state_dict()
    state = {"progress": asdict(progress), "student": student}
    return save_checkpoint(folder, update=update, inside=inside, parts=parts, state=state, keep=keep)


def restore(checkpoint: Checkpoint, roles: Roles) -> Progress:
    """Puts every role, average and optimizer back, and returns the position.

    Raises:
        MfdError: a part is missing or does not fit; nothing is started over.
    """
    path = checkpoint.path
    for role in roles.trained():
        load_into(role.network, checkpoint.tensors(role.name), path / f"{role.name}.safetensors")
    if roles.average is not None:
        load_into(roles.average.network, checkpoint.tensors("ema"), path / "ema.safetensors")
    optim = checkpoint.tensors("optim")
    for role in roles.trained():
        prefix = f"{role.name}/"
        own = {name.removeprefix(prefix): value for name, value in optim.items() if name.startswith(prefix)}
        restore_optimizer(role.optimizer, role.parameter_names(), own, path / "optim.safetensors")
    try:
        progress = Progress.stored(checkpoint.state["progress"])
    except (KeyError, TypeError, AttributeError) as error:
        raise MfdError(f"{path}/state.json: no position to continue from ({error})") from error
    _require_moments(checkpoint, roles, progress)
    return progress


def _require_moments(checkpoint: Checkpoint, roles: Roles, progress: Progress) -> None:
    """Refuses an optimizer that has made updates and would start over without a state."""
    update, inside = checkpoint.state["update"], checkpoint.state["inside"]
    for role in roles.trained():
        done = update if role.name == "student" else update + inside  # at least
        if done > progress.guards.skipped and not role.optimizer.state:
            raise MfdError(
                f"{checkpoint.path}/optim.safetensors: no state of the optimizer of {role.name}, which made updates",
                do="resume from another checkpoint, or start again with --force",
            )


def _optimizers(roles: Roles) -> dict[str, Tensor]:
    return {
        f"{role.name}/{name}": value
        for role in roles.trained()
        for name, value in optimizer_tensors(role.optimizer, role.parameter_names()).items()
    }
