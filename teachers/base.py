"""The two contracts that a plugin author reads: `Teacher`, a family of flow models, and `Data`, what it is asked for.

Convention, everywhere: t = 0 is noise X_0 ~ N(0, I), t = 1 is data X_1, X_t = (1 - t) X_0 + t X_1, and the velocity is
u = dX/dt = X_1 - X_0. A model trained in another convention is translated in `Teacher.velocity`, once, nowhere else.
Shapes: B batch, `sample_shape` one state without its batch axis.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from teachers.conditions import Condition
from teachers.errors import TeacherError
from teachers.networks.flow_map import FlowMapNetwork
from teachers.settings import Settings, Strict, TeacherSettings


class Modes(NamedTuple):
    """Components of a known mixture: means [K, D] and standard deviations [K]."""

    means: Tensor
    deviations: Tensor


class Teacher(ABC):
    """One family of flow models, with the weights that `settings` names.

    `velocity` takes the network as an argument, so that teacher, student and auxiliary share one forward pass. The
    constructor is cheap and loads nothing: `load` brings the weights, and a student needs only the constructor.
    """

    #: subclass of TeacherSettings: the recipe keys of this family
    Settings: ClassVar[type[TeacherSettings]] = TeacherSettings
    #: recipe keys of a network to train from nothing, for families that `mfd teachers train` can train
    Network: ClassVar[type[Strict] | None] = None
    #: what `encode` understands: nothing, class indices, text, or numbers of the data's held-out clips
    condition_kind: ClassVar[Literal["none", "label", "prompt", "clip"]] = "none"
    #: what a decoded sample is: points [D], images [C, H, W] in [0, 1], or classes of voxels uint8 [F, X, Y, Z]
    sample_kind: ClassVar[Literal["points", "images", "occupancy"]] = "images"
    #: frames of a sample, for families that count speed in frames
    frames: ClassVar[int] = 1
    #: ends of the names of the layers that get adapters under `student.weights: lora`
    lora_targets: ClassVar[tuple[str, ...]] = ()
    #: earliest time the family's networks know; a student is told times from here to 1 instead of from 0
    first_time: ClassVar[float] = 0.0
    #: whether every layer of the network has the batch as its first axis, so that rows may use different adapters
    rows_first: ClassVar[bool] = False
    #: recipe key that names the weights, for families that can load a weaker teacher's as well
    weights_key: ClassVar[str | None] = None
    #: whether guidance is an input of the network, set by `settings.guidance`, instead of two evaluations of it
    guidance_embedded: bool = False
    #: samples that a picture shows, and samples computed at once, unless asked otherwise
    shown: ClassVar[int] = 20
    batch_size: ClassVar[int] = 500

    def __init__(self, settings: Any, architecture: Mapping[str, Any]) -> None:
        self.settings = settings
        #: plain JSON data from which `build_network` makes the student's network
        self.architecture = dict(architecture)
        #: the frozen velocity network; None until `load`
        self.network: nn.Module | None = None
        #: a weaker teacher's network, which guidance is against if there is one
        self.weak: nn.Module | None = None
        self._weak_identity: dict[str, str] = {}
        #: gives held-out data, for families whose conditions are its items ("clip"); set when the data are loaded
        self.clips: Callable[[], Data] | None = None

    @classmethod
    def check(cls, settings: Any) -> None:
        """Raises TeacherError for files that are missing, before anything is loaded, which may take long."""
        return None

    @classmethod
    @abstractmethod
    def load(cls, settings: Any) -> Teacher:
        """The teacher with its frozen weights. Raises TeacherError where they are missing or do not fit."""

    @classmethod
    def loaded(cls, settings: Any) -> Teacher:
        """`load`, and the weaker teacher that `settings.weak` names.

        Raises:
            TeacherError: weights are missing or do not fit, or the family has no weaker teachers.
        """
        weaker = cls.weaker_settings(settings)
        teacher = cls.load(settings)
        if weaker is not None:
            other = cls.load(weaker)
            if other.sample_shape != teacher.sample_shape:
                raise TeacherError(
                    f"teacher.weak {settings.weak}: states {list(other.sample_shape)}",
                    allowed=f"the teacher's: {list(teacher.sample_shape)}",
                )
            if teacher.guidance_embedded:
                raise TeacherError("teacher.weak: this model takes guidance as an input, and has no other")
            teacher.weak = other.network
            teacher._weak_identity = {f"weak_{name}": value for name, value in other.identity().items()}
        return teacher

    @classmethod
    def weaker_settings(cls, settings: Any) -> Any:
        """The settings that load the weaker teacher; None where the recipe names none. Raises TeacherError."""
        if settings.weak is None:
            return None
        if cls.weights_key is None:
            raise TeacherError(f"teacher.weak: a teacher of type '{settings.type}' has no weights to name")
        if settings.guidance == 1:
            raise TeacherError("teacher.weak without guidance has no effect", allowed="teacher.guidance above 1")
        return settings.model_copy(update={cls.weights_key: settings.weak, "weak": None})

    @classmethod
    def random(cls, settings: Any) -> Teacher:
        """The teacher with random weights of the right shapes, for a dry run without the real ones."""
        raise TeacherError(
            f"a teacher of type '{settings.type}' has no random weights", do="leave out --random-weights"
        )

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one state X_t, without the batch axis."""

    @abstractmethod
    def build_network(self) -> nn.Module:
        """A trainable network of `architecture` with arbitrary weights (a student's are loaded into it)."""

    @classmethod
    def untrained(cls, settings: Any, network: Any, data: Data) -> Teacher:
        """The adapter of a network yet to be trained on `data` (`mfd teachers train`); `network` is its `Network`."""
        raise TeacherError(f"a teacher of type '{settings.type}' cannot be trained by mfd")

    def pretrain(self, data: Data, seed: int, report: Callable[[int, int], None]) -> None:
        """Trains what has to be there before the velocity network, such as a compressor; by default nothing.

        Args:
            data: what `untrained` was given.
            seed: of every random number.
            report: is told how many updates are done, and of how many.
        """
        return None

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """What `mfd teachers train` writes and `load` reads: by default the trained network's tensors."""
        return dict(network.state_dict())

    def initial_network(self, seed: int) -> nn.Module:
        """A trainable network that starts as the teacher: by default a copy of its weights."""
        return copy.deepcopy(self.network).train().requires_grad_(True)  # type: ignore[union-attr]

    def time_layer(self, network: nn.Module) -> str | None:
        """Name of the layer whose output [B, W] embeds the time; None for networks that have none.

        A flow map is told the length of a step there.
        """
        return None

    def flow_map(self, network: nn.Module) -> FlowMapNetwork:
        """A network of `build_network` or `initial_network` as a flow map, which starts as that velocity.

        Raises:
            TeacherError: the family does not say where.
        """
        layer = self.time_layer(network)
        if layer is None:
            raise TeacherError(
                f"a teacher of type '{self.settings.type}' cannot become a flow map: its adapter has no time_layer",
                do="take a method whose student has one time, such as mfd, or give the adapter a time_layer",
            )
        return FlowMapNetwork(network, layer)

    def feature_layer(self, network: nn.Module) -> str | None:
        """Name of the layer whose output [B, ..., C] a critic judges; None for families that name none."""
        return None

    def features(self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """What `feature_layer` gives while the velocity is computed, as tokens [B, N, C]; arguments as for `velocity`.

        Raises:
            TeacherError: the family names no such layer.
        """
        bare = bare_network(network)
        layer = self.feature_layer(bare)
        if layer is None:
            raise TeacherError(
                f"{type(bare).__name__} of a teacher of type '{self.settings.type}' has no features: the adapter names "
                "no feature_layer of it",
                do="judge something else, turn the method's adversarial term off, or give the adapter a feature_layer",
            )
        seen: list[Any] = []
        handle = bare.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            self.velocity(network, x, t, condition)
        finally:
            handle.remove()
        # blocks of two streams give both; the image's is the last
        found = seen[-1][-1] if isinstance(seen[-1], tuple) else seen[-1]
        return found[:, None] if found.dim() == 2 else found.flatten(1, -2)

    def velocity(self, network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """u(x, t | condition) [B, ...] of `network`, unguided. x: [B, ...]; t: float32 [B] in [0, 1]."""
        return network(x, t, **condition)

    def branches(self, network: nn.Module, x: Tensor, t: Tensor, pair: Condition) -> Tensor:
        """Both branches of guidance at the same states [2B, ...]; families whose branches share work do it here.

        Args:
            network: as for `velocity`.
            x: states [B, ...].
            t: times [B].
            pair: 2B rows, the unconditional half first, as the result's.
        """
        return self.velocity(network, torch.cat([x, x]), torch.cat([t, t]), pair)

    def null_condition(self, condition: Condition) -> Condition | None:
        """The unconditional counterpart of a batch's condition, same shapes; None if the family has none."""
        return None

    def guide(self, unconditional: Tensor, conditional: Tensor, guidance: float) -> Tensor:
        """The guided velocity [B, ...] of its two branches: classifier-free guidance unless a family does otherwise."""
        return torch.lerp(unconditional, conditional, guidance)

    def encode(self, asked: Sequence[int | str]) -> Condition:
        """The condition of a list of class indices or prompts. Raises TeacherError for what does not exist."""
        return {}

    def examples(self, count: int) -> list[int | str]:
        """What to ask for when the user asks for nothing: `count` items that `encode` understands."""
        return []

    def decode(self, latents: Tensor) -> Tensor:
        """Finished samples from states at t = 1: [B, ...] to points [B, D] or images [B, C, H, W] in [0, 1]."""
        return latents

    def carried(self) -> dict[str, Tensor]:
        """Tensors besides its network that a student needs to decode, stored with it; by default none."""
        return {}

    def receive(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what `carried` gave when a student was stored, so that it decodes without the teacher's files."""
        return None

    def rest(self) -> None:
        """Lets parts that no velocity needs, such as a decoder, leave the device until they are asked again."""
        return None

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What distinguishes this teacher from another (content hash, revision): kept in every run."""

    def whole_identity(self) -> dict[str, str]:
        """`identity`, and under names that begin with "weak_" that of the weaker teacher, if there is one."""
        return self.identity() | self._weak_identity

    def pinned(self) -> dict[str, Any]:
        """Settings with which `load` brings these very weights again, such as a resolved revision."""
        return {}

    def to(self, device: torch.device | str) -> Teacher:
        """Moves the weights to a device; those that are there already stay where they are."""
        place = torch.device(device)
        for network in (self.network, self.weak):
            if network is not None and not all(_is_on(value, place) for value in network.state_dict().values()):
                network.to(place)
        return self


def bare_network(network: nn.Module) -> Any:
    """The network itself of one that is wrapped for several processes, or that an adapter lies on."""
    bare = getattr(network, "module", network)
    return getattr(bare, "base", bare)


def _is_on(value: Any, device: torch.device) -> bool:
    """Whether a tensor is on a device; cpu:0, which multi-process jobs speak of, is the cpu."""
    if not isinstance(value, Tensor) or value.device.type != device.type:
        return not isinstance(value, Tensor)
    return device.type == "cpu" or device.index in (None, value.device.index)


class Data(ABC):
    """Where conditions come from, and, where there are any, real samples: items 0 .. size - 1 (size None: endless)."""

    #: subclass of teachers.settings.Settings: the recipe keys of this source
    Settings: ClassVar[type] = Settings
    #: whether each item has one right answer, `truth`, that samples are held against
    paired: ClassVar[bool] = False

    @classmethod
    def check(cls, settings: Any) -> None:
        """Raises TeacherError for files that are missing, before a teacher is loaded, which may take long."""
        return None

    @classmethod
    @abstractmethod
    def load(cls, settings: Any, teacher: Teacher | None) -> Data:
        """The data source for a teacher (None: one yet to be trained). Raises TeacherError where files do not fit."""

    def prepare(self, report: Callable[[int, int], None], process: int = 0, processes: int = 1) -> None:
        """Work that is done once, before training, such as encoding prompts; by default none.

        Every process calls it; each may do its share and is told which that is. Afterwards, once all of them have come
        so far, `condition` needs no more than what was prepared.

        Args:
            report: is told how many items are done, and of how many.
            process: index of this process.
            processes: number of processes.
        """
        return None

    def unprepared(self) -> int:
        """Items that `prepare` would have to work on."""
        return 0

    def release(self) -> None:
        """Lets go of what only `prepare` needs, such as a text encoder."""
        return None

    @classmethod
    def stand_in(cls, settings: Any, teacher: Teacher) -> Data:
        """What a dry run with random weights can use where the source's own files may be missing."""
        return cls.load(settings, teacher)

    def held_out(self) -> Data:
        """What quality is measured on and pictures are drawn of: by default the source itself."""
        return self

    @property
    @abstractmethod
    def size(self) -> int | None:
        """Number of items; None if there is no end to them."""

    @abstractmethod
    def condition(self, items: Tensor) -> Condition:
        """Conditions of the items (int64 [B]), on the CPU."""

    def texts(self, items: Tensor) -> list[str] | None:
        """The prompts that the items are, for scores of pictures against them; None where they are no prompts."""
        return None

    def states(self, items: Tensor) -> Tensor:
        """Real data X_1 as the network sees it [B, *sample_shape]. Raises TeacherError if there is none."""
        raise TeacherError("this data source holds conditions only, no real samples")

    def reference(self, count: int | None, seed: int) -> Tensor:
        """Decoded real samples to measure quality against: all of them, or `count` drawn with `seed` if endless."""
        raise TeacherError("this data source has no reference samples, so quality cannot be measured")

    def truth(self, items: Tensor) -> Tensor:
        """What really followed, decoded as samples are [B, ...]. Raises TeacherError if there is none, or no file."""
        raise TeacherError("this data source has no truth to hold samples against, so quality cannot be measured")

    def context(self, items: Tensor) -> Tensor:
        """What the items' conditions show, decoded, for pictures: [B, frames, ...]. Raises TeacherError as `truth`."""
        raise TeacherError("this data source has nothing to show of its conditions")

    def baselines(self, items: Tensor) -> Mapping[str, Tensor]:
        """Answers that need no model, by name, decoded as samples are; models have to be better than these."""
        return {}

    def groups(self, items: Tensor) -> Tensor:
        """Numbers int64 [B], equal for items that are not independent of each other, such as clips of one drive."""
        return items

    def spaces(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Feature spaces for the Fréchet distance: metric name to a function from decoded samples to [N, F]."""
        return {"frechet": lambda samples: samples.flatten(1)}

    def classify(self, samples: Tensor) -> Tensor | None:
        """Class indices [N] that an independent classifier gives decoded samples; None if there is no classifier."""
        return None

    def modes(self) -> Modes | None:
        """The target's modes where they are known."""
        return None
