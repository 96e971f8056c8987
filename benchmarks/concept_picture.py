"""The picture of docs/concepts.md: what Mean Flow Distillation compares, and where that moves the student.

    python benchmarks/concept_picture.py [toy] [--update 50] [--interval S T] [--sample I] [--samples 120] [--draws 128]
        [--seed 0] [--set key=value]... [--json PATH] [--plot PATH] [--quick]

The recipe's run is trained to `--update`, where student and teacher still differ. Left, one draw: the student's sample
X_1, noise X_0, the point X_s between them, the teacher's and the auxiliary's path from it over [s, t], and the
difference of their ends, which is (t - s) times that of the average velocities. Right, where the mean of -s D over many
draws of (X_0, s, t) moves the student's samples. The draw on the left is picked by its number, for legibility; nothing
else is. The same command draws the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import paper_probes as probes
import torch
from gradient_variance import stages
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor
from workbench import check_targets, deliver, machine, options, run, trainer_of

from mfd_cli import console
from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError
from mfd_cli.flow import interpolate
from mfd_cli.solvers import Field, integrate

_STEPS = 100  # Euler steps of a drawn path
_USUAL = {"update": 50, "samples": 120, "draws": 128, "sample": 104}
_QUICK = {"update": 2, "samples": 10, "draws": 2, "sample": 0}
_DENSITY = 64  # samples for the exact direction, which is not drawn
_TARGET, _TEACHER, _AUXILIARY, _MOVE, _INK = "#9bd0a8", "#1f5fbf", "#d9730d", "#b3123f", "#222222"
_HALO = [withStroke(linewidth=4, foreground="white")]


@torch.no_grad()
def path(field: Field, x: Tensor, s: float, t: float) -> Tensor:
    """The states of `field`'s path from X_s = `x` [B, D] at equal times of [s, t]: [steps + 1, B, D]."""
    times = torch.linspace(s, t, _STEPS + 1)[:, None].expand(-1, len(x))
    states = [x]
    for start, end in pairwise(times):
        states.append(integrate(field, states[-1], start, end, steps=1).end)
    return torch.stack(states)


@torch.no_grad()
def one_draw(probe: probes.Probe, sample: int, s: float, t: float) -> dict[str, Any]:
    """X_1, X_0, X_s and both paths of one of a minibatch's samples."""
    batch, times = probe.batch(0), torch.full((probe.rows,), s)
    data, noise = batch.generate(), batch.random.normal("x0", batch.shape)
    start = interpolate(noise, data, times)
    paths = {"teacher": path(batch.teacher, start, s, t), "auxiliary": path(batch.auxiliary, start, s, t)}
    ends = {name: found[-1, sample] for name, found in paths.items()}
    difference = (ends["auxiliary"] - ends["teacher"]) / (t - s)
    return {
        "s": s, "t": t, "x1": data[sample].tolist(), "x0": noise[sample].tolist(), "xs": start[sample].tolist(),
        **{name: found[:, sample].tolist() for name, found in paths.items()}, "D": difference.tolist(),
    }  # fmt: skip


def measure(args: Any) -> dict[str, Any]:
    """Trains to the update, and takes the draw and the mean directions there."""
    workshop, trainer = trainer_of(load_recipe(args.recipe, [*args.overrides, f"seed={args.seed}"]), args.device)
    teacher = workshop.teacher
    if (teacher.sample_kind, teacher.sample_shape, teacher.condition_kind) != ("points", (2,), "none"):
        raise MfdError(f"{args.recipe}: its samples are not points of a plane without a condition", allowed="toy")
    total = workshop.recipe.train.updates
    if args.update > total:
        raise MfdError(f"--update {args.update}: the training has {total}", do="--set train.updates=...")
    for update in stages(trainer, [args.update]):
        console.note(f"looking at update {update}")
    probe = probes.Probe(workshop, args.samples)
    points, arrows = probes.direction_fields(probe, workshop.recipe.method, args.draws, _DENSITY)
    return {
        "schema": 1, "recipe": args.recipe, "update": args.update, "seed": args.seed,
        **machine(workshop.samplers()[1]), "draw": one_draw(probe, args.sample, *args.interval),
        "points": points.tolist(), "moves": arrows["MFD"].mean(0).tolist(),
        "target": workshop.data.reference(2000, 0).tolist(),
    }  # fmt: skip


def _label(panel: Axes, text: str, at: Sequence[float], away_from: Sequence[float]) -> None:
    """A label beside a point, on the side that turns away from another point."""
    offset = torch.tensor(at) - torch.tensor(away_from)
    place = (offset / offset.norm() * 17).tolist()
    panel.annotate(
        text, at, xytext=place, textcoords="offset points", color=_INK, fontsize=14, path_effects=_HALO, zorder=7,
        ha="left" if place[0] > 0 else "right", va="center",
    )  # fmt: skip


def _legend(panel: Axes, columns: int) -> None:
    """A legend below the panel, where it covers nothing."""
    panel.legend(
        fontsize=12, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=columns, frameon=False, columnspacing=1,
        handletextpad=0.5, handlelength=1.5,
    )  # fmt: skip


def _draw_one(panel: Axes, report: dict[str, Any], edge: float) -> None:
    draw = report["draw"]
    ends = [draw["teacher"][-1], draw["auxiliary"][-1]]
    panel.plot(*zip(draw["x0"], draw["x1"], strict=True), ":", color="0.45", linewidth=2, zorder=2)
    for name, colour in (("teacher", _TEACHER), ("auxiliary", _AUXILIARY)):
        panel.plot(*zip(*draw[name], strict=True), color=colour, linewidth=3.5, zorder=3, label=f"path of the {name}")
        panel.plot(*zip(draw["xs"], draw[name][-1], strict=True), "--", color=colour, linewidth=1.5, zorder=3)
        panel.plot(*draw[name][-1], "o", color=colour, markersize=9, zorder=4)
    head = {"arrowstyle": "-|>,head_width=0.4,head_length=0.7", "color": _MOVE, "linewidth": 3}
    panel.annotate("", ends[0], xytext=ends[1], arrowprops=head | {"shrinkA": 0, "shrinkB": 0}, zorder=5)
    panel.plot([], [], "--", color="0.4", linewidth=1.5, label="$(t-s)$ x average velocity")
    panel.plot([], [], color=_MOVE, linewidth=3, label="their difference, $-(t-s)\\,D$")
    centre = torch.tensor(ends).mean(0).tolist()
    for name, text in (("x0", "$X_0$, noise"), ("xs", "$X_s$"), ("x1", "$X_1=G(z)$")):
        panel.plot(*draw[name], "o", color=_INK, markersize=9, zorder=6)
        _label(panel, text, draw[name], centre)
    shown = torch.tensor([draw["x0"], draw["x1"], draw["xs"], *draw["teacher"], *draw["auxiliary"]])
    low, high = shown.min(0).values, shown.max(0).values
    half = 0.5 * (high - low).max() + 0.27 * edge
    (left, bottom), (right, top) = ((low + high) / 2 - half).tolist(), ((low + high) / 2 + half).tolist()
    panel.set(xlim=(left, right), ylim=(bottom, top))
    _legend(panel, 2)
    panel.set_title(f"one draw: s = {draw['s']:g}, t = {draw['t']:g}", fontsize=14)


def _draw_all(panel: Axes, report: dict[str, Any], edge: float) -> None:
    points, moves = torch.tensor(report["points"]), torch.tensor(report["moves"])
    panel.scatter(*points.T, s=18, color=_INK, zorder=3, label="student's samples")
    panel.scatter([], [], color=_TARGET, label="target")
    panel.plot([], [], color=_MOVE, linewidth=3, label="mean of $-s\\,D$")
    panel.quiver(
        *points.T, *moves.T, color=_MOVE, angles="xy", scale_units="xy", width=0.005,
        scale=max(moves.norm(dim=1).quantile(0.9).item(), 1e-9), zorder=4,
    )  # fmt: skip
    panel.set(xlim=(-edge, edge), ylim=(-edge, edge))
    _legend(panel, 3)
    panel.set_title("the mean over many draws: where samples move", fontsize=14)


def picture(figure: Figure, report: dict[str, Any]) -> None:
    """Both panels, over the target."""
    figure.set_size_inches(11, 6.4)
    target = torch.tensor(report["target"])
    edge = 1.12 * target.abs().max().item()
    for panel, draw in zip(figure.subplots(1, 2), (_draw_one, _draw_all), strict=True):
        panel.scatter(*target.T, s=6, color=_TARGET, linewidths=0, zorder=1)
        draw(panel, report, edge)
        panel.set(xticks=[], yticks=[], aspect="equal")
        panel.spines[:].set_color("0.8")


def _arguments(arguments: Sequence[str] | None) -> Any:
    parser = options(__doc__)
    parser.add_argument("recipe", nargs="?", default="toy")
    parser.add_argument("--update", type=int, help="student updates before the look")
    parser.add_argument("--interval", type=float, nargs=2, default=[0.3, 0.9], metavar=("S", "T"))
    parser.add_argument("--sample", type=int, help="which of the samples the left panel shows")
    parser.add_argument("--samples", type=int, help="samples whose direction is drawn")
    parser.add_argument("--draws", type=int, help="draws of X_0 and times for each of them, an even number")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    for name, number in (_QUICK if args.quick else _USUAL).items():
        if getattr(args, name) is None:
            setattr(args, name, number)
    if not 0 <= args.interval[0] < args.interval[1] <= 1:
        raise MfdError(f"--interval {args.interval}", allowed="0 <= S < T <= 1")
    if min(args.update, args.samples) < 1 or args.draws < 2 or not 0 <= args.sample < args.samples:
        raise MfdError("--update and --samples are at least 1, --draws 2, --sample one of the samples")
    check_targets(args)
    return args


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains, looks, prints and draws; returns the report."""
    args = _arguments(arguments)
    report = measure(args)
    return deliver(report, args, lambda figure: picture(figure, report))


if __name__ == "__main__":
    run(main)
