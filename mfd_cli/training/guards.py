"""Checks that stop a run before it does harm."""

from __future__ import annotations

import math

from torch import Tensor

from mfd_cli.errors import RunStopped


def refuse_non_finite(
    *, role: str, update: int, inside: int, loss: float, norm: float, times: Tensor | None, other_rank: bool = False
) -> None:
    """Stops before an optimizer step whose loss or gradient is not finite.

    Args:
        role: "student" or "aux".
        update: student updates done.
        inside: auxiliary updates done since the last of them.
        loss: value of the loss.
        norm: global gradient norm.
        times: the times the loss was computed at, [B] or [B, 2].
        other_rank: another process met it.

    Raises:
        RunStopped: loss or norm is NaN or infinite.
    """
    if math.isfinite(loss) and math.isfinite(norm) and not other_rank:
        return
    where = f"update {update}" + (f", auxiliary update {inside}" if role == "aux" else "")
    what = "another process met a value that is not finite" if other_rank else f"loss {loss}, gradient norm {norm}"
    raise RunStopped(
        f"{role}: not finite at {where}: {what}{_span(times)}",
        do="nothing was updated. Lower the learning rate or the guidance, keep intervals away from t = 1 "
        "(method.times.min_interval), or use fp32; `--resume` continues from the last checkpoint",
    )


def _span(times: Tensor | None) -> str:
    if times is None:
        return ""
    columns = times.reshape(len(times), -1).T.tolist()
    names = ("t",) if len(columns) == 1 else ("s", "t")
    return "; " + ", ".join(
        f"{name} from {min(column):.4f} to {max(column):.4f}" for name, column in zip(names, columns, strict=False)
    )
