"""The trained networks of a run and their optimizers."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mfd_cli.config.schema import Lora
from mfd_cli.config.schema import Optimizer as OptimizerSettings
from mfd_cli.errors import MfdError
from mfd_cli.networks.ema import AveragedNetwork
from mfd_cli.networks.lora import SharedBase, enable_checkpointing
from teachers.base import Teacher


@dataclass
class Role:
    """A trained network with its optimizer.

    Attributes:
        name: "student" or "aux".
        network: the bare network.
        optimizer: over its trainable parameters.
        settings: the recipe's block.
        updates: number of updates in the whole run, over which a rate schedule is spread.
        wrapped: the network as the loop calls it with gradient (data-parallel); the bare one in a single process.
    """

    name: str
    network: nn.Module
    optimizer: torch.optim.Optimizer
    settings: OptimizerSettings
    updates: int
    wrapped: nn.Module

    @functools.cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in the optimizer's order."""
        return [value for value in self.network.parameters() if value.requires_grad]

    def parameter_names(self) -> list[str]:
        """Their names."""
        return [name for name, value in self.network.named_parameters() if value.requires_grad]

    def set_rate(self, done: int) -> float:
        """Sets and returns the learning rate of the update that follows `done` others."""
        rate = learning_rate(self.settings, done, self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate


@dataclass
class Roles:
    """Student, auxiliary and, if the recipe averages, the averaged student."""

    student: Role
    auxiliary: Role
    average: AveragedNetwork | None

    def final(self) -> nn.Module:
        """The network that is saved and sampled: the average if there is one."""
        return self.average.network if self.average is not None else self.student.network


def build_roles(
    teacher: Teacher,
    student: OptimizerSettings,
    auxiliary: OptimizerSettings,
    *,
    seed: int,
    updates: int,
    aux_updates: int,
    ema: float | None,
    device: torch.device,
    lora: Lora | None = None,
    checkpointing: bool = False,
) -> Roles:
    """Student and auxiliary, both starting as the teacher, with their optimizers.

    Args:
        teacher: a loaded teacher, on the device.
        student: the student's optimizer settings.
        auxiliary: the auxiliary's.
        seed: the recipe's seed, for a start that has to be fitted and for adapters.
        updates: student updates of the whole run.
        aux_updates: auxiliary updates per student update.
        ema: decay of the averaged student, None for no average.
        device: where the networks live.
        lora: adapters on the teacher's own network instead of copies of it; None trains every weight.
        checkpointing: whether activations are computed anew in the backward pass.

    Raises:
        MfdError: the network takes no such adapters, or cannot compute activations anew.
    """
    place = None
    if lora is None:
        first = teacher.initial_network(seed).to(device)
        second = copy.deepcopy(first)
        if checkpointing:
            for network in (first, second):
                enable_checkpointing(network)
    else:
        shared = share_base(teacher, lora, ["student", "aux", *(["ema"] if ema is not None else [])], seed=seed)
        first, second, place = shared.networks["student"], shared.networks["aux"], shared.networks.get("ema")
        if checkpointing:
            shared.checkpoint_activations()
    return Roles(
        Role("student", first, build_optimizer(first, student), student, updates, first),
        Role("aux", second, build_optimizer(second, auxiliary), auxiliary, updates * aux_updates, second),
        AveragedNetwork(first, ema, place) if ema is not None else None,
    )


def share_base(teacher: Teacher, lora: Lora, names: Sequence[str], *, seed: int = 0) -> SharedBase:
    """Adapters of these names on a loaded teacher's network, which stays the teacher.

    Raises:
        MfdError: neither the recipe nor the family says which layers get adapters, or there are no such layers.
    """
    targets = lora.targets or list(teacher.lora_targets)
    if not targets:
        raise MfdError(
            f"student.weights: lora on a teacher of type '{teacher.settings.type}', which names no layers for adapters",
            do="name them with student.lora.targets",
        )
    assert teacher.network is not None, "load the teacher first"
    return SharedBase(teacher.network, rank=lora.rank, alpha=lora.scale_alpha, targets=targets, names=names, seed=seed)


def build_optimizer(network: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimizer of a settings block over a network's trainable parameters.

    Raises:
        MfdError: 8-bit AdamW without its package.
    """
    trained = [value for value in network.parameters() if value.requires_grad]
    shared = {
        "lr": settings.lr, "betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay
    }  # fmt: skip
    if settings.type == "adamw8bit":
        return _adamw_8bit()(trained, **shared)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings.type]
    return kind(trained, **shared, fused=True)


def _adamw_8bit() -> Any:
    """The class of AdamW whose moments take a byte each (Dettmers et al. 2021, arXiv 2110.02861)."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MfdError(
            "optim type adamw8bit: bitsandbytes is not installed",
            allowed="adamw, adam",
            do="pip install 'mfd[8bit]'",
        ) from error
    return AdamW8bit


def learning_rate(settings: OptimizerSettings, done: int, updates: int) -> float:
    """Learning rate of the update that follows `done` of `updates`: a warm-up line, then the schedule."""
    if done < settings.warmup:
        return settings.lr * (done + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    progress = (done - settings.warmup) / max(1, updates - settings.warmup)
    left = 1 - progress if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return settings.lr * (settings.final + (1 - settings.final) * left)
