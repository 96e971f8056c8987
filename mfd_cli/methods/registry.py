"""Names of distillation methods; see `teachers.registry` for where names come from. Free of torch."""

from __future__ import annotations

from teachers.registry import Registry

methods = Registry(
    "method",
    "mfd.methods",
    {
        "mfd": "mfd_cli.methods.mfd:MeanFlowDistillation",
        "diff-instruct": "mfd_cli.methods.diff_instruct:DiffInstruct",
        "dmd2": "mfd_cli.methods.dmd2:Dmd2",
        "senseflow": "mfd_cli.methods.senseflow:SenseFlow",
        "cd": "mfd_cli.methods.cd:ConsistencyDistillation",
        "ayf": "mfd_cli.methods.ayf:AlignYourFlow",
        "meanflow": "mfd_cli.methods.meanflow:MeanFlow",
    },
)
register = methods.register
