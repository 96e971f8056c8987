"""Everything that a recipe builds, in memory: devices, teacher, data, roles. Nothing is written."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mfd_cli import __version__
from mfd_cli.config.load import LoadedRecipe
from mfd_cli.errors import MfdError
from mfd_cli.flow import time_grid
from mfd_cli.inference.memory import keep_freed_memory
from mfd_cli.inference.sampler import Sampler, teacher_sampler
from mfd_cli.methods.base import Batch, Method
from mfd_cli.methods.registry import methods
from mfd_cli.networks.roles import Role, Roles, build_role, build_roles
from mfd_cli.networks.sharding import Sharding, is_sharded
from mfd_cli.seeds import key
from mfd_cli.training import preflight, strategy
from mfd_cli.training.batches import Batches
from mfd_cli.training.fields import Fields
from mfd_cli.training.schedule import schedule_of
from mfd_cli.training.tracking import require_trackers
from mfd_cli.training.trainer import Progress, Trainer
from teachers.base import Data, Teacher
from teachers.guidance import Evaluations
from teachers.registry import data as data_registry
from teachers.registry import teachers as teacher_registry


@dataclass
class Workshop:
    """Everything that a recipe builds, in memory."""

    loaded: LoadedRecipe
    accelerator: Accelerator
    teacher: Teacher
    data: Data
    method: Method
    roles: Roles
    batches: Batches

    @property
    def recipe(self) -> Any:
        """The validated recipe."""
        return self.loaded.recipe

    def prepare(self) -> None:
        """Lets the method look at the networks, and builds its critic. What it warns of is told by one process."""
        with warnings.catch_warnings():
            if not self.accelerator.is_main_process:
                warnings.simplefilter("ignore", UserWarning)
            self.method.prepare(self._example)
        self.roles.critic = self._critic()

    def _critic(self) -> Role | None:
        """The method's critic with its optimizer, which is set as the auxiliary's; None if it has none."""
        recipe, method = self.recipe, self.method
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(recipe.seed, "critic")[0] >> 1)
            critic = method.build_critic(self._example)
        if critic is None:
            return None
        updates = schedule_of(method).aux_total(recipe.train.updates)
        return build_role("critic", critic.to(self.accelerator.device), recipe.optim.aux, updates)

    def _example(self) -> Batch:
        """A batch of one sample, whose evaluations do not count."""
        alone = replace(self.batches, batch_size=1, parts=1, process=0, processes=1)
        counts = {name: Evaluations() for name in ("student", "aux", "teacher")}
        fields = Fields(self.recipe, self.method, self.teacher, self.roles, alone, counts)
        return fields.batch(0, 0, is_student=True, update=0)

    def trainer(self, progress: Progress | None = None) -> Trainer:
        """The loop over all this, at its beginning or at a checkpoint's progress."""
        return Trainer(self.recipe, self.method, self.teacher, self.roles, self.batches, self.accelerator, progress)

    def student_config(self, update: int) -> dict[str, Any]:
        """What a stored student says about itself; see `mfd_cli.store.student`."""
        recipe, resolved = self.recipe, self.loaded.resolved
        grid = time_grid(recipe.student.steps, recipe.student.shift)
        return {
            "mfd_version": __version__,
            "recipe_name": recipe.name,
            "method": recipe.method.type,
            "update": update,
            "ema": recipe.train.ema,
            "student": {
                "steps": recipe.student.steps, "shift": recipe.student.shift, "sampler": self.method.sampler,
                "flow_map": self.method.flow_map, "any_steps": self.method.any_steps, "grid": grid.tolist(),
                "weights": recipe.student.weights, "lora": self._adapters(), "first_time": self.teacher.first_time,
            },
            "teacher": resolved["teacher"] | self.teacher.pinned(),
            "architecture": self.teacher.architecture,
            "identity": self.identity(),
            "data": resolved["data"],
            "recipe": resolved,
        }  # fmt: skip

    def identity(self) -> dict[str, str]:
        """What tells the teacher from others."""
        return {"teacher": "none"} if self.loaded.teacherless else self.teacher.whole_identity()

    def _adapters(self) -> dict[str, Any] | None:
        """The student's adapters with every default filled in; None for full weights."""
        lora = self.recipe.student.adapters
        if lora is None:
            return None
        return {
            "rank": lora.rank, "alpha": lora.scale_alpha, "targets": lora.targets or list(self.teacher.lora_targets)
        }  # fmt: skip

    def samplers(self) -> tuple[Sampler | None, Sampler]:
        """The teacher, if there is one, and the student as it would be saved now."""
        device, student = self.accelerator.device, self.recipe.student
        return None if self.loaded.teacherless else teacher_sampler(self.teacher, device), Sampler(
            "student", self.teacher, self.roles.final(), student.steps, student.shift, device=device,
            first_time=self.teacher.first_time, kind=self.method.sampler,
        )  # fmt: skip

    def bytes_needed(self) -> int:
        """Bytes that checkpoints and students need on disk: weights and two moments of every role, and the average."""
        student, *others = (
            sum(value.numel() * value.element_size() for value in role.network.parameters())
            for role in self.roles.trained()
        )
        best = (self.recipe.log.keep + 2) * student if self.recipe.evaluate.every else 0
        return (4 * student + 3 * sum(others)) * (self.recipe.log.keep + 1) + student + best


def build(loaded: LoadedRecipe, device: str | None = None, *, random_weights: bool = False) -> Workshop:
    """Loads the teacher and its data and builds the roles.

    Args:
        loaded: the recipe.
        device: "cpu" or "cuda"; what Accelerate finds if None.
        random_weights: whether the teacher gets random weights of the right shapes (a dry run without its own).

    Raises:
        MfdError: the device does not exist or does not suit the recipe.
        TeacherError: weights or data are missing or do not fit.
    """
    recipe: Any = loaded.recipe
    require_trackers(recipe.log.trackers)
    accelerator, sharding = _processes(recipe, device)
    family: Any = teacher_registry.get(recipe.teacher.type)
    source: Any = data_registry.get(recipe.data.type)
    method = methods.get(recipe.method.type)(recipe.method)
    preflight.refuse_contradictions(
        recipe, method, source, processes=accelerator.num_processes, teacherless=loaded.teacherless
    )
    if sharding is not None:
        preflight.refuse_sharded(recipe)
    if not random_weights and not loaded.teacherless:
        preflight.refuse_missing(recipe)
    if loaded.teacherless:
        data = source.load(recipe.data, None)
        teacher = family.untrained(recipe.teacher, recipe.network, data)
    else:
        teacher = (family.random if random_weights else family.loaded)(recipe.teacher)
        data = (source.stand_in if random_weights else source.load)(recipe.data, teacher)
    batches = Batches(
        data, recipe.seed, recipe.train.batch_size, recipe.train.accumulation,
        accelerator.process_index, accelerator.num_processes, accelerator.device,
    )  # fmt: skip
    if method.needs_data:
        preflight.require_states(recipe, data)
    roles = build_roles(
        teacher.to(accelerator.device) if sharding is None else teacher,
        recipe.optim.student, getattr(recipe.optim, "aux", None), seed=recipe.seed,
        updates=recipe.train.updates, aux_updates=schedule_of(method).aux_total(recipe.train.updates),
        ema=recipe.train.ema, device=accelerator.device, lora=recipe.student.adapters,
        checkpointing=recipe.train.checkpointing, flow_map=method.flow_map, sharding=sharding,
    )  # fmt: skip
    if sharding is not None:
        for network in (teacher.network, teacher.weak):
            if network is not None and not any(map(is_sharded, network.parameters())):  # adapters' base already is
                sharding.place(network)
        teacher.to(accelerator.device)
    workshop = Workshop(loaded, accelerator, teacher, data, method, roles, batches)
    workshop.prepare()
    return workshop


def _processes(recipe: Any, device: str | None) -> tuple[Accelerator, Sharding | None]:
    """Devices and processes, and how networks are cut among them, if an accelerate config says so."""
    here = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if device is not None and device not in here:
        raise MfdError(f"--device {device}: not here", allowed=" or ".join(here))
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    mixed = {"fp32": "no", "bf16": "bf16"}[recipe.train.precision]
    # Accelerate keeps the first device and precision of a process for good; a second run may want others
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    plugin = strategy.asked()
    with strategy.plain_processes():
        accelerator = Accelerator(mixed_precision=mixed, cpu=device == "cpu", device_placement=False)
    strategy.require_processes(accelerator.num_processes)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator, strategy.sharding(plugin, accelerator.device, accelerator.num_processes)
