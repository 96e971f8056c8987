"""Samples of teacher and student on the same seeds, in a form that a page can lay out at any width.

Points become scatter plots on common axes, images small pictures that stand together by seed, forecasts a table of
frames seen from above.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.inference.models import Models
from mfd_cli.inference.pictures import common_range, title_of, to_picture
from mfd_cli.inference.sampler import Sampler
from mfd_cli.report.plots import BLUE, GREEN, INK, ORANGE, new_figure, svg_of, with_prefix
from teachers.base import Data, Modes

_POINTS = 2000
_LARGEST = 512  # pixels of an image's longer side in the page
_LOSSLESS = 128 * 128  # pixels up to which an image is a PNG; above, a JPEG, so that the page can be sent by mail
_SMALL, _SHORT = 64, 5  # pixels, and letters of a caption, up to which images of one seed stand above one another
_WIDE = 2.0  # width over height from which an image has a line of its own
_PANEL = (150.0, 150.0)  # points


@dataclass(frozen=True)
class Picture:
    """One picture: a data URI, what it shows, and its pixels."""

    uri: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Card:
    """Pictures of one seed: one for each model, in the order of `Samples.models`."""

    caption: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Strip:
    """Frames of one model for one clip."""

    title: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Clip:
    """Frames of one clip: times of the columns, and a strip for the truth and for every model."""

    title: str
    times: list[str]
    strips: list[Strip]


@dataclass(frozen=True)
class Samples:
    """What the page shows of samples.

    Attributes:
        kind: points, images or occupancy; "preview" for a picture made while training, "none" for nothing.
        models: names of the models, "teacher, 10 steps".
        seed: seed of the noise.
        plots: titles and SVG, of points.
        cards: of images.
        layout: how the pictures of a card stand: "above" one another, "beside", or "wide" ones one a line.
        clips: of forecasts.
        legend: colours and names of the classes in them.
        picture: a picture made while training.
        compressed: whether images were shrunk or compressed for the page.
        notes: what is missing.
    """

    kind: str
    models: list[str] = field(default_factory=list)
    seed: int = 0
    plots: list[tuple[str, str]] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)
    layout: str = "above"
    clips: list[Clip] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    picture: Picture | None = None
    compressed: bool = False
    notes: list[str] = field(default_factory=list)


def draw(models: Models, seed: int = 0) -> Samples:
    """Samples of the teacher in its own and the student's number of steps, and of the student, from the same noise.

    Raises:
        MfdError: nothing can be sampled.
    """
    student = models.student
    if student is None:
        raise MfdError("; ".join(models.notes) or "no student")
    shown = [(student, student.steps)]
    if models.teacher is not None:
        models.teacher.teacher.clips = student.teacher.clips
        counts = dict.fromkeys([models.teacher.steps, student.steps])
        shown = [*((models.teacher, count) for count in counts), *shown]
    kind = student.teacher.sample_kind
    drawing = {"points": _points, "images": _images, "occupancy": _forecasts}[kind]
    return drawing(shown, models.data, seed)


def preview(path: Path) -> Samples:
    """A picture made while training, for a run whose student cannot be loaded."""
    alt = f"samples of teacher and student while training, {path.stem.replace('-', ' ')}"
    with Image.open(path) as picture:
        return Samples("preview", picture=_encoded(picture.convert("RGB"), alt, lossless=True))


def _points(shown: Sequence[tuple[Sampler, int]], data: Data | None, seed: int) -> Samples:
    named: list[tuple[str, Tensor]] = []
    notes, modes = [], None
    if data is not None:
        modes = data.modes()
        try:
            named.append(("target", data.reference(_POINTS, seed)))
        except MfdError as error:
            notes.append(f"the target is not shown: {error.found}")
    titles = [title_of(sampler, steps) for sampler, steps in shown]
    named += [
        (title, sampler.sample(_POINTS, steps=steps, seed=seed))
        for title, (sampler, steps) in zip(titles, shown, strict=True)
    ]
    clouds = [points.detach().float().cpu().numpy() for _, points in named]
    limits = common_range(clouds)
    if clouds[0].shape[1] > 2:
        notes.append(f"axes 1 and 2 of {clouds[0].shape[1]} are drawn")
    plots = [
        (title, with_prefix(_cloud(title, cloud, limits, modes), f"s{number}-"))
        for number, ((title, _), cloud) in enumerate(zip(named, clouds, strict=True))
    ]
    return Samples("points", titles, seed, plots=plots, notes=notes)


def _cloud(title: str, cloud: np.ndarray, limits: tuple[np.ndarray, np.ndarray], modes: Modes | None) -> str:
    """One scatter plot, its points as a picture inside so that thousands cost little; of 1-D points a histogram."""
    import matplotlib as mpl
    from matplotlib.patches import Circle

    from mfd_cli.report.plots import STYLE

    colour = {"target": GREEN, "teacher": BLUE}.get(title.split(",")[0], ORANGE)
    low, high = limits
    with mpl.rc_context({**STYLE, "font.size": 7.5}):
        figure, axes = new_figure(_PANEL, dpi=200)
        if cloud.shape[1] == 1:
            axes.hist(cloud[:, 0], bins=80, range=(float(low[0]), float(high[0])), density=True, color=colour)
            return svg_of(figure, f"histogram of {len(cloud):,} points: {title}")
        area = float(np.clip(100 / len(cloud) ** 0.5, 1, 10))
        axes.scatter(cloud[:, 0], cloud[:, 1], s=area, color=colour, alpha=0.5, linewidths=0, rasterized=True)
        for mean, deviation in _circles(modes):
            axes.add_patch(Circle((mean[0], mean[1]), 2 * deviation, fill=False, color=INK, linewidth=0.8, zorder=3))
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
        within = "" if modes is None else "; circles are two standard deviations of each mode of the target"
        return svg_of(figure, f"{len(cloud):,} points: {title}{within}", dpi=200)


def _circles(modes: Modes | None) -> list[tuple[np.ndarray, float]]:
    if modes is None:
        return []
    return list(zip(modes.means.cpu().numpy(), modes.deviations.cpu().tolist(), strict=True))


def _images(shown: Sequence[tuple[Sampler, int]], data: Data | None, seed: int) -> Samples:
    family = shown[0][0].teacher
    count = family.shown
    asked = [str(item) for item in family.examples(count)]
    titles = [title_of(sampler, steps) for sampler, steps in shown]
    drawn = [sampler.sample(count, steps=steps, seed=seed) for sampler, steps in shown]
    height, width = drawn[0].shape[2:]
    short = all(len(text) <= _SHORT for text in asked)
    layout = "wide" if width / height >= _WIDE else "above" if short and max(width, height) <= _SMALL else "beside"
    cards = []
    for index in range(count):
        wanted = f", asked for: {asked[index]}" if asked else ""
        pictures = [
            _encoded(to_picture(images[index]), f"{title}{wanted}", lossless=width * height <= _LOSSLESS)
            for title, images in zip(titles, drawn, strict=True)
        ]
        cards.append(Card(asked[index] if asked else "", pictures))
    return Samples("images", titles, seed, cards=cards, layout=layout, compressed=width * height > _LOSSLESS)


def _forecasts(shown: Sequence[tuple[Sampler, int]], data: Data | None, seed: int) -> Samples:
    from mfd_cli.inference.forecast_pictures import forecast
    from mfd_cli.inference.occupancy_pictures import COLOURS, times
    from teachers.occfm.classes import CLASSES, FREE

    found = forecast(shown, count=shown[0][0].teacher.shown, seed=seed)
    clips, seen = [], set()
    for index, clip in enumerate(found.clips):
        rows: list[tuple[str, Any]] = [] if found.truth is None else [("what followed", found.truth[index])]
        rows += [(title, samples[index]) for title, samples in zip(found.titles, found.samples, strict=True)]
        ahead = times(len(rows[0][1]), 0.5, past=False)
        now = found.history[index][-1:]
        strips = [Strip(title, _frames(title, [*now, *frames], ["now", *ahead], clip)) for title, frames in rows]
        seen |= {label for _, frames in [("", now), *rows] for label in np.unique(np.asarray(frames)).tolist()}
        clips.append(Clip(f"Held-out clip {clip}", ["now", *ahead], strips))
    legend = [
        (f"rgb{COLOURS[label]}".replace(" ", ""), CLASSES[label].replace("_", " "))
        for label in sorted(seen)
        if label != FREE
    ]
    return Samples("occupancy", found.titles, seed, clips=clips, legend=legend, notes=list(found.notes))


def _frames(title: str, frames: Sequence[Any], ahead: Sequence[str], clip: int) -> list[Picture]:
    from mfd_cli.inference.occupancy_pictures import birds_eye

    return [
        _encoded(Image.fromarray(birds_eye(frame)), f"{title}, clip {clip}, {time}", lossless=True)
        for frame, time in zip(frames, ahead, strict=True)
    ]


def _encoded(picture: Image.Image, alt: str, *, lossless: bool) -> Picture:
    """A picture as a data URI; large images are shrunk, previews never."""
    if not lossless and max(picture.size) > _LARGEST:
        picture = picture.copy()
        picture.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.convert("RGB").save(buffer, format="JPEG", quality=92)
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/{'png' if lossless else 'jpeg'};base64,{content}", alt, *picture.size)
