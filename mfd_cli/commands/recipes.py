"""`mfd recipes`: list, show, copy and check recipes, and their JSON Schema for editors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mfd_cli import console
from mfd_cli.config import bundled
from mfd_cli.errors import MfdError


def list_recipes(json_target: str | None = None) -> None:
    """Prints name, command and description of every bundled recipe."""
    rows = []
    for name, file in bundled.recipes().items():
        text = file.read_text("utf-8")
        rows.append({"name": name, "command": _command(text), "description": bundled.description(text)})
    if json_target is not None:
        console.emit_json({"schema": 1, "recipes": rows}, json_target)
    if json_target != "-":
        console.table("", ["recipe", "for", "what it does"], [list(row.values()) for row in rows])


def show(name: str) -> None:
    """Prints a bundled recipe as it is written, comments included.

    Raises:
        MfdError: no bundled recipe of that name.
    """
    sys.stdout.write(_bundled_text(name))


def copy(name: str, path: str | None = None, force: bool = False) -> Path:
    """Writes a bundled recipe to a file of the user's and says what to do with it.

    Args:
        name: the bundled recipe.
        path: file to write, or an existing folder; by default `NAME.yaml` here.
        force: overwrite an existing file.

    Returns:
        The file that was written.

    Raises:
        MfdError: no such recipe, or the file exists and `force` is not given.
    """
    text = _bundled_text(name)
    target = Path(path) if path else Path()
    if target.is_dir():
        target = target / f"{name.rpartition('/')[2]}.yaml"
    _write_new(target, text, force)
    print(console.literal(str(target)))
    start = target if target.parent != Path() else f"./{target}"
    console.note(f"edit it, then: {_command(text)} {start}")
    return target


def check(paths: Sequence[str], overrides: Sequence[str] = (), json_target: str | None = None) -> None:
    """Reports on every recipe; folders are searched for recipes, to any depth.

    Raises:
        MfdError: with every mistake of every recipe, after all were read.
    """
    from mfd_cli.config import load

    console.check_json_target(json_target)
    rows = []
    for reference in _each_recipe(paths):
        try:
            loaded = load.load_any(reference, overrides)
        except MfdError as error:
            rows.append({"recipe": reference, "ok": False, "found": error.found})
        else:
            rows.append({"recipe": reference, "ok": True, "name": loaded.recipe.name, "kind": loaded.kind})
            for note in loaded.notes:
                console.note(note)
    console.emit_json({"schema": 1, "recipes": rows}, json_target)
    if json_target != "-":
        for row in rows:
            print(console.literal(f"{'ok   ' if row['ok'] else 'wrong'} {row['recipe']}"))
    wrong = [str(row["found"]) for row in rows if not row["ok"]]
    if wrong:
        raise MfdError("\n".join(wrong), do="docs/recipe.md explains every key")


def schema(path: str | None = None, force: bool = False) -> None:
    """Writes the JSON Schema of recipes, with every registered type, to a file or to stdout.

    Raises:
        MfdError: the file exists and `force` is not given, or it cannot be written.
    """
    from mfd_cli.config.reference import json_schema

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if path is None or path == "-":
        sys.stdout.write(text)
    else:
        _write_new(Path(path), text, force)
        print(console.literal(path))


def _each_recipe(paths: Sequence[str]) -> Iterator[str]:
    """The references as given; a folder becomes the recipes in it. Raises MfdError for a folder without any."""
    for path in paths:
        if path in bundled.recipes() or not Path(path).is_dir():
            yield path
            continue
        inside = sorted(str(file) for file in Path(path).rglob("*") if file.suffix in bundled.SUFFIXES)
        if not inside:
            raise MfdError(f"no recipe in the folder {path}", allowed="YAML files")
        yield from inside


def _bundled_text(name: str) -> str:
    recipes = bundled.recipes()
    if name not in recipes:
        from mfd_cli.config.mistakes import nearest

        near = nearest(name, list(recipes)).removeprefix("; ")
        raise MfdError(f"no bundled recipe '{name}'", allowed=", ".join(recipes), do=near or "mfd recipes list")
    return recipes[name].read_text("utf-8")


def _command(text: str) -> str:
    """The command a recipe is for: one that trains a teacher has a block `network`."""
    from mfd_cli.config import strict_yaml

    data = strict_yaml.parse(text, "").data
    return "mfd teachers train" if isinstance(data, dict) and "network" in data else "mfd distill"


def _write_new(target: Path, text: str, force: bool) -> None:
    if target.is_dir():
        raise MfdError(f"{target} is a folder", allowed="a file name")
    if (target.exists() or target.is_symlink()) and not force:
        raise MfdError(f"{target} exists and is left as it is", do="choose another name, or --force to overwrite it")
    if not target.parent.is_dir():
        raise MfdError(f"the folder {target.parent} does not exist", do=f"mkdir -p {target.parent}")
    console.write_text(target, text)
