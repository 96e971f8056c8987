"""Teacher `occfm-tiny` and data `driving`: OccFM small enough for two CPU cores, in a made-up world.

nuScenes cannot be shipped, so scenes are drawn from a seed (`teachers.occfm.world`), labelled with Occ3D's 18 classes,
and cut into the same clips of twelve frames, two a second. The networks are OccFM's own, with fewer channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from teachers.base import Data, Teacher
from teachers.errors import TeacherError
from teachers.occfm.architecture import TRANSITION
from teachers.occfm.compressor import Compressor
from teachers.occfm.data import ForecastData
from teachers.occfm.teacher import ROWS, OccFMSettings, OccFMTeacher, built
from teachers.occfm.training import OccFMNetwork, compressor_sizes, train_compressor, transition_sizes
from teachers.occfm.transition import FRAMES, HISTORY
from teachers.occfm.world.geometry import Grid
from teachers.occfm.world.scene import Scene
from teachers.settings import Settings

_ASSETS = Path(str(files("teachers.assets.occfm")))
#: metres a side that the grid covers
_EXTENT = 40.0
#: held-out scenes have numbers from here on, so that they are the same however many are trained on
_HELD_OUT = 1_000_000
#: added to a drive's number for the noise of its latents, since the drive itself was drawn with the bare number
_LATENTS = 2**32
#: drives whose labels are kept, since training comes back to each: 0.3 MB a drive of 18 frames
_KEPT_DRIVES = 2048


class TinySettings(OccFMSettings):
    """Settings of `occfm-tiny`."""

    weights: str | None = Field(  # type: ignore[assignment]
        None, description="Safetensors file that `mfd teachers train` wrote; null: the weights that ship with mfd."
    )


class TinyTeacher(OccFMTeacher):
    """OccFM with few channels, trained on the made-up world of `driving`."""

    Settings = TinySettings
    Network = OccFMNetwork
    batch_size = 50

    def __init__(self, settings: Any, architecture: Mapping[str, Any]) -> None:
        super().__init__(_placed(settings), architecture)
        self._to_train: Any = None

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses a weights file that is not there."""
        super().check(_placed(settings))

    @classmethod
    def load(cls, settings: Any) -> TinyTeacher:
        """The shipped weights, or those of a file."""
        return super().load(_placed(settings))  # type: ignore[return-value]

    @classmethod
    def random(cls, settings: Any) -> TinyTeacher:
        """Random weights of the sizes that `mfd teachers train` makes unless told otherwise."""
        size = DrivingSettings.model_fields["size"].default
        return cls(settings, _sizes(settings, OccFMNetwork(), size)).with_random_weights()  # type: ignore[return-value]

    @classmethod
    def untrained(cls, settings: Any, network: Any, data: Data) -> TinyTeacher:
        """An adapter whose networks fit the grid of `data`.

        Raises:
            TeacherError: other data than `driving`, or sizes that do not fit each other.
        """
        if not isinstance(data, DrivingData):
            raise TeacherError("only the made-up world can train this teacher", allowed="data.type: driving")
        teacher = cls(settings, _sizes(settings, network, data.settings.size))
        teacher.build_network()
        teacher._to_train = network.compressor
        return teacher

    def pretrain(self, data: Data, seed: int, report: Callable[[int, int], None]) -> None:
        """Trains the compressor on the labels of `data`, which from then on gives its latents."""
        assert isinstance(data, DrivingData), "see untrained"
        torch.manual_seed(seed)
        compressor = built(Compressor, self.architecture["compressor"], "compressor")
        self._compressor = train_compressor(
            compressor, data.frames, data.frame_count, self._to_train,
            deviation=1 / self.settings.rescale, seed=seed, report=report,
        )  # fmt: skip
        data.use(self)

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """Network and compressor under the names of the published files, in half precision: half the size."""
        state = {f"{TRANSITION}{name}": value for name, value in network.state_dict().items()}
        state |= self.compressor().state_dict()
        return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


class DrivingSettings(Settings):
    """Settings of `driving`."""

    seed: int = Field(0, ge=0, description="Which world.")
    scenes: int = Field(300, ge=1, description="Drives to distill or train on.")
    held_out: int = Field(60, ge=1, description="Further drives, which only judge.")
    frames: int = Field(
        18, ge=FRAMES, description="Frames of a drive, two a second; each but the last 11 begins a clip."
    )
    size: int = Field(32, ge=8, description="Cells a side of the 40 m wide grid; the teacher's.")
    history_last: int = Field(4, ge=1, le=HISTORY, description="Past frames that are seen, of 6, two a second.")


class DrivingData(ForecastData):
    """Clips of the made-up world."""

    Settings = DrivingSettings

    def __init__(self, settings: Any) -> None:
        self.settings, self.drives = settings, DrivingClips(settings, 0, settings.scenes)
        super().__init__(lambda: self.drives, 1.0, self._judges)

    @classmethod
    def load(cls, settings: Any, teacher: Teacher | None) -> DrivingData:
        """The drives; their latents are the teacher's, made when they are first asked for.

        Raises:
            TeacherError: a teacher of another grid.
        """
        data = cls(settings)
        if teacher is not None:
            data.use(teacher)
        return data

    def use(self, teacher: Teacher) -> None:
        """Takes latents from a teacher's compressor from now on, and tells it where clips come from."""
        if not isinstance(teacher, OccFMTeacher):
            raise TeacherError(f"data 'driving' for a teacher of type '{teacher.settings.type}'", allowed="occfm-tiny")
        size = teacher.compressor().size
        if size != self.settings.size:
            raise TeacherError(f"data.size {self.settings.size}", allowed=f"the teacher's grid: {size}")
        self.rescale = teacher.settings.rescale
        self.drives.compressor = teacher.compressor
        self.attach(teacher)

    def prepare(self, report: Callable[[int, int], None], process: int = 0, processes: int = 1) -> None:
        """Encodes every drive; each process does all of them, since that takes seconds."""
        self.drives.encode(report)

    @property
    def frame_count(self) -> int:
        """Frames of all drives."""
        return self.settings.scenes * self.settings.frames

    def frames(self, index: Tensor) -> Tensor:
        """Labels of frames by their numbers, uint8 [B, S, S, 16]."""
        each = self.settings.frames
        return torch.stack([self.drives.drive(frame // each)[0][frame % each] for frame in index.tolist()])

    def _judges(self) -> ForecastData:
        clips = DrivingClips(self.settings, _HELD_OUT, self.settings.held_out)
        clips.compressor = self.drives.compressor
        return ForecastData(lambda: clips, self.rescale)


class DrivingClips:
    """Clips of consecutive drives.

    Args:
        settings: of `driving`.
        first: number of the first drive.
        count: how many drives.
    """

    def __init__(self, settings: Any, first: int, count: int) -> None:
        self.settings, self.first, self.count = settings, first, count
        #: gives the compressor that makes latents
        self.compressor: Callable[[], Compressor] | None = None
        self._latents: Tensor | None = None

    def __len__(self) -> int:
        return self.count * self._starts

    def latents(self, index: Tensor) -> Tensor:
        """[B, 12, C, L, L]; see `teachers.occfm.data.Clips`."""
        if self._latents is None:
            self.encode(lambda done, total: None)
        assert self._latents is not None, "encoded above"
        drive, start = self._place(index)
        return self._seen(self._latents[drive[:, None], start[:, None] + torch.arange(FRAMES)])

    def trajectory(self, index: Tensor) -> Tensor:
        """[B, 12, 2]."""
        rows = [self.drive(d)[1][s : s + FRAMES] for d, s in self._pairs(index)]
        return self._seen(torch.stack(rows))

    def scene(self, index: Tensor) -> Tensor:
        """Number of the drive."""
        return self.first + self._place(index)[0]

    def truth(self, index: Tensor) -> Tensor:
        """[B, 6, S, S, 16], the frames to forecast."""
        return torch.stack([self.drive(d)[0][s + HISTORY : s + FRAMES] for d, s in self._pairs(index)])

    def history_labels(self, index: Tensor) -> Tensor:
        """[B, 6, S, S, 16], the frames before."""
        return torch.stack([self.drive(d)[0][s : s + HISTORY] for d, s in self._pairs(index)])

    def drive(self, number: int) -> tuple[Tensor, Tensor]:
        """Labels uint8 [frames, S, S, 16] and displacements [frames, 2] of one drive."""
        settings = self.settings
        return _drive(settings.seed, self.first + number, settings.frames, settings.size)

    @torch.no_grad()
    def encode(self, report: Callable[[int, int], None]) -> None:
        """Makes the latents of every drive: one draw for each frame, the same on every machine.

        Raises:
            TeacherError: there is no compressor.
        """
        if self._latents is not None:
            return
        if self.compressor is None:
            raise TeacherError("drives have no latents without a teacher's compressor")
        compressor, drives = self.compressor(), []
        shape = (self.settings.frames, *compressor.latent_shape)
        for number in range(self.count):
            key = np.array([self.settings.seed, _LATENTS + self.first + number], dtype=np.uint64)
            random = np.random.Generator(np.random.Philox(key=key))
            noise = torch.from_numpy(random.standard_normal(shape, dtype=np.float32))
            drives.append(compressor.encode(self.drive(number)[0], noise))
            report(number + 1, self.count)
        self._latents = torch.stack(drives)

    @property
    def _starts(self) -> int:
        return self.settings.frames - FRAMES + 1

    def _place(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Drive and first frame of each clip."""
        return index // self._starts, index % self._starts

    def _pairs(self, index: Tensor) -> list[tuple[int, int]]:
        return [divmod(clip, self._starts) for clip in index.tolist()]

    def _seen(self, values: Tensor) -> Tensor:
        """The same with the earliest frames, which are not to be seen, set to 0."""
        values[:, : HISTORY - self.settings.history_last] = 0
        return values


@functools.lru_cache(maxsize=_KEPT_DRIVES)
def _drive(seed: int, number: int, frames: int, size: int) -> tuple[Tensor, Tensor]:
    scene = Scene(seed, number, frames, Grid(size=size, cell=_EXTENT / size))
    return torch.from_numpy(scene.all_labels()), torch.from_numpy(scene.displacements)


def _sizes(settings: Any, network: OccFMNetwork, size: int) -> dict[str, Any]:
    """The architecture of networks for a grid of `size` cells a side."""
    compressor = compressor_sizes(network.compressor, size)
    latents = built(Compressor, compressor, "compressor").latent_shape
    return {"transition": transition_sizes(network, latents, ROWS[settings.trajectory]), "compressor": compressor}


def _placed(settings: Any) -> Any:
    if settings.weights is not None:
        return settings
    return settings.model_copy(update={"weights": str(_ASSETS / "teacher.safetensors")})
