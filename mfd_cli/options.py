"""Arguments and options that several commands share, and what their texts mean."""

from __future__ import annotations

from typing import Annotated

import typer

from mfd_cli import completion
from mfd_cli.errors import MfdError

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Change a recipe's key; checked like the recipe itself.",
        autocompletion=completion.settings,
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; the best there is if left out.")]
Dtype = Annotated[str, typer.Option("--dtype", help="Precision: fp32, bf16 or fp16.")]
Json = Annotated[str | None, typer.Option("--json", metavar="PATH", help="Write JSON; '-' is stdout.")]
Run = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]", help="Run folder, checkpoint, export or .safetensors; the newest run if left out.",
        autocompletion=completion.runs, show_default=False,
    ),
]  # fmt: skip
Checkpoint = Annotated[
    str | None,
    typer.Option(
        metavar="best|last|UPDATE", help="Which student of a run; the finished one if left out.", show_default=False
    ),
]
Recipe = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="YAML file or name of a bundled recipe.", autocompletion=completion.recipes),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what stands there.")]


def whole_numbers(text: str | None, flag: str) -> list[int]:
    """Whole numbers from "1,2,4", each once, in rising order; none of None.

    Raises:
        MfdError: something else; names the flag.
    """
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) >= 1 for part in parts):
        raise MfdError(f"{flag} {text}", allowed="whole numbers from 1, separated by commas, such as 1,2,4")
    return sorted({int(part) for part in parts})
