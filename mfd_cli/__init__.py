"""mfd: from a flow-matching teacher to a student that samples in one step.

The pipeline, in reading order:

    recipes/*.yaml              what to do
    mfd_cli/config              reads a recipe strictly
    teachers/                   the velocity field to distill, and the data it is asked for
    mfd_cli/flow, solvers       the path between noise and data, and integration along it
    mfd_cli/methods             the losses: mfd, diff-instruct
    mfd_cli/networks            student, auxiliary and averaged student
    mfd_cli/training            the loop, on whatever devices are present
    mfd_cli/store               run folders, checkpoints, students
    mfd_cli/metrics             how good samples are
    mfd_cli/inference           sample, measure, export
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "distill", "load_student", "load_teacher"]

if TYPE_CHECKING:
    from mfd_cli.inference.sampler import load_student, load_teacher
    from mfd_cli.training.run import distill

_LAZY = {
    "distill": "mfd_cli.training.run",
    "load_student": "mfd_cli.inference.sampler",
    "load_teacher": "mfd_cli.inference.sampler",
}


def __getattr__(name: str) -> Any:
    """Imports the Python API on first use, so that `import mfd_cli` costs no torch."""
    if name not in _LAZY:
        raise AttributeError(f"module 'mfd_cli' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
