"""The state of a run to and from checkpoints: every role, the average, both optimizers, the position.

A checkpoint holds whole tensors, however many processes there are and whether networks are sharded, so a run may be
continued on another number of processes, and sharded or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mfd_cli.errors import MfdError
from mfd_cli.networks.roles import Roles
from mfd_cli.networks.sharding import gathered, spread
from mfd_cli.store.checkpoint import Checkpoint, save_checkpoint
from mfd_cli.store.tensors import load_into, optimizer_tensors, restore_optimizer
from mfd_cli.training.trainer import Progress

Parts = dict[str, dict[str, Tensor]]


def collect(roles: Roles, *, keep: bool = True) -> Parts:
    """The tensors of every role, average and optimizer, whole; every process has to ask at the same time.

    Args:
        roles: networks and optimizers.
        keep: whether this process wants them; else it only gives its shards.
    """
    parts = {role.name: gathered(role.network.state_dict(), keep=keep) for role in roles.trained()}
    parts["optim"] = gathered(_optimizers(roles), keep=keep)
    if roles.average is not None:
        parts["ema"] = gathered(roles.average.network.state_dict(), keep=keep)
    return parts


def save(
    folder: Path, *, parts: Parts, progress: Progress, update: int, inside: int, student: dict[str, Any], keep: int
) -> Path:
    """Saves everything that the run needs to continue bit for bit.

    Args:
        folder: the run's checkpoints folder.
        parts: tensors by part, from `collect`.
        progress: the run's position.
        update: student updates done.
        inside: auxiliary updates done since.
        student: config with which a checkpoint can be sampled from.
        keep: checkpoints to leave.
    """
    state = {"progress": asdict(progress), "student": student}
    return save_checkpoint(folder, update=update, inside=inside, parts=parts, state=state, keep=keep)


def restore(checkpoint: Checkpoint, roles: Roles) -> Progress:
    """Puts every role, average and optimizer back, and returns the position.

    Raises:
        MfdError: a part is missing or does not fit; nothing is started over.
    """
    path = checkpoint.path
    for role in roles.trained():
        _fill(role.network, checkpoint.tensors(role.name), path / f"{role.name}.safetensors")
    if roles.average is not None:
        _fill(roles.average.network, checkpoint.tensors("ema"), path / "ema.safetensors")
    optim = checkpoint.tensors("optim")
    for role in roles.trained():
        prefix = f"{role.name}/"
        own = {name.removeprefix(prefix): value for name, value in optim.items() if name.startswith(prefix)}
        names = role.parameter_names()
        own = _like_parameters(own, names, role.parameters)
        restore_optimizer(role.optimizer, names, own, path / "optim.safetensors")
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


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Loads whole tensors into a network, sharded or not."""
    there = network.state_dict()
    load_into(network, {name: spread(value, there.get(name, value)) for name, value in tensors.items()}, path)


def _like_parameters(
    tensors: Mapping[str, Tensor], names: Sequence[str], parameters: Sequence[nn.Parameter]
) -> dict[str, Tensor]:
    """An optimizer's whole tensors, in shards where their parameters are."""
    places = dict(zip(names, parameters, strict=True))
    return {name: spread(value, places.get(name.rpartition("/")[0], value)) for name, value in tensors.items()}


def _optimizers(roles: Roles) -> dict[str, Tensor]:
    return {
        f"{role.name}/{name}": value
        for role in roles.trained()
        for name, value in optimizer_tensors(role.optimizer, role.parameter_names()).items()
    }
