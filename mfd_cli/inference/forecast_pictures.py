"""Forecasts of several samplers for the same clips, beside what really followed: as pictures, films and numbers.

Shapes: N clips, H seen frames, F = 6 future frames, a grid of X x Y x Z voxels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.inference.occupancy_pictures import Row, forecast_frames, forecast_picture, gif_bytes
from mfd_cli.inference.pictures import png_bytes, title_of
from mfd_cli.inference.sampler import Sampler
from teachers.base import Data, TeacherError
from teachers.conditions import to as condition_to

#: more clips than this in one picture cannot be looked at
LARGEST_PAGE = 40


class Forecasts(NamedTuple):
    """What was forecast.

    Attributes:
        clips: numbers of the held-out clips, N.
        history: classes of the frames that were seen, uint8 [N, H, X, Y, Z].
        truth: classes of what followed, uint8 [N, 6, X, Y, Z]; None where labels are missing.
        samples: what each sampler forecast, uint8 [N, 6, X, Y, Z].
        titles: what each sampler is called.
        seed: the samplers' seed.
        notes: what is missing, for people.
    """

    clips: list[int]
    history: Tensor
    truth: Tensor | None
    samples: list[Tensor]
    titles: list[str]
    seed: int
    notes: list[str]


def forecast(
    samplers: Sequence[tuple[Sampler, int]],
    *,
    count: int,
    seed: int,
    asked: Sequence[int | str] | None = None,
    batch_size: int | None = None,
) -> Forecasts:
    """Forecasts of several samplers from the same noise.

    Args:
        samplers: samplers of one family, each with its number of Euler steps.
        count: number of clips N.
        seed: clip i has the noise of (seed, i) in every sampler.
        asked: numbers of N held-out clips; some that are spread over all if None.
        batch_size: clips computed at once; the family's choice if None.

    Raises:
        TeacherError: no such clip, or no data.
    """
    first = samplers[0][0]
    first.find_clips()
    clips = list(asked) if asked is not None else first.teacher.examples(count)
    for sampler, _ in samplers:
        sampler.teacher.clips = first.teacher.clips
    samples = [
        sampler.sample(count, steps=steps, seed=seed, asked=clips, batch_size=batch_size) for sampler, steps in samplers
    ]
    assert first.teacher.clips is not None, "samples were made from them"
    items, notes = torch.tensor([int(clip) for clip in clips]), []
    data = first.teacher.clips()
    truth: Tensor | None = None
    try:
        truth, history = data.truth(items), data.context(items)
    except TeacherError as error:
        notes.append(f"no truth is shown, and the history as the compressor gives it back: {error.found}")
        history = _decoded_history(first, data, items)
    titles = [title_of(sampler, steps) for sampler, steps in samplers]
    return Forecasts(items.tolist(), history, truth, samples, titles, seed, notes)


def require_page(count: int) -> None:
    """Raises MfdError if `count` clips are too many for one picture."""
    if count > LARGEST_PAGE:
        raise MfdError(
            f"{count} clips in one picture",
            allowed=f"at most {LARGEST_PAGE}",
            do="give a folder (`-o forecasts/`) or a file of numbers (`-o forecasts.npz`) instead",
        )


def page(forecasts: Forecasts) -> Image.Image:
    """All clips from above, with their history, truth and every forecast.

    Raises:
        MfdError: too many clips for one picture.
    """
    require_page(len(forecasts.clips))
    rows = [_rows(forecasts, index) for index in range(len(forecasts.clips))]
    return forecast_picture(rows, list(forecasts.history))


def film(forecasts: Forecasts, index: int) -> bytes:
    """An animated GIF of one of the clips: history, then truth and forecasts side by side."""
    return gif_bytes(forecast_frames(_rows(forecasts, index), forecasts.history[index]))


def arrays(forecasts: Forecasts) -> dict[str, Any]:
    """Class indices under the names of an npz file: clips, history, truth, samples and, if there, teacher_samples."""
    found: dict[str, Any] = {"seed": forecasts.seed, "clips": forecasts.clips, "history": forecasts.history.numpy()}
    if forecasts.truth is not None:
        found["truth"] = forecasts.truth.numpy()
    for title, samples in zip(forecasts.titles, forecasts.samples, strict=True):
        found["teacher_samples" if title.startswith("teacher") else "samples"] = samples.numpy()
    return found


def files(
    forecasts: Forecasts, stem: str, facts: dict[str, object], kinds: Sequence[str] = ("png", "gif", "npz")
) -> dict[str, bytes]:
    """What there is to look at, by file name: STEM.png, a GIF of each clip, and STEM.npz.

    Of more clips than a picture has room for, STEM.png is left out, unless nothing else is asked for.

    Args:
        forecasts: what was forecast.
        stem: begins the files' names.
        facts: what the picture says about itself.
        kinds: suffixes of the files wanted.

    Raises:
        MfdError: a picture alone, of too many clips.
    """
    found: dict[str, bytes] = {}
    if "png" in kinds and (len(forecasts.clips) <= LARGEST_PAGE or len(kinds) == 1):
        found[f"{stem}.png"] = png_bytes(page(forecasts), facts)
    if "gif" in kinds:
        found |= {f"{stem}-clip{clip}.gif": film(forecasts, index) for index, clip in enumerate(forecasts.clips)}
    if "npz" in kinds:
        import numpy as np

        numbers = io.BytesIO()
        np.savez_compressed(numbers, **arrays(forecasts))
        found[f"{stem}.npz"] = numbers.getvalue()
    return found


def _rows(forecasts: Forecasts, index: int) -> list[Row]:
    rows = [] if forecasts.truth is None else [Row("truth", forecasts.truth[index])]
    return rows + [
        Row(title, samples[index]) for title, samples in zip(forecasts.titles, forecasts.samples, strict=True)
    ]


def _decoded_history(sampler: Sampler, data: Data, items: Tensor) -> Tensor:
    """The seen frames, decoded from what the network is given of them."""
    history = condition_to(data.condition(items), sampler.device)["history"]
    seen = history.flatten(2).any(dim=2).any(dim=0)
    return sampler.decode(history[:, seen]).cpu()
