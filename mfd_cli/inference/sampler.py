"""Samples from a student, or from a teacher on the same seeds.

Noise of sample i is a function of (seed, i) alone, so the same seed gives teacher and student the same noise, and a
sample depends on the batch it was computed in by rounding at most.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mfd_cli import samplers
from mfd_cli.config.load import load_recipe
from mfd_cli.config.schema import Lora
from mfd_cli.errors import MfdError
from mfd_cli.flow import time_grid, told_times
from mfd_cli.networks.roles import share_base
from mfd_cli.samplers import Fresh
from mfd_cli.seeds import Stream
from mfd_cli.store.layout import find, run_of
from mfd_cli.store.student import read_student
from mfd_cli.store.tensors import load_into
from teachers.base import Data, Teacher
from teachers.conditions import Condition
from teachers.conditions import to as condition_to
from teachers.guidance import AverageVelocityField, Evaluations, VelocityField
from teachers.registry import data as data_registry
from teachers.registry import teachers as teacher_registry

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Sampler:
    """A network that samples: teacher or student.

    Attributes:
        name: "teacher" or "student".
        teacher: adapter of the family (a student's holds no teacher weights).
        network: velocity network to evaluate.
        steps: Euler steps unless asked otherwise.
        shift: time shift of the schedule.
        guidance: guidance scale unless asked otherwise; students are unguided (1).
        config: a student's stored config; of a teacher no more than its data, where they are known.
        device: where samples are computed.
        evaluations: forward passes so far, one per row.
        dtype: precision that networks compute in (autocast); states and weights stay float32.
        first_time: earliest time that the network is told (`Teacher.first_time` for students).
        kind: how samples are made: one of `mfd_cli.samplers.SAMPLERS`.
        any_steps: whether it was made for any number of steps.
    """

    name: str
    teacher: Teacher
    network: nn.Module
    steps: int
    shift: float = 1.0
    guidance: float = 1.0
    config: dict[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    evaluations: Evaluations = field(default_factory=Evaluations)
    dtype: torch.dtype = torch.float32
    first_time: float = 0.0
    kind: str = "euler"
    any_steps: bool = False

    def sample(
        self,
        count: int,
        *,
        steps: int | None = None,
        seed: int = 0,
        asked: Sequence[int | str] | None = None,
        guidance: float | None = None,
        batch_size: int | None = None,
        first: int = 0,
    ) -> Tensor:
        """Decoded samples on the CPU.

        Args:
            count: number of samples N.
            steps: Euler steps; the sampler's own if None.
            seed: sample i has the noise of (seed, i).
            asked: N class indices, prompts or numbers of held-out clips; the family's own examples if None.
            guidance: guidance scale; the sampler's own if None.
            batch_size: samples computed at once, the family's choice if None; changes nothing but memory and speed.
            first: index of the first sample.

        Returns:
            Points [N, D], images [N, C, H, W] in [0, 1], or classes of voxels uint8 [N, F, X, Y, Z].

        Raises:
            MfdError: steps or count below 1, or `asked` of another length.
            TeacherError: something asked for does not exist.
        """
        if count < 1 or (steps is not None and steps < 1):
            raise MfdError(f"{count} samples in {steps or self.steps} steps", allowed="at least 1 of each")
        self.find_clips()
        wanted = list(asked) if asked is not None else self.teacher.examples(count)
        if wanted and len(wanted) != count:
            raise MfdError(f"{len(wanted)} conditions for {count} samples", allowed="one for each sample")
        parts = []
        at_once = batch_size or self.teacher.batch_size
        for start in range(0, count, at_once):
            size = min(at_once, count - start)
            condition = condition_to(self.teacher.encode(wanted[start : start + size]), self.device)
            noise = self.noise(size, seed=seed, first=first + start)
            fresh = self.fresh(size, seed=seed, first=first + start)
            states = self.generate(noise, condition, steps=steps, guidance=guidance, fresh=fresh)
            parts.append(self.decode(states).cpu())
        return torch.cat(parts)

    def find_clips(self, *, stand_in: bool = False) -> None:
        """Loads the data that the family's conditions are items of, if they are and it was not loaded before.

        Args:
            stand_in: load what stands in for it, in any case.
        """
        if self.teacher.condition_kind == "clip" and "data" in self.config and (stand_in or not self.teacher.clips):
            load_data(self.config, self.teacher, stand_in=stand_in)

    def noise(self, count: int, *, seed: int, first: int = 0) -> Tensor:
        """The noise of samples `first` .. `first + count - 1` [N, *sample_shape], on the sampler's device."""
        return Stream(seed, 0, first, count, self.device).normal("sample", self.teacher.sample_shape)

    def fresh(self, count: int, *, seed: int, first: int = 0) -> Fresh:
        """Further noise of the same samples, for samplers that renoise between steps."""
        stream = Stream(seed, 0, first, count, self.device)
        return lambda point: stream.normal(f"sample.{point}", self.teacher.sample_shape)

    @torch.inference_mode()
    def generate(
        self,
        noise: Tensor,
        condition: Condition,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        fresh: Fresh | None = None,
    ) -> Tensor:
        """States at t = 1 [B, ...] from noise [B, ...] on the sampler's device.

        Args:
            noise: X_0.
            condition: B rows.
            steps: the sampler's own if None.
            guidance: the sampler's own if None; a flow map has none.
            fresh: noise of the points between, for students that renoise (`fresh`).
        """
        grid = time_grid(steps or self.steps, self.shift)
        told = told_times(grid, self.first_time)
        with self._precision():
            return samplers.sample(self.kind, self._field(condition, guidance), noise, grid, told=told, fresh=fresh)

    def _field(self, condition: Condition, guidance: float | None) -> Any:
        if self.kind == "flow-map":
            return AverageVelocityField(self.teacher, self.network, condition, self.evaluations)
        scale = self.guidance if guidance is None else guidance
        return VelocityField(self.teacher, self.network, condition, scale, self.evaluations)

    @torch.inference_mode()
    def decode(self, states: Tensor) -> Tensor:
        """Finished samples of states at t = 1."""
        with self._precision():
            return self.teacher.decode(states)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


def load_student(path: str | Path | None = None, *, device: str | torch.device = "cpu", dtype: str = "fp32") -> Sampler:
    """The student of a run folder, checkpoint, export folder or exported file; of the newest run if None.

    Args:
        path: where it is.
        device: where it samples.
        dtype: precision that its network computes in: fp32, bf16 or fp16.

    Raises:
        MfdError: nothing usable there, the message says what was found; or no such precision.
    """
    stored = read_student(find(None if path is None else str(path)))
    config, student = stored.config, stored.config["student"]
    if student.get("weights") == "lora":
        teacher, network = _adapted(config, device)
    else:
        teacher = build_adapter(config).to(device)
        network = teacher.build_network()
        if student.get("flow_map"):
            network = teacher.flow_map(network)
        network = network.to(device)
    load_into(network, stored.network, stored.path)
    if stored.carried:
        teacher.receive(stored.carried)
    return Sampler(
        "student",
        teacher,
        network.eval().requires_grad_(False),
        student["steps"],
        student["shift"],
        config=config,
        device=torch.device(device),
        dtype=precision(dtype),
        first_time=student.get("first_time", 0.0),
        kind=student.get("sampler", "euler"),
        any_steps=student.get("any_steps", False),
    )


def _adapted(config: dict[str, Any], device: str | torch.device) -> tuple[Teacher, nn.Module]:
    """The teacher that a stored adapter was trained on, loaded, and its network under an adapter yet to be filled.

    Raises:
        MfdError: the teacher's weights are missing, or not those that the adapter was trained on.
    """
    adapter = build_adapter(config)
    teacher = type(adapter).loaded(adapter.settings)
    if config["identity"] != teacher.whole_identity():
        raise MfdError(
            f"the teacher's weights are not those that this adapter was trained on: {teacher.whole_identity()}",
            allowed=str(config["identity"]),
            do="put those weights back: an adapter is worth nothing on others",
        )
    lora = Lora.model_validate(config["student"]["lora"])
    return teacher, share_base(teacher.to(device), lora, ["student"]).networks["student"]


def precision(name: str) -> torch.dtype:
    """The torch dtype of fp32, bf16 or fp16.

    Raises:
        MfdError: another name.
    """
    if name not in PRECISIONS:
        raise MfdError(f"dtype {name}", allowed=", ".join(PRECISIONS))
    return PRECISIONS[name]


def build_adapter(config: dict[str, Any]) -> Teacher:
    """The family's adapter for a stored student, without the teacher's weights."""
    cls = teacher_registry.get(config["teacher"]["type"])
    settings = cls.Settings.model_validate(config["teacher"], strict=False)  # type: ignore[attr-defined]
    return cls(settings, config["architecture"])


def teacher_sampler(teacher: Teacher, device: str | torch.device = "cpu") -> Sampler:
    """A loaded teacher as a sampler, guided and stepped as its settings say."""
    settings = teacher.settings
    assert teacher.network is not None, "load the teacher first"
    return Sampler(
        "teacher", teacher.to(device), teacher.network, settings.steps, settings.shift, settings.guidance,
        device=torch.device(device),
    )  # fmt: skip


def load_teacher(
    reference: str | Path | None = None, *, device: str | torch.device = "cpu", dtype: str = "fp32"
) -> Sampler:
    """The teacher of a run or an export (RUN), or of a recipe given by file or name.

    `device` and `dtype` are as for `load_student`.

    Raises:
        MfdError: neither; or the teacher's weights are missing.
    """
    blocks = _recipe_blocks(None if reference is None else str(reference))
    recipe = blocks.get("recipe", blocks)
    if "method" in recipe and recipe.get("network") is not None:
        raise MfdError(f"{reference}: this student was trained from nothing, without a teacher")
    cls = teacher_registry.get(blocks["teacher"]["type"])
    settings = cls.Settings.model_validate(blocks["teacher"], strict=False)  # type: ignore[attr-defined]
    sampler = teacher_sampler(cls.loaded(settings), device)  # type: ignore[attr-defined]
    return replace(sampler, dtype=precision(dtype), config={"data": blocks["data"]} if "data" in blocks else {})


def load_data(config: dict[str, Any], teacher: Teacher, *, stand_in: bool = False) -> Data:
    """The data source of a stored student's recipe, or what stands in for it where its files are missing."""
    cls: Any = data_registry.get(config["data"]["type"])
    settings = cls.Settings.model_validate(config["data"], strict=False)
    return (cls.stand_in if stand_in else cls.load)(settings, teacher)


def _recipe_blocks(reference: str | None) -> dict[str, Any]:
    """The blocks `teacher` and `data` of a recipe, run or export."""
    if reference is not None and (reference.endswith((".yaml", ".yml")) or not Path(reference).exists()):
        return load_recipe(reference).resolved
    path = find(reference)
    run = run_of(path)
    if run is not None and run.recipe.is_file():
        return load_recipe(str(run.recipe)).resolved
    return read_student(path).config
