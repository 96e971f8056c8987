"""`mfd teachers`: list what is registered, prove an adapter, train a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mfd_cli import console
from mfd_cli.errors import MfdError, RegistryError


def list_teachers(json_target: str | None = None) -> None:
    """Prints every registered teacher, where it comes from and what it is."""
    from teachers.registry import teachers

    console.check_json_target(json_target)
    rows = []
    for name in teachers.names():
        try:
            what = next(iter((teachers.get(name).__doc__ or "").strip().splitlines()), "-")
        except RegistryError as error:
            what = f"broken: {error.found}"
        rows.append({"name": name, "origin": teachers.origin(name), "what": what})
    console.emit_json(rows, json_target)
    if json_target != "-":
        console.table("", ["name", "origin", "what"], [list(row.values()) for row in rows])


def check(
    reference: str, *, overrides: Sequence[str] = (), seed: int = 0, json_target: str | None = None
) -> list[dict[str, Any]]:
    """Proves an adapter numerically and prints every finding.

    Args:
        reference: a registered name whose settings need no keys, or a recipe.
        overrides: texts of --set, for a recipe.
        seed: seed of the check's noise.
        json_target: file for JSON, "-" for stdout.

    Raises:
        MfdError: a finding failed; or the teacher cannot be loaded.
    """
    from teachers.conformance import check as conformance

    console.check_json_target(json_target)
    teacher, data = _load(reference, overrides)
    findings = conformance(teacher, data, seed=seed)
    found = [finding._asdict() for finding in findings]
    console.emit_json(found, json_target)
    if json_target != "-":
        words = {True: "ok", False: "BROKEN", None: "not applicable"}
        console.table(
            reference, ["check", "result", "what was found"],
            [[finding.name, words[finding.passed], finding.what] for finding in findings],
        )  # fmt: skip
    broken = [finding for finding in findings if finding.passed is False]
    if broken:
        raise MfdError(
            f"{reference}: {len(broken)} of {len(findings)} checks failed: {', '.join(f.name for f in broken)}",
            allowed="; ".join(dict.fromkeys(finding.contract for finding in broken)),
            do="see docs/add-a-teacher.md",
        )
    return found


def convert(
    family: str, source: Path, *, output: Path | None = None, weights: str | None = None, force: bool = False
) -> Path:
    """Turns a published pickle into files that are safe to read, and returns the path written.

    Args:
        family: whose files: occfm.
        source: a checkpoint (.ckpt), or a cache of latents (.pkl).
        output: file for a checkpoint, folder for a cache; if None, beside the source.
        weights: "ema" or "raw" of a checkpoint; the averaged ones where there are any if None.
        force: replace a file that exists.

    Raises:
        MfdError: another family, a source that is no such file, or an output that exists.
    """
    if family != "occfm":
        raise MfdError(
            f"no converter for '{family}'", allowed="occfm", do="other families load their files as they are"
        )
    if weights not in (None, "ema", "raw"):
        raise MfdError(f"--weights {weights}", allowed="ema or raw")
    if source.suffix == ".pkl":
        return _convert_cache(source, output, weights, force)
    from teachers.occfm.checkpoints import convert as convert_checkpoint

    path = output or source.with_suffix(".safetensors")
    facts = convert_checkpoint(source, path, weights, force=force)  # type: ignore[arg-type]
    console.note(f"{facts['tensors']} tensors, {facts['weights']} weights of epoch {facts['epoch']}")
    console.note(f"use it: --set teacher.weights={path}")
    print(console.literal(str(path)))
    return path


def _convert_cache(source: Path, output: Path | None, weights: str | None, force: bool) -> Path:
    from teachers.occfm.clips import convert_cache

    if force:
        raise MfdError("--force of a cache, which becomes a folder", do="remove the folder yourself, or name another")
    if weights is not None:
        raise MfdError(f"--weights {weights} of a cache of latents", allowed="of a checkpoint (.ckpt)")
    folder = output or source.with_name(source.stem.removeprefix("nus_sem_occ_"))
    console.note(f"{convert_cache(source, folder)} frames; they are read from there instead of from {source.name}")
    print(console.literal(str(folder)))
    return folder


def train(recipe: str, *, output: Path | None = None, overrides: Sequence[str] = (), force: bool = False) -> Path:
    """Trains a teacher by flow matching and writes its weights file; returns its path.

    Args:
        recipe: a recipe of this command, e.g. recipes/teachers/digits.yaml.
        output: file to write; if None, the one that the recipe's `teacher.weights` names, else
            <recipe name>.safetensors in this folder.
        overrides: texts of --set.
        force: replace a file that exists.
    """
    from mfd_cli.config.load import load_teacher_recipe
    from mfd_cli.progress import ConsoleReporter
    from mfd_cli.training.teacher import train_teacher

    loaded = load_teacher_recipe(recipe, overrides)
    named = loaded.resolved["teacher"].get("weights")
    path = output or Path(named or f"{loaded.recipe.name}.safetensors")
    train_teacher(loaded, path, force=force, reporter=ConsoleReporter())
    console.out.print(str(path))
    console.note(f"use it: --set teacher.weights={path}")
    return path


def _load(reference: str, overrides: Sequence[str]) -> tuple[Any, Any]:
    """Teacher and data of a recipe, or of a registered name with its default settings."""
    from pydantic import ValidationError

    from mfd_cli.config.load import load_recipe
    from teachers.registry import data as data_registry
    from teachers.registry import teachers

    if reference in teachers.names() and not overrides:
        cls: Any = teachers.get(reference)
        try:
            settings = cls.Settings(type=reference)
            source: Any = data_registry.get(reference)
            data_settings = source.Settings(type=reference)
        except (ValidationError, RegistryError) as error:
            raise MfdError(
                f"teacher '{reference}' needs settings that only a recipe can give", do="name a recipe instead"
            ) from error
        teacher = cls.loaded(settings)
        return teacher, source.load(data_settings, teacher)
    recipe: Any = load_recipe(reference, overrides).recipe
    teacher = teachers.get(recipe.teacher.type).load(recipe.teacher)  # type: ignore[attr-defined]
    return teacher, data_registry.get(recipe.data.type).load(recipe.data, teacher)  # type: ignore[attr-defined]
