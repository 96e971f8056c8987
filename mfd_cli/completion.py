"""What the shell completes; free of torch."""

from __future__ import annotations

from pathlib import Path


def recipes(incomplete: str) -> list[str]:
    """Bundled recipes and YAML files here."""
    from mfd_cli.config.bundled import recipes as bundled

    return _starting(
        [*bundled(), *map(str, Path().glob("*.y*ml")), *map(str, Path("recipes").rglob("*.yaml"))], incomplete
    )


def runs(incomplete: str) -> list[str]:
    """Run folders under ./runs and exported files here."""
    found = [str(record.parent) for record in Path("runs").glob("*/run.json")]
    return _starting([*found, *map(str, Path().glob("*.safetensors"))], incomplete)


def teachers(incomplete: str) -> list[str]:
    """Registered teachers."""
    from teachers.registry import teachers as registry

    return _starting(registry.names(), incomplete)


def _starting(names: list[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})
