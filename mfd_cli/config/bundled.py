"""Recipes that ship with mfd: the package `mfd_cli.recipes`, which is the folder `recipes/` of a checkout."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mfd_cli.errors import MfdError

if TYPE_CHECKING:
    from importlib.abc import Traversable

PACKAGE = "mfd_cli.recipes"
SUFFIXES = (".yaml", ".yml")


def folder() -> Traversable:
    """The folder of bundled recipes.

    Raises:
        MfdError: mfd is not installed, so that the folder is no package.
    """
    try:
        return importlib.resources.files(PACKAGE)
    except ModuleNotFoundError as error:
        raise MfdError("the bundled recipes are not installed", do="pip install -e . in the checkout") from error


def recipes() -> dict[str, Traversable]:
    """Name to file of every bundled recipe, sorted; one in a subfolder is named `subfolder/name`."""
    return dict(sorted(_walk(folder(), "")))


def description(text: str) -> str:
    """A recipe's one-line description: its first comment line."""
    for line in text.splitlines():
        if line.startswith("#") and line.strip("# "):
            return line.strip("# ")
        if line.strip() and not line.startswith("#"):
            break
    return ""


def _walk(place: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in place.iterdir():
        if entry.is_dir() and not entry.name.startswith(("_", ".")):
            yield from _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(SUFFIXES) and entry.is_file():
            yield prefix + entry.name.rsplit(".", 1)[0], entry
