"""Two processes with networks in shards end as one process with whole ones, to rounding."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mfd_cli.errors import Interrupted
from mfd_cli.store.checkpoint import newest_valid
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.tensors import read_tensors
from mfd_cli.training import run as story
from mfd_cli.training.run import distill

SCALE = Path(__file__).parents[2] / "docs" / "scale.md"

#: intervals of unequal length, so that processes need unequal numbers of evaluations, and everything that looks at
#: networks between two updates
BUSY = [
    "method.solver={type: heun, step_size: 0.05}", "student.steps=2", "train.accumulation=2",
    "optim.student.clip=0.1", "evaluate.every=3", "evaluate.quick_num=100", "log.every=4", "guards.unmoved=3",
]  # fmt: skip
ADAPTERS = ["train.updates=2", "train.batch_size=4", "method.aux_updates=2", "log.preview_every=0", "log.preview_num=2"]
CASES = {
    "critic": ("tiny.yaml", ["method.type=dmd2", "train.updates=3"]),
    "aligned": ("tiny.yaml", ["method.type=senseflow", "method.adversarial.omega=one", "train.updates=3"]),
    "flow map, forward mode": ("tiny.yaml", ["method.type=ayf", "method.tangent.warmup=2", "train.updates=3"]),
    "adapters": ("sana-tiny", [*ADAPTERS, "train.checkpointing=true"]),
    "blocks": ("sana-tiny", [*ADAPTERS, "student={weights: full}", "optim.student.lr=1e-4", "optim.aux.lr=1e-4"]),
    "ZeRO-2": ("tiny.yaml", ["train.updates=3"]),
    "ZeRO-3": ("tiny.yaml", ["train.updates=3"]),
}
STOP = 7

#: what each of the two processes does; the first argument is a JSON of the above
SCRIPT = """
import json, os, sys
import torch, teachers.gmm
from accelerate.state import AcceleratorState
from mfd_cli.errors import Interrupted
from mfd_cli.networks.sharding import Sharding, is_sharded
from mfd_cli.training import run as story

torch.set_num_threads(1)
teachers.gmm._FIT_UPDATES = 20
AcceleratorState.destroy_process_group = lambda *_: None  # several runs in one job
busy, cases, stop = json.loads(sys.argv[1])
run, longest, counts, kinds = story.Trainer.run, Sharding.longest, [], {}

def noted(sharding, count):
    counts.append(count)
    return longest(sharding, count)

def kind(network):
    values = list(network.parameters())
    if not values:
        return "none"
    return "shards" if all(map(is_sharded, values)) else "whole" if not any(map(is_sharded, values)) else "mixed"

def begun(trainer, *arguments):
    roles = trainer.roles
    kinds[str(len(kinds))] = [kind(trainer.teacher.network), *(kind(role.network) for role in roles.trained())]
    run(trainer, *arguments)

Sharding.longest, story.Trainer.run = noted, begun
def told(trainer, at_border, _):
    begun(trainer, at_border, lambda: trainer.progress.step >= stop - 1)
story.Trainer.run = told
try:
    story.distill("tiny.yaml", output="begun-in-shards", overrides=busy, device="cpu")
except Interrupted:
    pass
story.Trainer.run = begun
story.distill("tiny.yaml", output="begun-whole", overrides=busy, device="cpu", resume=True)
for name, (recipe, overrides) in cases.items():
    if name.startswith("ZeRO"):  # what `accelerate launch` sets of a DeepSpeed config
        os.environ.pop("ACCELERATE_USE_FSDP", None)
        os.environ.update(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE=name[-1])
    story.distill(recipe, output=f"shards/{name}", overrides=overrides, device="cpu")
with open(f"told-{os.environ['RANK']}.json", "w") as file:
    json.dump({"counts": counts, "kinds": kinds}, file)
torch.distributed.destroy_process_group()
"""


def assert_close(one: RunFolder, two: RunFolder, atol: float = 1e-5) -> None:
    """The last checkpoints hold the same, as far as rounding goes."""
    last, other = (newest_valid(run.checkpoints)[0] for run in (one, two))
    assert last is not None and other is not None and last.path.name == other.path.name
    assert {file.name for file in last.path.iterdir()} == {file.name for file in other.path.iterdir()}
    for file in last.path.glob("*.safetensors"):
        mine, theirs = read_tensors(file), read_tensors(other.path / file.name)
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert value.dtype == theirs[name].dtype, (file.name, name)
            torch.testing.assert_close(
                value, theirs[name], rtol=0, atol=atol, msg=lambda m, f=file, n=name: f"{f} {n} {m}"
            )


def lines(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def stopped(output: str, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = story.Trainer.run

    def told(trainer: Any, at_border: Any, stop: Any) -> None:
        original(trainer, at_border, lambda: trainer.progress.step >= after - 1)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(story.Trainer, "run", told)
        distill("tiny.yaml", output=output, overrides=BUSY)


def config(kind: str) -> dict[str, Any]:
    """The accelerate config of the documentation, for two processes."""
    blocks = SCALE.read_text("utf-8").split("```yaml\n")[1:]
    (found,) = (block.split("```")[0] for block in blocks if f"distributed_type: {kind}" in block)
    return yaml.safe_load(found) | {"num_processes": 2}


def launched(written: dict[str, Any], *arguments: str, env: dict[str, str]) -> None:
    """`accelerate launch` with a config."""
    Path("accelerate.yaml").write_text(yaml.safe_dump(written))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate.yaml", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_shards_are_a_matter_of_memory_alone(alone: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("script.py").write_text(SCRIPT)
    whole = distill("tiny.yaml", output="whole", overrides=BUSY)
    stopped("begun-whole", STOP, monkeypatch)
    launched(config("FSDP") | {"use_cpu": True}, "script.py", json.dumps([BUSY, CASES, STOP]), env=alone)
    # begun in shards by two processes, continued whole by one, and the reverse
    in_shards = RunFolder(Path("begun-in-shards"))
    assert in_shards.read_record()["sharded"] and in_shards.read_record()["processes"] == 2
    distill("tiny.yaml", output="begun-in-shards", overrides=BUSY, resume=True)
    for run in (in_shards, RunFolder(Path("begun-whole"))):
        assert_close(whole, run)
        assert run.read_record()["status"] == "finished"
        for line, other in zip(lines(whole), lines(run), strict=True):
            assert line["update"] == other["update"]
            assert line.keys() == other.keys()
            for name in {"loss", "aux_loss", "grad_norm"} & line.keys():
                assert line[name] == pytest.approx(other[name], rel=1e-3), name
        assert [each.get("quality", {}).get("best") for each in lines(whole)] == [
            each.get("quality", {}).get("best") for each in lines(run)
        ]
    for name, (recipe, overrides) in CASES.items():
        assert_close(distill(recipe, output=f"one/{name}", overrides=overrides), RunFolder(Path("shards") / name), 1e-4)
    first, second = (json.loads(Path(f"told-{rank}.json").read_text()) for rank in (0, 1))
    assert any(mine != theirs for mine, theirs in zip(first["counts"], second["counts"], strict=True))
    assert first["kinds"] == second["kinds"]
    begun, resumed, critic, *_, adapters, blocks, second_stage, third_stage = first["kinds"].values()
    mixture = ["none", "shards", "shards"]  # the exact teacher has no parameters
    assert begun == resumed == second_stage == third_stage == mixture
    assert critic == ["none", "shards", "shards", "whole"]
    assert adapters == ["mixed", "whole", "whole"], "the base in shards, adapters on every process"
    assert blocks == ["shards", "shards", "shards"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_s_own_launch_trains_in_shards(
    stage: int, alone: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = ["train.updates=3", "train.batch_size=16", "evaluate.num=0", "log.preview_every=0"]
    launched(
        config("DEEPSPEED") | {"deepspeed_config": {"zero_stage": stage}},
        "-m", "mfd_cli", "distill", "digits", "-o", "shards", "--device", "cpu",
        *(part for text in plain for part in ("--set", text)),
        env=alone | {"DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
    in_shards = RunFolder(Path("shards"))
    assert in_shards.read_record()["sharded"] and in_shards.read_record()["processes"] == 2
    assert_close(distill("digits", output="one", overrides=plain, device="cpu"), in_shards, 1e-4)
