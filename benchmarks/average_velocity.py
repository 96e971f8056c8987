"""Which solver gives an average velocity as exact as the paper's Euler of step size 0.02, for fewer evaluations?

    python benchmarks/average_velocity.py [--cases sana-tiny sana-small digits toy] [--samples 256] [--fine 0.01]
                                          [--set key=value]... [--json PATH] [--plot PATH] [--quick]

For samples X_1 of the teacher, fresh noise X_0 and sorted uniform times s < t, the average velocity over [s, t] from
X_s = (1 - s) X_0 + s X_1 is integrated by every solver that a recipe can name, and by rk4 with small steps:

    error of a sample = |U - U_fine| / |U_fine|         mean and 95th percentile over samples

of three things: the guided teacher's field; the same network without guidance, as auxiliary fields are; and their
difference D, which moves the student, where errors of the two partly cancel. A field without guidance has the first
alone. Evaluations are those of one field and interval, on average; a guided one makes two passes each time, for
every solver alike. A solver is as exact as Euler 0.02 in the mean if no field's mean error is larger, and throughout if
no field's percentile is larger either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from workbench import check_targets, deliver, machine, options, run

from mfd_cli import console
from mfd_cli.config.load import load_recipe
from mfd_cli.flow import interpolate
from mfd_cli.inference.sampler import Sampler, teacher_sampler
from mfd_cli.methods.times import Times, intervals
from mfd_cli.seeds import Stream
from mfd_cli.solvers import Field, Integration, integrate
from mfd_cli.training.batches import Batches
from teachers.guidance import VelocityField
from teachers.registry import data as data_registry
from teachers.registry import teachers as teacher_registry

#: largest share of Euler 0.02's evaluations that is aimed at
TARGET = 0.45


@dataclass(frozen=True)
class Case:
    """A teacher to measure on: a recipe, changes of it, and how many times `--samples` its evaluations allow."""

    recipe: str
    overrides: tuple[str, ...] = ()
    samples: float = 1.0


CASES = {
    "sana-tiny": Case("sana-tiny"),
    "sana-small": Case("sana-tiny", ("teacher.model=mfd/sana-small",), 0.5),
    "digits": Case("digits"),
    "toy": Case("toy", samples=16.0),
}


@dataclass(frozen=True)
class Rule:
    """A solver as recipes name it."""

    name: str
    step_size: float | None = None
    steps: int | None = None

    def __str__(self) -> str:
        length = f"step size {self.step_size:g}" if self.steps is None else f"{self.steps} steps"
        return f"{self.name}, {length}"

    def integrated(self, field: Field, scene: Scene) -> Integration:
        """The scene's intervals under a field."""
        return integrate(
            field, scene.x, scene.s, scene.t, rule=self.name, steps=self.steps, step_size=self.step_size
        )  # fmt: skip


PAPER = Rule("euler", 0.02)
RULES = (
    *(Rule("euler", size) for size in (0.01, 0.02, 0.05, 0.1)),
    *(Rule("ab2", size) for size in (0.04, 0.05, 0.1)),
    *(Rule("midpoint", size) for size in (0.1, 0.125, 0.15, 0.2)),
    *(Rule("heun", size) for size in (0.1, 0.2)),
    Rule("rk4", 0.5),
    *(Rule("euler", steps=steps) for steps in (8, 16)),
    *(Rule("ab2", steps=steps) for steps in (3, 4, 6, 7, 8)),
    *(Rule(name, steps=steps) for name in ("midpoint", "heun") for steps in (2, 3)),
    Rule("rk4", steps=1),
)


@dataclass(frozen=True)
class Scene:
    """Intervals to integrate: states X_s [B, ...], times [B], and the fields by name."""

    sampler: Sampler
    x: Tensor
    s: Tensor
    t: Tensor
    fields: dict[str, VelocityField]


def scene_of(case: Case, overrides: Sequence[str], samples: int, device: str) -> Scene:
    """A recipe's teacher with intervals of its samples."""
    recipe: Any = load_recipe(case.recipe, [*case.overrides, *overrides]).recipe
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    family: Any = teacher_registry.get(recipe.teacher.type)
    source: Any = data_registry.get(recipe.data.type)
    sampler = teacher_sampler(family.load(recipe.teacher), device)
    teacher, data = sampler.teacher, source.load(recipe.data, sampler.teacher)
    condition = Batches(data, recipe.seed, samples, 1, 0, 1, sampler.device).condition(0, 0)
    data.release()
    random = Stream(recipe.seed, 0, 0, samples, sampler.device)
    samples_of = sampler.generate(random.normal("z", teacher.sample_shape), condition)
    s, t = intervals(random, Times())
    x = interpolate(random.normal("x0", teacher.sample_shape), samples_of, s)
    scales = {"teacher": sampler.guidance} | ({"auxiliary": 1.0} if sampler.guidance != 1.0 else {})
    fields = {name: VelocityField(teacher, sampler.network, condition, scale) for name, scale in scales.items()}
    return Scene(sampler, x, s, t, fields)


@torch.no_grad()
def measure(scene: Scene, rules: Sequence[Rule], fine: float) -> list[dict[str, Any]]:
    """A row for each solver: errors of fields and of their difference, evaluations, and both against the paper's."""
    exact = _velocities(scene, Rule("rk4", fine))[0]
    rows: list[dict[str, Any]] = []
    for rule in dict.fromkeys([PAPER, *rules]):
        found, evaluations = _velocities(scene, rule)
        errors = {name: _errors(value, exact[name]) for name, value in found.items()}
        rows.append({"solver": str(rule), "evaluations": evaluations, "errors": errors})
    paper = rows[0]
    for row in rows:
        row["share"] = row["evaluations"] / paper["evaluations"]
        no_larger = {
            figure: all(row["errors"][field][figure] <= paper["errors"][field][figure] for field in scene.fields)
            for figure in ("mean", "p95")
        }
        row["as_exact"] = {"mean": no_larger["mean"], "throughout": all(no_larger.values())}
    return rows


def _velocities(scene: Scene, rule: Rule) -> tuple[dict[str, Tensor], float]:
    """Average velocities of the fields and their difference, and evaluations of one interval."""
    found = {name: rule.integrated(field, scene) for name, field in scene.fields.items()}
    velocities = {name: one.average_velocity.double().flatten(1) for name, one in found.items()}
    if "auxiliary" in velocities:
        velocities["difference"] = velocities["auxiliary"] - velocities["teacher"]
    return velocities, found["teacher"].evaluations.double().mean().item()


def _errors(velocity: Tensor, exact: Tensor) -> dict[str, float]:
    error = (velocity - exact).norm(dim=1) / exact.norm(dim=1)
    return {"mean": error.mean().item(), "p95": error.quantile(0.95).item()}


def cheapest(cases: dict[str, Any], how: str) -> dict[str, Any] | None:
    """The solver with the fewest evaluations, summed over cases, that is as exact as the paper's in all of them."""
    everywhere = set.intersection(
        *({row["solver"] for row in case["rows"] if row["as_exact"][how]} for case in cases.values())
    )
    shares = {
        solver: [row["share"] for case in cases.values() for row in case["rows"] if row["solver"] == solver]
        for solver in everywhere - {str(PAPER)}
    }
    if not shares:
        return None
    best = min(shares, key=lambda solver: (sum(shares[solver]), solver))
    return {"solver": best, "shares": dict(zip(cases, shares[best], strict=True))}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes; returns the report."""
    parser = options(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="teachers (default: all)")
    parser.add_argument("--samples", type=int, default=256, help="intervals of a case; more or fewer for some")
    parser.add_argument("--fine", type=float, default=0.01, help="step size of the rk4 reference (default: 0.01)")
    args = parser.parse_args(arguments)
    check_targets(args)
    if args.quick:
        args.cases, args.samples, args.fine = args.cases[:1], 4, 0.1
    cases = {}
    for name in args.cases:
        case = CASES[name]
        scene = scene_of(case, args.overrides, max(4, round(args.samples * case.samples)), args.device)
        console.out.print(f"{name}: {len(scene.x)} intervals")
        where = machine(scene.sampler)
        rows = measure(scene, RULES, args.fine)
        cases[name] = {**where, "samples": len(scene.x), "guidance": scene.sampler.guidance, "rows": rows}
    report = {
        "schema": 1, "fine": args.fine, "target": TARGET, "cases": cases,
        "cheapest": {how: cheapest(cases, how) for how in ("mean", "throughout")},
    }  # fmt: skip
    _print(report)
    return deliver(report, args, lambda figure: _draw(figure, report))


def _print(report: dict[str, Any]) -> None:
    rows = []
    for name, case in report["cases"].items():
        for row in sorted(case["rows"], key=lambda row: row["evaluations"]):
            errors = [row["errors"].get(field) for field in ("teacher", "auxiliary", "difference")]
            shown = [f"{one['mean']:.5f} ({one['p95']:.5f})" if one else "-" for one in errors]
            verdict = next((how for how in ("throughout", "mean") if row["as_exact"][how]), "")
            rows.append([name, row["solver"], f"{row['evaluations']:.2f}", f"{row['share']:.2f}", *shown, verdict])
    console.table(
        f"relative error of the average velocity, mean (95th percentile), against rk4 of step size {report['fine']:g}",
        ["case", "solver", "evaluations", "share", "teacher", "auxiliary", "difference", "as exact"],
        rows,
    )
    for how, best in report["cheapest"].items():
        if best is None:
            console.out.print(f"as exact as {PAPER} ({how}): no solver in all cases")
            continue
        shares = ", ".join(f"{name} {share:.2f}" for name, share in best["shares"].items())
        reached = "reached" if max(best["shares"].values()) <= TARGET else "MISSED"
        console.out.print(
            f"as exact as {PAPER} ({how}) in all cases, fewest evaluations: {best['solver']}; share of evaluations: "
            f"{shares}; target of {TARGET:g} {reached}"
        )


def _draw(figure: Figure, report: dict[str, Any]) -> None:
    cases = report["cases"]
    figure.set_size_inches(4 * len(cases), 4)
    for axes, (name, case) in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases.items(), strict=True):
        for rule in dict.fromkeys(row["solver"].split(",")[0] for row in case["rows"]):
            mine = sorted(
                (row["evaluations"], row["errors"]["teacher"]["mean"])
                for row in case["rows"]
                if row["solver"].startswith(f"{rule},")
            )
            axes.loglog(*zip(*mine, strict=True), "o-", label=rule)
        axes.set_title(f"{name}: teacher's field")
        axes.set_xlabel("evaluations")
    figure.axes[0].set_ylabel("relative error")
    figure.axes[0].legend()


if __name__ == "__main__":
    run(main)
