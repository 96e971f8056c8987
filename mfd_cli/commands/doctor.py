"""`mfd doctor`: what a bug report needs to know about this machine. No tokens, no home folder, no user name."""

from __future__ import annotations

import getpass
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mfd_cli import __version__, console

_PACKAGES = (
    "torch", "accelerate", "diffusers", "transformers", "peft", "safetensors", "numpy", "pydantic", "pyyaml", "typer",
)  # fmt: skip
_GIB = 2**30


def doctor(json_target: str | None = None) -> None:
    """Prints the report; with `json_target` also as JSON ("-": only that, on stdout)."""
    console.check_json_target(json_target)
    found = report()
    console.emit_json(found, json_target)
    if json_target == "-":
        return
    console.table("", ["what", "found"], _lines(found))
    for problem in found["problems"]:
        console.warn(problem)


def report() -> dict[str, Any]:
    """Everything the command knows, as JSON data with private parts of paths left out."""
    registered, broken = _registered()
    found = {
        "schema": 1,
        "versions": _versions(),
        "platform": {"system": platform.platform(), "machine": platform.machine()},
        "cpu": _cpu(),
        "memory_gib": _memory(),
        "devices": _devices(),
        "free_disk_gib": round(shutil.disk_usage(".").free / _GIB, 1),
        "registered": registered,
        "extras": _extras(),
        "problems": [*broken, *_shadowed(Path.cwd())],
    }
    return _private(found, Path.home(), _user())


def _versions() -> dict[str, str]:
    versions = {"mfd": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _cpu() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": os.cpu_count(), "usable": usable, "threads": _torch("get_num_threads")}


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB, 1)
    except (AttributeError, OSError, ValueError):
        return None  # a platform that does not say


def _torch(function: str) -> Any:
    """Result of a function of torch without arguments; the reason if torch cannot be imported."""
    try:
        return getattr(importlib.import_module("torch"), function)()
    except Exception as error:
        return f"torch is broken: {type(error).__name__}: {error}"


def _devices() -> list[str]:
    try:
        import torch

        devices = []
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            devices.append(
                f"cuda:{index} {about.name}, {about.total_memory / _GIB:.1f} GiB, "
                f"capability {about.major}.{about.minor}, CUDA {torch.version.cuda}"
            )
        if torch.backends.mps.is_available():
            devices.append("mps")
    except Exception as error:
        return [f"torch is broken: {type(error).__name__}: {error}"]
    return devices or ["cpu only"]


def _registered() -> tuple[dict[str, dict[str, str]], list[str]]:
    """Origin of every registered name by kind, and what cannot be used, with the reason."""
    from mfd_cli.config.schema import settings_of
    from mfd_cli.methods.registry import methods
    from mfd_cli.metrics.registry import metrics
    from teachers.registry import RegistryError, data, teachers

    registered: dict[str, dict[str, str]] = {}
    broken = []
    for registry in (teachers, methods, data, metrics):
        names = registered[registry.kind] = {}
        for name in registry.names():
            names[name] = registry.origin(name)
            try:
                settings_of(registry, name)
            except RegistryError as error:
                names[name] += ", broken"
                broken.append(error.found)
    return registered, broken


def _extras() -> dict[str, str]:
    """Each optional extra of mfd: "present", or the packages it lacks."""
    try:
        requirements = importlib.metadata.requires("mfd") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    lacking: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        package = re.match(r"[A-Za-z0-9._-]+", requirement)
        if extra and package:
            missing = lacking.setdefault(extra[1], [])
            if not _installed(package[0]):
                missing.append(package[0])
    return {extra: f"lacks {', '.join(missing)}" if missing else "present" for extra, missing in lacking.items()}


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _shadowed(here: Path) -> list[str]:
    """Names in a folder that hide, or look like, a package of mfd."""
    problems = []
    for name in ("mfd_cli", "teachers"):
        ours = Path(str(importlib.import_module(name).__file__)).parent
        for other in (here / name, here / f"{name}.py"):
            # a folder without Python files is a namespace package, which never comes before a real one
            hides = other.is_file() or (other / "__init__.py").is_file()
            if hides and other.resolve() != ours.resolve():
                problems.append(f"./{other.name} hides mfd's package '{name}' under `python -m mfd_cli`; use `mfd`")
    recipes = here / "recipes"
    if recipes.is_dir() and recipes.resolve() != _bundled_folder():
        problems.append("./recipes is not the folder of bundled recipes: name its files by path, recipes/NAME.yaml")
    return problems


def _bundled_folder() -> Path | None:
    from mfd_cli.config import bundled
    from mfd_cli.errors import MfdError

    try:
        return Path(str(bundled.folder())).resolve()
    except MfdError:
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""  # a container without an entry for its user


def _private(value: Any, home: Path, user: str) -> Any:
    """The value with the home folder as ~, and tokens and the user's name in a path left out."""
    if isinstance(value, Mapping):
        return {key: _private(inner, home, user) for key, inner in value.items()}
    if isinstance(value, list):
        return [_private(inner, home, user) for inner in value]
    if not isinstance(value, str):
        return value
    if home != Path(home.anchor):
        value = re.sub(re.escape(str(home)) + r"(?![\w.-])", "~", value)
    value = re.sub(r"\b(hf|sk|gh[a-z]|github_pat)_\w{8,}|(?<=://)[^/@\s]+@", "<secret>", value)
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?![\w.-])", "<user>", value) if user else value


def _lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    cpu = found["cpu"]
    lines = [(name, version) for name, version in found["versions"].items()]
    lines += [
        ("platform", f"{found['platform']['system']} {found['platform']['machine']}"),
        ("cpu", f"{cpu['cores']} cores, {cpu['usable']} usable, {cpu['threads']} threads"),
        ("memory", "unknown" if found["memory_gib"] is None else f"{found['memory_gib']} GiB"),
        *(("device", device) for device in found["devices"]),
        ("free disk here", f"{found['free_disk_gib']} GiB"),
    ]
    for kind, names in found["registered"].items():
        lines += [(kind, f"{name} ({origin})") for name, origin in names.items()]
    return [*lines, *((f"extra {name}", state) for name, state in found["extras"].items())]
