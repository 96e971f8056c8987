"""Makes the repository's files that pages link to part of the site, so that it has no dead link and works offline.

On GitHub a page links to `../teachers/base.py`. The site is built of docs/ alone, so mkdocs calls these functions: each
linked file outside docs/ becomes a page below `repository/`, Markdown as it is and anything else as code, and so do
the files that those pages link to.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^( *```.*?^ *```)", re.M | re.S)
LINK = re.compile(r"(\]\()([^)#\s]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml"}


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for every linked file outside docs/."""
    pages = [file for file in files.documentation_pages() if not file.generated_by]
    waiting = [path for page in pages for path in linked(page.content_string, posixpath.join("docs", page.src_uri))]
    while waiting:
        path = waiting.pop()
        if files.get_file_from_path(home(path)) is None:
            text = content(path)
            waiting += linked(text, path)
            files.append(File.generated(config, home(path), content=rewritten(text, path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns the links of docs/'s own pages to files outside of it."""
    own = not page.file.generated_by
    return rewritten(markdown, posixpath.join("docs", page.file.src_uri)) if own else markdown


def linked(markdown: str, path: str) -> Iterator[str]:
    """Existing files and folders outside docs/, relative to the repository, that a page at `path` links to."""
    for prose in FENCE.split(markdown)[::2]:
        for match in LINK.finditer(prose):
            target = resolved(match[2], path)
            if target is not None and not inside_docs(target):
                yield target


def rewritten(markdown: str, path: str) -> str:
    """The page with its links to files of the repository turned to where these are in the site."""
    here = posixpath.dirname(home(path))

    def turned(match: re.Match[str]) -> str:
        target = resolved(match[2], path)
        return match[0] if target is None else match[1] + posixpath.relpath(home(target), here or ".")

    parts = FENCE.split(markdown)
    return "".join(part if number % 2 else LINK.sub(turned, part) for number, part in enumerate(parts))


def resolved(link: str, path: str) -> str | None:
    """What a page at `path` links to, relative to the repository; None for addresses and for what does not exist."""
    if "://" in link or link.startswith(("/", "mailto:")):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return target if not target.startswith("..") and (ROOT / target).exists() else None


def inside_docs(path: str) -> bool:
    """Whether mkdocs finds a file by itself."""
    return path.startswith("docs/") and not path.endswith(".py")


def home(path: str) -> str:
    """Where a file of the repository is among the site's sources."""
    if inside_docs(path):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"repository/{path}/index.md"
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def content(path: str) -> str:
    """A file as a page: Markdown as it is, a folder as a list of links, anything else as code."""
    place = ROOT / path
    if place.is_dir():
        names = sorted(file.name for file in place.iterdir() if file.suffix in LANGUAGES)
        return f"# {path}\n\n" + "\n".join(f"- [{name}]({posixpath.basename(path)}/{name})" for name in names)
    text = place.read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    return f"# {path}\n\n````{LANGUAGES.get(place.suffix, 'text')}\n{text}\n````\n"
