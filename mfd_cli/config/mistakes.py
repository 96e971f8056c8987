"""What the schema refuses, in words: one mistake per key, with what is allowed and the nearest valid name."""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from mfd_cli.config.strict_yaml import Document, Mistake, Path, dotted

_MISSING = object()

#: pydantic's kind of error to what would have been accepted
_WANTED: dict[str, Callable[[dict[str, Any]], str]] = {
    "int_type": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "bool_type": lambda _: "true or false",
    "string_type": lambda _: "text (quote a number that is meant as text)",
    "list_type": lambda _: "a list, [a, b]",
    "tuple_type": lambda _: "a list, [a, b]",
    "dict_type": lambda _: "a block of keys",
    "model_type": lambda _: "a block of keys",
    "model_attributes_type": lambda _: "a block of keys",
    "none_required": lambda _: "null",
    "greater_than": lambda ctx: f"above {ctx['gt']:g}",
    "greater_than_equal": lambda ctx: f"at least {ctx['ge']:g}",
    "less_than": lambda ctx: f"below {ctx['lt']:g}",
    "less_than_equal": lambda ctx: f"at most {ctx['le']:g}",
    "too_short": lambda ctx: f"at least {ctx['min_length']} items",
    "too_long": lambda ctx: f"at most {ctx['max_length']} items",
    "literal_error": lambda ctx: ctx["expected"],
    "enum": lambda ctx: ctx["expected"],
}


def nearest(name: str, names: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the nearest of the names, empty if none is near."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def of_schema(error: ValidationError, model: type[BaseModel], document: Document) -> list[Mistake]:
    """Every error of a validation, at the place of its key; alternatives of one key are one mistake."""
    # what could not be read has its mistake already, under its key or (tags, aliases) its line
    unread = {mistake.key for mistake in document.mistakes if mistake.key}
    unread_lines = {mistake.where for mistake in document.mistakes if not mistake.key}
    wanted: dict[Path, list[str]] = {}
    mistakes: dict[Path, str] = {}
    for entry in error.errors(include_url=False):
        path, value = _locate(entry, document.data)
        if dotted(path) in unread or place(path, document) in unread_lines:
            continue
        accepted = _WANTED.get(entry["type"])
        if accepted is None:
            mistakes.setdefault(path, _other(entry, path, model, value))
            continue
        alternatives = wanted.setdefault(path, [])
        alternatives.append(accepted(entry.get("ctx", {})))
        mistakes[path] = f"is {_shown(value)}; allowed: {' or '.join(dict.fromkeys(alternatives))}"
        if entry["type"] in ("literal_error", "enum") and isinstance(value, str):
            mistakes[path] += nearest(value, re.findall("'([^']*)'", alternatives[-1]))
    return [Mistake(place(path, document), dotted(path), what) for path, what in mistakes.items()]


def place(path: Path, document: Document) -> str:
    """Where the key stands, or the nearest block around it."""
    while path and path not in document.positions:
        path = path[:-1]
    return document.positions.get(path, "")


def models_at(model: type[BaseModel], path: Path) -> list[type[BaseModel]]:
    """The models that describe the block at `path` (several where a key may be one of several blocks)."""
    found: list[Any] = [model]
    for part in path:
        found = [inner for one in found for inner in _below(one, part)]
    return [one for one in found if isinstance(one, type) and issubclass(one, BaseModel)]


def _below(one: Any, part: str | int) -> Iterator[Any]:
    if isinstance(one, type) and issubclass(one, BaseModel):
        if part in one.model_fields:
            yield from _alternatives(one.model_fields[str(part)].annotation)
    else:
        for argument in typing.get_args(one):
            yield from _alternatives(argument)


def _alternatives(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _alternatives(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from _alternatives(argument)
    else:
        yield annotation


def _locate(entry: Any, data: Any) -> tuple[Path, Any]:
    """Path and value an error is about. Parts that only name a branch of a union are no keys, and are left out."""
    path: Path = ()
    location = entry["loc"]
    for index, part in enumerate(location):
        inner = _get(data, part)
        if inner is not _MISSING:
            path, data = (*path, part), inner
        elif entry["type"] == "missing" and index == len(location) - 1:
            return (*path, part), None
    return path, data


def _get(data: Any, part: str | int) -> Any:
    if isinstance(data, dict) and part in data:
        return data[part]
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    return _MISSING


def _other(entry: Any, path: Path, model: type[BaseModel], value: Any) -> str:
    if entry["type"] == "extra_forbidden":
        blocks = models_at(model, path[:-1])
        for block in blocks:
            if why := getattr(block, "elsewhere", {}).get(path[-1]):
                return str(why)
        names = [name for block in blocks for name in block.model_fields]
        allowed = ", ".join(dict.fromkeys(names)) or "nothing"
        return f"unknown key; allowed: {allowed}{nearest(str(path[-1]), names)}"
    if entry["type"] == "missing":
        meanings = [
            block.model_fields[str(path[-1])].description or ""
            for block in models_at(model, path[:-1])
            if path[-1] in block.model_fields
        ]
        return f"is missing{': ' + meanings[0] if meanings and meanings[0] else ''}"
    if entry["type"] == "value_error":
        return str(entry["ctx"]["error"])
    return f"is {_shown(value)}; {entry['msg']}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
