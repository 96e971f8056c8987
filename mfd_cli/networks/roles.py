"""The trained networks of a run and their optimizers."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mfd_cli.config.schema import Lora
from mfd_cli.config.schema import Optimizer as OptimizerSettings
from mfd_cli.errors import MfdError
from mfd_cli.networks.ema import AveragedNetwork
from mfd_cli.networks.lora import SharedBase, enable_checkpointing
from mfd_cli.networks.sharding import Sharding
from mfd_cli.seeds import key
from teachers.base import Teacher


@dataclass
class Role:
    """A trained network with its optimizer.

    Attributes:
        name: "student", "aux" or "critic".
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

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Leaves the weights out of gradients that pass through the network inside the block."""
        for value in self.parameters:
            value.requires_grad_(False)
        try:
            yield
        finally:
            for value in self.parameters:
                value.requires_grad_(True)

    def set_rate(self, done: int) -> float:
        """Sets and returns the learning rate of the update that follows `done` others."""
        rate = learning_rate(self.settings, done, self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate


@dataclass
class Roles:
    """Student and, where the method has one, auxiliary and critic; the averaged student if the recipe averages.

    `sharding` has put student, auxiliary and average, or the base that their adapters lie on, into shards; None where
    every process holds them whole.
    """

    student: Role
    auxiliary: Role | None
    average: AveragedNetwork | None
    critic: Role | None = None
    sharding: Sharding | None = None

    def trained(self) -> list[Role]:
        """Every role there is, the student first."""
        return [self.student, *self.followers()]

    def followers(self) -> list[Role]:
        """The roles that learn between two student updates."""
        return [role for role in (self.auxiliary, self.critic) if role is not None]

    def final(self) -> nn.Module:
        """The network that is saved and sampled: the average if there is one."""
        return self.average.network if self.average is not None else self.student.network


def build_roles(
    teacher: Teacher,
    student: OptimizerSettings,
    auxiliary: OptimizerSettings | None,
    *,
    seed: int,
    updates: int,
    aux_updates: int,
    ema: float | None,
    device: torch.device,
    lora: Lora | None = None,
    checkpointing: bool = False,
    flow_map: bool = False,
    sharding: Sharding | None = None,
) -> Roles:
    """Student and auxiliary, both starting as the teacher, with their optimizers.

    Args:
        teacher: a loaded teacher, on the device; or one without weights, for a student that is trained from nothing.
        student: the student's optimizer settings.
        auxiliary: the auxiliary's; None for a method without one.
        seed: the recipe's seed, for a start that has to be fitted and for adapters.
        updates: student updates of the whole run.
        aux_updates: auxiliary updates of the whole run; 0 for no auxiliary.
        ema: decay of the averaged student, None for no average.
        device: where the networks live.
        lora: adapters on the teacher's own network instead of copies of it; None trains every weight.
        checkpointing: whether activations are computed anew in the backward pass.
        flow_map: whether the student is a flow map.
        sharding: puts the networks into shards as soon as they are complete, so that none of them is whole on the
            device; None leaves them whole.

    Raises:
        MfdError: the network takes no such adapters, cannot compute activations anew, or cannot become a flow map.
    """
    place = None
    if lora is None:
        first = _start(teacher, seed).to(device if sharding is None else "cpu")
        second = copy.deepcopy(first) if aux_updates else None
        if checkpointing:
            for network in (first, second):
                if network is not None:
                    enable_checkpointing(network)
        if flow_map:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(key(seed, "flow map")[0] >> 1)
                first = teacher.flow_map(first)
        if sharding is not None:
            if second is not None:
                sharding.place(second)
            if ema is not None:  # copied only now, so that fewer whole networks are in memory at once
                place = sharding.place(copy.deepcopy(first))
            sharding.place(first)
    else:
        assert not flow_map, "refused before anything is built"
        names = ["student", *(["aux"] if aux_updates else []), *(["ema"] if ema is not None else [])]
        shared = share_base(teacher, lora, names, seed=seed)
        first, second, place = (shared.networks.get(name) for name in ("student", "aux", "ema"))  # type: ignore[assignment]
        if checkpointing:
            shared.checkpoint_activations()
        if sharding is not None:
            sharding.place(shared.base, [value for name in names for value in shared.parameters_of(name).values()])
    return Roles(
        build_role("student", first, student, updates),
        None if second is None or auxiliary is None else build_role("aux", second, auxiliary, aux_updates),
        AveragedNetwork(first, ema, place) if ema is not None else None,
        sharding=sharding,
    )


def _start(teacher: Teacher, seed: int) -> nn.Module:
    """The network that training begins with: the teacher's, or a fresh one where it has none."""
    if teacher.network is not None:
        return teacher.initial_network(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "start")[0] >> 1)
        return teacher.build_network()


def build_role(name: str, network: nn.Module, settings: OptimizerSettings, updates: int) -> Role:
    """A network with its optimizer; arguments as the role's attributes."""
    return Role(name, network, build_optimizer(network, settings), settings, updates, network)


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


def require_optimizer(settings: OptimizerSettings) -> None:
    """Raises MfdError if the optimizer's package is not installed."""
    if settings.type == "adamw8bit":
        _adamw_8bit()


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
