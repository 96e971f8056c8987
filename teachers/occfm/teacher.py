"""Teacher `occfm`: forecasts of 4D semantic occupancy, six future frames from six past ones and a trajectory.

One weights file holds the transition network (the velocity) and the compressor between labelled voxels and latents.
States are the future frames' latents times `rescale`, [B, 6, C, L, L]; samples are class indices uint8
[B, 6, S, S, 16]. OccFM's convention is already that of `teachers.base`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from teachers.base import Data, Teacher
from teachers.conditions import Condition, rows
from teachers.errors import TeacherError
from teachers.files import sha256
from teachers.occfm.architecture import COMPRESSOR, TRANSITION, below, compressor_sizes, transition_sizes
from teachers.occfm.checkpoints import PARTS, read_weights
from teachers.occfm.compressor import Compressor
from teachers.occfm.transition import FRAMES, FUTURE, HISTORY, TransitionNetwork
from teachers.settings import TeacherSettings
from teachers.weights import load_into

#: rows of the trajectory that each kind of model takes
ROWS = {"history": HISTORY, "future": FRAMES}
#: cells of the grid, summed over frames, that are decoded at once: one frame of the published size on a CPU
CELLS_AT_ONCE = {"cpu": 40_000, "cuda": 960_000}


class OccFMSettings(TeacherSettings):
    """Settings of `occfm`."""

    weights: str = Field(
        description="Safetensors file made by `mfd teachers convert occfm`; it holds network and compressor."
    )
    trajectory: Literal["history", "future"] = Field(
        "history", description="Rows of the trajectory that the weights were trained with: the first 6, or all 12."
    )
    rescale: float = Field(10.0, gt=0, description="Factor between cached latents and what the network sees.")
    guidance: float = Field(
        2.0, ge=0, description="Guidance scale of the teacher against an empty history; 1 is none, else cost doubles."
    )
    shift: float = Field(3.0, gt=0, description="Time shift of the teacher's sampler; OccFM calls it alpha.")


class OccFMTeacher(Teacher):
    """OccFM: 4D occupancy forecasting by flow matching."""

    Settings = OccFMSettings
    condition_kind = "clip"
    weights_key = "weights"
    sample_kind = "occupancy"
    lora_targets = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "to_qkv", "to_out")
    frames = FUTURE
    shown = 3
    batch_size = 4

    def __init__(self, settings: Any, architecture: Mapping[str, Any]) -> None:
        super().__init__(settings, architecture)
        self._compressor: Compressor | None = None
        self._random = False

    @classmethod
    def check(cls, settings: Any) -> None:
        """Refuses a weights file that is not there."""
        path = Path(settings.weights)
        if not path.is_file():
            raise TeacherError(
                f"{path}: no such file",
                allowed="weights made by `mfd teachers convert occfm CKPT -o FILE.safetensors`",
                do="see docs/occfm.md for what to download and where to put it",
            )

    @classmethod
    def load(cls, settings: Any) -> OccFMTeacher:
        """The teacher in a weights file.

        Raises:
            TeacherError: tensors are missing, or the trajectory is another one; MfdError: the file is missing or
                damaged, or tensors do not fit, each named.
        """
        path = Path(settings.weights)
        state = read_weights(path)
        sizes = {"transition": transition_sizes(below(TRANSITION, state)), "compressor": compressor_sizes(state)}
        teacher = cls(settings, sizes)
        _require_trajectory(path, settings.trajectory, sizes["transition"]["trajectory_rows"])
        teacher._fill(state, path)
        return teacher

    @classmethod
    def random(cls, settings: Any) -> OccFMTeacher:
        """Random weights of the published sizes."""
        transition = {"trajectory_rows": ROWS[settings.trajectory]}
        return cls(settings, {"transition": transition, "compressor": {}}).with_random_weights()

    def with_random_weights(self) -> OccFMTeacher:
        """Itself, with random weights of the sizes that its architecture says."""
        self.network = self.build_network().eval().requires_grad_(False)
        compressor = built(Compressor, self.architecture["compressor"], "compressor")
        self._compressor = compressor.eval().requires_grad_(False)
        self._random = True
        return self

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(6, C, L, L)."""
        transition = self.architecture["transition"]
        grid = transition.get("grid", 50)
        return (FUTURE, transition.get("channels", 16), grid, grid)

    def build_network(self) -> nn.Module:
        """A transition network with fresh weights.

        Raises:
            TeacherError: sizes that do not fit each other.
        """
        return built(TransitionNetwork, self.architecture["transition"], "transition network")

    def initial_network(self, seed: int) -> nn.Module:
        """A copy of the teacher's network, whose tables of places and frames stay as they are."""
        network = super().initial_network(seed)
        for table in (network.pos_embed, network.temp_embed):
            table.requires_grad_(False)
        return network

    def time_layer(self, network: nn.Module) -> str:
        """The embedding of the time."""
        return "t_embedder"

    def feature_layer(self, network: nn.Module) -> str:
        """The end of the U-Net's middle."""
        return "mid_block2"

    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """u(x, t | history, trajectory) [B, 6, C, L, L]."""
        return network(x, t, condition["history"], condition["trajectory"])

    def branches(self, network: nn.Module, x: Tensor, t: Tensor, pair: Condition) -> Tensor:
        """Both branches of guidance in one call, the first convolution and the embeddings shared."""
        together = getattr(network, "with_and_without_history", None)
        if together is None:  # adapters wrap the network, and its forward pass alone
            return super().branches(network, x, t, pair)
        given = rows(pair, slice(len(x), None))
        return torch.cat(together(x, t, given["history"], given["trajectory"]))

    def null_condition(self, condition: Condition) -> Condition:
        """An empty history; the trajectory stays, as in OccFM's training."""
        return {"history": torch.zeros_like(condition["history"]), "trajectory": condition["trajectory"]}

    def encode(self, asked: Sequence[int | str]) -> Condition:
        """History and trajectory of held-out clips, by their numbers."""
        clips = self._held_out()
        for clip in asked:
            if type(clip) is not int or not 0 <= clip < (clips.size or 0):
                raise TeacherError(f"clip {clip}", allowed=f"held-out clips from 0 to {(clips.size or 0) - 1}")
        return clips.condition(torch.tensor(list(asked), dtype=torch.long))

    def examples(self, count: int) -> list[int | str]:
        """Clips spread over the held-out ones, so that few of them show different scenes."""
        size = self._held_out().size or 1
        return [int((index + 0.5) * size / count) % size for index in range(count)]

    def decode(self, latents: Tensor) -> Tensor:
        """States [B, 6, C, L, L] to class indices uint8 [B, 6, S, S, 16]."""
        compressor = self.compressor(latents.device)
        cells = compressor.size**2
        at_once = max(1, CELLS_AT_ONCE.get(latents.device.type, CELLS_AT_ONCE["cuda"]) // cells)
        frames = latents.flatten(0, 1) / self.settings.rescale
        return compressor.decode(frames, at_once).unflatten(0, latents.shape[:2])

    def compressor(self, device: torch.device | str = "cpu") -> Compressor:
        """The compressor, on a device; loaded when it is first asked for, as a student comes without it.

        Raises:
            MfdError: the weights file is missing or does not fit.
        """
        if self._compressor is None:
            path = Path(self.settings.weights)
            self._fill_compressor(read_weights(path), path)
        assert self._compressor is not None
        if torch.compiler.is_exporting():  # which allows no move, not even one to where it is
            return self._compressor
        return self._compressor.to(device)

    def carried(self) -> dict[str, Tensor]:
        """The compressor."""
        return dict(self.compressor().state_dict())

    def receive(self, tensors: Mapping[str, Tensor]) -> None:
        """The compressor of a stored student."""
        self._fill_compressor(tensors, Path("the student's file"))

    def rest(self) -> None:
        """The compressor leaves the device."""
        if self._compressor is not None:
            self._compressor.to("cpu")

    def identity(self) -> dict[str, str]:
        """SHA-256 of the weights file."""
        if self._random:
            return {"weights": "random"}
        return {"weights_sha256": sha256(Path(self.settings.weights))}

    def _held_out(self) -> Data:
        if self.clips is None:
            raise TeacherError(
                "the teacher was loaded without data, so there are no clips to forecast",
                do="load the data source of the recipe with this teacher",
            )
        return self.clips()

    def _fill(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Takes network and compressor from a file's tensors; refuses tensors that belong to neither."""
        strange = [name for name in state if not name.startswith(PARTS)]
        if strange:
            more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
            raise TeacherError(
                f"{path}: tensors that are no part of OccFM: {', '.join(strange[:5])}{more}",
                allowed=f"names that begin with {', '.join(PARTS)}",
            )
        network = self.build_network()
        load_into(network, below(TRANSITION, state), path)
        self.network = network.eval().requires_grad_(False)
        self._fill_compressor(state, path)

    def _fill_compressor(self, state: Mapping[str, Tensor], path: Path) -> None:
        compressor = built(Compressor, self.architecture["compressor"], "compressor")
        load_into(compressor, {name: value for name, value in state.items() if name.startswith(COMPRESSOR)}, path)
        self._compressor = compressor.eval().requires_grad_(False)


def _require_trajectory(path: Path, asked: str, rows: int) -> None:
    if rows != ROWS[asked]:
        fits = next((name for name, count in ROWS.items() if count == rows), None)
        raise TeacherError(
            f"{path}: its network takes {rows} rows of the trajectory, '{asked}' has {ROWS[asked]}",
            allowed="history (6 rows) or future (12 rows)",
            do=f"set teacher.trajectory to {fits}" if fits else "use weights of a published kind",
        )


def built(kind: Any, sizes: Mapping[str, Any], what: str) -> Any:
    """A network of these sizes. Raises TeacherError for sizes that do not fit each other."""
    try:
        return kind(**sizes)
    except (TypeError, ValueError) as error:
        raise TeacherError(
            f"no {what} of OccFM has these sizes: {error}", allowed="sizes that fit each other"
        ) from error
