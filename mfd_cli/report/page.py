"""From what was gathered and drawn to one HTML file that needs nothing else: no network, font, script or picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mfd_cli import __version__
from mfd_cli.console import literal
from mfd_cli.inference.benchmark import summary
from mfd_cli.report import facts
from mfd_cli.report.figures import quality_plots, training_plots
from mfd_cli.report.gather import Gathered
from mfd_cli.report.samples import Samples
from mfd_cli.report.verdict import ERRORS, Verdict, verdict

_HERE = Path(__file__).parent


def render(run: Gathered, samples: Samples) -> str:
    """The page. Every text in it is escaped, and control characters are written out.

    Args:
        run: what is said.
        samples: what is shown; of kind "none" for nothing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return literal(value) if type(value) is str else value

    pages = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, finalize=shown, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    found = verdict(run)
    text = pages.get_template("page.html").render(
        run=run,
        samples=samples,
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        svg=Markup,  # plots are made by us, and their texts escaped where they are made
        verdict=found,
        caveats=_caveats(run),
        origin=facts.origin(run),
        environment=facts.environment(run),
        measures=facts.measures(found.comparisons, run.benchmark),
        speeds=facts.speeds(run.benchmark),
        qualities=facts.qualities(run.benchmark),
        quality=quality_plots(run.benchmark),
        training=training_plots(run.metrics),
        commands=facts.commands(run),
        recipe=facts.recipe_text(run),
        errors=f"{ERRORS:g}",
        version=__version__,
        description=f"{found.cost} {found.quality}",
    )
    return text.strip() + "\n"


def data(run: Gathered) -> dict[str, Any]:
    """The data behind the page, for `--json`: all that is gathered, and the verdict."""
    found: Verdict = verdict(run)
    comparisons = [
        {
            "metric": one.metric,
            "better": "more" if one.higher else "less",
            "student": one.student[0],
            "student_error": one.student[1],
            "teacher": one.teacher[0],
            "teacher_error": one.teacher[1],
            "standing": one.standing,
            "gap_recovered": one.recovered,
        }
        for one in found.comparisons
    ]
    return run.data() | {"verdict": {"cost": found.cost, "quality": found.quality, "comparisons": comparisons}}


def _caveats(run: Gathered) -> list[str]:
    """What to know when quoting the figures: what `mfd benchmark` says below its table but for what it sums up."""
    lines = summary(run.benchmark) if run.benchmark else []
    return [line for line in lines if "-step teacher -> " not in line and not line.startswith("quality was not")]
