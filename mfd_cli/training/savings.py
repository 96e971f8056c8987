"""What to change when a run does not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mfd_cli.errors import RunStopped
from mfd_cli.inference.benchmark import device_name
from mfd_cli.inference.memory import total_memory_mb
from mfd_cli.methods.registry import methods
from mfd_cli.store.files import human


def savings(recipe: Any) -> list[str]:
    """Settings that would save memory and are not used yet, the largest saving first."""
    train, student, teacher = recipe.train, recipe.student, recipe.teacher
    found = []
    if student.weights == "full" and not getattr(methods.get(recipe.method.type), "flow_map", False):
        found.append("student.weights=lora: adapters on one frozen network instead of three networks with optimizers")
    if train.batch_size > train.accumulation:
        found.append(f"train.accumulation={train.batch_size}: the same batch in parts of one sample, slower")
    if not train.checkpointing:
        found.append("train.checkpointing=true: activations computed anew, about a third slower")
    if student.steps > 1 and student.gradient == "chain":
        found.append(f"student.gradient=one-step: activations of one step instead of {student.steps}, noisier")
    if getattr(teacher, "dtype", None) == "fp32":
        found.append("teacher.dtype=bf16: half the memory for frozen weights")
    if train.precision == "fp32":
        found.append("train.precision=bf16: half the memory for most activations")
    optimizers = [name for name in ("student", "aux") if hasattr(recipe.optim, name)]
    if "adamw8bit" not in [getattr(recipe.optim, name).type for name in optimizers]:
        keys = " and ".join(f"optim.{name}.type=adamw8bit" for name in optimizers)
        found.append(f"{keys}: a quarter of the optimizers' memory")
    if student.adapters is not None and student.adapters.rank > 16:
        found.append(f"student.lora.rank={student.adapters.rank // 2}: half the memory for adapters and optimizers")
    if getattr(teacher, "resolution", None) is not None or hasattr(teacher, "vae_tiling"):
        found.append("teacher.resolution: half the side is a quarter of the activations")
    if train.ema is not None:
        found.append("train.ema=null: one copy of the trained weights less")
    return found


#: what saves memory in a part of a run that makes no update, before anything else
_OUTSIDE = {
    "a preview": "log.preview_num=1: fewer samples at once; log.preview_every=0: first and last preview only",
    "a quick judgement": "evaluate.batch_size=1: fewer samples at once; evaluate.every=0: no quick judgements",
    "the closing check": "evaluate.batch_size=1: fewer samples at once; evaluate.num=0: no closing check",
}


def savings_in(phase: str, recipe: Any) -> list[str]:
    """The same for a phase of a run: what concerns that phase alone comes first."""
    return [*([_OUTSIDE[phase]] if phase in _OUTSIDE else []), *savings(recipe)]


def out_of_memory(what: str, device: torch.device, advice: Sequence[str]) -> RunStopped:
    """The error of a run that ran out of memory while it did `what`."""
    total = total_memory_mb(device)
    size = f" ({human(total * 1e6)})" if total else ""
    return RunStopped(
        f"out of memory on {device_name(device)}{size} in: {what}",
        do=f"change with --set, largest saving first: {'; '.join(advice)}",
    )
