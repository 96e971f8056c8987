"""Pictures of 4D occupancy forecasts seen from above: a page that puts truth and forecasts in rows, and a film of one.

Shapes: F future frames, H history frames, a grid of X x Y x Z voxels with labels as in `teachers.occfm.classes`; x
points forward, y to the left, z up, and the ego vehicle stands in the middle. Every panel is drawn as a driver's map:
forward is up, left is left.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.inference.pictures import extent, wrapped
from teachers.occfm.classes import CLASSES, FREE

#: labels of one frame [X, Y, Z], or of several [F, X, Y, Z]
Labels: TypeAlias = Tensor | np.ndarray

#: RGB of each label: the colours that Occ3D and nuScenes are customarily drawn in, but for manmade, which is nearly
#: white there and would be lost on white
COLOURS = (
    (0, 0, 0),  # others
    (255, 120, 50),  # barrier
    (255, 192, 203),  # bicycle
    (255, 255, 0),  # bus
    (0, 150, 245),  # car
    (0, 255, 255),  # construction vehicle
    (200, 180, 0),  # motorcycle
    (255, 0, 0),  # pedestrian
    (255, 240, 150),  # traffic cone
    (135, 60, 0),  # trailer
    (160, 32, 240),  # truck
    (255, 0, 255),  # driveable surface
    (139, 137, 137),  # other flat
    (75, 0, 75),  # sidewalk
    (150, 240, 80),  # terrain
    (196, 196, 222),  # manmade
    (0, 175, 0),  # vegetation
    (255, 255, 255),  # free
)

_DARKEST = 0.74  # of a colour's brightness, for a voxel on the grid's floor; the topmost layer has it whole
_SHADOW, _STEP = 0.7, 2  # a column this many voxels lower than the one ahead or to the left is darkened so
_SMALLEST = 160  # pixels of a panel's longer side, at least
_GAP, _MARGIN, _BLOCK_GAP, _SWATCH = 6, 20, 26, 12
_TITLE, _CAPTION = 15, 13  # font sizes
_TITLE_WIDTH = 150
_NARROWEST = 200  # pixels between a film's margins, so that every class's name fits
_INK, _SOFT, _LINE, _NOTHING = (25, 25, 25), (95, 95, 95), (205, 205, 205), (238, 238, 238)
_NOTE = "free is white; the triangle is the ego vehicle, heading up"
_HELD = 3  # how many times longer a film's last frame stays

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Strip: TypeAlias = list[np.ndarray | None]


@dataclass(frozen=True)
class Row:
    """One row of a page, or one column of a film.

    Attributes:
        title: what is shown, "truth" or "student, 1 step".
        frames: labels uint8 [F, X, Y, Z], or a sequence of F labels [X, Y, Z] where None stands for a frame that is
            not known.
    """

    title: str
    frames: Labels | Sequence[Labels | None]


def birds_eye(labels: Labels) -> np.ndarray:
    """A frame from above, uint8 [X, Y, 3]: each column's topmost voxel that is not free, the darker the lower it is.

    The first row is the farthest ahead, the first column the farthest to the left. Light falls from there, so things
    throw a shadow one voxel wide behind them and to their right, which sets a car off from the road. Columns without
    anything are white.

    Args:
        labels: uint8 [X, Y, Z].

    Raises:
        MfdError: another shape or type, or a number that is no label.
    """
    grid = _checked(labels, "a frame")
    occupied = grid != FREE
    seen, height = occupied.any(axis=2), grid.shape[2]
    top = np.where(seen, height - 1 - occupied[:, :, ::-1].argmax(axis=2), 0)
    label = np.where(seen, np.take_along_axis(grid, top[:, :, None], axis=2)[:, :, 0], FREE)
    # the root spreads the few layers between road and roof, where most things are
    brightness = _DARKEST + (1 - _DARKEST) * np.sqrt(top / max(height - 1, 1))
    padded = np.pad(top, ((0, 1), (0, 1)))
    in_shadow = np.maximum(padded[1:, :-1], padded[:-1, 1:]) - top >= _STEP
    brightness = np.where(seen, brightness * np.where(in_shadow, _SHADOW, 1.0), 1.0)
    colours = np.rint(np.array(COLOURS)[label] * brightness[:, :, None]).astype(np.uint8)
    return np.ascontiguousarray(colours[::-1, ::-1])


def forecast_picture(
    clips: Sequence[Sequence[Row]], history: Sequence[Labels], seconds_per_frame: float = 0.5
) -> Image.Image:
    """A page with one block for each clip: what was seen, then rows of forecasts with their times in columns.

    Args:
        clips: of each clip, its rows in the order they are to be compared, truth first; all frames of one shape.
        history: of each clip, labels uint8 [H, X, Y, Z] that end now.
        seconds_per_frame: time from one frame to the next.

    Raises:
        MfdError: nothing to draw, or frames that do not belong together.
    """
    if not clips or len(clips) != len(history):
        raise MfdError(f"{len(clips)} clips with {len(history)} histories", allowed="one history for each clip")
    blocks = [_strips(rows, past) for rows, past in zip(clips, history, strict=True)]
    panel = _Panel([strip for block in blocks for _, strip in block])
    title_font, caption_font = ImageFont.load_default(size=_TITLE), ImageFont.load_default(size=_CAPTION)
    titles = [
        [wrapped(title.replace(", ", ",\n"), title_font, _TITLE_WIDTH, 9) for title, _ in block] for block in blocks
    ]
    left = _MARGIN + max(extent(title, title_font)[0] for block in titles for title in block) + 2 * _GAP
    columns = max(len(strip) for block in blocks for _, strip in block)
    wide = left + columns * (panel.width + _GAP) - _GAP + _MARGIN
    head = extent("Ag", caption_font)[1] + _GAP
    pitch = [[max(panel.height, extent(title, title_font)[1]) + _GAP for title in block] for block in titles]
    # every block has two heads, over the history and over the forecasts
    tall = sum(2 * head + _GAP + sum(steps) + _BLOCK_GAP for steps in pitch)
    legend = _legend(panel.classes, wide - 2 * _MARGIN, caption_font)
    page = Image.new("RGB", (wide, _MARGIN + tall + legend.height + _MARGIN), "white")
    draw, top = ImageDraw.Draw(page), _MARGIN
    for block, names, steps in zip(blocks, titles, pitch, strict=True):
        for number, ((_, strip), title, step) in enumerate(zip(block, names, steps, strict=True)):
            if number < 2:
                top += number * _GAP + head
                for column, text in enumerate(times(len(strip), seconds_per_frame, past=number == 0)):
                    middle = left + column * (panel.width + _GAP) + panel.width / 2
                    draw.text((middle, top - _GAP), text, _SOFT, caption_font, anchor="md")
            ink = _SOFT if number == 0 else _INK
            draw.multiline_text((_MARGIN, top + (step - _GAP) / 2), title, ink, title_font, anchor="lm")
            for column, labels in enumerate(strip):
                panel.draw(page, (left + column * (panel.width + _GAP), top), labels)
            top += step
        draw.line((_MARGIN, top + _BLOCK_GAP // 2 - _GAP, wide - _MARGIN, top + _BLOCK_GAP // 2 - _GAP), _LINE)
        top += _BLOCK_GAP
    page.paste(legend, (_MARGIN, top))
    return page


def forecast_frames(rows: Sequence[Row], history: Labels, seconds_per_frame: float = 0.5) -> list[Image.Image]:
    """Pictures of a film, H of what was seen and F of what was forecast, the rows side by side and the time below.

    Args:
        rows: one clip's rows, truth first.
        history: labels uint8 [H, X, Y, Z] that end now; every row shows the same.
        seconds_per_frame: time from one frame to the next.

    Raises:
        MfdError: nothing to draw, or frames that do not belong together.
    """
    (_, past), *futures = _strips(rows, history)
    panel = _Panel([past, *(strip for _, strip in futures)])
    title_font, caption_font = ImageFont.load_default(size=_TITLE), ImageFont.load_default(size=_CAPTION)
    titles = [wrapped(title, title_font, panel.width, 3) for title, _ in futures]
    head, line = max(extent(title, title_font)[1] for title in titles) + _GAP, extent("Ag", title_font)[1]
    wide = 2 * _MARGIN + max(len(futures) * (panel.width + _GAP) - _GAP, _NARROWEST)
    legend = _legend(panel.classes, wide - 2 * _MARGIN, caption_font)
    below = _MARGIN + head + panel.height + 2 * _GAP
    seen = times(len(past), seconds_per_frame, past=True)
    captions = [*seen, *times(len(futures[0][1]), seconds_per_frame, past=False)]
    pages = []
    for number, time in enumerate(captions):
        page = Image.new("RGB", (wide, below + line + 2 * _GAP + legend.height + _MARGIN), "white")
        draw, ahead = ImageDraw.Draw(page), number - len(past)
        for column, ((_, strip), title) in enumerate(zip(futures, titles, strict=True)):
            start = _MARGIN + column * (panel.width + _GAP)
            place = (start + panel.width / 2, _MARGIN + head - _GAP)
            draw.multiline_text(place, title, _INK, title_font, anchor="md", align="center")
            panel.draw(page, (start, _MARGIN + head), past[number] if ahead < 0 else strip[ahead])
        colour, kind = (_SOFT, "seen") if ahead < 0 else (_INK, "forecast")
        draw.text((_MARGIN, below), f"{kind}, {time}", colour, title_font)
        page.paste(legend, (_MARGIN, below + line + 2 * _GAP))
        pages.append(page)
    return pages


def gif_bytes(frames: Sequence[Image.Image], milliseconds: int = 500) -> bytes:
    """An endless animated GIF's content; the last frame stays three times as long.

    All frames share one palette: the 256 colours that cover most pixels, others become the nearest of these. A
    palette for each frame, or dithering, would flicker where nothing moves.

    Args:
        frames: RGB pictures of one size.
        milliseconds: time that each is shown.

    Raises:
        MfdError: no frames, or of several sizes.
    """
    if len({frame.size for frame in frames}) != 1:
        raise MfdError(f"{len(frames)} frames of sizes {[frame.size for frame in frames]}", allowed="one size")
    weights = np.array([1 << 16, 1 << 8, 1])
    packed = np.stack([np.asarray(frame.convert("RGB")) @ weights for frame in frames])
    colours, index, times = np.unique(packed, return_inverse=True, return_counts=True)
    kept = np.argsort(-times, kind="stable")[:256]
    triples = np.stack([colours >> 16, (colours >> 8) & 255, colours & 255], axis=1)
    distance = np.square(triples[:, None] - triples[kept][None]).sum(-1)
    shown = distance.argmin(1).astype(np.uint8)[index].reshape(packed.shape)
    pictures = [Image.fromarray(frame) for frame in shown]
    for picture in pictures:
        picture.putpalette(triples[kept].astype(np.uint8).tobytes())
    durations = [milliseconds] * (len(frames) - 1) + [_HELD * milliseconds]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False
    )
    return buffer.getvalue()


class _Panel:
    """How every frame of a page is drawn: one scale, and the classes that occur in any of them."""

    def __init__(self, strips: Sequence[_Strip]) -> None:
        known = [labels for strip in strips for labels in strip if labels is not None]
        shapes = sorted({labels.shape for labels in known})
        if len(shapes) != 1:
            raise MfdError(f"frames of shapes {[list(shape) for shape in shapes]} in one picture", allowed="one shape")
        self.factor = -(-_SMALLEST // max(shapes[0][:2]))
        self.height, self.width = (self.factor * side for side in shapes[0][:2])
        self.classes = np.unique(np.concatenate([np.unique(labels) for labels in known])).tolist()

    def draw(self, page: Image.Image, corner: tuple[int, int], labels: np.ndarray | None) -> None:
        """Draws a frame with a thin border around it; a grey field if it is not known."""
        (left, top), draw = corner, ImageDraw.Draw(page)
        right, bottom = left + self.width, top + self.height
        draw.rectangle((left - 1, top - 1, right, bottom), _NOTHING, _LINE)
        if labels is None:
            return
        picture = Image.fromarray(birds_eye(labels))
        page.paste(picture.resize((self.width, self.height), Image.Resampling.NEAREST), corner)
        middle, centre, size = left + self.width / 2, top + self.height / 2, max(5, round(self.height / 36))
        corners = [(middle, centre - size), (middle - 0.7 * size, centre + size), (middle + 0.7 * size, centre + size)]
        draw.polygon(corners, fill="white", outline=_INK)


def _checked(labels: Labels, what: str) -> np.ndarray:
    """One frame's labels as an array.

    Raises:
        MfdError: they are no labels of a grid.
    """
    grid = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if grid.ndim != 3 or 0 in grid.shape or grid.dtype != np.uint8 or grid.max() > FREE:
        largest = f", largest {grid.max()}" if grid.size else ""
        raise MfdError(
            f"{what}: {grid.dtype} of shape {list(grid.shape)}{largest}",
            allowed=f"uint8 labels [x, y, z] from 0 to {FREE} (free)",
        )
    return grid


def _strips(rows: Sequence[Row], history: Labels) -> list[tuple[str, _Strip]]:
    """Titles and checked frames of a clip, the history first.

    Raises:
        MfdError: nothing to draw, rows of several lengths, or what is no label.
    """
    strips: list[tuple[str, _Strip]] = [("history", [_checked(labels, "history") for labels in history])]
    for row in rows:
        frames: Iterable[Labels | None] = row.frames
        strips.append((row.title, [None if one is None else _checked(one, row.title) for one in frames]))
    lengths = {len(strip) for _, strip in strips[1:]}
    if len(lengths) != 1 or 0 in lengths or not strips[0][1]:
        found = ", ".join(f"{title}: {len(strip)}" for title, strip in strips)
        raise MfdError(f"frames of a clip: {found}", allowed="a history, and rows of one length")
    return strips


def times(number: int, seconds_per_frame: float, *, past: bool) -> list[str]:
    """Captions of frames that end now ("-0.5 s", "now"), or that come after it ("+0.5 s")."""
    if past:
        return [f"-{round(step * seconds_per_frame, 3)} s" for step in range(number - 1, 0, -1)] + ["now"]
    return [f"+{round(step * seconds_per_frame, 3)} s" for step in range(1, number + 1)]


def _legend(classes: Sequence[int], width: int, font: _Font) -> Image.Image:
    """Swatches and names of the classes but free, broken into lines of at most `width` pixels, and a closing note."""
    entries = [(label, CLASSES[label].replace("_", " ")) for label in classes if label != FREE]
    line, places, left, top = extent("Ag", font)[1] + _GAP, [], 0, 0
    for label, name in entries:
        wide = _SWATCH + _GAP + extent(name, font)[0]
        if left and left + wide > width:
            left, top = 0, top + line
        places.append((left, top, label, name))
        left += wide + 3 * _GAP
    note = wrapped(_NOTE, font, width, 4)
    if left and left + extent(note, font)[0] > width:
        left, top = 0, top + line
    picture = Image.new("RGB", (width, top + extent(note, font)[1]), "white")
    draw = ImageDraw.Draw(picture)
    middle = extent("Ag", font)[1] / 2
    for x, y, label, name in places:
        box = (x, y + middle - _SWATCH / 2, x + _SWATCH, y + middle + _SWATCH / 2)
        draw.rectangle(box, COLOURS[label], _SOFT)
        draw.text((x + _SWATCH + _GAP, y + middle), name, _INK, font, anchor="lm")
    draw.multiline_text((left, top), note, _SOFT, font)
    return picture
