"""Data for forecasting: clips of twelve frames, six to see and six to forecast.

Shapes: B clips, C latent channels, L the latent side, S the grid's side. Conditions are `history` [B, 6, C, L, L],
times the teacher's `rescale`, and `trajectory` [B, 12, 2] in metres. Samples are held against what happened, `truth`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from teachers.base import Data, Teacher
from teachers.conditions import Condition
from teachers.errors import TeacherError
from teachers.occfm.transition import FRAMES, HISTORY
from teachers.settings import Settings

#: clips that stand in for files that are missing
_STAND_INS = 32


class Clips(Protocol):
    """Clips of twelve frames, two a second."""

    def __len__(self) -> int:
        """Number of clips."""

    def latents(self, index: Tensor) -> Tensor:
        """Latents as the compressor gives them, float32 [B, 12, C, L, L]; frames that are not to be seen are 0."""

    def trajectory(self, index: Tensor) -> Tensor:
        """Way from each frame to the next one in metres, float32 [B, 12, 2]; rows not to be seen are 0."""

    def scene(self, index: Tensor) -> Tensor:
        """Number of the drive that each clip was cut from, int64 [B]."""

    def truth(self, index: Tensor) -> Tensor:
        """Classes of the six future frames, uint8 [B, 6, S, S, 16]. Raises TeacherError if files are missing."""

    def history_labels(self, index: Tensor) -> Tensor:
        """Classes of the six past frames, uint8 [B, 6, S, S, 16]. Raises TeacherError if files are missing."""


class ForecastData(Data):
    """Clips for a teacher that forecasts.

    Args:
        read: gives the clips to distill or train on; called when they are first needed.
        rescale: factor between latents and what the network sees.
        held_out: makes the source of the clips that quality is measured on, when it is first asked for; None: itself.
    """

    paired = True

    @classmethod
    def load(cls, settings: Any, teacher: Teacher | None) -> ForecastData:
        """Raises TeacherError: this is what the registered sources have in common."""
        raise TeacherError("clips without a source", allowed="data.type: occfm or driving")

    def __init__(
        self, read: Callable[[], Clips], rescale: float, held_out: Callable[[], ForecastData] | None = None
    ) -> None:
        self._read, self.rescale = read, rescale
        self._make_held_out, self._held_out = held_out, None if held_out else self

    @functools.cached_property
    def clips(self) -> Clips:
        """The clips to distill or train on."""
        return self._read()

    def prepare(self, report: Callable[[int, int], None], process: int = 0, processes: int = 1) -> None:
        """Reads the clips, so that files that do not fit are told of before a run begins."""
        len(self.clips)

    def held_out(self) -> ForecastData:
        """Clips of drives that are not trained on."""
        if self._held_out is None:
            assert self._make_held_out is not None, "one of the two is always given"
            self._held_out = self._make_held_out()
        return self._held_out

    def attach(self, teacher: Teacher | None) -> ForecastData:
        """Itself, after it has told the teacher where clips come from."""
        if teacher is not None:
            teacher.clips = self.held_out
        return self

    @property
    def size(self) -> int | None:
        """Number of clips."""
        return len(self.clips)

    def condition(self, items: Tensor) -> Condition:
        """History and trajectory."""
        history = self.clips.latents(items)[:, :HISTORY] * self.rescale
        return {"history": history, "trajectory": self.clips.trajectory(items)}

    def states(self, items: Tensor) -> Tensor:
        """Latents of the future frames, as the network sees them."""
        return self.clips.latents(items)[:, HISTORY:] * self.rescale

    def truth(self, items: Tensor) -> Tensor:
        """Classes of the six future frames."""
        return self.clips.truth(items)

    def context(self, items: Tensor) -> Tensor:
        """Classes of the past frames that the network sees."""
        seen = self.clips.latents(items[:1])[0, :HISTORY].flatten(1).any(dim=1)
        return self.clips.history_labels(items)[:, seen]

    def baselines(self, items: Tensor) -> Mapping[str, Tensor]:
        """The last frame seen, repeated: what a forecast has to be better than."""
        last = self.clips.history_labels(items)[:, -1:]
        return {"copy the last frame": last.expand(-1, FRAMES - HISTORY, -1, -1, -1)}

    def groups(self, items: Tensor) -> Tensor:
        """The drive of each clip: clips of one drive overlap."""
        return self.clips.scene(items)


class OccFMDataSettings(Settings):
    """Settings of `occfm` data: the files as OccFM's repository lays them out."""

    root: str = Field(
        ".", description="Folder that holds `data/nusc_latent_vae`, `data/nuscenes` and, to judge, `data/nuscenes/gts`."
    )
    latents: str = Field("x16", description="Folder of cached latents below data/nusc_latent_vae.")
    history_last: int = Field(
        4, ge=1, le=HISTORY, description="Past frames that are seen, of 6, two a second; 4 is OccFM's 2 s to 3 s."
    )


class OccFMData(ForecastData):
    """OccFM's cached latents of nuScenes."""

    Settings = OccFMDataSettings

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses missing files, all of them in one message."""
        missing = [path for part in ("training", "validation") for path in _files(settings, part) if not path.exists()]
        if missing:
            raise TeacherError(
                f"missing: {', '.join(map(str, missing))}",
                allowed="OccFM's cached latents and the scene files it uses, below data.root",
                do="see docs/occfm.md for what to download and where to put it",
            )

    @classmethod
    def load(cls, settings: Any, teacher: Teacher | None) -> OccFMData:
        """The training clips, and those of the validation scenes to judge by, each read when first needed.

        Raises:
            TeacherError: files are missing; when they are read, also: damaged, or not of the teacher's latent shape.
        """
        cls.check(settings)

        def read(part: str) -> Clips:
            from teachers.occfm.clips import read_clips

            cache, infos = _files(settings, part)
            clips = read_clips(cache, infos, settings.history_last, Path(settings.root))
            _require_shape(clips.latent_shape, teacher, cache)
            if clips.skipped:
                warnings.warn(
                    f"{cache}: {clips.missing} frames are missing, so {clips.skipped} clips are not made", stacklevel=2
                )
            return clips

        rescale = _rescale(teacher)
        held_out = ForecastData(lambda: read("validation"), rescale)
        source = cls(lambda: read("training"), rescale, lambda: held_out)
        source.attach(teacher)
        return source

    @classmethod
    def stand_in(cls, settings: Any, teacher: Teacher) -> Data:
        """Random clips of the right shapes."""
        clips = RandomClips(teacher.sample_shape[1:], _STAND_INS)
        return ForecastData(lambda: clips, _rescale(teacher)).attach(teacher)


class RandomClips:
    """Noise in the shape of clips, without labels: enough to measure time and memory."""

    def __init__(self, shape: tuple[int, ...], count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._latents = 0.1 * torch.randn(count, FRAMES, *shape, generator=generator)
        self._trajectory = 3 * torch.randn(count, FRAMES, 2, generator=generator)

    def __len__(self) -> int:
        return len(self._latents)

    def latents(self, index: Tensor) -> Tensor:
        """Noise."""
        return self._latents[index]

    def trajectory(self, index: Tensor) -> Tensor:
        """Noise."""
        return self._trajectory[index]

    def scene(self, index: Tensor) -> Tensor:
        """Every clip is a drive of its own."""
        return index.clone()

    def truth(self, index: Tensor) -> Tensor:
        """Raises TeacherError."""
        raise TeacherError("random clips have no labels, so quality cannot be measured")

    def history_labels(self, index: Tensor) -> Tensor:
        """Raises TeacherError."""
        raise TeacherError("random clips have no labels, so quality cannot be measured")


def _files(settings: Any, part: str) -> tuple[Path, Path]:
    """Latents (a converted folder where there is one, else the published file) and scene file of a split."""
    data = Path(settings.root) / "data"
    folder = data / "nusc_latent_vae" / settings.latents
    converted, published = folder / part, folder / f"nus_sem_occ_{part}.pkl"
    infos = {"training": "train", "validation": "val"}[part]
    return (
        converted if converted.is_dir() else published,
        data / "nuscenes" / f"nuscenes_infos_{infos}_temporal_v3_scene.pkl",
    )


def _require_shape(shape: tuple[int, ...], teacher: Teacher | None, cache: Path) -> None:
    if teacher is not None and tuple(shape) != tuple(teacher.sample_shape[1:]):
        raise TeacherError(
            f"{cache}: latents of {list(shape)}", allowed=f"the teacher's: {list(teacher.sample_shape[1:])}"
        )


def _rescale(teacher: Teacher | None) -> float:
    if teacher is None:
        raise TeacherError("these latents belong to a compressor, so a teacher comes first")
    return teacher.settings.rescale
