"""Commands that come in groups: `mfd recipes ...`, `mfd teachers ...`, `mfd metrics ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mfd_cli import completion
from mfd_cli.options import Force, Json, Overrides, Recipe

recipes = typer.Typer(no_args_is_help=True, help="List, show, copy and check recipes.")
teachers = typer.Typer(no_args_is_help=True, help="List, check and train teachers.")
metrics = typer.Typer(no_args_is_help=True, help="List metrics, and convert their published weights.")


@metrics.command("list")
def metrics_list(json_target: Json = None) -> None:
    """List registered metrics. Example: mfd metrics list"""
    from mfd_cli.commands.metrics import list_metrics

    list_metrics(json_target)


@metrics.command("convert")
def metrics_convert(
    name: Annotated[str, typer.Argument(metavar="NAME", help="fid, aesthetic, hpsv2 or image-reward.")],
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Published .pth or .pt.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="FILE.safetensors.")] = None,
    force: Force = False,
) -> None:
    """Turn a metric's published pickle into safetensors. Example: mfd metrics convert hpsv2 HPS_v2.1_compressed.pt"""
    from mfd_cli.commands.metrics import convert

    convert(name, source, output=output, force=force)


@recipes.command("list")
def recipes_list(json_target: Json = None) -> None:
    """List the recipes that ship with mfd. Example: mfd recipes list"""
    from mfd_cli.commands.recipes import list_recipes

    list_recipes(json_target)


@recipes.command("show")
def recipes_show(name: Recipe) -> None:
    """Print a recipe with its comments. Example: mfd recipes show digits"""
    from mfd_cli.commands.recipes import show

    show(name)


@recipes.command("copy")
def recipes_copy(
    name: Recipe,
    path: Annotated[Path | None, typer.Argument(metavar="[PATH]", help="File; NAME.yaml here if left out.")] = None,
    force: Force = False,
) -> None:
    """Copy a recipe to edit it. Example: mfd recipes copy digits mine.yaml"""
    from mfd_cli.commands.recipes import copy

    copy(name, None if path is None else str(path), force)


@recipes.command("check")
def recipes_check(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Recipe files, folders or names.")],
    overrides: Overrides = None,
    json_target: Json = None,
) -> None:
    """Check recipes without running them. Example: mfd recipes check mine.yaml"""
    from mfd_cli.commands.recipes import check

    check(paths, overrides or (), json_target)


@recipes.command("schema")
def recipes_schema(
    path: Annotated[Path | None, typer.Argument(metavar="[PATH]", help="File; stdout if left out.")] = None,
    force: Force = False,
) -> None:
    """Write the JSON Schema of recipes, for editors. Example: mfd recipes schema recipe.schema.json"""
    from mfd_cli.commands.recipes import schema

    schema(None if path is None else str(path), force)


@teachers.command("list")
def teachers_list(json_target: Json = None) -> None:
    """List registered teachers. Example: mfd teachers list"""
    from mfd_cli.commands.teachers import list_teachers

    list_teachers(json_target)


@teachers.command("check")
def teachers_check(
    reference: Annotated[
        str, typer.Argument(metavar="NAME-OR-RECIPE", help="Teacher or recipe.", autocompletion=completion.teachers)
    ],
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(help="Seed of the check's noise.")] = 0,
    json_target: Json = None,
) -> None:
    """Prove a teacher's adapter numerically. Example: mfd teachers check digits"""
    from mfd_cli.commands.teachers import check

    check(reference, overrides=overrides or (), seed=seed, json_target=json_target)


@teachers.command("convert")
def teachers_convert(
    family: Annotated[str, typer.Argument(metavar="FAMILY", help="occfm: checkpoints, or caches of latents.")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Published .ckpt, or a cache .pkl.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="FILE.safetensors, or a folder for a cache.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="ema or raw; ema where there are any if left out.")] = None,
    force: Force = False,
) -> None:
    """Turn a published pickle into safetensors, once. Example: mfd teachers convert occfm CKPT -o FILE.safetensors"""
    from mfd_cli.commands.teachers import convert

    convert(family, source, output=output, weights=weights, force=force)


@teachers.command("train")
def teachers_train(
    recipe: Recipe,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write.")] = None,
    overrides: Overrides = None,
    force: Force = False,
) -> None:
    """Train a teacher by flow matching. Example: mfd teachers train recipes/teachers/digits.yaml"""
    from mfd_cli.commands.teachers import train

    train(recipe, output=output, overrides=overrides or (), force=force)
