"""Names of distillation methods; see `teachers.registry` for where names come from. Free of torch."""

from __future__ import annotations

from teachers.registry import Registry

methods = Registry(
    "method",
    "mfd.methods",
    {"mfd": "mfd_cli.methods.mfd:MeanFlowDistillation", "diff-instruct": "mfd_cli.methods.diff_instruct:DiffInstruct"},
)
register = methods.register
