"""How much memory adapters need beyond the frozen base and one batch's activations.

    python benchmarks/lora_memory.py [--model mfd/sana-small medium] [--ranks 8 16 64] [--batch 4] [--resolution 256]
                                     [--set key=value]... [--json PATH] [--plot PATH] [--quick]

Base in bfloat16, adapters of student, auxiliary and average in float32, AdamW; with and without checkpointing:

    cycle        peak while auxiliary and student are updated once each, moments and all, in the second cycle
    activations  peak of one forward and backward pass of one adapter at that batch, less what was held before it
    ratio        (cycle - activations) / bytes of the base                                        limit: 1.25

On a CPU memory is counted tensor by tensor: every storage that an operation takes or gives is followed until nothing
holds it, so neither the allocator nor libraries blur the figure; what a kernel needs inside itself is not seen. On CUDA
it is the largest memory allocated. `medium` is a SANA of 0.1 billion parameters with random weights, made on the spot.

The adapters' share falls with the width of the network, so small models say little about large ones. Counted
parameters do: the second table gives the same ratio, without activations, for a published model.
"""

from __future__ import annotations

import gc
import json
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from workbench import check_targets, deliver, machine, options, run

from mfd_cli import console
from mfd_cli.config.load import load_recipe
from mfd_cli.networks.lora import base_state
from mfd_cli.training.trainer import Trainer
from mfd_cli.training.workshop import Workshop, build
from teachers.pipelines.sana import SanaSettings, SanaTeacher

LIMIT = 1.25
PUBLISHED = "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"
MEDIUM = "medium"
#: what `medium` changes in the transformer of mfd/sana-small
_MEDIUM = {
    "num_attention_heads": 20, "attention_head_dim": 32, "num_cross_attention_heads": 10,
    "cross_attention_head_dim": 64, "cross_attention_dim": 640, "num_layers": 15,
}  # fmt: skip
#: bytes of both moments of one parameter
MOMENTS = {"adamw": 8, "adamw8bit": 2}
_ADAPTER = 4  # bytes of a parameter of an adapter, and of its gradient


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, from the first time an operation takes or gives them.

    Attributes:
        held: bytes alive now.
        peak: largest `held` since `restart`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: set[int] = set()

    def restart(self) -> None:
        """Starts a new peak at what is held now."""
        gc.collect()
        self.peak = self.held

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Takes up tensors that were made before."""
        for tensor in tensors:
            self._follow(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and takes up what it took and gave."""
        found = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, found)):
            if isinstance(value, Tensor):
                self._follow(value)
        return found

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        number, size = storage._cdata, storage.nbytes()
        if number in self._known or tensor.device.type == "meta":
            return
        self._known.add(number)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._forget, number, size).atexit = False

    def _forget(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.held -= size


class Meter:
    """Peak memory of a piece of work, on a CPU or a CUDA device.

    Args:
        device: where the work is done.
        held: networks whose weights are there already.
    """

    def __init__(self, device: torch.device, held: Sequence[nn.Module]) -> None:
        self._cuda, self._memory = device.type == "cuda", TensorMemory()
        for network in held:
            self._memory.hold([*network.parameters(), *network.buffers()])

    def peak(self, work: Callable[[], Any]) -> tuple[int, int]:
        """Bytes held before the work, and the largest while it was done."""
        if self._cuda:
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            work()
            torch.cuda.synchronize()
            return before, torch.cuda.max_memory_allocated()
        self._memory.restart()
        before = self._memory.held
        with self._memory:
            work()
        return before, self._memory.peak


def measure(model: str, rank: int, checkpointing: bool, args: Any) -> dict[str, Any]:
    """Peak of a cycle, activations of a batch, and their ratio to the base, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        name = str(medium(Path(folder))) if model == MEDIUM else model
        settings = [
            f"teacher.model={name}", "teacher.dtype=bf16", f"teacher.resolution={args.resolution}",
            f"student.lora.rank={rank}", f"train.batch_size={args.batch}", "method.aux_updates=1",
            f"train.checkpointing={str(checkpointing).lower()}", "train.precision=bf16",
            "method.solver={type: euler, step_size: 0.5}", *args.overrides,
        ]  # fmt: skip
        workshop = build(load_recipe("sana-tiny", settings), args.device, random_weights=True)
    trainer = workshop.trainer()
    roles, network = workshop.roles, workshop.teacher.network
    assert network is not None
    meter = Meter(workshop.accelerator.device, [network])
    before, peak = meter.peak(lambda: one_pass(workshop))
    roles.auxiliary.optimizer.zero_grad(set_to_none=True)
    activations = peak - before
    meter.peak(lambda: cycle(trainer))  # makes the moments, seen by the meter
    _, whole = meter.peak(lambda: cycle(trainer))
    adapter = sum(value.numel() for value in roles.student.parameters)
    base = sum(value.nbytes for value in base_state(network).values())
    return {
        "model": model, "rank": rank, "checkpointing": checkpointing, "batch": args.batch, "base": base,
        "parameters": base // 2, "adapter_parameters": adapter, "activations": activations, "cycle": whole,
        "ratio": (whole - activations) / base,
        "predicted": ratio_of(base, adapter, workshop.recipe.optim.student.type, workshop.recipe.train.ema is not None),
    }  # fmt: skip


def one_pass(workshop: Workshop) -> None:
    """Forward and backward pass of the auxiliary at the recipe's batch."""
    teacher = workshop.teacher
    random, condition = workshop.batches.stream(0, 0), workshop.batches.condition(0, 0)
    x, t = random.normal("z", teacher.sample_shape), random.uniform("t")
    with workshop.accelerator.autocast():
        loss = teacher.velocity(workshop.roles.auxiliary.network, x, t, condition).float().square().mean()
    loss.backward()


def cycle(trainer: Trainer) -> None:
    """One update of each network."""
    for _ in range(trainer.schedule.cycle):
        trainer.step()


def medium(folder: Path) -> Path:
    """Writes the configuration of a SANA of 0.1 billion parameters, without weights."""
    from teachers.pipelines.loading import locate

    source = locate("mfd/sana-small")
    for path in source.folder.rglob("*.json"):
        content = json.loads(path.read_text("utf-8"))
        relative = path.relative_to(source.folder)
        if relative.parts[0] == "transformer":
            content |= _MEDIUM
        (folder / relative).parent.mkdir(parents=True, exist_ok=True)
        (folder / relative).write_text(json.dumps(content), encoding="utf-8")
    return folder


def ratio_of(base: int, adapter: int, optimizer: str, average: bool) -> float:
    """(base + adapters + moments + gradient) / base: what is there besides activations.

    Args:
        base: bytes of the base.
        adapter: parameters of one adapter.
        optimizer: a key of MOMENTS.
        average: whether the student is averaged, which takes a third adapter.
    """
    copies = (2 + average) * _ADAPTER + _ADAPTER + 2 * MOMENTS[optimizer]  # one gradient at a time
    return 1 + adapter * copies / base


def counted(model: str, rank: int) -> tuple[int, int]:
    """Bytes of a published model's transformer in bfloat16, and parameters of one adapter; nothing is allocated."""
    settings = SanaSettings(type="sana", model=model)
    architecture = SanaTeacher.published(settings)
    assert architecture is not None, f"{model} is not a published SANA"
    with torch.device("meta"):
        network = SanaTeacher(settings, architecture).build_network()
    adapter = sum(
        rank * (layer.in_features + layer.out_features)
        for path, layer in network.named_modules()
        if path.rpartition(".")[2] in SanaTeacher.lora_targets and isinstance(layer, nn.Linear)
    )
    return 2 * sum(value.numel() for value in network.parameters()), adapter


def arithmetic(model: str, ranks: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The ratio by rank, optimizer and averaging for a published model."""
    for rank in ranks:
        base, adapter = counted(model, rank)
        for optimizer in MOMENTS:
            for average in (True, False):
                yield {
                    "model": model, "rank": rank, "optimizer": optimizer, "average": average, "base": base,
                    "adapter_parameters": adapter, "ratio": ratio_of(base, adapter, optimizer, average),
                }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes; returns the report."""
    parser = options(__doc__)
    parser.add_argument("--model", nargs="+", default=["mfd/sana-small", MEDIUM], help="pipelines, or medium")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 64], help="widths of adapters")
    parser.add_argument("--batch", type=int, default=4, help="samples of an update (default: 4)")
    parser.add_argument("--resolution", type=int, default=256, help="pixels a side (default: 256)")
    args = parser.parse_args(arguments)
    check_targets(args)
    if args.quick:
        args.model, args.ranks, args.batch, args.resolution = ["mfd/sana-tiny"], args.ranks[:1], 2, 64
    rows = [
        measure(model, rank, checkpointing, args)
        for model in args.model
        for rank in args.ranks
        for checkpointing in (False, True)
    ]
    sampler = build(load_recipe("sana-tiny"), args.device, random_weights=True).samplers()[1]
    report = {
        "schema": 1, **machine(sampler), "limit": LIMIT, "resolution": args.resolution, "measured": rows,
        "counted": list(arithmetic(PUBLISHED, (8, 16, 32, 64, 128))),
    }  # fmt: skip
    _print(report)
    return deliver(report, args, lambda figure: _draw(figure, report))


def _print(report: dict[str, Any]) -> None:
    console.table(
        f"memory of a cycle at {report['resolution']} pixels, base bfloat16, adapters float32",
        ["model", "base MB", "rank", "checkpointing", "batch", "cycle MB", "activations MB", "ratio", "counted"],
        [
            [
                row["model"], row["base"] / 1e6, row["rank"], "yes" if row["checkpointing"] else "no", row["batch"],
                row["cycle"] / 1e6, row["activations"] / 1e6, f"{row['ratio']:.3f}", f"{row['predicted']:.3f}",
            ]
            for row in report["measured"]
        ],
    )  # fmt: skip
    console.table(
        f"{PUBLISHED}, from counted parameters",
        ["rank", "adapter, million", "optimizer", "average", "ratio", f"within {LIMIT:g}"],
        [
            [
                row["rank"], row["adapter_parameters"] / 1e6, row["optimizer"], "yes" if row["average"] else "no",
                f"{row['ratio']:.3f}", "yes" if row["ratio"] <= LIMIT else "NO",
            ]
            for row in report["counted"]
        ],
    )  # fmt: skip


def _draw(figure: Figure, report: dict[str, Any]) -> None:
    axes = figure.subplots()
    for optimizer in MOMENTS:
        rows = [row for row in report["counted"] if row["optimizer"] == optimizer and row["average"]]
        axes.plot([row["rank"] for row in rows], [row["ratio"] for row in rows], "o-", label=f"{optimizer}, averaged")
    axes.axhline(report["limit"], color="black", linestyle="--", linewidth=1)
    axes.set_xlabel("rank")
    axes.set_ylabel("without activations, over the base's bytes")
    axes.legend()


if __name__ == "__main__":
    run(main)
