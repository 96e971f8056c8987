"""What an accelerate config asks for: processes that hold networks whole (DDP), or in shards (FSDP2).

A config of DeepSpeed's ZeRO asks for the same shards in other words and gets them by FSDP2: DeepSpeed itself would take
over optimizers, backward passes and checkpoints.

`accelerate launch` hands its config to processes as environment variables, which are read here once. mfd shards its
networks itself (`mfd_cli.networks.sharding`), since Accelerate prepares one model with one optimizer, and a run has up
to four networks of which some are never trained; so Accelerate is told of plain data-parallel processes in any case.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mfd_cli.errors import MfdError
from mfd_cli.networks.sharding import Sharding

_CONFIG = "docs/scale.md has a whole config"
#: variables of strategies that mfd has none of, and what they are called
_STRANGE = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_TP": "tensor parallelism",
}
#: what Accelerate would read of its config and the recipe decides instead
_OURS = {
    "ACCELERATE_USE_FSDP": "false",
    "ACCELERATE_USE_DEEPSPEED": "false",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
}
#: what is read of a DeepSpeed config
_ZERO = ("config_file", "zero_stage", "offload_optimizer_device", "offload_param_device")


def asked() -> Any | None:
    """Accelerate's FSDP2 plugin with the config's values; None where networks stay whole.

    Raises:
        MfdError: the config asks for a strategy, or a setting of FSDP2, that mfd does not have.
    """
    if _on("ACCELERATE_USE_DEEPSPEED"):
        return _zero()
    for variable, name in _STRANGE.items():
        if _on(variable):
            raise MfdError(f"accelerate config: {name}", allowed="plain processes (DDP) or FSDP2", do=_CONFIG)
    if not _on("ACCELERATE_USE_FSDP"):
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise MfdError("accelerate config: FSDP version 1", allowed="fsdp_version: 2", do=_CONFIG)
    from accelerate import FullyShardedDataParallelPlugin

    try:
        plugin = FullyShardedDataParallelPlugin()
    except (ValueError, ImportError) as error:
        raise MfdError(f"accelerate config: {error}", do=_CONFIG) from error
    _refuse_settings(plugin)
    return plugin


@contextlib.contextmanager
def plain_processes() -> Iterator[None]:
    """Has an Accelerator that is made inside the block know of data-parallel processes alone."""
    before = {name: os.environ.get(name) for name in _OURS}
    os.environ.update(_OURS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def require_processes(found: int) -> None:
    """Refuses processes that were launched together and know nothing of each other.

    Args:
        found: number of processes that Accelerate sees.

    Raises:
        MfdError: it is less than the launcher's.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if found < launched:
        raise MfdError(
            f"{launched} processes were launched, and Accelerate sees {found}: there is no GPU for them",
            do="add --device cpu, which has them compute on the CPU",
        )


def sharding(plugin: Any | None, device: torch.device, processes: int) -> Sharding | None:
    """Shards as the config says; None where it does not, or where there is one process.

    Raises:
        MfdError: this torch cannot do it.
    """
    if plugin is None or processes == 1:
        return None
    return Sharding(device, reshard=plugin.reshard_after_forward, parts=lambda network: _parts(plugin, network))


def _parts(plugin: Any, network: nn.Module) -> Any:
    """Which modules the config has gathered by themselves."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    inner = getattr(network, "network", network)  # of a flow map, the velocity network knows its blocks
    try:
        policy = fsdp2_prepare_auto_wrap_policy(plugin, inner)
    except ValueError as error:
        kinds = sorted({type(module).__name__ for module in network.modules()})
        raise MfdError(
            f"accelerate config: fsdp_transformer_layer_cls_to_wrap: {error}", allowed=", ".join(kinds)
        ) from error
    return policy or (lambda module: False)


def _zero() -> Any | None:
    """FSDP2's plugin that shards as the config's ZeRO stage does; None for stage 0."""
    given = {key: os.environ.get(f"ACCELERATE_DEEPSPEED_{key.upper()}", "none").lower() for key in _ZERO}
    if given["config_file"] != "none":
        raise MfdError(
            "accelerate config: deepspeed_config_file, which mfd does not read",
            allowed="deepspeed_config: {zero_stage: 2} or 3 in the accelerate config itself",
        )
    for key in ("offload_optimizer_device", "offload_param_device"):
        if given[key] != "none":
            raise MfdError(
                f"accelerate config: {key}: {given[key]}",
                allowed="none; optim type adamw8bit or student.weights: lora need less memory",
            )
    stage = given["zero_stage"].replace("none", "2")
    if stage not in ("0", "1", "2", "3"):
        raise MfdError(f"accelerate config: zero_stage: {stage}", allowed="0, 1, 2, 3")
    if stage == "0":
        return None
    from accelerate import FullyShardedDataParallelPlugin

    # weights gathered until the step's end are the nearest that FSDP2 has to ZeRO-1 and ZeRO-2
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, reshard_after_forward=stage == "3", auto_wrap_policy="transformer_based_wrap"
    )


def _refuse_settings(plugin: Any) -> None:
    """Raises MfdError for what the config may ask of FSDP2 and mfd decides elsewhere, or not at all."""
    offload = os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true"
    for wrong, key, instead in (
        (offload, "fsdp_offload_params", "false; optim type adamw8bit or student.weights: lora need less memory"),
        (plugin.activation_checkpointing, "fsdp_activation_checkpointing", "false, and train.checkpointing: true"),
    ):
        if wrong:
            raise MfdError(f"accelerate config: {key}: true", allowed=instead)


def _on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes")
