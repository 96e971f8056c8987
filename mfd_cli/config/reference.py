"""The recipe's documentation, generated from its schema: docs/recipe.md for people, JSON Schema for editors.

`python -m mfd_cli.config.reference > docs/recipe.md` writes the page anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from mfd_cli.config import schema
from mfd_cli.methods.registry import methods
from mfd_cli.metrics.registry import metrics
from teachers.registry import Registry, RegistryError
from teachers.registry import data as data_registry
from teachers.registry import teachers as teacher_registry

_TYPED: dict[str, tuple[Registry, str]] = {
    "teacher": (teacher_registry, "The flow model to distill."),
    "method": (methods, "The distillation method."),
    "data": (data_registry, "Where conditions come from."),
    "evaluate.metrics": (metrics, "One item of the list `evaluate.metrics` (docs/metrics.md defines every figure)."),
}

_TOP = """# Recipe reference

Generated from the schema by `python -m mfd_cli.config.reference`; a test keeps it in step.

A recipe is a YAML file of the blocks below. It is read strictly: an unknown key, a wrong type or an impossible value is
refused before anything is built, and all mistakes are reported at once with their lines. `1e-4` is a number; `on`,
`off`, `yes` and `no` are text; numbers that YAML versions read differently (`010`, `1_000`, `12:30`), tabs, tags,
anchors and repeated keys are refused. `--set key.path=value` changes one key under the same rules. "required" marks
keys without a default.

The blocks `teacher`, `method` and `data` have a `type`; it decides which other keys they have. `mfd recipes schema`
prints the same as JSON Schema, with the types of installed plugins, for editors that complete YAML.
"""

_KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


def markdown() -> str:
    """Text of docs/recipe.md: a table of every key of every built-in type."""
    parts = [_TOP, "## Top level\n", _table(schema.RecipeBase, "", skip_blocks=True)]
    for block, model in _blocks(schema.RecipeBase):
        parts += [f"## `{block}`\n", _summary(model), _table(model, f"{block}.")]
    for block, (registry, meaning) in _TYPED.items():
        parts.append(f"## `{block}`\n\n{meaning}\n")
        for name, model in _builtin(registry):
            parts += [f"### `{block}: {{type: {name}}}`\n", _summary(registry.get(name)), _table(model, f"{block}.")]
    parts += [
        "## Recipes of `mfd teachers train`\n",
        "`teacher` and `data` are as above; the other keys are these. A `network` block may stand in a distillation "
        "recipe, too.\n",
        f"`network`: {schema.FROM_NOTHING}\n",
        _table(schema.TeacherRecipeBase, ""),
    ]
    return "\n".join(part for part in parts if part)


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of both kinds of recipe, with every type that is registered here."""
    definitions: dict[str, Any] = {}
    for block, (registry, meaning) in _TYPED.items():
        names = []
        for name, model in _importable(registry):
            names.append(name)
            definitions[f"{block}.{name}"] = _embedded(model, f"{block}.{name}", definitions)
        definitions[block] = {
            "description": meaning,
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"enum": names}},
            "allOf": [
                {
                    "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
                    "then": {"$ref": f"#/$defs/{block}.{name}"},
                }
                for name in names
            ],
        }
    definitions["recipe"] = _with_blocks(schema.RecipeBase, "recipe", ["teacher", "method", "data"], definitions)
    definitions["recipe.Evaluate"]["properties"]["metrics"]["items"] = {"$ref": "#/$defs/evaluate.metrics"}
    definitions["recipe"]["properties"]["network"] = {"type": ["object", "null"], "description": schema.FROM_NOTHING}
    definitions["teacher-recipe"] = _with_blocks(
        schema.TeacherRecipeBase, "teacher-recipe", ["teacher", "data"], definitions
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mfd recipe",
        "if": {"type": "object", "required": ["network"], "not": {"required": ["method"]}},
        "then": {"$ref": "#/$defs/teacher-recipe"},
        "else": {"$ref": "#/$defs/recipe"},
        "$defs": definitions,
    }


def _with_blocks(model: type[BaseModel], name: str, blocks: list[str], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a recipe base, with its typed blocks as required properties."""
    described = _embedded(model, name, definitions)
    described["properties"].update({block: {"$ref": f"#/$defs/{block}"} for block in blocks})
    described["required"] = [*described.get("required", []), *blocks]
    return described


def _embedded(model: type[BaseModel], prefix: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """A model's schema; the models inside it join `definitions` under names that are the type's own."""
    described = model.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
    for inner, inner_schema in described.pop("$defs", {}).items():
        definitions[f"{prefix}.{inner}"] = inner_schema
    return described


def _builtin(registry: Registry) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, model in _importable(registry):
        if registry.origin(name) == "built in":
            yield name, model


def _importable(registry: Registry) -> Iterator[tuple[str, type[BaseModel]]]:
    """Names and settings of what can be imported; `mfd doctor` says what is wrong with the rest."""
    for name in registry.names():
        try:
            yield name, schema.settings_of(registry, name)
        except RegistryError:
            continue


def _blocks(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield name, field.annotation


def _summary(cls: type) -> str:
    """First paragraph of the class's docstring, if it has one of its own."""
    text = cls.__dict__.get("__doc__") or ""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return f"{paragraph}\n" if paragraph else ""


def _table(model: type[BaseModel], prefix: str, *, skip_blocks: bool = False) -> str:
    described = model.model_json_schema()
    rows = list(_rows(described, described.get("$defs", {}), prefix, skip_blocks))
    if not rows:
        return ""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _rows(block: dict[str, Any], inner: dict[str, Any], prefix: str, skip_blocks: bool) -> Iterator[tuple[str, ...]]:
    for name, field in block.get("properties", {}).items():
        target = field.get("$ref", "").rpartition("/")[2]
        if target and "properties" in inner.get(target, {}):
            if not skip_blocks:
                yield from _rows(inner[target], inner, f"{prefix}{name}.", skip_blocks)
            continue
        default = "required" if name in block.get("required", []) else _default(field)
        yield f"`{prefix}{name}`", _kind(field, inner), default, field.get("description", "")


def _default(field: dict[str, Any]) -> str:
    return f"`{json.dumps(field['default'], ensure_ascii=False)}`" if "default" in field else ""


def _kind(field: dict[str, Any], inner: dict[str, Any]) -> str:
    """A field's type in words, with its range."""
    if "$ref" in field:
        target = inner.get(field["$ref"].rpartition("/")[2], {})
        if "properties" in target:
            keys = ", ".join(f"{name}: {_kind(key, inner)}" for name, key in target["properties"].items())
            return f"block {{{keys}}}"
        return _kind(target, inner)
    if "anyOf" in field or "oneOf" in field:
        return " or ".join(_kind(choice, inner) for choice in field.get("anyOf", field.get("oneOf", [])))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{word}`" for word in field["enum"])
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])}: " + ", ".join(_kind(item, inner) for item in field["prefixItems"])
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}), inner)}"
    if field.get("type") == "object":
        return "block"
    return _KINDS.get(field.get("type", ""), "anything") + _range(field)


def _range(field: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field]
    return f" {', '.join(limits)}" if limits else ""


if __name__ == "__main__":
    print(markdown(), end="")
