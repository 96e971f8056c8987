"""What the shell completes; free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel


def recipes(incomplete: str) -> list[str]:
    """Bundled recipes and YAML files here."""
    from mfd_cli.config.bundled import recipes as bundled

    return _starting(
        [*bundled(), *map(str, Path().glob("*.y*ml")), *map(str, Path("recipes").rglob("*.yaml"))], incomplete
    )


def runs(incomplete: str) -> list[str]:
    """Run folders under ./runs and exported files here."""
    found = [str(record.parent) for record in Path("runs").glob("*/run.json")]
    return _starting([*found, *map(str, Path().glob("*.safetensors"))], incomplete)


def teachers(incomplete: str) -> list[str]:
    """Registered teachers."""
    from teachers.registry import teachers as registry

    return _starting(registry.names(), incomplete)


def settings(incomplete: str) -> list[str]:
    """Recipe keys for --set; after `teacher.type=`, `method.type=` or `data.type=` the registered names."""
    from mfd_cli.config.schema import RecipeBase
    from mfd_cli.methods.registry import methods
    from teachers import registry

    kinds = {"teacher": registry.teachers, "method": methods, "data": registry.data}
    types = [f"{block}.type={name}" for block, names in kinds.items() for name in names.names()]
    return _starting([*types, *(f"{key}=" for key in _keys(RecipeBase, ""))], incomplete)


def _keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Dotted names of a block's keys, nested blocks included."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            yield from _keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _starting(names: list[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})
