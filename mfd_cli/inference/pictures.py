"""Pictures of samples: a labelled grid of images, or clouds of points side by side.

`comparison` is the one drawing that `mfd sample`, the trainer's previews and the picture that closes a run share:
several samplers on the same noise. Images are laid out with Pillow alone; points are plotted with matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.inference.sampler import Sampler
from mfd_cli.store.files import write_bytes
from teachers.base import Modes

#: more images than this in one picture cannot be looked at
LARGEST_GRID = 1000

_SMALLEST, _LARGEST = 48, 512  # pixels of the longer side of an image in the grid
_GAP, _MARGIN, _BLOCK_GAP = 6, 20, 18
_WIDTH = 1100  # pixels that a row of images fills before it is broken
_TITLE, _CAPTION = 15, 13  # font sizes
_TITLE_WIDTH = 150
_CAPTION_LINES, _LONGEST_WORD = 3, 110  # a word may widen its column up to so many pixels
_INK, _SOFT = (25, 25, 25), (95, 95, 95)
_POINTS_SHOWN = 5000


def comparison(
    samplers: Sequence[tuple[Sampler, int]],
    *,
    count: int,
    seed: int,
    asked: Sequence[int | str] | None = None,
    modes: Modes | None = None,
    noise: bool = True,
    target: Tensor | None = None,
    batch_size: int | None = None,
) -> Image.Image:
    """A picture of several samplers' samples from the same noise.

    Args:
        samplers: samplers of one family, each with its number of Euler steps.
        count: number of samples N.
        seed: sample i has the noise of (seed, i) in every sampler.
        asked: N class indices or prompts; the family's own examples if None.
        modes: the target's modes, drawn with points.
        noise: whether the noise itself is shown first, of points and images.
        target: real points [M, D], shown after the noise; ignored for images.
        batch_size: samples computed at once; the family's choice if None.

    Raises:
        MfdError: too many images for one picture, or what `Sampler.sample` refuses.
        TeacherError: something asked for does not exist.
    """
    first = samplers[0][0]
    if first.teacher.sample_kind == "occupancy":
        from mfd_cli.inference.forecast_pictures import forecast, page

        return page(forecast(samplers, count=count, seed=seed, asked=asked, batch_size=batch_size))
    if first.teacher.sample_kind == "images":
        require_grid(count)
    named = [("noise", noise_of(first, count, seed))] if noise else []
    if target is not None and first.teacher.sample_kind == "points":
        named.append(("target", target))
    for sampler, steps in samplers:
        samples = sampler.sample(count, steps=steps, seed=seed, asked=asked, batch_size=batch_size)
        named.append((title_of(sampler, steps), samples))
    if first.teacher.sample_kind == "points":
        return points_picture(named, modes)
    return image_grid(named, captions=list(asked) if asked is not None else first.teacher.examples(count))


def noise_of(sampler: Sampler, count: int, seed: int) -> Tensor:
    """The noise that samples start from, decoded so that it can be drawn: points [N, D] or images [N, C, H, W]."""
    return sampler.decode(sampler.noise(count, seed=seed)).cpu()


def title_of(sampler: Sampler, steps: int) -> str:
    """What a row or panel is called: "student, 1 step", "teacher, 10 steps, guidance 1.5"."""
    title = f"{sampler.name}, {steps} step" + ("s" if steps != 1 else "")
    return title if sampler.guidance == 1.0 else f"{title}, guidance {sampler.guidance:g}"


def require_grid(count: int) -> None:
    """Raises MfdError if `count` images are too many for one picture."""
    if count > LARGEST_GRID:
        raise MfdError(
            f"{count} images in one picture",
            allowed=f"at most {LARGEST_GRID}",
            do="give a folder (`-o samples/`) or a file of numbers (`-o samples.npz`) instead",
        )


def image_grid(
    rows: Sequence[tuple[str, Tensor]], *, captions: Sequence[int | str] = (), columns: int | None = None
) -> Image.Image:
    """A labelled grid: each row of images with its title at the left, captions above the columns.

    Rows too long for the page are broken into blocks, so that what belongs together stays together.

    Args:
        rows: title and images [N, C, H, W] in [0, 1], C 1 or 3; all rows of one shape.
        captions: N texts (class labels, prompts); none if empty.
        columns: images in a row before it is broken; chosen by their size if None.
    """
    count, _, height, width = rows[0][1].shape
    size = _display_size(width, height)
    texts = [str(caption) for caption in captions]
    title_font, caption_font = ImageFont.load_default(size=_TITLE), ImageFont.load_default(size=_CAPTION)
    column_width = max(size[0], min(_LONGEST_WORD, _longest_word(texts, caption_font)))
    columns = min(count, columns or _columns(column_width))
    titles = [wrapped(title.replace(", ", ",\n"), title_font, _TITLE_WIDTH, 9) for title, _ in rows]
    left = _MARGIN + max(extent(title, title_font)[0] for title in titles) + 2 * _GAP
    pitch = [max(size[1], extent(title, title_font)[1]) + _GAP for title in titles]
    blocks = _blocks(count, columns, texts, caption_font, column_width)
    heads = [max((extent(text, caption_font)[1] + _GAP for text in head if text), default=0) for _, head in blocks]
    spaces = [0] + [_BLOCK_GAP if len(rows) > 1 or head else 0 for head in heads[1:]]
    tall = 2 * _MARGIN - _GAP + sum(heads) + sum(spaces) + len(blocks) * sum(pitch)
    page = Image.new("RGB", (left + columns * (column_width + _GAP) - _GAP + _MARGIN, tall), "white")
    draw = ImageDraw.Draw(page)
    top = _MARGIN
    for number, ((start, head), head_height) in enumerate(zip(blocks, heads, strict=True)):
        top += spaces[number] + head_height
        for column, text in enumerate(head):
            middle = left + column * (column_width + _GAP) + column_width / 2
            above = top - _GAP - extent(text, caption_font)[1]
            draw.multiline_text((middle, above), text, _SOFT, caption_font, anchor="ma", align="center")
        for (_, images), title, step in zip(rows, titles, pitch, strict=True):
            if number == 0 or len(rows) > 1:
                draw.multiline_text((_MARGIN, top + (step - _GAP) / 2), title, _INK, title_font, anchor="lm")
            for column, image in enumerate(images[start : start + columns]):
                centred = left + column * (column_width + _GAP) + (column_width - size[0]) // 2
                page.paste(_scaled(to_picture(image), size), (centred, top))
            top += step
    return page


def to_picture(image: Tensor) -> Image.Image:
    """One image [C, H, W] in [0, 1] as an 8-bit picture, grey (C 1) or RGB (C 3); values are rounded and clipped."""
    bytes_ = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(bytes_[:, :, 0] if bytes_.shape[2] == 1 else bytes_)


def points_picture(panels: Sequence[tuple[str, Tensor]], modes: Modes | None = None) -> Image.Image:
    """Clouds of points side by side on the same axes.

    Args:
        panels: title and points [N, D]. Of D > 2 the first two axes are drawn; D = 1 gives histograms.
        modes: centres and circles of two standard deviations, drawn into every panel but the noise (D >= 2).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    clouds = [points.detach().float().cpu().numpy() for _, points in panels]
    axes_shown = clouds[0].shape[1]
    side, border, head, foot = 2.9, 0.5, 0.8 if axes_shown > 2 else 0.6, 0.4  # inches
    wide, tall = border + len(panels) * (side + 0.15), head + side + foot
    figure = Figure(figsize=(wide, tall), dpi=110, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    low, high = common_range(clouds)
    first = None
    for number, ((title, _), cloud) in enumerate(zip(panels, clouds, strict=True)):
        place = ((border + number * (side + 0.15)) / wide, foot / tall, side / wide, side / tall)
        pane = figure.add_axes(place, sharex=first, sharey=first)
        pane.tick_params(labelleft=first is None)
        first = first or pane
        which = "" if axes_shown <= 2 else f"\naxes 1 and 2 of {axes_shown}"
        pane.set_title(f"{title}\n{len(cloud):,} points{which}", fontsize=10)
        pane.tick_params(labelsize=8, length=3, color="0.6", labelcolor="0.35")
        for spine in pane.spines.values():
            spine.set_color("0.8")
        if axes_shown == 1:
            pane.hist(cloud[:, 0], bins=80, range=(float(low[0]), float(high[0])), density=True, color=_colour(title))
            continue
        shown = cloud[:: -(-len(cloud) // _POINTS_SHOWN)]  # evenly spread: targets may come sorted by mode
        area = float(np.clip(200 / len(shown) ** 0.5, 2, 20))
        pane.scatter(shown[:, 0], shown[:, 1], s=area, color=_colour(title), alpha=0.45, linewidths=0)
        pane.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        if modes is not None and title != "noise":
            _draw_modes(pane, modes)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3].copy())


def png_bytes(picture: Image.Image, facts: Mapping[str, object] | None = None) -> bytes:
    """A PNG file's content, with facts (seed, steps...) as its text entries."""
    info = PngInfo()
    for name, value in (facts or {}).items():
        info.add_itxt(name, str(value))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(path: Path, picture: Image.Image, facts: Mapping[str, object] | None = None) -> None:
    """Writes a PNG whole or not at all, with facts as its text entries; its folder is made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, png_bytes(picture, facts))


def _display_size(width: int, height: int) -> tuple[int, int]:
    """Size in the grid: small images grow by a whole factor, so that each pixel stays a square; large ones shrink."""
    longer = max(width, height)
    if longer > _LARGEST:
        return max(1, round(width * _LARGEST / longer)), max(1, round(height * _LARGEST / longer))
    factor = -(-_SMALLEST // longer)
    return width * factor, height * factor


def _scaled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    shrinks = size[0] < picture.width
    return picture.resize(size, Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST).convert("RGB")


def _columns(width: int) -> int:
    """Images in a row of the page: at least 4; whole tens where they fit, so that ten classes line up."""
    fitting = max(4, _WIDTH // (width + _GAP))
    return fitting - fitting % 10 if fitting >= 10 else fitting


def _blocks(
    count: int, columns: int, captions: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[tuple[int, list[str]]]:
    """First column of each block and its captions, wrapped; captions that only repeat the block before are left out."""
    starts = range(0, count, columns)
    raw = [list(captions[start : start + columns]) for start in starts]
    kept = raw[:1] + [[] if now == before[: len(now)] else now for before, now in pairwise(raw)]
    return [
        (start, [wrapped(text, font, width, _CAPTION_LINES) for text in head])
        for start, head in zip(starts, kept, strict=True)
    ]


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, lines: int) -> str:
    """Text broken at spaces (or inside a word that is too long) so that no line is wider than `width` pixels."""
    result: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}") > width:
                result.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
            while font.getlength(line) > width and len(line) > 1:
                fitting = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or font.getlength(line[:n]) <= width)
                result.append(line[:fitting])
                line = line[fitting:]
        result.append(line)
    if len(result) > lines:
        last = result[lines - 1]
        while last and font.getlength(f"{last}...") > width:
            last = last[:-1]
        result = [*result[: lines - 1], f"{last.rstrip()}..."]
    return "\n".join(result)


def _longest_word(texts: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """Width in pixels of the widest word."""
    return max((int(np.ceil(font.getlength(word))) for text in texts for word in text.split()), default=0)


def extent(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[int, int]:
    """Width and height in pixels of a text of one or more lines; the height leaves room for descenders in each."""
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    lines = "\n".join("Ag" for _ in text.split("\n"))
    width = draw.multiline_textbbox((0, 0), text, font)[2]
    return int(np.ceil(width)), int(np.ceil(draw.multiline_textbbox((0, 0), lines, font)[3]))


def common_range(clouds: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Limits of the drawn axes, equally long, that hold all but stray points of every cloud, with a border."""
    drawn = [cloud[:, :2] for cloud in clouds]
    low = np.min([np.quantile(cloud, 0.001, axis=0) for cloud in drawn], axis=0)
    high = np.max([np.quantile(cloud, 0.999, axis=0) for cloud in drawn], axis=0)
    middle, half = (low + high) / 2, 0.55 * max(float((high - low).max()), 1e-6)
    return middle - half, middle + half


def _colour(title: str) -> str:
    """One colour per kind of panel, so that several pictures read alike."""
    known = {"noise": "#8a8a8a", "target": "#2f7d4f", "teacher": "#2a5fa5", "student": "#c4501b"}
    return known.get(title.split(",")[0], "#444444")


def _draw_modes(pane: Any, modes: Modes) -> None:
    from matplotlib.patches import Circle

    for mean, deviation in zip(modes.means.cpu().numpy(), modes.deviations.cpu().numpy(), strict=True):
        pane.add_patch(Circle(mean[:2], 2 * float(deviation), fill=False, color="0.15", linewidth=0.9, zorder=3))
        pane.plot(mean[0], mean[1], "+", color="0.1", markersize=5, markeredgewidth=0.9, zorder=3)
