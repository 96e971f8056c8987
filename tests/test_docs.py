"""What README and docs say exists: every command parses, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from mfd_cli import cli
from mfd_cli.config.load import load_any

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), *ROOT.glob("recipes/*.md")]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)#\s]+)")


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
        load_any(str(ROOT / recipe), context.params.get("overrides") or ())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    missing = [link for link in LINK.findall(text) if "://" not in link and not (page.parent / link).resolve().exists()]
    assert not missing
