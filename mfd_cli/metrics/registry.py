"""Names of metrics; see `teachers.registry` for where names come from. Free of torch."""

from __future__ import annotations

from teachers.registry import Registry

metrics = Registry(
    "metric",
    "mfd.metrics",
    {
        "frechet": "mfd_cli.metrics.frechet:Frechet",
        "sliced-wasserstein": "mfd_cli.metrics.sliced:SlicedWasserstein",
        "class-agreement": "mfd_cli.metrics.shares:ClassAgreement",
        "modes": "mfd_cli.metrics.shares:ModeCoverage",
        "mmd": "mfd_cli.metrics.mmd:Mmd",
        "precision-recall": "mfd_cli.metrics.neighbours:PrecisionRecall",
        "fid": "mfd_cli.metrics.fid:Fid",
        "patch-fid": "mfd_cli.metrics.fid:PatchFid",
        "fd-dinov2": "mfd_cli.metrics.fid:FdDinov2",
        "kid": "mfd_cli.metrics.kid:Kid",
        "cmmd": "mfd_cli.metrics.kid:Cmmd",
        "clip-score": "mfd_cli.metrics.clip:ClipScore",
        "pickscore": "mfd_cli.metrics.clip:PickScore",
        "aesthetic": "mfd_cli.metrics.aesthetic:Aesthetic",
        "hpsv2": "mfd_cli.metrics.hpsv2:Hpsv2",
        "image-reward": "mfd_cli.metrics.image_reward:ImageReward",
    },
)
register = metrics.register

#: metrics that need no weights, in the order of a report; data that allow one are judged by it without being asked
DEFAULTS = ("frechet", "sliced-wasserstein", "class-agreement", "modes")
