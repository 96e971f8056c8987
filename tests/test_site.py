"""The site of docs/: it builds strictly, every link and anchor leads somewhere, and no page asks another server."""

from __future__ import annotations

import importlib.util
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("mkdocs", reason="the site needs mkdocs-material: pip install -e '.[docs]'")


class Page(HTMLParser):
    """A page's anchors, its links, and what a browser loads without being asked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loaded.append(given["href"])
        elif "src" in given:
            self.loaded.append(given["src"])


def broken(site: Path) -> list[str]:
    """Links of a built site that lead nowhere, and things it would load from elsewhere."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":  # is served at any depth, so its links begin at the site's root
            continue
        found += [f"{path.name} loads {link}" for link in page.loaded if urlsplit(link).netloc]
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].anchors if target in pages else {""}
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in known | {"__"}):
                found.append(f"{path.name}: {link}")
    return found


def build(folder: Path, config: Path = ROOT / "mkdocs.yml") -> Path:
    from mkdocs.commands.build import build as make
    from mkdocs.config import load_config

    loaded = load_config(str(config), strict=True, site_dir=str(folder))
    loaded.plugins.on_startup(command="build", dirty=False)
    make(loaded)
    return folder


@pytest.fixture
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_builds_and_is_whole(tmp_path: Path) -> None:
    site = build(tmp_path / "site")
    assert broken(site) == []
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}
    assert (site / "images" / "concept.png").is_file() and not list(site.rglob("*.py"))
    contract = (site / "repository" / "teachers" / "base.py.html").read_text(encoding="utf-8")
    assert "class" in contract and "null_condition" in contract


@pytest.mark.parametrize(
    ("link", "leads"),
    [("nowhere.md", False), ("../nowhere.py", False), ("index.md#no-such", False), ("index.md#here", True)],
)
def test_a_dead_link_ends_the_build(tmp_path: Path, link: str, leads: bool) -> None:
    from mkdocs.exceptions import Abort

    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# Here\n\n[there]({link})\n")
    text = (ROOT / "mkdocs.yml").read_text("utf-8").split("nav:")[0]
    config = tmp_path / "mkdocs.yml"
    config.write_text(text.replace("docs/hooks.py", str(ROOT / "docs" / "hooks.py")))
    if leads:
        assert broken(build(tmp_path / "site", config)) == []
    else:
        with pytest.raises(Abort):
            build(tmp_path / "site", config)


def test_what_is_broken_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="top"></h1><a href="b.html#no">x</a><a href="#top">x</a><a href="c">x</a>')
    (tmp_path / "b.html").write_text('<script src="https://example.org/x.js"></script><a href="a.html#top">x</a>')
    assert sorted(broken(tmp_path)) == ["a.html: b.html#no", "a.html: c", "b.html loads https://example.org/x.js"]


def test_links_out_of_docs_become_links_in_the_site(hooks: ModuleType) -> None:
    page = "[a](../teachers/base.py) [b](recipe.md#train) [c](https://example.org/../x)\n```\n[d](../teachers/base.py)\n```\n"
    assert hooks.rewritten(page, "docs/x.md") == page.replace(
        "../teachers/base.py", "repository/teachers/base.py.md", 1
    )
    assert list(hooks.linked(page, "docs/x.md")) == ["teachers/base.py"]
    readme = hooks.rewritten("[a](docs/recipe.md) [b](recipes/README.md) ![p](docs/images/toy.png)", "README.md")
    assert readme == "[a](../recipe.md) [b](recipes/README.md) ![p](../images/toy.png)"
    assert hooks.resolved("../../outside.md", "docs/x.md") is None


def test_a_folder_becomes_a_list_of_its_files(hooks: ModuleType) -> None:
    assert "- [classes.py](occfm/classes.py)" in hooks.content("teachers/occfm")
    assert hooks.home("teachers/occfm") == "repository/teachers/occfm/index.md"
    assert hooks.home("docs/hooks.py") == "repository/docs/hooks.py.md"  # mkdocs leaves it out, so it is a page as well
