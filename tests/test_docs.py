"""What README and docs say exists: every command and recipe is one of mfd's, every link leads somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from mfd_cli import cli
from mfd_cli.config import bundled
from mfd_cli.config.load import dump, load_any
from mfd_cli.config.strict_yaml import parse
from mfd_cli.methods.registry import methods
from teachers.registry import teachers

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("recipes/*.md")]
SOURCES = sorted(path for package in ("mfd_cli", "teachers") for path in (ROOT / package).rglob("*.py"))
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)#\s]+)")
#: a command in running text, possibly over the end of a line
INLINE = re.compile(r"`(mfd\s[^`]*)`")
#: pages whose teacher or method is their own; other tests write and run them
FOLLOWED = {"add-a-method.md", "add-a-teacher.md", "tutorial.md"}


def commands() -> list[tuple[str, str]]:
    """Every `mfd` command line in a code block without a language, or of a shell, and the page it stands on."""
    found = []
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            if language in ("", "bash", "sh", "console"):
                for line in text.replace("\\\n", " ").splitlines():
                    parts = re.split(r"&&|\|", line.split("  #")[0])
                    found += [(page.name, part.strip()) for part in parts if part.strip().startswith("mfd ")]
    return found


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_parses(page: str, command: str) -> None:
    arguments = cli._common_first(shlex.split(command)[1:])
    context = typer.main.get_command(cli.app).make_context("mfd", arguments, resilient_parsing=False)
    while True:  # groups leave the rest of the line to their commands
        group, rest = context.command, [*context._protected_args, *context.args]
        if not hasattr(group, "resolve_command"):
            break
        if not rest:
            return
        name, command_, rest = group.resolve_command(context, rest)
        context = command_.make_context(name, rest, parent=context)
    recipe = context.params.get("recipe") or ""
    if Path(recipe).parts[:1] == ("recipes",):
        recipe = str(ROOT / recipe)
    if recipe.startswith(str(ROOT)) or recipe in bundled.recipes():
        load_any(recipe, context.params.get("overrides") or ())


def mentions() -> list[tuple[str, str]]:
    """Every command in running text: of the pages, and of what mfd itself says; and where it stands."""
    texts = [(page.name, BLOCK.sub("", page.read_text(encoding="utf-8"))) for page in PAGES]
    for path in SOURCES:
        texts += [(path.name, text) for text in strings(ast.parse(path.read_text("utf-8")))]
    return sorted({(place, " ".join(found.split())) for place, text in texts for found in INLINE.findall(text)})


def strings(tree: ast.AST) -> Iterator[str]:
    """Every text in a program; what is filled in stands as {}."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)


def unknown_words(line: str) -> Iterator[str]:
    """Words of a command in running text that the command line does not know: verbs and options.

    Values may be left out there, and names in capitals or braces stand for some.
    """
    command: Any = typer.main.get_command(cli.app)
    known = {option for parameter in command.params for option in parameter.opts}
    for word in line.split()[1:]:
        verbs = word.split("|")
        if word == "..." or word.isupper():
            return
        if hasattr(command, "commands") and not word.startswith("-"):
            missing = [verb for verb in verbs if verb not in command.commands]
            yield from missing
            if missing or len(verbs) > 1:
                return
            command = command.commands[word]
            known |= {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        elif word.startswith("-") and word != "-":
            yield from {word.split("=")[0].rstrip(".,")} - known - {"--help"}


@pytest.mark.parametrize(("place", "line"), mentions())
def test_a_command_in_running_text_is_one_of_mfd_s(place: str, line: str) -> None:
    assert list(unknown_words(line)) == []


def test_the_check_of_running_text_can_fail() -> None:
    assert len(mentions()) > 60 and any("{}" in line for _, line in mentions())
    assert list(unknown_words("mfd distil toy")) == ["distil"]
    assert list(unknown_words("mfd recipes lists")) == ["lists"]
    assert list(unknown_words("mfd sample --step 1 --teacher")) == ["--step"]
    assert list(unknown_words("mfd recipes list|shows")) == ["shows"]


def recipes() -> list[tuple[str, str]]:
    """Every recipe, or part of one, in a page; configs of Accelerate are run by test_shards.py."""
    return [
        (page.name, text)
        for page in PAGES
        for language, text in BLOCK.findall(page.read_text(encoding="utf-8"))
        if language in ("yaml", "yml") and "distributed_type:" not in text
    ]


@pytest.mark.parametrize(("page", "text"), recipes())
def test_a_recipe_binds_to_its_teacher_and_method(page: str, text: str, tmp_path: Path) -> None:
    given = parse(text, page)
    assert not given.mistakes and isinstance(given.data, dict)
    blocks = {"teacher": teachers, "method": methods}
    foreign = [
        given.data[name]["type"]
        for name, registry in blocks.items()
        if name in given.data and given.data[name]["type"] not in registry.names()
    ]
    if foreign:
        assert page in FOLLOWED, f"{page}: {foreign} is written and run by no other test"
        return
    whole = given.data
    if "name" not in whole:  # a part: what it says goes into the recipe of the page's kind
        base = parse((ROOT / "recipes" / "sana.yaml").read_text("utf-8"), "sana.yaml").data
        whole = {**base, **given.data}
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(whole), "utf-8")
    loaded: Any = load_any(str(path))
    assert methods.get(loaded.recipe.method.type)(loaded.recipe.method).aux_updates >= 0
    assert teachers.get(loaded.recipe.teacher.type).Settings is type(loaded.recipe.teacher)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    missing = [link for link in LINK.findall(text) if "://" not in link and not (page.parent / link).resolve().exists()]
    assert not missing
