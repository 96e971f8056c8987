"""The experiments of the MFD paper (arXiv 2606.11155, Table 2 and Figures 2 to 4, 6 and 7) on the teachers here.

    python benchmarks/paper_figures.py step-size     [digits] [--sizes 0.005 0.01 0.02 0.05 0.1 0.2] [--num N]   Table 2
    python benchmarks/paper_figures.py jacobian      [digits] [--updates ...] [--minibatches 50] [--num N]       Fig. 3
    python benchmarks/paper_figures.py fields        [toy] [--updates ...] [--samples 300] [--draws 256]         Fig. 4
    python benchmarks/paper_figures.py distributions [digits] [--updates ...] [--minibatches 200]           Figs. 2, 6
    python benchmarks/paper_figures.py distance      [digits] [--updates ...] [--minibatches 20]                 Fig. 7
        each: [--seeds 0 1 2] [--solver '{type: euler, step_size: 0.02}'] [--set key=value]... [--json PATH]
              [--plot PATH] [--device cuda] [--quick]

step-size       students of the same number of updates, by the Euler steps of the integration; one step is VSD.
jacobian        the student's gradient with the integration's Jacobian against the one without; a training with each.
fields          where MFD and VSD move the student's points, and the exact gradient of the reverse KL divergence.
distributions   the loss mean 1/2 D^2 and the gradient's norm over minibatches, of both on the same networks and noise.
distance        E |U_phi - U_teacher|^2 along a training with MFD and one with VSD.

The recipe gives everything but the solver, which is the paper's unless `--solver` says otherwise; VSD takes the
recipe's starts s. Looks at a run are taken after the auxiliary's updates and before the student's, the moment whose
gradient training uses; the first find an auxiliary that is still nearly the teacher it began as.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import paper_probes as probes
import torch
from matplotlib.figure import Figure
from paper_probes import judge_for, metrics, outcome, overrides, trained, trainings, workshop_of
from workbench import check_targets, deliver, machine, options, run

from mfd_cli import console
from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError
from mfd_cli.methods.mfd import MeanFlowDistillation
from mfd_cli.metrics.contract import higher_is_better
from mfd_cli.training.workshop import Workshop

SIZES = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2]
_QUICK = ["train.updates=2", "evaluate.num=0"]
_KINDS = ("loss", "gradient norm")
_COLOURS = {"MFD": "C0", "VSD": "C1", "reverse KL": "C2", "omitted": "C0", "kept": "C3"}


def step_size(args: Any, first: Workshop) -> dict[str, Any]:
    """A student for each step size and seed."""
    solvers = {size: f"{{type: euler, step_size: {size}}}" for size in args.sizes} | {1.0: probes.VSD}
    for solver in solvers.values():
        load_recipe(args.recipe, overrides(args, 0, solver))  # a size that cannot be is told of before the first run
    judge, rows = judge_for(args, first), []
    for size, solver in solvers.items():
        for seed in args.seeds:
            console.note(f"step size {size:g}, seed {seed}")
            rows.append({"step_size": size, "seed": seed, **trained(workshop_of(args, seed, solver), judge)})
    return {"teacher": metrics(judge, first, teacher=True), "rows": rows}


def jacobian(args: Any, first: Workshop) -> dict[str, Any]:
    """Quality along a training with the Jacobian and one without it, and cosines of the two gradients in the latter."""
    judge = judge_for(args, first)

    def look(workshop: Workshop) -> dict[str, Any]:
        found: dict[str, Any] = {"metrics": metrics(judge, workshop)}
        if isinstance(workshop.method, probes.KeptJacobian):
            return found
        return found | probes.jacobian_cosines(probes.Probe.of(workshop), workshop.recipe.method, args.minibatches)

    kinds = {"omitted": (args.solver, False), "kept": (args.solver, True)}
    return {"teacher": metrics(judge, first, teacher=True), "runs": trainings(args, kinds, {0, *args.updates}, look)}


def fields(args: Any, first: Workshop) -> dict[str, Any]:
    """Directions at the student's samples under each method, and how they agree."""
    teacher = first.teacher
    if (teacher.sample_kind, teacher.sample_shape, teacher.condition_kind) != ("points", (2,), "none"):
        raise MfdError(f"{args.recipe}: its samples are not points of a plane without a condition", allowed="toy")

    def look(workshop: Workshop) -> dict[str, Any]:
        probe = probes.Probe(workshop, args.samples)
        points, arrows = probes.direction_fields(probe, workshop.recipe.method, args.draws, args.density)
        means = {name: field.mean(0).tolist() for name, field in arrows.items()}
        return {"points": points.tolist(), "directions": means, "cosines": probes.field_cosines(arrows)}

    runs = trainings(args, {"MFD": (args.solver, False)}, args.updates, look)
    return {"runs": runs, "reference": first.data.reference(1000, 0).tolist()}


def distributions(args: Any, first: Workshop) -> dict[str, Any]:
    """Losses and gradient norms of both methods on the same frozen networks."""

    def look(workshop: Workshop) -> dict[str, Any]:
        probe, settings = probes.Probe.of(workshop), workshop.recipe.method
        compared = {"MFD": MeanFlowDistillation(settings), "VSD": probes.vsd_of(settings)}
        values = {name: probes.loss_and_norm(probe, method, args.minibatches) for name, method in compared.items()}
        summaries = {
            name: {kind: probes.summary(numbers) for kind, numbers in found.items()} for name, found in values.items()
        }
        return {"values": values, "summaries": summaries}

    return {"runs": trainings(args, {"MFD": (args.solver, False)}, args.updates, look)}


def distance(args: Any, first: Workshop) -> dict[str, Any]:
    """The distance of the two mean flows, by the same solver, along a training with each method."""

    def look(workshop: Workshop) -> dict[str, Any]:
        value, error = probes.flow_distance(probes.Probe.of(workshop), first.recipe.method, args.minibatches)
        return {"distance": value, "error": error}

    kinds = {"MFD": (args.solver, False), "VSD": (probes.VSD, False)}
    return {"runs": trainings(args, kinds, {0, *args.updates}, look)}


def _looks(report: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every training with every look at it."""
    return [(training, look) for training in report["runs"] for look in training["looks"]]


def _pictured(report: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The looks at the first training of a kind that has some."""
    found = (training["looks"] for training in report["runs"] if training["kind"] == kind and training["looks"])
    return next(found, [])


def _print_step_size(report: dict[str, Any]) -> None:
    names, lines = list(report["teacher"]), []
    for size, rows in _sizes(report).items():
        ended = [row["stopped"] for row in rows if row["stopped"]]
        lines.append(
            [f"{size:g}" if size < 1 else "1 step (VSD)",
             *(_spread([row[key] for row in rows]) for key in ("seconds", "processor_seconds", "evaluations")),
             *(_spread([row["metrics"][name] for row in rows if row["metrics"]]) for name in names),
             f"{len(ended)} of {len(rows)}"]
        )  # fmt: skip
    lines.append(["teacher", None, None, None, *(f"{report['teacher'][name]:.4g}" for name in names), None])
    heads = ["step size", "seconds", "processor s", "evaluations", *names, "diverged"]
    console.table(f"{report['recipe']}: {len(report['seeds'])} seeds, mean ± spread", heads, lines)


def _print_jacobian(report: dict[str, Any]) -> None:
    lines: list[list[object]] = []
    for training, look in _looks(report):
        if training["kind"] == "kept":
            continue
        found = probes.summary(look["samples"])
        negative = statistics.mean(value < 0 for value in look["samples"])
        quantiles = (found[name] for name in ("mean", "5%", "50%", "95%"))
        lines.append(
            [training["seed"], look["update"], *quantiles, f"{negative:.1%}", statistics.mean(look["batches"]),
             f"{look['mean']:.3g} ± {look['mean_error']:.1g}", look["ratio"]]
        )  # fmt: skip
    heads = ["seed", "update", "per sample", "5%", "50%", "95%", "negative", "per batch", "of the mean", "length ratio"]
    console.table("cosine of the gradient with the Jacobian and the one without", heads, lines)
    name = next(iter(report["teacher"]))
    rows = [
        [training["kind"], training["seed"], look["update"], look["metrics"][name]] for training, look in _looks(report)
    ]
    words = [
        f"Jacobian {training['kind']}, seed {training['seed']}: {outcome(training)}" for training in report["runs"]
    ]
    console.table(f"{name} along the training", ["Jacobian", "seed", "update", name], rows, below=words)


def _print_fields(report: dict[str, Any]) -> None:
    rows = [
        [training["seed"], look["update"], *row.values()]
        for training, look in _looks(report)
        for row in look["cosines"]
    ]
    heads = ["seed", "update", "fields", "mean cosine", "share negative", "length ratio"]
    console.table("how the directions agree at the student's samples", heads, rows)


def _print_distributions(report: dict[str, Any]) -> None:
    rows = [
        [training["seed"], look["update"], kind, name, *found.values(), found["std"] / found["mean"]]
        for training, look in _looks(report)
        for kind in _KINDS
        for name, found in ((name, kinds[kind]) for name, kinds in look["summaries"].items())
    ]
    heads = ["seed", "update", "of", "method", *(f"{share:.0%}" for share in probes.QUANTILES)]
    console.table("distributions over minibatches", [*heads, "mean", "std", "std / mean"], rows)


def _print_distance(report: dict[str, Any]) -> None:
    rows = [
        [training["kind"], training["seed"], look["update"], f"{look['distance']:.4g} ± {look['error']:.1g}"]
        for training, look in _looks(report)
    ]
    console.table("E |U_phi - U_teacher|^2", ["method", "seed", "update", "distance"], rows)


def _draw_step_size(figure: Figure, report: dict[str, Any]) -> None:
    names = list(report["teacher"])[:3]
    panels = _panels(figure, 1, len(names) + 2)[0]
    for panel, name in zip(panels, [*names, "seconds", "evaluations"], strict=True):
        for size, rows in _sizes(report).items():
            values = [row["metrics"].get(name, math.nan) if name in names else row[name] for row in rows]
            panel.plot([size] * len(values), values, "k.", markersize=5)
            panel.plot(size, statistics.mean(values), "_", color="C3", markersize=14)
        if name in names:
            panel.axhline(report["teacher"][name], color="C0", linewidth=1, label="teacher")
            panel.legend(fontsize=7)
        panel.set_xscale("log")
        sizes = list(_sizes(report))
        panel.set_xticks(sizes, [f"{size:g}" if size < 1 else "VSD" for size in sizes], fontsize=7, rotation=60)
        panel.minorticks_off()
        panel.set_title(f"{name}{_better(name) if name in names else ''}", fontsize=9)
        panel.set_xlabel("Euler step size", fontsize=8)


def _draw_jacobian(figure: Figure, report: dict[str, Any]) -> None:
    cosines, course = _panels(figure, 1, 2)[0]
    looks = _pictured(report, "omitted")
    for number, look in enumerate(looks):
        shade = f"{0.8 - 0.8 * number / max(1, len(looks) - 1):.2f}"
        style = {"color": shade, "label": f"update {look['update']}"}
        cosines.hist(look["samples"], 40, range=(-1, 1), density=True, histtype="step", **style)
    cosines.axvline(0, color="C3", linewidth=0.8)
    cosines.set_xlabel("cosine", fontsize=8)
    cosines.set_ylabel("density", fontsize=8)
    cosines.set_title("a sample's gradients with and without the Jacobian", fontsize=9)
    cosines.legend(fontsize=6)
    name = next(iter(report["teacher"]))
    for training in report["runs"]:
        kind, looks = training["kind"], training["looks"]
        label = f"Jacobian {kind}" if training["seed"] == report["seeds"][0] else None
        values = [look["metrics"][name] for look in looks]
        course.plot([look["update"] for look in looks], values, ".-", color=_COLOURS[kind], linewidth=1, label=label)
    course.axhline(report["teacher"][name], color="0.5", linewidth=1, label="teacher")
    course.set_yscale("linear" if higher_is_better(name) else "log")
    course.set_title(name + _better(name), fontsize=9)
    course.set_xlabel("student updates", fontsize=8)
    course.legend(fontsize=7)


def _draw_fields(figure: Figure, report: dict[str, Any]) -> None:
    looks = _pictured(report, "MFD")
    grid = _panels(figure, len(looks), len(looks[0]["directions"]))
    x, y = zip(*report["reference"], strict=True)
    for panels, look in zip(grid, looks, strict=True):
        points, scale = torch.tensor(look["points"]), torch.tensor(look["directions"]["MFD"]).norm(dim=1).quantile(0.9)
        for panel, (name, arrows) in zip(panels, look["directions"].items(), strict=True):
            panel.scatter(x, y, s=2, color="0.85", label="target")
            panel.quiver(
                *points.T, *torch.tensor(arrows).T, color=_COLOURS[name], angles="xy", scale_units="xy",
                scale=scale.item(), width=0.004,
            )  # fmt: skip
            panel.set_title(f"{name}, update {look['update']}", fontsize=9)
            panel.set_aspect("equal")
    grid[0][0].legend(fontsize=7)


def _draw_distributions(figure: Figure, report: dict[str, Any]) -> None:
    looks = _pictured(report, "MFD")
    for panels, look in zip(_panels(figure, len(looks), len(_KINDS)), looks, strict=True):
        for panel, kind in zip(panels, _KINDS, strict=True):
            found = {name: torch.tensor(values[kind]) for name, values in look["values"].items()}
            both = torch.cat(list(found.values()))
            for name, values in found.items():
                panel.hist(
                    values.tolist(),
                    40,
                    range=(both.min().item(), both.max().item()),
                    alpha=0.5,
                    color=_COLOURS[name],
                    label=name,
                )
                panel.axvline(values.mean().item(), color=_COLOURS[name], linewidth=1)
            panel.set_title(f"{kind} over minibatches, update {look['update']}", fontsize=9)
            panel.legend(fontsize=7)


def _draw_distance(figure: Figure, report: dict[str, Any]) -> None:
    ((panel,),) = _panels(figure, 1, 1)
    for training in report["runs"]:
        name, looks = training["kind"], training["looks"]
        label = name if training["seed"] == report["seeds"][0] else None
        updates, values, errors = ([look[key] for look in looks] for key in ("update", "distance", "error"))
        panel.errorbar(updates, values, errors, fmt=".-", color=_COLOURS[name], linewidth=1, capsize=2, label=label)
    panel.set(yscale="log", xlabel="student updates")
    panel.set_title("E |U_phi - U_teacher|^2", fontsize=9)
    panel.legend(fontsize=7)


def _panels(figure: Figure, rows: int, columns: int) -> Any:
    figure.set_size_inches(3.8 * columns, 3.4 * rows)
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.tick_params(labelsize=7)
    return panels


def _better(name: str) -> str:
    return f" ({'more' if higher_is_better(name) else 'less'} is better)"


def _sizes(report: dict[str, Any]) -> dict[float, list[dict[str, Any]]]:
    """Rows of the same step size, one for each seed."""
    return {
        size: [row for row in report["rows"] if row["step_size"] == size]
        for size in dict.fromkeys(row["step_size"] for row in report["rows"])
    }  # fmt: skip


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.4g}" if values else "-"
    return f"{mean} ± {statistics.stdev(values):.2g}" if len(values) > 1 else mean


class Experiment(NamedTuple):
    """A sub-command: what it does, its words, and what it takes if nothing is given (no looks: whole trainings)."""

    measure: Callable[[Any, Workshop], dict[str, Any]]
    show: Callable[[dict[str, Any]], None]
    draw: Callable[[Figure, dict[str, Any]], None]
    words: str
    recipe: str
    looks: int
    numbers: dict[str, int]


EXPERIMENTS = {
    "step-size": Experiment(
        step_size, _print_step_size, _draw_step_size, "quality and cost by step size (Table 2)", "digits", 0, {"num": 0}
    ),
    "jacobian": Experiment(
        jacobian, _print_jacobian, _draw_jacobian, "the integration's Jacobian kept or omitted (Fig. 3)", "digits", 5,
        {"minibatches": 50, "num": 0},
    ),
    "fields": Experiment(
        fields, _print_fields, _draw_fields, "directions in the plane (Fig. 4)", "toy", 3,
        {"samples": 300, "draws": 256, "density": 4096},
    ),
    "distributions": Experiment(
        distributions, _print_distributions, _draw_distributions, "losses and gradient norms (Figs. 2, 6)", "digits", 4,
        {"minibatches": 200},
    ),
    "distance": Experiment(
        distance, _print_distance, _draw_distance, "distance of the mean flows (Fig. 7)", "digits", 10,
        {"minibatches": 20},
    ),
}  # fmt: skip
_NUMBERS = {
    "num": "samples that students are judged by; 0: the recipe's evaluate.num",
    "minibatches": "minibatches of the recipe's batch size at every look",
    "samples": "points whose direction is drawn",
    "draws": "draws of X_0 and times for each of them, an even number",
    "density": "samples that stand for the student's distribution",
}
_FEW = {"num": 300, "minibatches": 3, "samples": 20, "draws": 4, "density": 64, "sizes": [0.5], "updates": [1, 2]}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes; returns the report."""
    args = _arguments(arguments)
    experiment = EXPERIMENTS[args.experiment]
    first = workshop_of(args, args.seeds[0], args.solver)
    if experiment.looks:
        total = first.recipe.train.updates
        args.updates = sorted(args.updates or probes.spread_out(total, experiment.looks))
        if args.updates[-1] > total:
            raise MfdError(f"--updates {args.updates[-1]}: the training has {total}", do="--set train.updates=...")
    report = {
        "schema": 1, "experiment": args.experiment, "recipe": args.recipe, "overrides": args.overrides,
        "solver": args.solver, "seeds": args.seeds, **machine(first.samplers()[1]),
        **experiment.measure(args, first),
    }  # fmt: skip
    experiment.show(report)
    return deliver(report, args, lambda figure: experiment.draw(figure, report))


def _arguments(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="experiment", required=True)
    for name, experiment in EXPERIMENTS.items():
        command = commands.add_parser(name, parents=[options(experiment.words)], add_help=False, help=experiment.words)
        command.add_argument("recipe", nargs="?", default=experiment.recipe, help="recipe file or name")
        command.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of distillation")
        if experiment.looks:
            command.add_argument("--solver", default=probes.PAPER, help=f"of MFD (default: {probes.PAPER})")
            command.add_argument("--updates", type=int, nargs="+", help="student updates to look at")
        else:
            command.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="Euler step sizes")
            command.set_defaults(solver=probes.PAPER, seeds=[0, 1, 2])
        for number, value in experiment.numbers.items():
            command.add_argument(f"--{number}", type=int, default=value, help=f"{_NUMBERS[number]} (default: {value})")
    args = parser.parse_args(arguments)
    check_targets(args)
    if args.quick:
        args.overrides, args.solver, args.seeds = [*args.overrides, *_QUICK], "{type: euler, steps: 2}", args.seeds[:1]
        few = {**_FEW, "num": vars(args).get("num") or _FEW["num"]}
        vars(args).update({name: value for name, value in few.items() if name in vars(args)})
    return args


if __name__ == "__main__":
    run(main)
