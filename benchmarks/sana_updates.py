"""What an update of a SANA student costs, against the published script's way of computing the same update.

    python benchmarks/sana_updates.py [--model mfd/sana-tiny mfd/sana-small] [--resolution 256] [--batch 16]
                                      [--rounds 7] [--decode] [--set key=value]... [--json PATH] [--quick]

The published script (happyw1nd/MFD, `train_sana_mfd.py`) works on one sample at a time. Every update encodes its prompt
and the empty one, by two calls of the pipeline's `encode_prompt`, each of which encodes the negative prompt as well:
four passes of the text encoder, padded to 300 tokens that all attention layers then read. Auxiliary and guided teacher
are integrated one after the other, adapters are switched layer by layer, and the optimizer steps once a sample.
`Published` does that work again in plain PyTorch, diffusers and peft, without the script's printing, logging and
rounding of times; mfd does the same updates for a batch by its own `Trainer`.

Both get the same prompts, noise, times, base, adapters, Euler step size and student (one step), so both make the same
network evaluations for a sample, which is checked: the gain is what is left out or done together, not a cheaper solver.
They take turns, sample for sample of the same batch. The pipelines that mfd builds make a token of each character,
where Gemma makes one of four or five; so prompts are cut to a third of their characters (`--whole-prompts`: not), which
still leaves more tokens than Gemma would make of the whole.

    ratio = seconds of the published way / seconds of mfd, for the samples of one batch       median (p10 - p90)

`--decode` times what the script's first process does besides in every student update: an image decoded and written.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from loop_overhead import CLOCKS, _waiting, breakdown
from matplotlib.figure import Figure
from torch import Tensor
from workbench import check_targets, deliver, machine, options, run, trainer_of

from mfd_cli import console
from mfd_cli.config.load import load_recipe
from mfd_cli.methods.times import intervals
from mfd_cli.networks.roles import Role
from mfd_cli.seeds import order
from mfd_cli.training.trainer import Trainer
from mfd_cli.training.workshop import Workshop

MODELS = ("mfd/sana-tiny", "mfd/sana-small")
#: least ratios that mfd is meant to reach, by model
TARGETS = {"mfd/sana-tiny": 5.0, "mfd/sana-small": 2.5}
KINDS = ("auxiliary", "student")

#: the published script's settings
STEP_SIZE = 0.02
TEXT_LENGTH = 300
NOISIEST = 999.0  # label of pure noise


@dataclass(frozen=True)
class Sample:
    """One row of a batch, in mfd's convention: noise [1, C, h, w], times [1]; an auxiliary update has no `end`."""

    prompt: str
    latent: Tensor
    noise: Tensor
    start: Tensor
    end: Tensor | None = None


@dataclass
class Published:
    """The published script's updates of one sample, on a pipeline of diffusers.

    Attributes:
        pipeline: a `SanaPipeline` with the adapters "default" (student) and "aux" on its transformer.
        optimizers: of the adapters.
        guidance: the teacher's scale.
        evaluations: rows evaluated so far.
    """

    pipeline: Any
    optimizers: dict[str, torch.optim.Optimizer]
    guidance: float
    evaluations: int = 0

    @classmethod
    def like(cls, workshop: Workshop) -> Published:
        """The same base, adapters, targets and learning rates as a workshop's, before its first step."""
        from diffusers import SanaPipeline
        from peft import LoraConfig

        from teachers.pipelines.quiet import quiet

        teacher, roles = workshop.teacher, workshop.roles
        settings: Any = teacher.settings
        lora = workshop.recipe.student.adapters
        with quiet():
            pipeline = SanaPipeline.from_pretrained(teacher.source.folder, use_safetensors=True)  # type: ignore[attr-defined]
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(workshop.accelerator.device)
        transformer = pipeline.transformer.requires_grad_(False)
        config = LoraConfig(
            r=lora.rank, lora_alpha=lora.scale_alpha, target_modules=lora.targets or list(teacher.lora_targets),
            init_lora_weights="gaussian",
        )  # fmt: skip
        optimizers: dict[str, torch.optim.Optimizer] = {}
        for name, role in (("default", roles.student), ("aux", roles.auxiliary)):
            transformer.add_adapter(config, adapter_name=name)
            _copy_adapter(role, transformer, name)
            trained = [value for value in transformer.parameters() if value.requires_grad]
            optimizers[name] = torch.optim.AdamW(trained, lr=role.settings.lr, weight_decay=1e-4)
        return cls(pipeline, optimizers, settings.guidance)

    def update(self, kind: str, sample: Sample) -> None:
        """One step of an optimizer, on one sample."""
        gradient, name = {
            "auxiliary": (self.auxiliary_gradient, "aux"), "student": (self.student_gradient, "default")
        }[kind]  # fmt: skip
        gradient(sample)
        optimizer = self.optimizers[name]
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def auxiliary_gradient(self, sample: Sample) -> Tensor:
        """Adds the gradient of mean (N(x, 1000 sigma) - (e - Z))^2 to the auxiliary's, and returns the loss."""
        text, _ = self._encoded(sample.prompt)
        transformer = self.pipeline.transformer
        transformer.set_adapter("default")
        with torch.no_grad():
            data = self.generate(sample.latent, text)
        sigma = 1 - sample.start.view(-1, 1, 1, 1)
        transformer.set_adapter("aux")
        predicted = self._network((1 - sigma) * data + sigma * sample.noise, sigma, text)
        loss = (predicted - (sample.noise - data)).square().mean()
        loss.backward()
        return loss

    def student_gradient(self, sample: Sample) -> Tensor:
        """Adds the gradient of mean (sg(U_teacher - U_aux) x) to the student's, and returns the loss."""
        text, null = self._encoded(sample.prompt)
        transformer = self.pipeline.transformer
        transformer.set_adapter("default")
        data = self.generate(sample.latent, text)
        assert sample.end is not None
        first, last = 1 - sample.start.view(-1, 1, 1, 1), 1 - sample.end.view(-1, 1, 1, 1)
        point = (1 - first) * data + first * sample.noise
        pair = tuple(torch.cat(parts) for parts in zip(null, text, strict=True))
        with torch.no_grad():
            transformer.set_adapter("aux")
            auxiliary = _average(lambda x, sigma: self._network(x, sigma, text), point, first, last)
            transformer.disable_adapters()
            teacher = _average(lambda x, sigma: self._guided(x, sigma, pair), point, first, last)
            transformer.enable_adapters()
        transformer.set_adapter("default")  # its gradients are turned off while another adapter is on
        loss = ((teacher - auxiliary) * point).mean()
        loss.backward()
        return loss

    def generate(self, latent: Tensor, text: tuple[Tensor, Tensor]) -> Tensor:
        """The one-step student's sample, by the adapter that is active."""
        sigma = torch.full((len(latent), 1, 1, 1), NOISIEST / 1000, device=latent.device)
        return latent - self._network(latent, sigma, text)

    @torch.no_grad()
    def write_image(self, sample: Sample, path: Path) -> None:
        """What the first process does besides: decodes the student's sample and writes a PNG."""
        from PIL import Image

        vae = self.pipeline.vae
        image = vae.decode(sample.latent / vae.config.scaling_factor, return_dict=False)[0][0]
        pixels = (image / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
        Image.fromarray(pixels.cpu().numpy()).save(path)

    def _encoded(self, prompt: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Embeddings and masks of the prompt and of the empty one; each call also encodes a negative prompt."""
        with torch.no_grad():
            found = [
                self.pipeline.encode_prompt(one, device=self.pipeline.device, max_sequence_length=TEXT_LENGTH)[:2]
                for one in (prompt, "")
            ]
        return found[0], found[1]

    def _guided(self, x: Tensor, sigma: Tensor, pair: tuple[Tensor, ...]) -> Tensor:
        both = self._network(torch.cat([x, x]), torch.cat([sigma, sigma]), pair)
        unconditional, conditional = both.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def _network(self, x: Tensor, sigma: Tensor, text: tuple[Tensor, ...]) -> Tensor:
        self.evaluations += len(x)
        return self.pipeline.transformer(
            x, encoder_hidden_states=text[0], encoder_attention_mask=text[1], timestep=1000 * sigma.flatten(),
            return_dict=False,
        )[0]  # fmt: skip


def _average(network: Callable[[Tensor, Tensor], Tensor], x: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """(x_first - x_last) / (first - last) by Euler steps from the noisier sigma `first` down to `last`."""
    steps = max(1, int(torch.ceil((first - last) / STEP_SIZE)))
    times = [first + (last - first) * step / steps for step in range(steps + 1)]
    state = x
    for here, there in itertools.pairwise(times):
        state = state - (here - there) * network(state, here)
    return (x - state) / (first - last)


def _copy_adapter(role: Role, transformer: Any, name: str) -> None:
    """Gives peft's adapter the weights that mfd's has."""
    there = dict(transformer.named_parameters())
    with torch.no_grad():
        for path, value in role.network.named_parameters():
            there[path.replace(".weight", f".{name}.weight")].copy_(value)


def samples_of(trainer: Trainer) -> list[Sample]:
    """What the trainer's next step is computed from, row by row."""
    step, batches = trainer.progress.step, trainer.batches
    assert batches.data.size is not None
    random = batches.stream(step, 0)
    items = order(batches.seed, batches.data.size, step * batches.batch_size, batches.rows)
    prompts = batches.data._prompts.texts(items.tolist())  # type: ignore[attr-defined]
    latent, noise = (random.normal(name, trainer.teacher.sample_shape) for name in ("z", "x0"))
    ends: Sequence[Tensor | None]
    if trainer.is_student:
        start, end = intervals(random, trainer.method.settings.times)
        ends = end.split(1)
    else:
        start, ends = random.uniform("t"), [None] * len(prompts)
    return [
        Sample(*row) for row in zip(prompts, latent.split(1), noise.split(1), start.split(1), ends, strict=True)
    ]  # fmt: skip


@dataclass
class Tally:
    """Seconds and evaluations of one kind of update, round by round."""

    mfd: list[float] = field(default_factory=list)
    published: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    evaluations: tuple[int, int] = (0, 0)

    def summary(self, batch: int) -> dict[str, Any]:
        """Samples a second, the ratio's median and percentiles, evaluations a sample."""
        rounds = len(self.mfd)
        found = {
            "mfd_samples_per_second": batch / statistics.median(self.mfd),
            "published_samples_per_second": batch / statistics.median(self.published),
            "ratio": _spread(a / b for a, b in zip(self.published, self.mfd, strict=True)),
            "mfd_evaluations_per_sample": self.evaluations[0] / (rounds * batch),
            "published_evaluations_per_sample": self.evaluations[1] / (rounds * batch),
        }
        if self.decode:
            both = zip(self.published, self.decode, self.mfd, strict=True)
            found["decode_ms_per_sample"] = 1000 * statistics.median(self.decode) / batch
            found["ratio_with_decode"] = _spread((a + d) / b for a, d, b in both)
        return found


def _cut_prompts(folder: str) -> Path:
    """A file of the shipped prompts, the first third of each."""
    whole = (files("teachers.assets.prompts") / "everyday.txt").read_text("utf-8").splitlines()
    path = Path(folder) / "prompts.txt"
    path.write_text("\n".join(prompt[: len(prompt) // 3] for prompt in whole), encoding="utf-8")
    return path


def _spread(values: Iterator[float]) -> dict[str, float]:
    quantiles = torch.tensor(list(values), dtype=torch.float64).quantile(
        torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    )
    return dict(zip(("p10", "median", "p90"), quantiles.tolist(), strict=True))


def compare(
    trainer: Trainer, published: Published, rounds: int, clock: Callable[[], float], images: Path | None = None
) -> dict[str, Tally]:
    """Cycles of both, the same samples in turns, after a first cycle that is not counted.

    Raises:
        RuntimeError: they made different numbers of network evaluations.
    """
    measured = _waiting(clock, trainer.accelerator.device)
    tallies = {kind: Tally() for kind in KINDS}
    for index in range((rounds + 1) * trainer.schedule.cycle):
        kind = KINDS[trainer.is_student]
        samples = samples_of(trainer)
        before = sum(trainer.snapshot().evaluations.values()), published.evaluations

        def rows(kind: str = kind, samples: list[Sample] = samples) -> None:
            for sample in samples:
                published.update(kind, sample)

        jobs: dict[str, Callable[[], Any]] = {"mfd": trainer.step, "published": rows}
        turns = list(jobs) if index // trainer.schedule.cycle % 2 else list(jobs)[::-1]
        seconds = {name: measured(jobs[name]) for name in turns}
        mine = sum(trainer.snapshot().evaluations.values()) - before[0]
        theirs = published.evaluations - before[1]
        if mine != theirs:
            raise RuntimeError(f"{kind} update: mfd made {mine} evaluations, the published way {theirs}")
        if index < trainer.schedule.cycle:
            continue
        tally = tallies[kind]
        tally.mfd.append(seconds["mfd"])
        tally.published.append(seconds["published"])
        tally.evaluations = tally.evaluations[0] + mine, tally.evaluations[1] + theirs
        if images is not None and kind == "student":
            target = images / "sample.png"
            tally.decode.append(measured(lambda s=samples, p=target: [published.write_image(one, p) for one in s]))
    return tallies


def measure(model: str, args: Any) -> dict[str, Any]:
    """Figures of one model."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = [] if args.whole_prompts else [f"data.path={_cut_prompts(folder)}"]
        settings = [
            f"teacher.model={model}", f"teacher.resolution={args.resolution}", "teacher.instruction=false",
            f"train.batch_size={args.batch}", "method.aux_updates=1",
            f"method.solver={{type: euler, step_size: {STEP_SIZE}}}", f"data.cache={folder}", *prompts, *args.overrides,
        ]  # fmt: skip
        workshop, trainer = trainer_of(load_recipe("sana-tiny", settings), args.device)
        workshop.data.prepare(lambda done, of: None)
        where = machine(workshop.samplers()[1])
        published = Published.like(workshop)
        tallies = compare(trainer, published, args.rounds, CLOCKS[args.clock], Path(folder) if args.decode else None)
        parts = breakdown(trainer, 2 * trainer.schedule.cycle, CLOCKS[args.clock])
    return {
        "model": model, **where, "resolution": args.resolution, "batch": args.batch, "rounds": args.rounds,
        "rank": workshop.recipe.student.adapters.rank, "target": TARGETS.get(model),
        "updates": {kind: tally.summary(args.batch) for kind, tally in tallies.items()},
        "breakdown_ms_per_cycle": parts,
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and writes; returns the report."""
    parser = options(__doc__)
    parser.add_argument("--model", nargs="+", default=list(MODELS), help="pipelines (default: both that mfd builds)")
    parser.add_argument("--resolution", type=int, default=256, help="pixels a side (default: 256)")
    parser.add_argument("--batch", type=int, default=32, help="mfd's batch (default: 32)")
    parser.add_argument("--rounds", type=int, default=4, help="batches timed of each kind of update (default: 4)")
    parser.add_argument("--decode", action="store_true", help="also time decoding and writing an image a sample")
    parser.add_argument("--whole-prompts", action="store_true", help="as they are: as many tokens as characters")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall or CPU time (default: wall)")
    args = parser.parse_args(arguments)
    check_targets(args)
    if args.quick:
        args.model, args.resolution, args.batch, args.rounds = args.model[:1], 64, 2, 1
    models = [measure(model, args) for model in args.model]
    for found in models:
        _print(found)
    report = {"schema": 1, "clock": args.clock, "models": models}
    return deliver(report, args, lambda figure: _draw(figure, report))


def _print(found: dict[str, Any]) -> None:
    rows = []
    for kind, row in found["updates"].items():
        decoded = row.get("ratio_with_decode")
        rows.append([
            kind, row["published_samples_per_second"], row["mfd_samples_per_second"], _shown(row["ratio"]),
            _shown(decoded) if decoded else None, row["published_evaluations_per_sample"],
            row["mfd_evaluations_per_sample"],
        ])  # fmt: skip
    console.table(
        f"{found['model']} at {found['resolution']} pixels, LoRA rank {found['rank']}: one by one against batch "
        f"{found['batch']}, {found['rounds']} rounds",
        [
            "update",
            "published, samples/s",
            "mfd, samples/s",
            "ratio (p10 - p90)",
            "with decode",
            "evaluations",
            "mfd's",
        ],
        rows,
    )  # fmt: skip
    if found["target"] is not None:
        ratio = found["updates"]["student"]["ratio"]["median"]
        verdict = "reached" if ratio >= found["target"] else "MISSED"
        console.out.print(f"student update: {ratio:.2f} times, target of {found['target']:g} {verdict}\n")


def _shown(spread: dict[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['p10']:.2f} - {spread['p90']:.2f})"


def _draw(figure: Figure, report: dict[str, Any]) -> None:
    models = report["models"]
    for axes, kind in zip(figure.subplots(1, 2), KINDS, strict=True):
        found = [row["updates"][kind]["ratio"] for row in models]
        spread = [[r["median"] - r["p10"] for r in found], [r["p90"] - r["median"] for r in found]]
        axes.bar([row["model"] for row in models], [r["median"] for r in found], yerr=spread, capsize=4)
        axes.set_title(f"{kind} update")
        axes.set_ylabel("published way / mfd, seconds a sample")


if __name__ == "__main__":
    run(main)
