"""The methods of a comparison: what was tuned for each, and what an update of each costs.

    python benchmarks/contestants.py digits [--methods mfd dmd2 ...] [--steps 1 2 4] [--rounds 10] [--set key=value]...
                                     [--json PATH] [--plot PATH] [--quick]

An update is a student update with the auxiliary updates before it. Methods are timed in turns, a window of processor
time each, and the least of a method's windows counts: a machine that is slower for a minute is slower for all of them.
`compare_methods.py --costs` takes the JSON. tuning/<recipe>.yaml says for every method what was tuned, and names
variants, such as `mfd@paper`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from workbench import check_targets, deliver, options, run, trainer_of

from mfd_cli import console
from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError
from mfd_cli.methods.registry import methods
from mfd_cli.training.trainer import Trainer

TUNING = Path(__file__).parent / "tuning"
#: processor seconds of a window, and updates before the first
_WINDOW, _QUICK_WINDOW, _WARM = 1.0, 0.02, 2
ROUNDS = 10


@dataclass(frozen=True)
class Cost:
    """What a student update costs, its auxiliary updates included.

    Attributes:
        seconds: processor seconds.
        evaluations: forward passes of the whole batch's rows.
    """

    seconds: float
    evaluations: float


@dataclass(frozen=True)
class Contestant:
    """A method, or a variant of one, whose student is made for so many steps."""

    name: str
    steps: int

    def __str__(self) -> str:
        """The key of its cost in a report."""
        return f"{self.name} {self.steps}"

    @property
    def method(self) -> Any:
        """Its method's class."""
        return methods.get(self.name.partition("@")[0])

    def overrides(self, recipe: str, more: Sequence[str]) -> list[str]:
        """Its changes of the recipe, and those of the command line, which take the place of its own."""
        given = {_key(text) for text in more}
        own = [text for text in tuned(recipe, self.name) if _key(text) not in given]
        return [*own, *more, f"student.steps={self.steps}"]


def contestants(names: Sequence[str], steps: Sequence[int]) -> list[Contestant]:
    """Every name with every number of steps, but for students that are made for any."""
    found = [(name, Contestant(name, min(steps)).method.any_steps) for name in names]
    return [Contestant(name, count) for name, any_steps in found for count in ([min(steps)] if any_steps else steps)]


def tuned(recipe: str, name: str) -> list[str]:
    """Overrides of a recipe for a method, or for a variant `method@...` of it: the method's own, then the variant's."""
    found, (method, at, _) = _tuning(recipe), name.partition("@")
    settings = (found.get(method) or {}) | ((found.get(name) or {}) if at else {})
    return [f"method.type={method}", *(f"{key}={_text(value)}" for key, value in settings.items())]


def known(recipe: str) -> list[str]:
    """Methods, and the variants that a recipe's tuning file names."""
    return [*methods.names(), *(name for name in _tuning(recipe) if "@" in name)]


def require_known(recipe: str, names: Sequence[str]) -> None:
    """Raises MfdError for a name that is neither a method nor a variant."""
    unknown = sorted(set(names) - set(known(recipe)))
    if unknown:
        raise MfdError(f"--methods {', '.join(unknown)}", allowed=", ".join(known(recipe)))


def _tuning(recipe: str) -> dict[str, Any]:
    path = TUNING / f"{Path(recipe).stem}.yaml"
    return (yaml.safe_load(path.read_text("utf-8")) or {}) if path.is_file() else {}


def _key(override: str) -> str:
    return override.partition("=")[0]


def _text(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")


def costs_of(overrides: Mapping[Contestant, Sequence[str]], args: Any) -> dict[Contestant, Cost]:
    """Costs of updates, measured in this process.

    Args:
        overrides: of the recipe, for each.
        args: `recipe`, `device`, `rounds` and `quick`.
    """
    trainers = {}
    for who, changes in overrides.items():
        console.note(f"timing updates: {who.name}, {who.steps} steps")
        trainers[who] = trainer_of(load_recipe(args.recipe, changes), args.device)[1]
        for _ in range(_WARM):
            _update(trainers[who])
    before = {who: _evaluations(trainer) for who, trainer in trainers.items()}
    done, seconds = dict.fromkeys(trainers, 0), dict.fromkeys(trainers, float("inf"))
    for _ in range(1 if args.quick else args.rounds):
        for who, trainer in trainers.items():
            updates, taken = _window(trainer, _QUICK_WINDOW if args.quick else _WINDOW)
            done[who], seconds[who] = done[who] + updates, min(seconds[who], taken / updates)
    return {who: Cost(seconds[who], (_evaluations(trainers[who]) - before[who]) / done[who]) for who in trainers}


def _window(trainer: Trainer, length: float) -> tuple[int, float]:
    """Updates until so much processor time is over, at least one, and the time they took."""
    began, updates = time.process_time(), 0
    while updates == 0 or time.process_time() - began < length:
        _update(trainer)
        updates += 1
    return updates, time.process_time() - began


def _update(trainer: Trainer) -> None:
    """One student update with the auxiliary updates before it."""
    for _ in range(trainer.schedule.cycle):
        trainer.step()


def _evaluations(trainer: Trainer) -> int:
    return sum(trainer.snapshot().evaluations.values())


def read_costs(path: Path | None) -> dict[str, Cost]:
    """Costs that a report of this script, or of a comparison, holds by contestant.

    Raises:
        MfdError: it holds none.
    """
    if path is None:
        return {}
    try:
        return {name: Cost(**cost) for name, cost in json.loads(path.read_text("utf-8"))["costs"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MfdError(
            f"--costs {path}: no report of costs ({error})", do="give a file that contestants.py --json wrote"
        ) from error


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Times every contestant, prints and writes; returns the report."""
    parser = options(__doc__)
    parser.add_argument("recipe", nargs="?", default="digits", help="recipe file or name (default: digits)")
    parser.add_argument("--methods", nargs="+", default=methods.names(), help="methods and variants")
    parser.add_argument("--steps", type=int, nargs="+", default=[1], help="steps that students are made for")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="windows of each")
    args = parser.parse_args(arguments)
    check_targets(args)
    require_known(args.recipe, args.methods)
    wanted = contestants(args.methods, args.steps)
    found = costs_of({who: who.overrides(args.recipe, args.overrides) for who in wanted}, args)
    report = {
        "schema": 1, "recipe": args.recipe, "overrides": args.overrides,
        "costs": {str(who): vars(cost) for who, cost in found.items()},
    }  # fmt: skip
    rows = [[who.name, who.steps, f"{cost.seconds:.4g}", f"{cost.evaluations:g}"] for who, cost in found.items()]
    console.table(f"{args.recipe}: an update", ["method", "steps", "processor seconds", "evaluations"], rows)
    return deliver(report, args, lambda figure: _draw(figure, found))


def _draw(figure: Figure, found: Mapping[Contestant, Cost]) -> None:
    panel = figure.subplots()
    panel.bar([str(who) for who in found], [cost.seconds for cost in found.values()], color="0.8")
    panel.tick_params(axis="x", rotation=60)
    panel.set_ylabel("processor seconds an update")


if __name__ == "__main__":
    run(main)
