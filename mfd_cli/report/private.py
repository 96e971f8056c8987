"""What a page that is given away must not tell: where on which machine it was made.

Paths are shown relative to the folder that the command was given in, or cut to their last part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

#: an absolute or home path in running text, POSIX or Windows, and one that leads upwards; not part of a web address
_PATH = re.compile(
    r"""(?<![\w/:.~\\-])(?:file://)?(?:~[\w.-]*[/\\]|\.\.[/\\]|[A-Za-z]:[/\\]|\\\\|/)[^\s'"`:;,()\[\]<>]*"""
)
#: folders whose children are people: their names are not shown even as the last part of a path
_HOMES = ("home", "Users", "root")


def shown_path(path: Path) -> str:
    """A path as a reader may see it: relative to the working folder if it lies in it, else its last part."""
    absolute = path.resolve()
    try:
        relative = absolute.relative_to(Path.cwd().resolve())
    except ValueError:
        return last_part(str(absolute))
    return relative.as_posix() if relative.parts else last_part(str(absolute))


def last_part(path: str) -> str:
    """The last part of a path; of a home folder, or of none, "..."."""
    pure = PureWindowsPath(path) if "\\" in path or re.match(r"[A-Za-z]:", path) else PurePosixPath(path)
    parts = [part for part in pure.parts if part != pure.anchor]
    if not parts or parts[-1] in ("..", ".") or parts[-1].startswith("~") or parts[-1] in _HOMES:
        return "..."
    if len(parts) > 1 and parts[-2] in _HOMES:
        return "..."
    return parts[-1]


def scrubbed(value: Any) -> Any:
    """JSON data with every private path in its texts and keys cut to the last part."""
    if isinstance(value, Mapping):
        return {scrubbed(str(key)): scrubbed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [scrubbed(item) for item in value]
    return _scrubbed_text(value) if isinstance(value, str) else value


def _scrubbed_text(text: str) -> str:
    # what lies in the working folder is relative to it; of the home folder, whose name may have spaces, nothing is left
    for known, instead in ((Path.cwd(), ""), (Path.home(), "/")):
        if len(known.parts) > 1:
            text = text.replace(f"{known}{os.sep}", instead)
    if _PATH.match(text) and "\n" not in text and not text.startswith("//") and _is_path(text):
        return last_part(text.removeprefix("file://"))
    return _PATH.sub(lambda found: _cut(found[0]), text)


def _is_path(text: str) -> bool:
    """Whether a whole text is one path, which may have spaces: it has no sentence's punctuation."""
    return not re.search(r"[;,] |: ", text)


def _cut(found: str) -> str:
    if not found.strip("/\\"):  # a slash on its own
        return found
    path = found.rstrip(".")
    return last_part(path.removeprefix("file://")) + found[len(path) :]
