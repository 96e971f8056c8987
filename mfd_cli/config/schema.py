"""Everything that a recipe can say. One model per block; the descriptions are the documentation (docs/recipe.md).

The blocks `teacher`, `method` and `data` have a `type`: the rest of such a block is defined by the class registered
under that name, so `recipe_model` builds the complete schema for the three types a recipe names.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    create_model,
    model_validator,
)

from mfd_cli.config import mistakes
from mfd_cli.config.strict_yaml import Document
from mfd_cli.metrics.registry import metrics as metric_registry
from teachers.registry import Registry, RegistryError
from teachers.registry import data as data_registry
from teachers.registry import teachers as teacher_registry
from teachers.settings import Settings, Strict


def plain_name(name: str) -> str:
    """The name, if it can be that of a file or folder anywhere. Raises ValueError otherwise, with what is allowed."""
    if not name or name.startswith(".") or not all(c.isalnum() or c in "-_." for c in name):
        raise ValueError("a name is letters, digits, '-', '_' and '.', and does not begin with '.'")
    if name == "latest" or len(name) > 100:
        raise ValueError("a name has at most 100 characters and is not 'latest', which means the newest run")
    return name


class Lora(Strict):
    """Adapters of a student with `weights: lora`. The defaults are the published SANA script's."""

    rank: int = Field(64, ge=1, description="Width of an adapter; parameters and optimizer memory grow with it.")
    alpha: float | None = Field(None, gt=0, description="Adapters are scaled by alpha / rank; null: alpha = rank.")
    targets: list[str] | None = Field(
        None, min_length=1, description="Names (or ends of names) of the layers that get one; null: the family's own."
    )

    @property
    def scale_alpha(self) -> float:
        """Alpha with its default filled in."""
        return float(self.rank) if self.alpha is None else self.alpha


class Student(Strict):
    """What is trained: a network that starts as the teacher, sampled in `steps` Euler steps."""

    steps: int = Field(1, ge=1, le=64, description="Steps the student is made for; each is one evaluation at sampling.")
    shift: float = Field(
        1.0, gt=0, description="Time shift of the student's schedule; above 1 moves its steps towards noise."
    )
    weights: Literal["full", "lora"] = Field(
        "full",
        description="full: every weight, three networks in memory; lora: adapters on one frozen base for all roles.",
    )
    lora: Lora | None = Field(None, description="Adapters; only with `weights: lora`.")
    gradient: Literal["chain", "one-step"] = Field(
        "chain",
        description="Students of several steps: chain backpropagates through all of them (activations of N forward "
        "passes); one-step through one drawn at random, in proportion to its length (activations of one, more noise).",
    )

    @model_validator(mode="after")
    def _lora_where_it_belongs(self) -> Student:
        if self.lora is not None and self.weights != "lora":
            raise ValueError("lora is given but weights is full; write weights: lora, or leave lora out")
        return self

    @property
    def adapters(self) -> Lora | None:
        """The adapters' settings; None for full weights."""
        return (self.lora or Lora()) if self.weights == "lora" else None


class Optimizer(Strict):
    """One optimizer. The defaults are the published script's."""

    type: Literal["adamw", "adam", "adamw8bit"] = Field(
        "adamw",
        description="adam couples weight decay into the gradient; adamw8bit: moments of one byte each, a quarter of "
        "the memory (extra `8bit`).",
    )
    lr: float = Field(1e-4, gt=0, description="Peak learning rate.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Decay of the first and second moment, in [0, 1).")
    eps: float = Field(1e-8, gt=0, description="Term that keeps the division by the second moment finite.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay.")
    clip: float | None = Field(1.0, gt=0, description="Largest global gradient norm; null: no clipping.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="How the rate falls from `lr` to `final` x `lr` over this optimizer's updates."
    )
    final: float = Field(0.1, ge=0, le=1, description="Share of `lr` left at the end (linear and cosine).")
    warmup: int = Field(0, ge=0, description="Updates of this optimizer over which the rate rises from 0.")

    @model_validator(mode="after")
    def _betas_below_one(self) -> Optimizer:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be in [0, 1), got {list(self.betas)}")
        return self


class StudentOptimizer(Strict):
    """The optimizer of methods that train the student alone."""

    #: keys of other methods, and why they are none here
    elsewhere: ClassVar[dict[str, str]] = {
        "aux": "the method has no auxiliary, and so no optimizer for one; leave the block out"
    }

    student: Optimizer = Field(default_factory=Optimizer, description="The student's optimizer.")


class Optimizers(StudentOptimizer):
    """The student's and the auxiliary's optimizer."""

    aux: Optimizer = Field(
        default_factory=Optimizer,
        description="The auxiliary flow's optimizer, and the critic's; only where there is one.",
    )


class Train(Strict):
    """Length, batch and precision."""

    updates: int = Field(ge=1, description="Student updates; each comes with `method.aux_updates` auxiliary ones.")
    batch_size: int = Field(
        ge=1, description="Samples per update over all processes and accumulation steps; activations grow with it."
    )
    accumulation: int = Field(
        1, ge=1, description="Parts a batch is computed in, one after the other: less memory, same gradient."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast; weights and ODE states stay fp32.")
    checkpointing: bool = Field(
        False, description="Activations are computed anew in the backward pass: much less memory, about a third slower."
    )
    ema: float | None = Field(
        0.999, gt=0, lt=1, description="Decay of the averaged student that is saved; null: the raw weights."
    )
    threads: int | None = Field(None, ge=1, description="CPU threads; null: PyTorch's choice.")

    @model_validator(mode="after")
    def _batch_divides(self) -> Train:
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} is not divisible by accumulation {self.accumulation}")
        return self


class Log(Strict):
    """What a run writes while it trains. Nothing here changes its weights."""

    every: int = Field(20, ge=1, description="Student updates between lines of metrics.jsonl.")
    preview_every: int = Field(500, ge=0, description="Updates between previews; 0: first and last only.")
    preview_num: int | None = Field(None, ge=1, le=1000, description="Samples in a preview; null: the family's choice.")
    checkpoint_every: int = Field(500, ge=0, description="Updates between checkpoints; 0: at the end only.")
    keep: int = Field(2, ge=2, description="Checkpoints kept; the one before the newest is the fallback.")
    trackers: list[Literal["tensorboard", "wandb"]] = Field([], description="Further places metrics go to.")


def _metric_block(found: Any) -> Any:
    """The settings of the metric that a block names by its type."""
    if isinstance(found, Settings):
        return found
    name = found.get("type") if isinstance(found, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"a metric is a block with a type; registered: {', '.join(metric_registry.names())}")
    try:
        model = settings_of(metric_registry, name)
        return model.model_validate_json(json.dumps(found))
    except RegistryError as error:
        raise ValueError("; ".join(part for part in (error.found, error.allowed, error.do) if part)) from error
    except ValidationError as error:
        inside = mistakes.of_schema(error, model, Document(found, {}, []))
        raise ValueError("; ".join(f"{mistake.key} {mistake.what}" for mistake in inside)) from error


MetricBlock = Annotated[SerializeAsAny[Settings], BeforeValidator(_metric_block)]


class Evaluate(Strict):
    """Quality: the quick judgements while a run trains, the check that ends it, and the defaults of `mfd benchmark`."""

    num: int = Field(10_000, ge=0, description="Samples each model is judged by after training; 0: no closing check.")
    batch_size: int = Field(500, ge=1, description="Samples generated at once while judging quality.")
    every: int = Field(
        0, ge=0, description="Student updates between quick judgements, from update 0 on; 0: none. The best is kept."
    )
    quick_num: int = Field(
        1000, ge=2, description="Samples of a quick judgement; its figures compare with each other alone."
    )
    metric: str | None = Field(None, description="The metric that decides which student is best; null: the first one.")
    patience: int | None = Field(
        None,
        ge=1,
        description="Quick judgements without an improvement beyond the standard error after which the run ends early; "
        "null: never.",
    )
    metrics: list[MetricBlock] = Field(
        [],
        description="Metrics besides those that the data allow by themselves, such as {type: clip-score}; one of those "
        "listed with settings of its own takes their place, unless it is held against the teacher's samples.",
    )

    @model_validator(mode="after")
    def _patience_needs_judgements(self) -> Evaluate:
        if self.patience is not None and not self.every:
            raise ValueError("patience counts quick judgements and every is 0; set evaluate.every, or patience: null")
        return self

    @model_validator(mode="after")
    def _figures_have_names(self) -> Evaluate:
        listed = [(metric.type, getattr(metric, "label", None)) for metric in self.metrics]
        twice = sorted({name for name, label in listed if listed.count((name, label)) > 1})
        if twice:
            raise ValueError(f"metrics lists {', '.join(twice)} twice; give each a label of its own")
        return self


def _off(value: Any) -> Any:
    return None if value is False else value


class Guards(Strict):
    """What a run watches over while it trains. `null` or `false` turns a guard off; nothing here changes weights, but
    for `skip_non_finite`.
    """

    skip_non_finite: int = Field(
        0, ge=0, description="Updates of the whole run that are left out because of a value that is not finite; the "
        "next one stops the run. 0: the first one stops it."
    )  # fmt: skip
    unmoved: Annotated[int | None, BeforeValidator(_off)] = Field(
        20, ge=1, description="Updates after which a network whose weights have not moved stops the run."
    )
    lag: Annotated[float | None, BeforeValidator(_off)] = Field(
        2.0,
        gt=0,
        description="Warning: the auxiliary's flow-matching loss over that of a Gaussian with the variance of the "
        "student's samples; above 1 it knows less of the student than its variance.",
    )
    spread: Annotated[float | None, BeforeValidator(_off)] = Field(
        0.1, gt=0, lt=1, description="Warning: variance of the student's samples over the largest it had."
    )
    collapse: Annotated[float | None, BeforeValidator(_off)] = Field(
        1e-3, gt=0, lt=1, description="Stops the run: the same, in 20 student updates in a row."
    )
    duplicates: Annotated[float | None, BeforeValidator(_off)] = Field(
        0.5, gt=0, le=1, description="Warning: share of a batch's samples that equal another one's, from other noise."
    )
    gradient: Annotated[float | None, BeforeValidator(_off)] = Field(
        50.0, gt=1, description="Warning: gradient norm, before it is clipped, over its median of the last 50 updates."
    )
    after: int = Field(50, ge=1, description="Student updates before `lag`, `spread` and `duplicates` are looked at.")
    repeat: int = Field(500, ge=1, description="Student updates before the same warning is given again.")


Name = Annotated[str, AfterValidator(plain_name)]


class RecipeBase(Strict):
    """Blocks that are the same for every teacher and method."""

    name: Name = Field(description="Name of the recipe; the run folder is runs/<name>.")
    seed: int = Field(0, ge=0, description="Seed of every random number of the run.")
    student: Student = Field(default_factory=Student, description="The student.")
    optim: Optimizers = Field(default_factory=Optimizers, description="Optimizers.")
    train: Train = Field(description="Length, batch and precision.")
    log: Log = Field(default_factory=Log, description="Logging, previews and checkpoints.")
    guards: Guards = Field(default_factory=Guards, description="What is watched over.")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="Quick judgements and the closing check.")


class TeacherTraining(Strict):
    """`mfd teachers train`: plain flow matching on data."""

    updates: int = Field(ge=1, description="Optimizer updates.")
    batch_size: int = Field(ge=1, description="Samples per update.")
    ema: float | None = Field(0.999, gt=0, lt=1, description="Decay of the averaged weights that are saved.")
    drop_condition: float = Field(
        0.1, ge=0, lt=1, description="Share of items trained without condition, so that the teacher can be guided."
    )
    times: Literal["uniform", "logit-normal"] = Field("uniform", description="Distribution of training times.")
    threads: int | None = Field(None, ge=1, description="CPU threads; null: PyTorch's choice.")


class TeacherRecipeBase(Strict):
    """A recipe of `mfd teachers train`."""

    name: Name = Field(description="Name of the recipe.")
    seed: int = Field(0, ge=0, description="Seed of every random number.")
    optim: Optimizer = Field(default_factory=Optimizer, description="The optimizer.")
    train: TeacherTraining = Field(description="Length and batch.")


#: what a `network` block means in a distillation recipe
FROM_NOTHING = (
    "Sizes of a network that is trained from nothing, on data alone: no teacher's weights are read (methods that can "
    "do without: meanflow). null: the student starts as the teacher."
)


def recipe_model(teacher: str | None, method: str | None, data: str | None) -> type[RecipeBase]:
    """The complete schema for a recipe with these three types.

    None stands for a type that is not known: that block is then not looked into, so that the others can be checked.

    Raises:
        RegistryError: a name nobody registered, or whose class has no strict settings.
    """
    from mfd_cli.methods.registry import methods

    more: dict[str, Any] = {}
    if teacher is not None and method is not None and getattr(methods.get(method), "teacherless", False):
        network = getattr(teacher_registry.get(teacher), "Network", None)
        if network is not None:
            more["network"] = (network | None, Field(None, description=FROM_NOTHING))
    optimizers = Optimizers if method is None or has_auxiliary(settings_of(methods, method)) else StudentOptimizer
    return create_model(
        "Recipe",
        __base__=RecipeBase,
        optim=(optimizers, Field(default_factory=optimizers, description="Optimizers.")),
        teacher=_block(teacher_registry, teacher, "The flow model to distill."),
        method=_block(methods, method, "The distillation method."),
        data=_block(data_registry, data, "Where conditions come from."),
        **more,
    )


def completed(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved recipe of an earlier version, with this version's defaults for keys it lacks; others as they are."""
    try:
        model = recipe_model(*(resolved[block]["type"] for block in ("teacher", "method", "data")))
        return model.model_validate_json(json.dumps(resolved)).model_dump(mode="json")
    except (KeyError, TypeError, ValidationError, RegistryError):
        return resolved


def teacher_recipe_model(teacher: str | None, data: str | None) -> type[TeacherRecipeBase]:
    """The complete schema of a `mfd teachers train` recipe with these two types; None as in `recipe_model`."""
    return create_model(
        "TeacherRecipe",
        __base__=TeacherRecipeBase,
        teacher=_block(teacher_registry, teacher, "The teacher to train."),
        network=_network(teacher),
        data=_block(data_registry, data, "What it is trained on."),
    )


def has_auxiliary(settings: type[BaseModel]) -> bool:
    """Whether methods with these settings train an auxiliary flow."""
    return "aux_updates" in settings.model_fields


def settings_of(registry: Registry, name: str) -> type[BaseModel]:
    """The settings that the class registered under `name` declares.

    Raises:
        RegistryError: nobody registered the name, or its `Settings` would let an unknown key pass.
    """
    settings = getattr(registry.get(name), "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, BaseModel)):
        raise RegistryError(f"{registry.kind} '{name}' declares no Settings", do="tell the authors of its plugin")
    if settings.model_config.get("extra") != "forbid":
        raise RegistryError(
            f"the Settings of {registry.kind} '{name}' let unknown keys pass",
            allowed="a subclass of teachers.base.Settings, or extra='forbid'",
        )
    return settings


def _block(registry: Registry, name: str | None, description: str) -> Any:
    """A field of the recipe: its type and what it is for."""
    if name is None:
        return (Any, Field(None, description=description))
    return (settings_of(registry, name), Field(description=description))


def _network(teacher: str | None) -> Any:
    """The field that says what network to train."""
    if teacher is None:
        return (Any, Field(None, description="The network."))
    network = getattr(teacher_registry.get(teacher), "Network", None)
    if network is None:
        raise RegistryError(f"a teacher of type '{teacher}' cannot be trained by mfd", do="train it with its own code")
    return (network, Field(default_factory=network, description="The network to train."))
