"""Networks in shards, one on every process: torch's FSDP2 (`fully_shard`), and what is whole elsewhere.

A sharded network is called as before: its parts gather their weights on every process when they are reached, and let
go of them afterwards; gradients come back as shards. So every process has to call it equally often. Parameters are
DTensors; the functions below take them and plain tensors alike, so that nothing else has to tell them apart.

Source: Zhao et al. 2023, arXiv 2304.11277; Rajbhandari et al. 2020, arXiv 1910.02054 (ZeRO-3).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mfd_cli.errors import MfdError

#: says which modules inside a network are gathered by themselves
Parts = Callable[[nn.Module], Callable[[nn.Module], bool]]


class Sharding:
    """Puts networks into shards over all processes of the job.

    Args:
        device: this process's device.
        reshard: whether a part lets go of gathered weights as soon as it was called (ZeRO-3); else they stay until the
            step's end, for more memory and less traffic (ZeRO-2).
        parts: for a network, the modules that are gathered by themselves; the rest of it is gathered at once.

    Raises:
        MfdError: this torch cannot do it.
    """

    def __init__(self, device: torch.device, *, reshard: bool, parts: Parts) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule

        if not hasattr(FSDPModule, "reset_iter_state"):
            raise MfdError(
                f"sharded networks: torch {torch.__version__} lacks FSDPModule.reset_iter_state", do="update torch"
            )
        self._device, self._reshard, self._parts = device, reshard, parts
        self._mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        self._roots: list[Any] = []

    def place(self, network: nn.Module, apart: Collection[nn.Parameter] = ()) -> nn.Module:
        """Puts a network into shards on this process's device, in place, and returns it.

        Its parameters become other objects, so optimizers are built afterwards; it can no longer be copied.

        Args:
            network: the network, the same on every process. Methods besides `forward` that are called from outside are
                named in its attribute `forward_methods`.
            apart: parameters that stay whole on every process.
        """
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        own = [value for value in network.parameters() if all(value is not other for other in apart)]
        if not own:
            return network.to(self._device)
        chosen = self._parts(network)
        settings: dict[str, Any] = {
            "mesh": self._mesh, "reshard_after_forward": self._reshard, "ignored_params": set(apart)
        }  # fmt: skip
        for value in apart:
            value.data = value.data.to(self._device)
        for module in reversed(list(network.modules())):  # children before what holds them
            if module is not network and chosen(module):
                fully_shard(module, **settings)
        fully_shard(network, **settings)
        for name in getattr(network, "forward_methods", ()):
            register_fsdp_forward_method(network, name)
        self._begin(network)
        self._roots.append(network)
        return network

    @staticmethod
    def _begin(network: nn.Module) -> None:
        """Does what FSDP2 leaves to the first call, which may be one in inference mode, or none before `settle`."""
        from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

        place: Any = network
        place.begin = lambda: None  # a call of nothing
        register_fsdp_forward_method(network, "begin")
        place.begin()
        del place.begin
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.unshard()  # makes the memory for gathered weights
                module.reshard()

    def settle(self) -> None:
        """Ends a step: no gathered weights outlive it, nor what FSDP2 notes of calls that no backward pass follows."""
        for network in self._roots:
            network.reset_iter_state()

    def gather_around(self, network: nn.Module, layer: str) -> None:
        """Gathers the parts of a network that hold a layer, outside of a call; they stay until the step's end.

        A part gathers its weights for the backward pass when its output's gradient arrives. Where a layer's output is
        taken out of the network, that of the parts around it has none.
        """
        from torch.distributed.fsdp import FSDPModule

        for name, module in network.named_modules():
            if isinstance(module, FSDPModule) and f"{layer}.".startswith(f"{name}." if name else ""):
                module.unshard()

    def longest(self, count: int) -> int:
        """The largest of every process's count."""
        largest = torch.tensor([count], device=self._device)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        return int(largest.item())


def is_sharded(value: Tensor) -> bool:
    """Whether a tensor is one of which this process holds a shard."""
    return hasattr(value, "full_tensor")  # a DTensor; its module takes most of a second to import


def local(value: Tensor) -> Tensor:
    """This process's shard, on the same memory; a plain tensor itself."""
    return value.to_local() if is_sharded(value) else value  # type: ignore[attr-defined]


def whole(value: Tensor) -> Tensor:
    """The whole tensor; of a sharded one, every process has to ask for it at the same time."""
    return value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]


def gathered(values: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The tensors whole, those that were sharded on the CPU; every process has to ask at the same time.

    Args:
        values: the same names in the same order on every process.
        keep: whether this process wants them; else it only takes part, and gets nothing.
    """
    result = {}
    for name, value in values.items():
        if keep or is_sharded(value):
            full = whole(value.detach()).cpu() if is_sharded(value) else value
            if keep:
                result[name] = full
    return result


def spread(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in shards as `like` is; itself where that is whole or of another shape."""
    if not is_sharded(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # every process has the whole tensor and cuts its own shard, so nothing is sent
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
