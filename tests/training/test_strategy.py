"""What an accelerate config may ask for, and what of it is refused."""

from __future__ import annotations

import os

import pytest
import torch

from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError
from mfd_cli.training import strategy
from mfd_cli.training.preflight import refuse_sharded
from mfd_cli.training.rehearsal import rehearse
from mfd_cli.training.run import distill
from teachers.networks.dit import DiT

ZERO = {"ACCELERATE_USE_DEEPSPEED": "true"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.delenv(name)
    return monkeypatch


def setting(config: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        config.setenv(name, value)


def test_without_a_config_networks_stay_whole(config: pytest.MonkeyPatch) -> None:
    assert strategy.asked() is None
    assert strategy.sharding(None, torch.device("cpu"), 4) is None


@pytest.mark.parametrize(
    ("values", "found", "allowed"),
    [
        ({**ZERO, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "deepspeed_config_file", "zero_stage: 2"),
        ({**ZERO, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, "offload_param_device: cpu", "none;"),
        ({**ZERO, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "nvme"}, "offload_optimizer_device: nvme", "none;"),
        ({**ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "4"}, "zero_stage: 4", "0, 1, 2, 3"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM", "FSDP2"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "a parallelism config", "FSDP2"),
        ({**FSDP, "FSDP_VERSION": "1"}, "FSDP version 1", "fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1", "fsdp_version: 2"),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params", "adamw8bit or student.weights: lora"),
        ({**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "fsdp_activation_checkpointing", "train.checkpointing"),
        ({**FSDP, "FSDP_AUTO_WRAP_POLICY": "SOME"}, "Invalid auto wrap policy: SOME", ""),
    ],
)
def test_what_mfd_does_not_have_is_refused(
    values: dict[str, str], found: str, allowed: str, config: pytest.MonkeyPatch
) -> None:
    setting(config, **values)
    with pytest.raises(MfdError) as caught:
        strategy.asked()
    assert found in caught.value.found and allowed in (caught.value.allowed or "")
    assert caught.value.exit_code == 2


@pytest.mark.usefixtures("tiny")
def test_a_refused_config_writes_nothing(config: pytest.MonkeyPatch, tiny: os.PathLike[str]) -> None:
    setting(config, ACCELERATE_USE_MEGATRON_LM="true")
    with pytest.raises(MfdError, match="Megatron-LM"):
        distill("tiny.yaml")
    assert os.listdir() == ["tiny.yaml"]


@pytest.mark.parametrize(("stage", "reshard"), [(None, False), ("1", False), ("2", False), ("3", True)])
def test_a_zero_stage_is_shards_by_fsdp2(stage: str | None, reshard: bool, config: pytest.MonkeyPatch) -> None:
    setting(config, **ZERO, **({} if stage is None else {"ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}))
    plugin = strategy.asked()
    assert plugin is not None and plugin.fsdp_version == 2 and plugin.reshard_after_forward is reshard
    with strategy.plain_processes():
        assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "false"
    assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"


def test_zero_stage_0_is_whole_networks(config: pytest.MonkeyPatch) -> None:
    setting(config, **ZERO, ACCELERATE_DEEPSPEED_ZERO_STAGE="0")
    assert strategy.asked() is None


@pytest.mark.usefixtures("tiny")
def test_one_process_has_nothing_to_share(config: pytest.MonkeyPatch) -> None:
    setting(config, **FSDP)
    run = distill("tiny.yaml", overrides=["train.updates=1"])
    assert run.read_record()["sharded"] is False


def small() -> DiT:
    return DiT(image_size=4, channels=1, num_classes=2, patch_size=2, width=8, depth=2, heads=2)


@pytest.mark.parametrize(
    ("values", "wrapped"),
    [
        ({}, set()),
        ({"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block"}, {"Block"}),
        ({"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}, set()),  # a network that names none itself
    ],
)
def test_parts_are_those_that_the_config_names(
    values: dict[str, str], wrapped: set[str], config: pytest.MonkeyPatch
) -> None:
    setting(config, **FSDP, **values)
    network = small()
    chosen = strategy._parts(strategy.asked(), network)
    assert {type(module).__name__ for module in network.modules() if chosen(module)} == wrapped


def test_a_class_that_is_not_there_is_told_with_those_that_are(config: pytest.MonkeyPatch) -> None:
    setting(config, **FSDP, FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP", FSDP_TRANSFORMER_CLS_TO_WRAP="Blok")
    with pytest.raises(MfdError, match="Blok") as caught:
        strategy._parts(strategy.asked(), small())
    assert "Block" in str(caught.value.allowed)


def test_accelerate_hears_of_plain_processes_alone(config: pytest.MonkeyPatch) -> None:
    setting(config, ACCELERATE_USE_FSDP="true")
    with strategy.plain_processes():
        assert os.environ["ACCELERATE_USE_FSDP"] == "false"
        # else Accelerate would divide every loss by its config's number
        assert os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "1"
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" not in os.environ


def test_processes_that_do_not_see_each_other_are_refused(config: pytest.MonkeyPatch) -> None:
    strategy.require_processes(1)
    config.setenv("WORLD_SIZE", "2")
    strategy.require_processes(2)
    with pytest.raises(MfdError, match="2 processes were launched, and Accelerate sees 1"):
        strategy.require_processes(1)


@pytest.mark.usefixtures("tiny")
def test_a_dry_run_measures_no_shards(config: pytest.MonkeyPatch) -> None:
    setting(config, **FSDP)
    with pytest.raises(MfdError, match="--dry-run with an accelerate config of shards"):
        rehearse(load_recipe("tiny.yaml"), "cpu")


@pytest.mark.usefixtures("tiny")
def test_moments_in_blocks_are_not_sharded() -> None:
    refuse_sharded(load_recipe("tiny.yaml").recipe)
    with pytest.raises(MfdError, match=r"optim\.aux\.type adamw8bit"):
        refuse_sharded(load_recipe("tiny.yaml", ["optim.aux.type=adamw8bit"]).recipe)
