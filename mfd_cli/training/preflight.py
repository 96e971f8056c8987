"""What is refused before a teacher is loaded, let alone downloaded: contradictions, and files that are missing."""

from __future__ import annotations

from typing import Any

import torch

from mfd_cli.errors import MfdError
from mfd_cli.inference.quality import check_metrics
from mfd_cli.methods.base import Method
from mfd_cli.networks.roles import require_optimizer
from mfd_cli.training.batches import require_shares
from teachers.base import Data
from teachers.registry import data as data_registry
from teachers.registry import teachers as teacher_registry


def refuse_contradictions(
    recipe: Any, method: Method, source: type[Data], *, processes: int, teacherless: bool
) -> None:
    """Refuses what a recipe asks for that cannot be had, as far as classes, numbers and installed packages tell.

    Args:
        recipe: the validated recipe.
        method: the method with its settings.
        source: class of the data source.
        processes: number of processes.
        teacherless: whether the student is trained from nothing.

    Raises:
        MfdError: the first contradiction.
    """
    require_shares(recipe.train.batch_size, recipe.train.accumulation, processes)
    for role in type(recipe.optim).model_fields:
        require_optimizer(getattr(recipe.optim, role))
    if teacherless and method.needs_teacher:
        raise MfdError(
            f"network: method {recipe.method.type} with these settings needs a teacher, and a network block means none",
            allowed="no network block, or --set method.velocity=data",
        )
    if method.flow_map and recipe.student.adapters is not None:
        raise MfdError(
            "student.weights: lora for a method whose student is a flow map, which trains weights of its own",
            allowed="student.weights: full",
        )
    if method.needs_data and source.states is Data.states:
        raise _no_states(recipe, "it holds conditions only")
    unjudged = source.reference is Data.reference and source.truth is Data.truth and not recipe.evaluate.metrics
    if recipe.evaluate.every and unjudged:
        raise MfdError(
            f"evaluate.every {recipe.evaluate.every}: the student cannot be judged: data '{recipe.data.type}' has "
            "nothing to hold samples against, and evaluate.metrics lists no metric",
            do="list metrics in evaluate.metrics (`mfd metrics list`); evaluate.every: 0 trains without quick "
            "judgements",
        )


def require_states(recipe: Any, data: Data) -> None:
    """Refuses a data source without real samples for a method that learns from them."""
    try:
        data.states(torch.zeros(1, dtype=torch.long))
    except MfdError as error:
        raise _no_states(recipe, error.found) from error


def refuse_missing(recipe: Any) -> None:
    """Raises one MfdError for all the files that teacher, data and listed metrics miss."""
    missing = []
    for registry, block in ((teacher_registry, recipe.teacher), (data_registry, recipe.data)):
        try:
            kind: Any = registry.get(block.type)
            kind.check(block)
            if registry is teacher_registry and (weaker := kind.weaker_settings(block)) is not None:
                kind.check(weaker)
        except MfdError as error:
            missing.append(error)
    try:
        check_metrics(recipe.evaluate.metrics)
    except MfdError as error:
        missing.append(error)
    if len(missing) == 1:
        raise missing[0]
    if missing:
        raise MfdError(
            "; ".join(error.found for error in missing),
            allowed="; ".join(error.allowed for error in missing if error.allowed),
            do="; ".join(dict.fromkeys(error.do for error in missing if error.do)),
        )


def _no_states(recipe: Any, why: str) -> MfdError:
    return MfdError(
        f"method {recipe.method.type} learns from real samples, and data '{recipe.data.type}' gives none ({why})",
        allowed="a data source with samples, or a method that needs none: mfd, diff-instruct, and dmd2 with "
        "method.adversarial=null",
    )


def refuse_sharded(recipe: Any) -> None:
    """Raises MfdError for what cannot be done with networks in shards."""
    for name, block in (("student", recipe.optim.student), ("aux", getattr(recipe.optim, "aux", None))):
        if block is not None and block.type == "adamw8bit":
            raise MfdError(
                f"optim.{name}.type adamw8bit with sharded networks: its moments are kept in blocks of whole tensors",
                allowed="adamw, adam: their moments are in shards as well",
            )
