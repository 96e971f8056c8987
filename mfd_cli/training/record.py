"""What `run.json` says about a run, besides its position: what it ran on, and when."""

from __future__ import annotations

import contextlib
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from mfd_cli import __version__
from mfd_cli.inference.benchmark import device_name
from mfd_cli.training.workshop import Workshop


def facts(workshop: Workshop) -> dict[str, Any]:
    """What is recorded when a run begins: method, teacher, versions, device."""
    accelerator = workshop.accelerator
    return {
        "schema": 1,
        "recipe": workshop.recipe.name,
        "method": workshop.recipe.method.type,
        "teacher": workshop.identity(),
        "versions": _versions(),
        "device": device_name(accelerator.device),
        "processes": accelerator.num_processes,
        "sharded": workshop.roles.sharding is not None,
        "threads": torch.get_num_threads(),
        "parameters": sum(value.numel() for value in workshop.roles.student.network.parameters()),
    }


def _versions() -> dict[str, str]:
    found = {"mfd": __version__, "python": platform.python_version()}
    for package in ("torch", "accelerate", "diffusers", "safetensors", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def now() -> str:
    """The time, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
