"""docs/reliability.md names tests that exist, and every row names one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    line
    for line in (ROOT / "docs" / "reliability.md").read_text("utf-8").splitlines()
    if line.startswith("|") and not line.startswith(("| promise", "| ---"))
]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_a_promise_is_shown_by_tests_that_exist(row: str) -> None:
    _, promise, shown, _ = row.split("|")
    named = TEST.findall(shown)
    assert promise.strip() and named and TEST.sub("", shown).strip(" ,") == ""
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_there_are_promises() -> None:
    assert len(ROWS) > 50
