"""`mfd teachers train`: plain flow matching of a teacher's network on data.

    L = mean |v(X_t, t | c) - (X_1 - X_0)|^2,  X_t = (1 - t) X_0 + t X_1

with the condition dropped now and then so that the result can be guided. Source: Lipman et al. 2023, arXiv 2210.02747;
Ho and Salimans 2022, arXiv 2207.12598.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mfd_cli.config.load import LoadedRecipe
from mfd_cli.errors import MfdError
from mfd_cli.flow import interpolate
from mfd_cli.networks.ema import AveragedNetwork
from mfd_cli.networks.roles import build_optimizer, learning_rate
from mfd_cli.seeds import Stream, key, order
from mfd_cli.store.tensors import write_tensors
from mfd_cli.training.guards import refuse_non_finite
from mfd_cli.training.reporting import Reporter, reported
from teachers.base import Data, Teacher
from teachers.conditions import Condition
from teachers.registry import data as data_registry
from teachers.registry import teachers as teacher_registry


def train_teacher(
    loaded: LoadedRecipe, path: Path, *, force: bool = False, reporter: Reporter | None = None
) -> Teacher:
    """Trains a teacher's network from nothing and writes it as one safetensors file.

    Args:
        loaded: a recipe of `mfd teachers train`.
        path: the file to write; its header tells architecture and training.
        force: whether a file that stands there may be replaced.
        reporter: receives progress.

    Raises:
        MfdError: the file exists or cannot be written, or the data or network do not fit.
        RunStopped: a loss or gradient is not finite; nothing was written.
    """
    recipe: Any = loaded.recipe
    if path.is_dir():
        raise MfdError(f"{path}: a folder", allowed="a file to write")
    if path.exists() and not force:
        raise MfdError(f"{path}: exists", do="name another file with -o, or replace it with --force")
    if not os.access(path.parent, os.W_OK) and path.parent.is_dir():
        raise MfdError(f"{path}: its folder cannot be written", do="name another file with -o")
    if not path.parent.is_dir():
        raise MfdError(f"{path}: there is no folder {path.parent}", do="make it, or name another file with -o")
    reporter = reporter or Reporter()
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    data = data_registry.get(recipe.data.type).load(recipe.data, None)  # type: ignore[attr-defined]
    cls: Any = teacher_registry.get(recipe.teacher.type)
    teacher: Teacher = cls.untrained(recipe.teacher, recipe.network, data)
    _pretrain(teacher, data, recipe.seed, reporter)
    reporter.started(
        f"{recipe.name}: {recipe.train.updates} updates of {recipe.train.batch_size}", recipe.train.updates, 0
    )
    try:
        network = fit(teacher, data, recipe, reporter)
    finally:
        reporter.ended()
    header = {
        "type": recipe.teacher.type,
        "architecture": teacher.architecture,
        "training": {key_: value for key_, value in loaded.resolved.items() if key_ != "teacher"},
    }
    write_tensors(path, teacher.weights(network), header)
    teacher.network = network.eval().requires_grad_(False)
    reporter.saved("teacher", path)
    return teacher


def _pretrain(teacher: Teacher, data: Data, seed: int, reporter: Reporter) -> None:
    """What the family trains, and the data prepares, before the velocity network."""
    for task, work in (
        ("pretrain", lambda report: teacher.pretrain(data, seed, report)),
        ("prepare data", data.prepare),
    ):
        with reported(reporter, task) as report:
            work(report)


def fit(teacher: Teacher, data: Data, recipe: Any, reporter: Reporter) -> nn.Module:
    """The trained network: the average of the weights if the recipe averages, else the last ones."""
    train, settings = recipe.train, recipe.optim
    torch.manual_seed(key(recipe.seed, "weights")[0] >> 1)
    network = teacher.build_network().train()
    average = AveragedNetwork(network, train.ema) if train.ema is not None else None
    optimizer = build_optimizer(network, settings)
    every = max(1, train.updates // 50)
    shown: list[Tensor] = []
    for update in range(train.updates):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, update, train.updates)
        loss, t = _loss(teacher, network, data, recipe, update)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip or float("inf"))
        refuse_non_finite(
            role="teacher", update=update, inside=0, loss=loss.item(), norm=norm.item(), times=t,
            items=_items(data, recipe, update).tolist(),
        )  # fmt: skip
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if average is not None:
            average.update(update + 1)
        shown.append(loss.detach())
        reporter.stepped(update + 1, 0.0)
        if (update + 1) % every == 0 or update + 1 == train.updates:
            reporter.logged({"update": update + 1, "loss": float(torch.stack(shown).mean())})
            shown.clear()
    return average.network if average is not None else network


def _loss(teacher: Teacher, network: nn.Module, data: Data, recipe: Any, update: int) -> tuple[Tensor, Tensor]:
    """Flow-matching loss of one batch, and its times."""
    train = recipe.train
    random = Stream(recipe.seed, update, 0, train.batch_size)
    items = _items(data, recipe, update)
    states = data.states(items)
    noise = random.normal("x0", states.shape[1:])
    t = random.uniform("t") if train.times == "uniform" else torch.sigmoid(random.normal("t", ()))
    condition = _dropped(teacher, data.condition(items), random.uniform("drop") < train.drop_condition)
    error = teacher.velocity(network, interpolate(noise, states, t), t, condition) - (states - noise)
    return error.square().mean(), t


def _items(data: Data, recipe: Any, update: int) -> Tensor:
    """The data items of one batch."""
    count = recipe.train.batch_size
    first = update * count
    if data.size is None:
        return torch.arange(first, first + count)
    return order(recipe.seed, data.size, first, count)


def _dropped(teacher: Teacher, condition: Condition, drop: Tensor) -> Condition:
    """The condition with the rows in `drop` [B] made unconditional."""
    null = teacher.null_condition(condition)
    if null is None:
        return condition
    return {
        name: torch.where(drop.reshape(-1, *(1,) * (value.dim() - 1)), null[name], value)
        for name, value in condition.items()
    }
