"""Students of diffusers' families as folders that plain diffusers opens: a LoRA, or a complete pipeline.

A folder is made under a hidden name, and sampled from by a process that cannot import mfd: once from the student's own
embeddings, which has to agree as closely as the stored weights do, and once from the prompts, where the text encoder's
rounding comes on top. Only then does it get its name. So an export that exists has passed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mfd_cli.config.schema import Lora
from mfd_cli.errors import MfdError
from mfd_cli.inference.card import CARD, pipeline_card
from mfd_cli.inference.export_folders import aside, computing_in_float32, is_present
from mfd_cli.inference.exporters import Export, cast_weights, export_config
from mfd_cli.inference.fresh import failed, run_fresh
from mfd_cli.inference.sampler import Sampler, precision
from mfd_cli.networks.lora import base_state, merged
from mfd_cli.store.files import sha256, write_bytes, write_json
from mfd_cli.store.student import fingerprint
from mfd_cli.store.tensors import read_tensors, write_tensors
from teachers.base import Teacher
from teachers.pipelines import saving, usage
from teachers.pipelines.base import PipelineTeacher
from teachers.prompts.contract import EXAMPLES

#: largest root-mean-square difference of latents, relative to their standard deviation, by the roundest type involved
TOLERANCE = {"fp32": 1e-4, "fp16": 0.01, "bf16": 0.05}

_SEED, _CHECK_SECONDS = 0, 7200


@dataclass(frozen=True)
class _Parts:
    """What an export is made of: the base, the adapter if it has one, the steps, the header of the card."""

    teacher: PipelineTeacher
    lora: Lora | None
    schedule: saving.Schedule
    config: dict[str, Any]
    dtype: str


def export_pipeline(
    student: Sampler, folder: Path, kind: str, *, dtype: str = "fp32", benchmark: Mapping[str, Any] | None = None
) -> Export:
    """Writes a folder for diffusers.

    Args:
        student: a loaded student on the CPU, of a family for which `refusal` has nothing against `kind`.
        folder: where to; must not exist, be empty, or hold this very export.
        kind: "lora": the adapter and its scheduler; "diffusers": everything, an adapter merged in.
        dtype: type of the stored weights, fp32, bf16 or fp16.
        benchmark: report of `mfd benchmark` for the card's figures.

    Raises:
        MfdError: the folder holds something else, or the weights do not fit the type.
        RunStopped: no space; or plain diffusers did not give the student's latents, and the folder was not kept.
    """
    parts = _parts(student, dtype)
    content = _content(student, parts, kind)
    present = is_present(folder, content)
    with computing_in_float32(parts.teacher.network):
        if present:
            return _described(folder, student, parts, kind, content, benchmark, already_there=True)
        weights = _weights(student, parts, kind)
        with aside(folder, _needed(parts, weights, kind)) as fresh:
            if kind == "lora":
                assert parts.lora is not None
                saving.save_adapter(
                    parts.teacher, fresh, weights, parts.schedule,
                    rank=parts.lora.rank, alpha=parts.lora.scale_alpha, targets=_targets(parts),
                )  # fmt: skip
            else:
                saving.save_pipeline(parts.teacher, fresh, weights, parts.schedule)
            del weights
            made = _described(fresh, student, parts, kind, content, benchmark)
    return Export(folder / made.file.relative_to(fresh), folder / CARD, made.sha256, made.check)


def refusal(flag: str, student: Sampler) -> MfdError | None:
    """Why a student cannot be written in the format that a flag names; None if it can."""
    config, teacher = student.config, student.teacher
    full = config["student"].get("weights") != "lora"
    none: str | None = f"the family '{config['teacher']['type']}' has no diffusers pipeline to write for"
    unloadable = none
    if saving.supports(teacher):
        none, unloadable = None, saving.adapter_refusal(teacher)
    elif isinstance(teacher, PipelineTeacher):
        unloadable = none = f"the teacher does not say how its {teacher.architecture['pipeline']} is called"
    unusual = _beyond_diffusers(config["student"])
    none, unloadable = unusual or none, unusual or unloadable
    complete = "--diffusers" if none is None else "--safetensors"
    merging = f"there is no adapter to merge, {complete} already is all of it"
    reasons = {
        "--safetensors": _unreachable(teacher),
        "--lora": "the student has full weights: there is nothing to export as LoRA" if full else unloadable,
        "--merged": f"the student has full weights: {merging}" if full else none,
        "--diffusers": none,
        "--onnx": None,
    }
    if reasons[flag] is None:
        return None
    possible = [name for name, reason in reasons.items() if reason is None]
    return MfdError(f"{flag}: {reasons[flag]}", allowed=", ".join(possible))


def _beyond_diffusers(student: Mapping[str, Any]) -> str | None:
    """Why no scheduler of diffusers samples as a stored student does; None if one does."""
    if student.get("flow_map"):
        return "the student is a flow map: no scheduler of diffusers tells a network where a step ends"
    if student.get("sampler") == "renoise" and student["steps"] > 1:
        return f"the student renoises between its {student['steps']} steps, which no scheduler that is written does"
    return None


def check_folder(folder: Path, student: Sampler, dtype: str, *, adapter: bool) -> str:
    """Samples from a folder with diffusers alone in a fresh process, compares, and says what was found.

    Args:
        folder: an export.
        student: what it was made of, its network in float32.
        dtype: type of the stored weights.
        adapter: whether the folder holds an adapter, or a complete pipeline.

    Raises:
        RunStopped: the process failed, or the latents differ by more than TOLERANCE.
    """
    teacher = student.teacher
    assert isinstance(teacher, PipelineTeacher)
    prompts = EXAMPLES[: min(2, teacher.batch_size)]  # a video is large enough alone
    noise = student.noise(len(prompts), seed=_SEED)
    condition = teacher.encode(list(prompts))
    expected = student.generate(noise, condition)
    teacher.release_encoder()
    with tempfile.TemporaryDirectory(prefix="mfd-check-") as place:
        write_json(Path(place, "job.json"), saving.job(teacher, folder, student.steps, prompts, adapter=adapter))
        write_tensors(Path(place, "inputs.safetensors"), saving.inputs(teacher, noise, condition))
        run_fresh(saving.script(), [place], seconds=_CHECK_SECONDS, folder=Path(place))
        returned = read_tensors(Path(place, "outputs.safetensors"))
    found = {source: saving.latents(teacher, value) for source, value in returned.items()}
    encoder = teacher.settings.encoder_dtype
    own = _compared("embeddings", found["embeddings"], expected, TOLERANCE[dtype])
    whole = _compared("prompts", found["prompts"], expected, max(TOLERANCE[dtype], TOLERANCE[encoder]))
    return f"latents within {own}, {whole} of the student's standard deviation"


def _compared(source: str, found: Tensor, expected: Tensor, allowed: float) -> str:
    if found.shape != expected.shape or not found.isfinite().all():
        raise failed(f"latents from {source} have another shape or are not finite")
    difference = float((found.float() - expected).square().mean().sqrt() / expected.std().clamp_min(1e-12))
    if difference > allowed:
        raise failed(
            f"latents from {source} differ from the student's by {difference:.2g} of their standard deviation "
            f"({allowed:g} allowed)"
        )
    return f"{difference:.1g} (from {source}; {allowed:g} allowed)"


def _parts(student: Sampler, dtype: str) -> _Parts:
    assert isinstance(student.teacher, PipelineTeacher)
    block = student.config["student"]
    lora = Lora.model_validate(block["lora"]) if block.get("weights") == "lora" else None
    schedule = saving.Schedule(block["grid"], block.get("first_time", 0.0))
    return _Parts(student.teacher, lora, schedule, export_config(student, dtype), dtype)


def _content(student: Sampler, parts: _Parts, kind: str) -> str:
    """What tells this export from every other."""
    told = [kind, parts.config, fingerprint(student.network.state_dict())]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _weights(student: Sampler, parts: _Parts, kind: str) -> dict[str, Tensor]:
    """The tensors to store; an adapter is merged in float32 whatever they are stored in."""
    own = student.network.state_dict()
    if kind == "diffusers" and parts.lora is not None:
        assert parts.teacher.network is not None
        own = merged(base_state(parts.teacher.network), own, parts.lora.scale_alpha / parts.lora.rank)
    return cast_weights(own, parts.dtype)


def _targets(parts: _Parts) -> list[str]:
    assert parts.lora is not None
    return parts.lora.targets or list(parts.teacher.lora_targets)


def _needed(parts: _Parts, weights: Mapping[str, Tensor], kind: str) -> int:
    """Bytes on disk."""
    copied = saving.copied_files(parts.teacher) if kind == "diffusers" else ()
    width = torch.empty(0, dtype=precision(parts.dtype)).element_size()
    return sum(value.numel() for value in weights.values()) * width + sum(file.stat().st_size for file, _ in copied)


def _described(
    folder: Path,
    student: Sampler,
    parts: _Parts,
    kind: str,
    content: str,
    benchmark: Mapping[str, Any] | None,
    already_there: bool = False,
) -> Export:
    """Checks a folder and writes its card."""
    adapter, teacher, steps = kind == "lora", parts.teacher, parts.schedule.steps
    check = check_folder(folder, student, parts.dtype, adapter=adapter)
    own = folder if adapter else folder / teacher.network_part
    digests = {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(own.glob("*.safetensors"))}
    computed = teacher.settings.dtype if adapter else parts.dtype
    card = pipeline_card(
        parts.config, content, digests, check,
        usage.code(teacher, steps, EXAMPLES[0], adapter=adapter, dtype=computed),
        adapter=adapter, notes=usage.notes(teacher, steps, adapter=adapter),
        licence=usage.licence(teacher.source), benchmark=benchmark,
    )  # fmt: skip
    write_bytes(folder / CARD, card.encode())
    first = next(iter(digests))
    return Export(folder / first, folder / CARD, digests[first], check, already_there)


def _unreachable(teacher: Teacher) -> str | None:
    """Why a single file, which tells no paths of this machine, could not find the parts that it does not hold."""
    model = getattr(teacher.settings, "model", None)
    if isinstance(teacher, PipelineTeacher) and (Path(model or "").is_absolute() or str(model).startswith("~")):
        return "text encoder and VAE come from a folder given by an absolute path, which a file passed on does not tell"
    return None
