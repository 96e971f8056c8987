"""Intersection over union of 4D occupancy forecasts: integer counts first, every figure from them.

Shapes: B or N clips, F frames, a grid of X x Y x Z voxels. Labels 0 to 16 are the semantic classes of
`teachers.occfm.classes`, 17 is free space. Counts are summed over all clips before anything is divided, as in the
original's evaluation; a mean of the clips' own ratios would be another number.

Two rules for a class that no voxel of a frame has as its true label: "one" counts it as an IoU of 1, predicted or not,
which is what published OccFM tables do; "strict" leaves it out, unless it was predicted, which counts as 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.metrics.uncertainty import RESAMPLES, bootstrap
from teachers.occfm.classes import CLASSES, FREE

__all__ = [
    "CLASSES",
    "FREE",
    "Counts",
    "bootstrap_deviations",
    "class_iou",
    "count",
    "figures",
    "mean_iou",
    "occupied_iou",
    "per_class",
    "pooled",
]

_LABELS = FREE + 1


class Counts(NamedTuple):
    """Voxels counted by class, int64 [..., F, 18]; last axis: the 17 semantic classes, then "occupied" (not free)."""

    hits: Tensor
    truths: Tensor
    predictions: Tensor


def count(predicted: Tensor, truth: Tensor) -> Counts:
    """Counts of each clip, [B, F, 18], on the labels' device.

    Args:
        predicted: labels, uint8 [B, F, X, Y, Z].
        truth: labels, uint8 [B, F, X, Y, Z].

    Raises:
        MfdError: the shapes differ, or something is no label.
    """
    if predicted.shape != truth.shape or truth.ndim != 5:
        raise MfdError(
            f"predicted labels {list(predicted.shape)} against true ones {list(truth.shape)}",
            allowed="two tensors of one shape [clips, frames, x, y, z]",
        )
    for name, labels in (("predicted", predicted), ("true", truth)):
        if labels.dtype != torch.uint8 or (labels.numel() and int(labels.max()) > FREE):
            largest = f", largest {labels.max().item()}" if labels.numel() else ""
            raise MfdError(f"{name} labels of type {labels.dtype}{largest}", allowed=f"uint8 from 0 to {FREE} (free)")
    clips, frames = truth.shape[:2]
    confusion = torch.zeros(clips, frames, _LABELS, _LABELS, dtype=torch.int64, device=truth.device)
    # one frame at a time: the index of a frame is all the memory that is needed beside the labels
    for clip in range(clips):
        for frame in range(frames):
            confusion[clip, frame] = _confusion(predicted[clip, frame], truth[clip, frame])
    semantic, free = slice(0, FREE), slice(FREE, None)
    hits = torch.cat([confusion.diagonal(dim1=-2, dim2=-1)[..., semantic], _total(confusion[..., :FREE, :FREE])], -1)
    truths, predictions = confusion.sum(-1), confusion.sum(-2)
    truths[..., free] = _total(confusion[..., :FREE, :])
    predictions[..., free] = _total(confusion[..., :FREE])
    return Counts(hits, truths, predictions)


def pooled(counts: Counts) -> Counts:
    """Counts of all clips together: [N, F, 18] -> [F, 18]."""
    return Counts(*(part.sum(0) for part in counts))


def class_iou(counts: Counts) -> Tensor:
    """IoU of each semantic class, float64 [..., F, 17] in [0, 1]; NaN where it is neither labelled nor predicted.

    hits / (truths + predictions - hits)
    """
    return _ratio(counts)[..., :FREE]


def mean_iou(counts: Counts, absent: Literal["one", "strict"]) -> Tensor:
    """Mean IoU of the 17 semantic classes in percent, float64 [..., F].

    Args:
        counts: of any number of clips.
        absent: what a class without any true voxel in a frame counts. "one": 1, even if it was predicted (the
            original's rule). "strict": it is left out, but counts 0 if it was predicted; a frame in which no class is
            labelled or predicted is 100.
    """
    if absent == "one":
        return 100 * _absent_as_one(counts).mean(-1)
    ratio = class_iou(counts)
    return 100 * ratio.nanmean(-1).where(~ratio.isnan().all(-1), 1.0)


def occupied_iou(counts: Counts) -> Tensor:
    """IoU of what is not free in percent, float64 [..., F]; 100 where nothing is occupied in truth and prediction."""
    ratio = _ratio(counts)[..., FREE]
    return 100 * ratio.where(~ratio.isnan(), 1.0)


def figures(counts: Counts, seconds_per_frame: float = 0.5) -> dict[str, float]:
    """Every figure of a forecast in percent, by name.

    `iou`, `miou` (rule "one") and `miou_strict` are means over all F frames. `iou_1_2_3s` and `miou_1_2_3s` are means
    over the frames at 1, 2 and 3 seconds alone, given for six frames of half a second. The others, `iou_0.5s` onwards,
    are single frames. Papers print either mean under the name "average": they differ.

    Args:
        counts: pooled, [F, 18].
        seconds_per_frame: frame t lies (t + 1) times this after now.

    Raises:
        ValueError: counts of clips that were not pooled.
    """
    if counts.truths.ndim != 2:
        raise ValueError(f"figures of pooled counts [F, 18], got {list(counts.truths.shape)}")
    each = {"iou": occupied_iou(counts), "miou": mean_iou(counts, "one")}
    result = {name: frames.mean().item() for name, frames in each.items()}
    result["miou_strict"] = mean_iou(counts, "strict").mean().item()
    if len(counts.truths) == 6 and seconds_per_frame == 0.5:
        result |= {f"{name}_1_2_3s": frames[1::2].mean().item() for name, frames in each.items()}
    for name, frames in each.items():
        for number, value in enumerate(frames.tolist(), 1):
            result[f"{name}_{round(number * seconds_per_frame, 3)}s"] = value
    return result


def per_class(counts: Counts) -> dict[str, float]:
    """IoU of each semantic class in percent, rule "one", mean over the frames of pooled counts [F, 18]."""
    means = 100 * _absent_as_one(counts).mean(0)
    return dict(zip(CLASSES[:FREE], means.tolist(), strict=True))


def bootstrap_deviations(counts: Counts, groups: Tensor, seed: int, resamples: int = RESAMPLES) -> dict[str, Tensor]:
    """How every figure moves when other scenes of the same kind are drawn; the norms are the standard errors.

    Clips of one scene share frames and surroundings, so whole scenes are drawn with replacement (see
    `uncertainty.bootstrap`); drawing clips would claim an accuracy that is not there.

    Args:
        counts: of each clip, [N, F, 18].
        groups: the scene each clip is from, int64 [N]; any numbers.
        seed: names the draws.
        resamples: number of draws, at least 2.

    Returns:
        Deviations [resamples] of each of `figures`, in percent; empty with fewer than two scenes, which say nothing of
        others.

    Raises:
        MfdError: the scenes do not belong to the clips.
    """
    if len(groups) != len(counts.truths):
        raise MfdError(f"{len(groups)} scene numbers for {len(counts.truths)} clips", allowed="one for each clip")
    scenes, member = groups.cpu().unique(return_inverse=True)
    if len(scenes) < 2:
        return {}
    parts = [part.cpu() for part in counts]
    sums = [part.new_zeros(len(scenes), *part.shape[1:]).index_add(0, member, part) for part in parts]

    def redrawn(drawn: Tensor) -> dict[str, float]:
        return figures(pooled(Counts(*(part[drawn] for part in sums))))

    return bootstrap(redrawn, len(scenes), resamples, seed)


def _confusion(predicted: Tensor, truth: Tensor) -> Tensor:
    """Voxels by true label (rows) and predicted label, int64 [18, 18]."""
    # 18 x 18 pairs do not fit into 8 bits; 16 bits keep the index at twice the size of the labels
    pairs = truth.flatten().short() * _LABELS + predicted.flatten()
    return torch.bincount(pairs, minlength=_LABELS**2).reshape(_LABELS, _LABELS)


def _total(block: Tensor) -> Tensor:
    """Sum over the last two axes, kept as a last axis of length 1."""
    return block.sum((-2, -1)).unsqueeze(-1)


def _ratio(counts: Counts) -> Tensor:
    union = counts.truths + counts.predictions - counts.hits
    return counts.hits.double() / union.double()  # 0 / 0 is NaN


def _absent_as_one(counts: Counts) -> Tensor:
    """Class IoU [..., F, 17] with 1 for every class that has no true voxel in the frame."""
    return class_iou(counts).where(counts.truths[..., :FREE] > 0, 1.0)
