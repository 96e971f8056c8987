"""Line plots as SVG for a page in light or dark: text and axes take the page's colour, series have their own.

The same input gives the same bytes. Every series has a marker and a line style besides its colour, whose luminance is
near 0.18, so that it stands out from white and from black alike (contrast above 4 to 1).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: stands for the page's text colour until the SVG is written
INK = "#010203"
BLUE, ORANGE, GREEN, GREY, PURPLE = "#4178be", "#c85a1e", "#2e8555", "#767676", "#8f62b8"
#: width and height in points; a narrow phone shows them at about their size
SIZE = (290.0, 200.0)
_LARGE = 1e5  # from here on numbers are written with k, M, G
_LOG_FROM = 20.0  # quotient of largest and smallest value from which an axis is logarithmic

#: Matplotlib's settings for every plot of a page
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and selected
    "svg.hashsalt": "mfd",  # names inside the file do not change from run to run
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.labelpad": 6.0,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_FONT = re.compile(r"""font: ([\d.]+px) 'DejaVu Sans'""")


@dataclass(frozen=True)
class Series:
    """Points of one line.

    Attributes:
        label: name in the legend.
        x: values along.
        y: values up.
        error: half the height of error bars; None for none.
        colour: of line and marker.
        marker: Matplotlib's name of the marker, "" for none.
        line: Matplotlib's name of the line style, "" for none.
        width: of the line, in points.
        faint: whether it stands back behind others.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] | None = None
    colour: str = BLUE
    marker: str = "o"
    line: str = "-"
    width: float = 1.6
    faint: bool = False


@dataclass(frozen=True)
class Band:
    """A shaded band."""

    label: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: str = BLUE


def line_plot(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    alt: str,
    bands: Sequence[Band] = (),
    levels: Sequence[tuple[str, float]] = (),
    log_x: bool = False,
    log_y: bool | None = None,
    x_ticks: Sequence[float] | None = None,
) -> str:
    """An SVG element.

    Args:
        series: lines; their finite points are drawn.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.
        alt: what the plot shows, for those who cannot see it.
        bands: drawn behind the lines.
        levels: names and heights of horizontal lines.
        log_x: whether the horizontal axis is logarithmic.
        log_y: the same of the vertical axis; where values span a factor of 20 if None.
        x_ticks: where the horizontal axis has numbers; chosen if None, whole ones on an axis of equal steps.
    """
    import matplotlib as mpl
    from matplotlib.ticker import EngFormatter, MaxNLocator

    with mpl.rc_context(STYLE):
        figure, axes = new_figure(SIZE)
        _draw(axes, series, bands, levels)
        drawn = [value for one in series for value in one.y] + [height for _, height in levels]
        if _spans(drawn) if log_y is None else log_y:
            axes.set_yscale("log", nonpositive="clip")
            _number_log(axes.yaxis, drawn)
        elif max((abs(value) for value in drawn if math.isfinite(value)), default=0) >= _LARGE:
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        if log_x:
            axes.set_xscale("log")
            _number_log(axes.xaxis, [value for one in series for value in one.x])
        if x_ticks is not None:
            axes.set_xticks(list(x_ticks), [f"{tick:g}" for tick in x_ticks])
            axes.minorticks_off()
        elif not log_x:
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(True, color=INK, alpha=0.15, linewidth=0.6)
        axes.margins(0.06)
        if sum(bool(one.label) for one in series) + len(bands) + len(levels) > 1:
            axes.legend(
                loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8.5, handlelength=3.0, borderpad=0.1,
                columnspacing=1.0,
            )  # fmt: skip
        return svg_of(figure, alt)


def new_figure(size: tuple[float, float], **layout: Any) -> tuple[Figure, Axes]:
    """A figure of so many points, with one pair of axes, not shared with anybody."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout=layout.pop("layout", "constrained"), **layout)
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def svg_of(figure: Figure, alt: str, dpi: float = 72) -> str:
    """A figure as an SVG element that fills the width it is given and takes the page's colour and font.

    Args:
        figure: what was drawn.
        alt: what it shows, for those who cannot see it.
        dpi: resolution of what is in it as a picture.
    """
    buffer = io.StringIO()
    bare = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=bare, dpi=dpi)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    opening, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None, "Matplotlib always writes one"
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.S)
    rest = _FONT.sub(r"font: \1 inherit-family", rest).replace("inherit-family", "var(--font)")
    title = escape(alt)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img"'
    return f'{head} aria-label="{title}"><title>{title}</title>{rest}'.replace(INK, "currentColor").strip()


def with_prefix(svg: str, prefix: str) -> str:
    """The SVG with names of its own, so that several can stand in one page."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)


def _draw(axes: Axes, series: Sequence[Series], bands: Sequence[Band], levels: Sequence[tuple[str, float]]) -> None:
    for band in bands:
        axes.fill_between(
            band.x, band.low, band.high, color=band.colour, alpha=0.3, linewidth=0, label=band.label or None
        )  # fmt: skip
    for one in series:
        style: dict[str, Any] = {
            "color": one.colour, "marker": one.marker or None, "linestyle": one.line or "none",
            "linewidth": one.width, "markersize": 5.5, "label": one.label or None, "alpha": 0.55 if one.faint else 1.0,
        }  # fmt: skip
        if one.error is None:
            axes.plot(one.x, one.y, **style)
        else:
            axes.errorbar(one.x, one.y, yerr=one.error, capsize=3, elinewidth=1.0, **style)
    for number, (name, height) in enumerate(levels):
        axes.axhline(height, color=GREY, linestyle=((0, (1, 1.5)), "dashdot")[number % 2], linewidth=1.2, label=name)


def _number_log(axis: Any, values: Sequence[float]) -> None:
    """Numbers 1, 2, 5, 10 ... on a logarithmic axis, written out; only powers of ten where it spans many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    finite = [value for value in values if value > 0 and math.isfinite(value)]
    narrow = not finite or max(finite) / min(finite) < 100
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _spans(values: Sequence[float]) -> bool:
    """Whether values are all above 0 and span more than an axis of equal steps can show."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) > _LOG_FROM
