"""Students in the layouts that diffusers opens without mfd: an adapter, or a complete pipeline.

Both carry a stock scheduler with the student's own steps, so that a plain call `pipe(prompt, num_inference_steps=N,
guidance_scale=1.0, ...)` takes the network through the student's times and labels. How the family's pipeline is called
is in the teacher's `stock`, what a student's call needs is `call`; `job` has a process without mfd prove it.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from teachers.base import Teacher
from teachers.conditions import Condition
from teachers.errors import TeacherError
from teachers.files import share_weights
from teachers.pipelines import plain
from teachers.pipelines.base import PipelineTeacher
from teachers.pipelines.families.stock import StockCall, stock_of
from teachers.pipelines.quiet import quiet
from teachers.pipelines.schedule import scheduler_config

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
#: what every export comes with
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
#: torch's names of types
FULL_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf"}
_METADATA = "transformer_lora_adapter_metadata"
_CONFIGS = ("config.json", "tokenizer_config.json")
_NOTICES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class Schedule:
    """A student's steps.

    Attributes:
        grid: times [N + 1] from 0 to 1.
        first_time: the time that the network is told at pure noise.
    """

    grid: Sequence[float]
    first_time: float = 0.0

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return len(self.grid) - 1


def supports(teacher: Teacher) -> TypeGuard[PipelineTeacher]:
    """Whether diffusers has a pipeline for a teacher's family, and mfd knows how it is called."""
    return isinstance(teacher, PipelineTeacher) and isinstance(getattr(teacher, "stock", None), StockCall)


def adapter_refusal(teacher: PipelineTeacher) -> str | None:
    """Why a family's pipeline can load no adapter; None if it can."""
    import diffusers

    pipeline = teacher.architecture["pipeline"]
    saves = getattr(getattr(diffusers, pipeline), "save_lora_weights", None)
    lacks = "has no LoRA loader" if saves is None else None
    if saves is not None and _METADATA not in inspect.signature(saves).parameters:
        lacks = "stores no alpha with a LoRA, which would be scaled wrongly"
    return lacks and f"the {pipeline} of diffusers {diffusers.__version__} {lacks}"


def save_adapter(
    teacher: PipelineTeacher,
    folder: Path,
    weights: Mapping[str, Tensor],
    schedule: Schedule,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str],
) -> None:
    """Writes a LoRA for `load_lora_weights` and the student's scheduler into a folder.

    Args:
        teacher: the base.
        folder: where to.
        weights: the adapter's matrices under peft's names.
        schedule: the student's steps.
        rank: width of the adapter.
        alpha: the adapter is scaled by alpha / rank; without it in the file, diffusers would take the rank.
        targets: names of the layers that have one.
    """
    import diffusers
    from peft import LoraConfig

    # peft writes int, and takes any number
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)).to_dict()  # type: ignore[arg-type]
    config["target_modules"] = sorted(targets)  # a set until here, which has no order
    with quiet():
        getattr(diffusers, teacher.architecture["pipeline"]).save_lora_weights(
            folder,
            transformer_lora_layers={name: value.contiguous() for name, value in weights.items()},
            **{_METADATA: config},
        )
    _save_scheduler(teacher, folder, schedule)
    share_weights(folder, folder / "scheduler" / "scheduler_config.json")


def save_pipeline(teacher: PipelineTeacher, folder: Path, weights: Mapping[str, Tensor], schedule: Schedule) -> None:
    """Writes a complete pipeline into a folder: a network and a scheduler of its own, all else copied from the base.

    Args:
        teacher: the base.
        folder: where to.
        weights: the network's state dict, stored in the types that it has.
        schedule: the student's steps.

    Raises:
        TeacherError: the weights do not fit the network, or the base has parts that are code.
    """
    source = teacher.source
    for file, name in copied_files(teacher):
        part = folder / file.parent.name
        part.mkdir(parents=True, exist_ok=True)
        _copy(file, part / name, source.variant if name != file.name else None)
    for pattern in _NOTICES:
        for file in source.folder.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    _save_network(teacher, folder / teacher.network_part, weights)
    _save_scheduler(teacher, folder, schedule)
    index = {key: value for key, value in source.index.items() if not key.startswith("_")}
    index |= {"_class_name": teacher.architecture["pipeline"], "scheduler": ["diffusers", SCHEDULER]}
    if "_diffusers_version" in source.index:
        index["_diffusers_version"] = source.index["_diffusers_version"]
    _write_json(folder / "model_index.json", index)


def copied_files(teacher: PipelineTeacher) -> Iterator[tuple[Path, str]]:
    """Files of the base that a complete pipeline takes over, with their names there.

    Weights are those of the variant in use, under plain names, so that opening the copy asks for no variant.

    Raises:
        TeacherError: a part is code of the repository.
    """
    source = teacher.source
    for part, entry in source.index.items():
        if not isinstance(entry, list) or entry[0] is None or part in (teacher.network_part, "scheduler"):
            continue
        source.part_class(part)  # refuses code of the repository
        files = [file for file in sorted((source.folder / part).iterdir()) if file.is_file()]
        variant = source.variant if any(_is_of(file.name, source.variant) for file in files) else None
        for file in files:
            if not _is_weights(file.name):
                yield file, file.name
            elif _is_of(file.name, variant):
                yield file, file.name.replace(f".{variant}", "", 1) if variant else file.name


def call(teacher: PipelineTeacher, steps: int) -> dict[str, Any]:
    """Named arguments, besides the prompt, with which the plain pipeline gives a student's samples."""
    settings, architecture, stock = teacher.settings, teacher.architecture, stock_of(teacher)
    height, width = architecture["pixels"]
    arguments = {
        "num_inference_steps": steps, **stock.guidance(settings, architecture), "height": height, "width": width,
    }  # fmt: skip
    if architecture.get("frames"):
        arguments["num_frames"] = architecture["frames"]
    arguments |= stock.more(settings)
    if settings.max_sequence_length not in (None, stock.tokens):
        arguments["max_sequence_length"] = settings.max_sequence_length
    return arguments


def inputs(teacher: PipelineTeacher, noise: Tensor, condition: Condition) -> dict[str, Tensor]:
    """What `teachers.pipelines.plain` reads.

    Args:
        teacher: the base.
        noise: latents [B, *sample_shape] to start from.
        condition: of those samples.
    """
    stock = stock_of(teacher)
    found = {"latents": stock.handed(noise).contiguous()}
    for name, value in stock.embeddings(condition).items():
        if isinstance(value, Tensor):
            found[name] = _computed(stock, value)
        else:
            found |= {f"{name}/{index:03d}": _computed(stock, item) for index, item in enumerate(value)}
    return found


def latents(teacher: PipelineTeacher, returned: Tensor) -> Tensor:
    """States [B, *sample_shape] from what the pipeline returned as latents."""
    return stock_of(teacher).returned(returned, teacher.sample_shape)


def job(teacher: PipelineTeacher, folder: Path, steps: int, prompts: Sequence[str], *, adapter: bool) -> dict[str, Any]:
    """What `teachers.pipelines.plain` is to do with an export, in JSON's types.

    Args:
        teacher: the base.
        folder: the export.
        steps: of the student.
        prompts: what is asked for.
        adapter: whether the export is an adapter, to be put on the base, or complete.
    """
    source, settings = teacher.source, teacher.settings
    types = {}
    if stock_of(teacher).mixes_types:
        types = {part: FULL_NAMES[settings.encoder_dtype] for part in teacher.text_parts if "encoder" in part}
    # what was stored is read as it is; a base is read in the type that the adapter was trained on
    types[teacher.network_part] = FULL_NAMES[settings.dtype] if adapter else "float32"
    return {
        "pipeline": teacher.architecture["pipeline"],
        "folder": str((source.folder if adapter else folder).resolve()),
        "variant": source.variant if adapter else None,
        "network": teacher.network_part,
        "types": types | {"default": "float32"},
        "adapter": str(folder.resolve()) if adapter else None,
        "prompts": list(prompts),
        "call": call(teacher, steps),
        "threads": torch.get_num_threads(),
    }


def script() -> str:
    """The program that does a `job`, for `python -c`."""
    return inspect.getsource(plain)


def _computed(stock: StockCall, value: Tensor) -> Tensor:
    """An embedding in a type that a network in float32 takes."""
    return (value.float() if value.is_floating_point() and not stock.mixes_types else value).contiguous()


def _save_network(teacher: PipelineTeacher, folder: Path, weights: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        network = teacher.build_network()
    try:
        network.load_state_dict(dict(weights), assign=True)
    except RuntimeError as error:
        raise TeacherError(f"{teacher.settings.model}: the weights do not fit its network ({error})") from error
    with quiet():
        network.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
    share_weights(folder, folder / "config.json")


def _save_scheduler(teacher: PipelineTeacher, folder: Path, schedule: Schedule) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    config = scheduler_config(schedule.grid, schedule.first_time, given_sigmas=stock_of(teacher).given_sigmas)
    FlowMatchEulerDiscreteScheduler.from_config(config).save_pretrained(folder / "scheduler")


def _copy(file: Path, target: Path, variant: str | None) -> None:
    """Copies a file, through links; an index of shards follows their new names, configs lose paths of machines."""
    shutil.copyfile(file, target)
    if target.name not in _CONFIGS and not (variant and ".index." in file.name):
        return
    content = json.loads(file.read_text("utf-8"))
    if ".index." in file.name:
        shards = {name: shard.replace(f".{variant}", "", 1) for name, shard in content["weight_map"].items()}
        _write_json(target, content | {"weight_map": shards})
    elif told := [key for key in ("_name_or_path", "name_or_path") if Path(content.get(key) or "").is_absolute()]:
        _write_json(target, {key: value for key, value in content.items() if key not in told})


def _is_weights(name: str) -> bool:
    return Path(name).suffix in _WEIGHTS or ".index." in name


def _is_of(name: str, variant: str | None) -> bool:
    """Whether a file holds, or lists, safetensors weights of a variant (None: the plain ones)."""
    infix, shard = re.escape(f".{variant}") if variant else "", r"(-\d+-of-\d+)?"
    kinds = (rf"[\w-]+?{infix}{shard}\.safetensors", rf"[\w-]+?{shard}{infix}\.safetensors",
             rf"[\w-]+\.safetensors\.index{infix}\.json")  # fmt: skip
    return any(re.fullmatch(kind, name) for kind in kinds)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
