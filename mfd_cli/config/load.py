"""From a recipe's name or path, and overrides, to a validated recipe; all mistakes in one report.

Text becomes data with lines (`strict_yaml`), overrides are put in, the types it names give the schema (`schema`), and
what the schema refuses is put in words (`mistakes`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from mfd_cli.config import bundled, mistakes, strict_yaml
from mfd_cli.config.schema import StudentOptimizer, has_auxiliary, recipe_model, settings_of, teacher_recipe_model
from mfd_cli.config.strict_yaml import Document, Mistake, dotted, dump
from mfd_cli.errors import MfdError
from mfd_cli.methods.registry import methods
from teachers.registry import Registry, RegistryError
from teachers.registry import data as data_registry
from teachers.registry import teachers as teacher_registry

__all__ = ["LoadedRecipe", "difference", "dump", "load_any", "load_recipe", "load_teacher_recipe", "read"]

Kind = Literal["distill", "teacher"]

_LARGEST = 1_000_000  # bytes; a recipe has a few thousand
_MOST_SHOWN = 50  # mistakes
_LONGEST_SHOWN = 500  # characters of a mistake

#: blocks of a resolved recipe, in the order a reader expects
_ORDER = ("name", "seed", "teacher", "network", "student", "method", "optim", "train", "data", "log",
          "guards", "evaluate")  # fmt: skip

_BLOCKS: dict[Kind, dict[str, Registry]] = {
    "distill": {"teacher": teacher_registry, "method": methods, "data": data_registry},
    "teacher": {"teacher": teacher_registry, "data": data_registry},
}


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that passed every check.

    Attributes:
        recipe: the validated object: `RecipeBase` with teacher, method and data, or `TeacherRecipeBase`.
        resolved: the same as plain JSON data, defaults filled in; `dump(resolved)` loads to the same recipe.
        source: name to show: the file as it was given, or "bundled NAME.yaml".
        positions: dotted key to where it was set ("digits.yaml:4", "--set train.updates=10").
        notes: what the user should be told, such as keys that an override made meaningless.
        kind: "distill", or "teacher" for a recipe of `mfd teachers train`.
    """

    recipe: Any
    resolved: dict[str, Any]
    source: str
    positions: dict[str, str]
    notes: list[str]
    kind: Kind = "distill"

    @property
    def teacherless(self) -> bool:
        """Whether it is a distillation recipe whose student is trained from nothing."""
        return self.kind == "distill" and self.resolved.get("network") is not None


def load_recipe(reference: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """A distillation recipe.

    Args:
        reference: path to a YAML file, or the name of a bundled recipe. A file wins over a name only if the reference
            has a path separator or a YAML suffix.
        overrides: `key.path=value` texts, as given to `--set`.

    Raises:
        MfdError: with every mistake, each with its place, what is allowed and the nearest valid name.
    """
    return _load(reference, overrides, "distill")


def load_teacher_recipe(reference: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """A recipe of `mfd teachers train`; arguments and errors as for `load_recipe`."""
    return _load(reference, overrides, "teacher")


def load_any(reference: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """A recipe of either kind, told apart by its blocks; arguments and errors as for `load_recipe`."""
    return _load(reference, overrides, None)


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys in which two resolved recipes differ, as "train.updates: 10 -> 20"."""
    before, after = _leaves(old), _leaves(new)
    keys = dict.fromkeys([*before, *after])
    return [
        f"{key}: {before.get(key, '(not set)')} -> {after.get(key, '(not set)')}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def read(reference: str) -> tuple[str, str, list[str]]:
    """Text of a recipe, its name to show, and notes about how the reference was understood.

    Raises:
        MfdError: no such recipe, or not a small UTF-8 text file.
    """
    path = Path(reference)
    looks_like_path = path.suffix in bundled.SUFFIXES or any(mark and mark in reference for mark in (os.sep, os.altsep))
    # os.path answers False, where pathlib raises, for what can be no file name
    if looks_like_path and os.path.exists(path) and not os.path.isdir(path):
        return _text(path), _shown(path), []
    recipes = bundled.recipes()
    if reference in recipes:
        beside = [reference + suffix for suffix in bundled.SUFFIXES if os.path.isfile(reference + suffix)]
        note = [f"'{reference}' is the bundled recipe; for the file here write ./{beside[0]}"] if beside else []
        return recipes[reference].read_text("utf-8"), f"bundled {reference}.yaml", note
    if os.path.isfile(path):
        return _text(path), _shown(path), []
    raise _not_found(path, reference, list(recipes))


def _load(reference: str, overrides: Sequence[str], kind: Kind | None) -> LoadedRecipe:
    text, source, notes = read(reference)
    document = strict_yaml.parse(text, source)
    if document.data is None and not document.mistakes:
        raise MfdError(f"{source}: the file is empty", do="start from a bundled recipe: mfd recipes copy digits")
    if not isinstance(document.data, dict):
        found = document.mistakes or [Mistake(mistakes.place((), document), "", "a recipe is a block of `key: value`")]
        raise _report(source, found)
    kind = _checked_kind(document.data, source, reference, kind)
    before = {block: _type_in(document, block) for block in _BLOCKS[kind]}
    _override(document, overrides)
    types = _types(document, kind, before, notes)
    if kind == "distill":
        model: type[BaseModel] = recipe_model(types["teacher"], types["method"], types["data"])
    else:
        model = teacher_recipe_model(types["teacher"], types["data"])
    recipe = _validated(model, document)
    if recipe is None or document.mistakes:
        raise _report(source, document.mistakes)
    positions = {dotted(path): where for path, where in document.positions.items() if path}
    return LoadedRecipe(recipe, _ordered(recipe.model_dump(mode="json")), source, positions, notes, kind)


def _ordered(resolved: dict[str, Any]) -> dict[str, Any]:
    known = [key for key in _ORDER if key in resolved]
    return {key: resolved[key] for key in [*known, *(key for key in resolved if key not in known)]}


def _validated(model: type[BaseModel], document: Document) -> BaseModel | None:
    """The validated recipe, or None with the schema's mistakes added to the document's."""
    try:
        # in JSON mode a list is accepted where the schema says tuple, though everything is strict
        return model.model_validate_json(json.dumps(document.data, allow_nan=False))
    except ValidationError as error:
        document.mistakes.extend(mistakes.of_schema(error, model, document))
        return None


def _checked_kind(data: dict[str, Any], source: str, reference: str, asked: Kind | None) -> Kind:
    """The kind of recipe the data is. Raises MfdError if it is plainly the other kind than the one asked for."""
    is_teacher = "network" in data and not {"method", "student"} & data.keys()
    kind: Kind = "teacher" if is_teacher else "distill"
    if asked == "distill" and kind == "teacher":
        raise MfdError(
            f"{source} is a recipe that trains a teacher, not a distillation",
            allowed="a recipe with teacher, method, train and data",
            do=f"mfd teachers train {reference}",
        )
    if asked == "teacher" and {"method", "student"} & data.keys():
        raise MfdError(
            f"{source} is a distillation recipe, it trains no teacher",
            allowed="a recipe with teacher, network, train and data",
            do=f"mfd distill {reference}",
        )
    return asked or kind


def _override(document: Document, overrides: Sequence[str]) -> None:
    """Applies `key.path=value` texts to the document; what is wrong with them joins its mistakes."""
    seen: list[strict_yaml.Path] = []
    for text in overrides:
        where = f"--set {text}" if len(text) <= 80 else f"--set {text[:77]}..."
        key, equals, value_text = text.partition("=")
        path = tuple(key.split("."))
        if not equals or not all(part.strip() == part and part for part in path):
            document.mistakes.append(Mistake(where, "", "not of the form key.path=value"))
        elif any(earlier[: len(path)] == path for earlier in seen):
            document.mistakes.append(Mistake(where, key, "replaces an earlier --set; give each key once"))
        elif not value_text.strip():
            document.mistakes.append(Mistake(where, key, "has no value; write null for none, '' for empty text"))
        else:
            seen.append(path)
            value = strict_yaml.parse(value_text, where, line_numbers=False)
            document.mistakes.extend(Mistake(where, key, mistake.what) for mistake in value.mistakes)
            if not value.mistakes:
                _put(document, path, value)


def _put(document: Document, path: tuple[str, ...], value: Document) -> None:
    """Sets one key to a parsed value; blocks that the file leaves out are made, for the schema to judge."""
    where = value.positions[()]
    block = document.data
    for depth, part in enumerate(path[:-1], 1):
        if not isinstance(block.setdefault(part, {}), dict):
            document.mistakes.append(Mistake(where, dotted(path), f"'{dotted(path[:depth])}' is no block of keys"))
            return
        block = block[part]
        document.positions.setdefault(path[:depth], where)
    block[path[-1]] = value.data
    for old in [place for place in document.positions if place[: len(path)] == path]:
        del document.positions[old]
    document.positions.update({(*path, *inner): where for inner in value.positions})
    # a value that could not be read in the file no longer matters once it is replaced
    inside = (dotted(path), f"{dotted(path)}.", f"{dotted(path)}[")
    document.mistakes[:] = [
        mistake
        for mistake in document.mistakes
        if mistake.where.startswith("--set ") or not (mistake.key == inside[0] or mistake.key.startswith(inside[1:]))
    ]


def _type_in(document: Document, block: str) -> Any:
    """What a block gives as its type, if anything."""
    found = document.data.get(block)
    return found.get("type") if isinstance(found, dict) else None


def _types(document: Document, kind: Kind, before: dict[str, Any], notes: list[str]) -> dict[str, str | None]:
    """The registered type each typed block names; None, with a mistake, where there is none.

    `before` holds the types that the file itself names.
    """
    types: dict[str, str | None] = {}
    for block, registry in _BLOCKS[kind].items():
        types[block] = None
        found = document.data.get(block)
        key = block if not isinstance(found, dict) else f"{block}.type"
        where = mistakes.place(tuple(key.split(".")), document)
        name = _type_in(document, block)
        if any(mistake.key == key for mistake in document.mistakes):
            continue
        if not isinstance(name, str):
            allowed = f"allowed: {block}: {{type: ...}} with one of {', '.join(registry.names())}"
            document.mistakes.append(Mistake(where, key, f"{_nameless(found)}; {allowed}"))
            continue
        try:
            settings = settings_of(registry, name)
        except RegistryError as error:
            what = "; ".join(part for part in (error.found, error.allowed, error.do) if part)
            document.mistakes.append(Mistake(where, key, what))
            continue
        types[block] = name
        _drop_foreign(document, block, settings, _settings_or_none(registry, before[block]), notes)
    return types


def _settings_or_none(registry: Registry, name: Any) -> type[BaseModel] | None:
    try:
        return settings_of(registry, name) if isinstance(name, str) else None
    except RegistryError:
        return None


def _nameless(block: Any) -> str:
    """What is wrong with a typed block that names no type."""
    if block is not None and not isinstance(block, dict):
        return "is no block of keys"
    name = None if block is None else block.get("type")
    return "is missing" if name is None else f"is {json.dumps(name)}"


def _drop_foreign(
    document: Document, block: str, settings: type[BaseModel], old: type[BaseModel] | None, notes: list[str]
) -> None:
    """Leaves out, with a note, the file's keys of a block that the type given by --set does not have, or that mean
    something else there.
    """
    if not document.positions.get((block, "type"), "").startswith("--set "):
        return
    owner = f"{block} type '{document.data[block]['type']}'"
    for key in list(document.data[block]):
        if old is not None and key != "type" and _differ(old, settings, key):
            _drop(document, (block, key), document.data[block], f"{owner} means something else by it", notes)
    _drop_unknown(document, (block,), settings, document.data[block], owner, notes)
    optimizers = document.data.get("optim")
    if block == "method" and isinstance(optimizers, dict) and not has_auxiliary(settings):
        _drop_unknown(document, ("optim",), StudentOptimizer, optimizers, owner, notes)


def _differ(old: type[BaseModel], new: type[BaseModel], key: str) -> bool:
    """Whether both have a key, each of another kind."""
    fields = (old.model_fields.get(key), new.model_fields.get(key))
    return all(fields) and fields[0].annotation != fields[1].annotation  # type: ignore[union-attr]


def _drop_unknown(
    document: Document,
    path: tuple[str, ...],
    settings: type[BaseModel],
    values: dict[str, Any],
    owner: str,
    notes: list[str],
) -> None:
    known = {name for model in mistakes.models_at(settings, path[1:]) for name in model.model_fields}
    for key in list(values):
        here = (*path, key)
        if key not in known:
            _drop(document, here, values, f"{owner} has no such key", notes)
        elif isinstance(values[key], dict):
            _drop_unknown(document, here, settings, values[key], owner, notes)


def _drop(document: Document, here: tuple[str, ...], values: dict[str, Any], why: str, notes: list[str]) -> None:
    """Leaves out one key, unless --set gave it or something in it."""
    inside = [place for place in document.positions if place[: len(here)] == here]
    if any(document.positions[place].startswith("--set ") for place in inside):
        return
    where = document.positions.get(here, "")
    del values[here[-1]]
    for gone in inside:
        del document.positions[gone]
    notes.append(f"{dotted(here)} ({where}) is left out: {why}")


def _report(source: str, found: list[Mistake]) -> MfdError:
    count = "one mistake" if len(found) == 1 else f"{len(found)} mistakes"
    lines = [_clipped(str(mistake)) for mistake in sorted(found, key=_line)[:_MOST_SHOWN]]
    if len(found) > _MOST_SHOWN:
        lines.append(f"... and {len(found) - _MOST_SHOWN} more")
    return MfdError("\n  ".join([f"{count} in {source}", *lines]), do="docs/recipe.md explains every key")


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def _line(mistake: Mistake) -> float:
    """Line of a mistake, for sorting; overrides come last."""
    line = mistake.where.rpartition(":")[2]
    return int(line) if line.isdigit() and not mistake.where.startswith("--set ") else math.inf


def _text(path: Path) -> str:
    """Text of a file. Raises MfdError if it is no small UTF-8 text file."""
    shown = _shown(path)
    if not path.is_file():
        raise MfdError(f"{shown} is no regular file", allowed="a YAML file")
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise MfdError(f"{shown} cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise MfdError(f"{shown} is larger than 1 MB, so it is no recipe", allowed="a YAML file")
    if b"\0" in content:
        raise MfdError(f"{shown} is a binary file", allowed="a YAML file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise MfdError(f"{shown}:{line}: not UTF-8 text", allowed="a YAML file in UTF-8") from error


def _shown(path: Path) -> str:
    """The path as it was given; an absolute one from the working folder, or its last part alone."""
    if not path.is_absolute():
        return str(path)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return path.name


def _not_found(path: Path, reference: str, names: list[str]) -> MfdError:
    allowed = f"a YAML file, or one of: {', '.join(names) or '(none)'}"
    if os.path.isdir(path):
        inside = sorted(str(path / entry.name) for entry in path.iterdir() if entry.suffix in bundled.SUFFIXES)
        return MfdError(f"'{reference}' is a folder", allowed=allowed, do=f"try {inside[0]}" if inside else None)
    stem = path.stem if path.suffix in bundled.SUFFIXES else path.name
    near = mistakes.nearest(stem, names).removeprefix("; ")
    return MfdError(f"no recipe '{reference}'", allowed=allowed, do=near or "mfd recipes list")


def _leaves(data: dict[str, Any], prefix: str = "") -> dict[str, str]:
    leaves: dict[str, str] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            leaves.update(_leaves(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = json.dumps(value, ensure_ascii=False)
    return leaves
