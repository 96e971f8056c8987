"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from mfd_cli import completion

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
