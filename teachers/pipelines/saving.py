"""Students in the layouts that diffusers opens without mfd: an adapter, or a complete pipeline.

Both carry a stock scheduler with the student's own steps, so that a plain call `pipe(prompt, num_inference_steps=N,
guidance_scale=1.0, ...)` takes the network through the student's times and labels. What else the call needs to read
prompts as the student does is `call`; `job` has a process without mfd prove it.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teachers.base import Teacher
from teachers.conditions import Condition
from teachers.errors import TeacherError
from teachers.pipelines import plain
from teachers.pipelines.base import PipelineTeacher
from teachers.pipelines.loading import Source
from teachers.pipelines.quiet import quiet
from teachers.pipelines.schedule import scheduler_config

#: pipelines whose plain call is known to give a student's samples
PIPELINES = ("SanaPipeline",)
ADAPTER_FILE = "pytorch_lora_weights.safetensors"

_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf"}
_FULL_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_PIPELINE_LENGTH = 300  # tokens that SanaPipeline reads unless told otherwise
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


def supports(teacher: Teacher) -> bool:
    """Whether diffusers has a pipeline for a teacher's family, and mfd knows how it is called."""
    return isinstance(teacher, PipelineTeacher) and teacher.architecture.get("pipeline") in PIPELINES


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
            transformer_lora_adapter_metadata=config,
        )
    _save_scheduler(folder, schedule)
    shutil.copymode(folder / "scheduler" / "scheduler_config.json", folder / ADAPTER_FILE)


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
    _save_scheduler(folder, schedule)
    index = {key: value for key, value in source.index.items() if not key.startswith("_")}
    index |= {"_class_name": teacher.architecture["pipeline"], "scheduler": ["diffusers", _SCHEDULER]}
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
    settings, (height, width) = teacher.settings, teacher.architecture["pixels"]
    arguments = {
        "num_inference_steps": steps, "guidance_scale": 1.0, "height": height, "width": width,
        "use_resolution_binning": False,
    }  # fmt: skip
    if not settings.instruction:
        arguments["complex_human_instruction"] = None
    if settings.max_sequence_length != _PIPELINE_LENGTH:
        arguments["max_sequence_length"] = settings.max_sequence_length
    return arguments


def call_embeddings(condition: Condition) -> dict[str, Tensor]:
    """A condition under the names that the pipeline's call has for embeddings."""
    return {"prompt_embeds": condition["text"], "prompt_attention_mask": condition["text_mask"]}


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
    types = {part: _FULL_NAMES[settings.encoder_dtype] for part in teacher.text_parts if "encoder" in part}
    # what was stored is read as it is; a base is read in the type that the adapter was trained on
    types[teacher.network_part] = _FULL_NAMES[settings.dtype] if adapter else "float32"
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


def usage(teacher: PipelineTeacher, steps: int, prompt: str, *, adapter: bool, dtype: str) -> str:
    """Python code that samples with diffusers, run inside the export's folder.

    Args:
        teacher: the base.
        steps: of the student.
        prompt: an example.
        adapter: whether the export is an adapter, or complete.
        dtype: type to compute the network in: fp32, bf16 or fp16.
    """
    pipeline, source = teacher.architecture["pipeline"], teacher.source
    types = {part: teacher.settings.encoder_dtype for part in teacher.text_parts if "encoder" in part}
    types[teacher.network_part] = dtype
    named = [f'"{part}": torch.{_FULL_NAMES[name]}' for part, name in [*sorted(types.items()), ("default", "fp32")]]
    opened = ['"."']
    if adapter:
        opened = [json.dumps(source.model if source.commit else "path/to/the/base")]
        opened += [f'revision="{source.commit}"'] if source.commit else []
        opened += [f'variant="{source.variant}"'] if source.variant else []
    asked = [json.dumps(prompt), *(f"{name}={value!r}" for name, value in call(teacher, steps).items())]
    lines = [
        "import torch",
        f"from diffusers import {'FlowMatchEulerDiscreteScheduler, ' if adapter else ''}{pipeline}",
        "",
        f"types = {{{', '.join(named)}}}",
        f"pipe = {pipeline}.from_pretrained({', '.join(opened)}, torch_dtype=types)",
    ]
    if adapter:
        lines += [
            'pipe.load_lora_weights(".")',
            f'pipe.scheduler = {_SCHEDULER}.from_pretrained(".", subfolder="scheduler")',
        ]
    lines += ["image = pipe(", *(f"    {argument}," for argument in asked), ").images[0]", 'image.save("image.png")']
    return "\n".join(lines)


def notes(teacher: PipelineTeacher, steps: int, *, adapter: bool) -> list[str]:
    """What has to be heeded to get the student's samples."""
    height, width = teacher.architecture["pixels"]
    told = [
        f"`num_inference_steps={steps}` and `guidance_scale=1.0`: the student was made for {steps} "
        f"step{'s'[: steps != 1]} at {height} x {width} pixels, and has absorbed the teacher's guidance.",
    ]
    if adapter:
        told.append("The scheduler comes with the adapter: it takes the student's steps, the base's own does not.")
        if not teacher.source.commit:
            told.append("The base is a local folder: put its path where the code says `path/to/the/base`.")
    if teacher.settings.instruction:
        told.append("Trained with the pipeline's instruction before prompts, which a plain call puts there as well.")
    else:
        told.append(
            "Trained on bare prompts: `complex_human_instruction=None` must be passed, or the pipeline adds text."
        )
    return told


def licence(source: Source) -> dict[str, str]:
    """`license`, `license_name` and `license_link` as the base's own card states them; empty where it does not."""
    import yaml

    card = source.folder / "README.md"
    if not card.is_file():
        return {}
    found = re.match(r"\A---\r?\n(.*?)^---", card.read_text("utf-8", errors="replace"), re.DOTALL | re.MULTILINE)
    try:
        stated = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    names = ("license", "license_name", "license_link")
    return {name: str(stated[name]) for name in names if stated.get(name)} if isinstance(stated, dict) else {}


def _save_network(teacher: PipelineTeacher, folder: Path, weights: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        network = teacher.build_network()
    try:
        network.load_state_dict(dict(weights), assign=True)
    except RuntimeError as error:
        raise TeacherError(f"{teacher.settings.model}: the weights do not fit its network ({error})") from error
    with quiet():
        network.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
    for file in folder.glob("*.safetensors"):  # made readable for their owner alone, unlike all else
        shutil.copymode(folder / "config.json", file)


def _save_scheduler(folder: Path, schedule: Schedule) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    config = scheduler_config(schedule.grid, schedule.first_time)
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
