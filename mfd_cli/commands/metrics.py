"""`mfd metrics`: list what is registered, and turn published pickles of weights into safetensors."""

from __future__ import annotations

from pathlib import Path

from mfd_cli import console
from mfd_cli.errors import RegistryError


def list_metrics(json_target: str | None = None) -> None:
    """Prints every registered metric, where it comes from, which direction is better and what it is."""
    from mfd_cli.metrics.registry import metrics

    console.check_json_target(json_target)
    rows = []
    for name in metrics.names():
        better = "-"
        try:
            cls = metrics.get(name)
            better = "more" if getattr(cls, "more_is_better", False) else "less"
            what = next(iter((cls.__doc__ or "").strip().splitlines()), "-")
        except RegistryError as error:
            what = f"broken: {error.found}"
        rows.append({"name": name, "origin": metrics.origin(name), "better": better, "what": what})
    console.emit_json(rows, json_target)
    if json_target != "-":
        console.table("", ["name", "origin", "better", "what"], [list(row.values()) for row in rows])


def convert(name: str, source: Path, *, output: Path | None = None, force: bool = False) -> Path:
    """Turns published weights of a metric into a file that is safe to read, and returns its path.

    Args:
        name: whose: fid, aesthetic, hpsv2 or image-reward.
        source: the published .pth or .pt.
        output: file to write; beside the source if None.
        force: replace a file that exists.

    Raises:
        MfdError: another name, a source that holds other weights, or an output that exists.
    """
    from mfd_cli.metrics.convert import convert as converted

    path = output or source.with_suffix(".safetensors")
    facts = converted(name, source, path, force=force)
    console.note(f"{facts['tensors']} tensors of {facts['source_name']}")
    console.note(f"use it: mfd benchmark --quality --metric {name}={path}")
    print(console.literal(str(path)))
    return path
