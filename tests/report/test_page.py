"""The page: whole, safe, readable without seeing it, and the same every time."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mfd_cli.inference.models import Models
from mfd_cli.report.gather import Gathered, gather
from mfd_cli.report.page import data, render
from mfd_cli.report.samples import Samples, draw, preview
from mfd_cli.store.layout import RunFolder

Made = Callable[..., RunFolder]
NOTHING = Samples("none", notes=["nothing was asked for"])
VOID = {"meta", "link", "img", "br", "path", "use", "rect", "circle", "image"}


class Page(HTMLParser):
    """What a test asks of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def finished(made: Made, figures: Any) -> Gathered:
    report = figures(
        {"frechet": (0.1, 0.01), "in_mode": (0.8, 0.02)}, {"frechet": (0.2, 0.01), "in_mode": (0.9, 0.01)},
        {"frechet": (5.0, 0.1), "in_mode": (0.1, 0.01)}, {"frechet": 1.02, "in_mode": 0.88},
    )  # fmt: skip
    return gather(made(report=report, lines=60).root)


class Family:
    """Stands for a teacher's adapter."""

    frames, clips = 1, None

    def __init__(self, kind: str, examples: list[str] | None = None) -> None:
        self.sample_kind, self.texts, self.shown = kind, examples or [], 3

    def examples(self, count: int) -> list[str]:
        return self.texts[:count]


class Drawn:
    """Stands for a sampler: its samples are made up."""

    def __init__(self, name: str, family: Family, steps: int, shape: tuple[int, ...]) -> None:
        self.name, self.teacher, self.steps, self.guidance, self.shape = name, family, steps, 1.0, shape

    def sample(self, count: int, *, steps: int, seed: int) -> torch.Tensor:
        return torch.rand(count, *self.shape, generator=torch.Generator().manual_seed(seed + steps))


def models(kind: str, shape: tuple[int, ...], examples: list[str] | None = None) -> Models:
    family = Family(kind, examples)
    return Models(Drawn("student", family, 1, shape), Drawn("teacher", family, 10, shape))  # type: ignore[arg-type]


def test_every_part_is_there_and_well_formed(finished: Gathered) -> None:
    page = Page(render(finished, draw(models("points", (2,)))))
    assert page.crossed == [] and page.open == []
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "h2"]
    links = [str(attributes["href"])[1:] for attributes in page.all("a")]
    assert sections == links and len(sections) == 9
    for words in (
        "10.0 times as fast", "worse in in_mode", "teacher, 10 steps", "student, 1 step", "cpu, float32, 1 thread",
        "the closing check that ended the run", "mfd distill toy.yaml", "mfd benchmark runs/made", "aux_updates: 3",
        "2026-01-01T00:00:00Z", "student 600, teacher 300",
    ):  # fmt: skip
        assert words in page.text, words
    assert len(page.all("svg")) == 3 + 4 + 6, "three clouds, two measures twice, six training plots"


def test_it_asks_for_nothing_from_outside(finished: Gathered) -> None:
    text = render(finished, draw(models("points", (2,))))
    for tag, attributes in Page(text).elements:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base")
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    without = text.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
    assert "http:" not in without and "https:" not in without and "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    policy = next(one for one in Page(text).all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])


def test_it_can_be_read_without_seeing_it(finished: Gathered) -> None:
    page = Page(render(finished, draw(models("images", (1, 8, 8), ["3", "4", "5"]))))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th")) and page.all("th")
    figures = [one for one in page.all("svg") if one.get("aria-hidden") != "true"]
    assert figures and all(one.get("role") == "img" and one.get("aria-label") for one in figures)
    names = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(names) == len(set(names))
    assert dict(page.elements[0][1])["lang"] == "en" or page.all("html")[0]["lang"] == "en"
    assert "teacher, 10 steps, asked for: 3" in [one["alt"] for one in page.all("img")]


def test_the_same_run_gives_the_same_bytes(finished: Gathered) -> None:
    made = [render(finished, draw(models("points", (2,)))) for _ in range(2)]
    assert made[0] == made[1]


NASTY = "<script>alert(1)</script> \"q\" 'r' & \x1b[31mred\x00 \u202eback"


def test_text_of_others_stays_text(finished: Gathered) -> None:
    from dataclasses import replace

    recipe = finished.recipe | {"name": NASTY}
    run = replace(finished, name=NASTY, recipe=recipe, reason=NASTY, status="failed", benchmark=None, notes=[NASTY])
    text = render(run, draw(models("images", (3, 8, 8), [NASTY] * 3)))
    page = Page(text)
    assert page.all("script") == [] and page.crossed == []
    assert not [mark for mark in text if not mark.isprintable() and mark != "\n"]
    assert r"<script>alert(1)</script>" in page.text and r"\x1b[31mred\x00 \u202eback" in page.text
    assert rf"teacher, 10 steps, asked for: {NASTY}".replace("\x1b", r"\x1b").replace("\x00", r"\x00").replace(
        "\u202e", r"\u202e"
    ) in [one["alt"] for one in page.all("img")]


def test_a_metric_or_logged_number_with_markup_stays_text(made: Made, figures: Any) -> None:
    name = "a<b>&c"
    run = made(report=figures({name: (0.1, 0.01)}, {name: (0.2, 0.01)}))
    run.metrics.write_text('{"update": 1, "loss<i>": 2.0}\n')
    page = Page(render(gather(run.root), NOTHING))
    assert page.crossed == [] and page.all("b", "i") == [] and name in page.text and "loss<i>" in page.text


def test_it_tells_nothing_of_the_machine(made: Made, figures: Any, tmp_path: Path) -> None:
    home, user = str(Path.home()), getpass.getuser()
    secret = f"{home}/secret-project/prompts.txt"
    run = made(
        "finished", overrides=(f"name={'toy'}",), reason=f"OSError: {secret}: gone",
        report=figures({}, {}, run=str(tmp_path / "runs/made"), notes=[f"the data are left out: {secret}: no file"]),
    )  # fmt: skip
    run.recipe.write_text(run.recipe.read_text() + f"extra: {{path: {secret}, other: /home/{user}x/set}}\n")
    found = gather(run.root.resolve())
    text, told = render(found, NOTHING), str(data(found))
    for private in (str(tmp_path), home + "/", "secret-project", f"/home/{user}", f"{user}x", "/home/", "/tmp"):
        assert private not in text and private not in told, private
    if len(socket.gethostname()) > 5:
        assert socket.gethostname() not in text
    assert "prompts.txt" in text


def test_a_run_that_stopped_shows_what_there_is(made: Made) -> None:
    run = made("stopped", student=False, lines=2, reason="student: not finite at update 20: loss nan")
    run.previews.mkdir()
    Image.new("RGB", (40, 20), "red").save(run.previews / "update-000020.png")
    found = gather(run.root)
    drawn = preview(run.previews / "update-000020.png")
    page = Page(render(found, drawn))
    assert "This run is not finished (status: stopped)" in page.text
    assert "This run stopped itself after update 20 of 60: student: not finite at update 20: loss nan." in page.text
    assert "mfd distill runs/made/recipe.yaml -o runs/made --resume" in page.text
    assert [one["alt"] for one in page.all("img")] == ["samples of teacher and student while training, update 000020"]
    assert "Not measured" in page.text and page.all("svg"), "the curves are there all the same"


def test_a_run_without_anything_is_a_page_too() -> None:
    page = Page(render(Gathered("bare", "bare"), NOTHING))
    assert page.crossed == [] and "nothing was asked for" in page.text and "No line of training" in page.text


def test_pictures_stand_as_their_size_and_captions_allow() -> None:
    assert draw(models("images", (1, 8, 8), ["1", "2", "3"])).layout == "above"
    assert draw(models("images", (3, 32, 32), ["a red fox", "b", "c"])).layout == "beside"
    assert draw(models("images", (3, 16, 64), [])).layout == "wide"


def test_small_images_are_exact_and_large_ones_shrunk() -> None:
    import base64
    import io

    small = draw(models("images", (3, 8, 8)))
    picture = small.cards[0].pictures[-1]
    back = Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1])))
    student = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(np.asarray(back), (student[0] * 255).round().byte().permute(1, 2, 0).numpy())
    assert not small.compressed and picture.uri.startswith("data:image/png")
    large = draw(models("images", (3, 600, 700)))
    assert large.compressed and large.cards[0].pictures[0].width == 512
    assert large.cards[0].pictures[0].uri.startswith("data:image/jpeg")


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_points_of_any_dimension_are_drawn(dimensions: int) -> None:
    found = draw(models("points", (dimensions,)))
    assert [title for title, _ in found.plots] == ["teacher, 10 steps", "teacher, 1 step", "student, 1 step"]
    assert bool(found.notes) == (dimensions > 2)


def test_a_teacher_of_as_many_steps_is_shown_once() -> None:
    both = models("points", (2,))
    both.teacher.steps = 1  # type: ignore[union-attr]
    assert draw(both).models == ["teacher, 1 step", "student, 1 step"]
