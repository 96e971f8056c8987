"""Several trained networks on one frozen base: peft adapters, of which each forward pass uses one or none.

    y = W x + (alpha / rank) B A x        W frozen, A and B trained; B starts at 0, so every adapter starts as the base

peft's own switching walks all layers and turns gradients on and off, so that a forward pass under one adapter followed
by a switch leaves no gradient at all. Here all layers share one list of active adapters: switching is one assignment,
`requires_grad` never changes, and outside a forward pass the base is always itself, the teacher.

Source: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mfd_cli.errors import MfdError
from mfd_cli.seeds import key


class SharedBase:
    """A frozen network with adapters, none of them active outside their own forward passes.

    Args:
        base: the network; its weights stay as they are, adapter layers are put around the targets.
        rank: width r of an adapter.
        alpha: an adapter's output is scaled by alpha / rank.
        targets: names, or ends of names, of the linear layers (or 1x1 convolutions) that get adapters.
        names: the adapters.
        seed: of the A matrices, drawn from N(0, 1 / rank); the same for every adapter.

    Raises:
        MfdError: no layer has one of the target names.
    """

    def __init__(
        self, base: nn.Module, *, rank: int, alpha: float, targets: Sequence[str], names: Sequence[str], seed: int = 0
    ) -> None:
        self.base = base.requires_grad_(False)
        self._active: list[str] = []
        #: adapter of the first rows of a call, and their number; all other rows see the base
        self._first_rows: tuple[str, int] | None = None
        self._layers = _inject(base, rank, alpha, targets, names, seed)
        for layer in self._layers.values():
            layer._active_adapter = self._active
            layer.register_forward_hook(self._add_to_first_rows)
        self.networks = {name: AdaptedNetwork(self, name) for name in names}

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Has forward passes inside the block use an adapter."""
        before = self._active[:]
        self._active[:] = [name]
        try:
            yield
        finally:
            self._active[:] = before

    @contextlib.contextmanager
    def using_for_rows(self, name: str, rows: int) -> Iterator[None]:
        """Has forward passes inside the block use an adapter for their first rows and none for the others."""
        self._first_rows = name, rows
        try:
            yield
        finally:
            self._first_rows = None

    def _add_to_first_rows(self, layer: Any, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """What a layer adds under `using_for_rows`, in place: only for passes without gradient."""
        if self._first_rows is None:
            return None
        name, rows = self._first_rows
        down, up = layer.lora_A[name], layer.lora_B[name]
        change = up(down(arguments[0][:rows].to(down.weight.dtype))) * layer.scaling[name]
        output[:rows] = (output[:rows] + change).to(output.dtype)
        return output

    def parameters_of(self, name: str) -> dict[str, nn.Parameter]:
        """An adapter's matrices under the names that peft's files have."""
        return {
            f"{path}.{side}.weight": getattr(layer, side)[name].weight
            for path, layer in self._layers.items()
            for side in ("lora_A", "lora_B")
        }

    def checkpoint_activations(self) -> None:
        """Computes activations anew in the backward pass, under the adapter that was active in the forward pass."""

        def recomputed(block: nn.Module, *arguments: Any) -> Any:
            active = self._active[:]
            contexts = contextlib.nullcontext(), self.using(active[0]) if active else contextlib.nullcontext()
            return checkpoint(block, *arguments, use_reentrant=False, context_fn=lambda: contexts)

        enable_checkpointing(self.base, recomputed)


class AdaptedNetwork(nn.Module):
    """The base under one adapter. Its parameters are the adapter's alone, with the names of peft's files."""

    def __init__(self, shared: SharedBase, name: str) -> None:
        super().__init__()
        self._shared, self._name = shared, name
        for path, value in shared.parameters_of(name).items():
            *folders, leaf = path.split(".")
            place: nn.Module = self
            for folder in folders:
                if folder not in place._modules:
                    place.add_module(folder, nn.Module())
                place = place.get_submodule(folder)
            place.register_parameter(leaf, value)

    @property
    def base(self) -> nn.Module:
        """The network that the adapter lies on."""
        return self._shared.base

    @property
    def dtype(self) -> torch.dtype:
        """Type that the base computes in; adapters stay float32."""
        return next(self._shared.base.parameters()).dtype

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The base's forward pass under the adapter."""
        with self._shared.using(self._name):
            return self._shared.base(*arguments, **named)

    def beside(self, other: nn.Module, rows: int) -> _FirstRows | None:
        """A network whose first rows see this adapter and the others `other`, which is the base; None if it is not.

        For passes without gradient through networks whose layers all have the batch as their first axis.
        """
        return _FirstRows(self._shared, self._name, rows) if other is self._shared.base else None


@dataclass(frozen=True)
class _FirstRows:
    """The base, called with an adapter for the first rows of a batch."""

    shared: SharedBase
    name: str
    rows: int

    @property
    def dtype(self) -> torch.dtype:
        """Type that the base computes in."""
        return next(self.shared.base.parameters()).dtype

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        with self.shared.using_for_rows(self.name, self.rows):
            return self.shared.base(*arguments, **named)


def enable_checkpointing(network: nn.Module, function: Any = None) -> None:
    """Has a network compute activations anew in the backward pass.

    Raises:
        MfdError: it does not know how.
    """
    enable = getattr(network, "enable_gradient_checkpointing", None)
    try:
        if enable is None:
            raise ValueError("it has no gradient checkpointing")
        enable(function) if function is not None else enable()
    except ValueError as error:
        raise MfdError(
            f"train.checkpointing: {type(network).__name__} cannot ({error})", allowed="train.checkpointing: false"
        ) from error


def merged(weights: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A base's state dict with an adapter added in float32: W + scale B A, in the base's types.

    Args:
        weights: the plain base's state dict.
        adapter: an adapter's state dict, names as in `AdaptedNetwork`.
        scale: alpha / rank.
    """
    result = dict(weights)
    for name in adapter:
        if not name.endswith(".lora_A.weight"):
            continue
        path = name.removesuffix(".lora_A.weight")
        down, up = adapter[name].float(), adapter[f"{path}.lora_B.weight"].float()
        old = weights[f"{path}.weight"]
        change = scale * (up.flatten(1) @ down.flatten(1)).reshape(old.shape)
        result[f"{path}.weight"] = (old.float() + change).to(old.dtype)
    return result


def base_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a base as it was before adapters were put into it."""
    return {
        name.replace(".base_layer.", "."): value
        for name, value in network.state_dict().items()
        if ".lora_A." not in name and ".lora_B." not in name
    }


def _inject(
    base: nn.Module, rank: int, alpha: float, targets: Sequence[str], names: Sequence[str], seed: int
) -> dict[str, Any]:
    """Puts adapter layers into the base and returns them by the path of the layer they wrap."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    # peft declares alpha an int and divides it all the same
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
        for name in names:
            torch.manual_seed(key(seed, "lora")[0] >> 1)
            try:
                inject_adapter_in_model(config, base, name)
            except ValueError as error:
                kinds = sorted({_end(path) for path, layer in base.named_modules() if _adaptable(layer)})
                raise MfdError(
                    f"student.lora.targets {list(targets)}: {str(error).splitlines()[0]}",
                    allowed=f"names of linear layers: {', '.join(kinds)}",
                ) from error
    layers = {path: layer for path, layer in base.named_modules() if isinstance(layer, LoraLayer)}
    for layer in layers.values():
        for side in (layer.lora_A, layer.lora_B):
            side.float().requires_grad_(True)
    return layers


def _adaptable(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def _end(path: str) -> str:
    """The last part of a layer's name that says something: a number alone, as in to_out.0, does not."""
    *before, last = path.split(".")
    return ".".join([*before[-1:], last]) if last.isdigit() else last
