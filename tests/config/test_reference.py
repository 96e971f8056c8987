from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mfd_cli.config.reference import json_schema, markdown
from mfd_cli.methods.registry import methods
from teachers.registry import data, teachers

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"


def test_the_page_is_what_the_schema_generates() -> None:
    assert PAGE.read_text("utf-8") == markdown(), "run: python -m mfd_cli.config.reference > docs/recipe.md"


def test_the_page_has_every_builtin_type_and_no_plugin() -> None:
    page = markdown()
    for registry in (teachers, methods, data):
        for name in registry.names():
            section = f"### `{registry.kind}: {{type: {name}}}`"
            assert (section in page) == (registry.origin(name) == "built in"), section


def test_a_row_says_type_range_and_default() -> None:
    assert "| `optim.student.lr` | number > 0 | `0.0001` | Peak learning rate. |" in markdown()
    assert "| `train.updates` | whole number ≥ 1 | required |" in markdown()


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for inner in node.values():
            yield from _references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from _references(inner)


def test_the_json_schema_is_whole_and_covers_plugins() -> None:
    described = json_schema()
    assert {f"#/$defs/{name}" for name in described["$defs"]} >= set(_references(described))
    assert "fine" in described["$defs"]["teacher"]["properties"]["type"]["enum"]
    assert described["$defs"]["method.pair"]["additionalProperties"] is False
    assert described["$defs"]["recipe"]["required"] == ["name", "train", "teacher", "method", "data"]
    assert described["$defs"]["recipe"]["additionalProperties"] is False


@pytest.mark.parametrize(("block", "known"), [("teacher", "depth"), ("method", "solver")])
def test_the_type_decides_which_keys_a_block_has(block: str, known: str) -> None:
    choices = {
        choice["if"]["properties"]["type"]["const"]: choice["then"]["$ref"].rpartition("/")[2]
        for choice in json_schema()["$defs"][block]["allOf"]
    }
    target = choices["fine" if block == "teacher" else "pair"]
    assert known in json_schema()["$defs"][target]["properties"]
