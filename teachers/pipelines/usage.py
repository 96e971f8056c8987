"""What a card tells of an export for diffusers: the code that samples, what has to be heeded, the base's licence."""

from __future__ import annotations

import json
import re

from teachers.pipelines.base import PipelineTeacher
from teachers.pipelines.families.stock import stock_of
from teachers.pipelines.loading import Source
from teachers.pipelines.saving import FULL_NAMES, SCHEDULER, call


def code(teacher: PipelineTeacher, steps: int, prompt: str, *, adapter: bool, dtype: str) -> str:
    """Python that samples with diffusers, run inside the export's folder.

    Args:
        teacher: the base.
        steps: of the student.
        prompt: an example.
        adapter: whether the export is an adapter, or complete.
        dtype: type to compute the network in: fp32, bf16 or fp16.
    """
    pipeline, source = teacher.architecture["pipeline"], teacher.source
    opened = ['"."']
    if adapter:
        opened = [json.dumps(source.model if source.commit else "path/to/the/base")]
        opened += [f'revision="{source.commit}"'] if source.commit else []
        opened += [f'variant="{source.variant}"'] if source.variant else []
    video = bool(teacher.architecture.get("frames"))
    arguments = call(teacher, steps) | ({"output_type": "pil"} if video else {})
    asked = [json.dumps(prompt), *(f"{name}={value!r}" for name, value in arguments.items())]
    lines = [
        "import torch",
        f"from diffusers import {'FlowMatchEulerDiscreteScheduler, ' if adapter else ''}{pipeline}",
        "",
        *_types(teacher, dtype),
        f"pipe = {pipeline}.from_pretrained({', '.join(opened)}, torch_dtype=types)",
    ]
    if adapter:
        lines += [
            'pipe.load_lora_weights(".")',
            f'pipe.scheduler = {SCHEDULER}.from_pretrained(".", subfolder="scheduler")',
        ]
    lines += [f"{'frames' if video else 'image'} = pipe(", *(f"    {argument}," for argument in asked)]
    if video:
        shown = 1000 // stock_of(teacher).frames_per_second
        lines += [
            ").frames[0]",
            f'frames[0].save("video.webp", save_all=True, append_images=frames[1:], duration={shown})',
        ]
    else:
        lines += [").images[0]", 'image.save("image.png")']
    return "\n".join(lines)


def notes(teacher: PipelineTeacher, steps: int, *, adapter: bool) -> list[str]:
    """What has to be heeded to get the student's samples."""
    settings, architecture, stock = teacher.settings, teacher.architecture, stock_of(teacher)
    (height, width), frames = architecture["pixels"], architecture.get("frames")
    guidance = "".join(f" and `{name}={value}`" for name, value in stock.guidance(settings, architecture).items())
    told = [
        f"`num_inference_steps={steps}`{guidance}: the student was made for {steps} step{'s'[: steps != 1]} at "
        f"{height} x {width} pixels{f', {frames} frames,' if frames else ','} and has absorbed the teacher's guidance.",
    ]
    if adapter:
        told.append("The scheduler comes with the adapter: it takes the student's steps, the base's own does not.")
        if not teacher.source.commit:
            told.append("The base is a local folder: put its path where the code says `path/to/the/base`.")
    return told + stock.notes(settings, architecture)


def licence(source: Source) -> dict[str, str]:
    """`license`, `license_name` and `license_link` as the base's own card states them; empty where it does not.

    Each is one line of printable text: it goes into cards and terminals.
    """
    import yaml

    card = source.folder / "README.md"
    if not card.is_file():
        return {}
    head = re.match(r"\A---\r?\n(.*?)^---", card.read_text("utf-8", errors="replace"), re.DOTALL | re.MULTILINE)
    try:
        stated = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return {}
    names = ("license", "license_name", "license_link")
    found = {name: _line(str(stated[name])) for name in names if stated.get(name)} if isinstance(stated, dict) else {}
    return {name: text for name, text in found.items() if text}


def _line(text: str) -> str:
    return "".join(mark for mark in " ".join(text.split()) if mark.isprintable())


def _types(teacher: PipelineTeacher, dtype: str) -> list[str]:
    """The line of code that says what types the parts are computed in."""
    if not stock_of(teacher).mixes_types:
        return [f"types = torch.{FULL_NAMES[dtype]}"]
    types = {part: teacher.settings.encoder_dtype for part in teacher.text_parts if "encoder" in part}
    types[teacher.network_part] = dtype
    named = [f'"{part}": torch.{FULL_NAMES[name]}' for part, name in [*sorted(types.items()), ("default", "fp32")]]
    return [f"types = {{{', '.join(named)}}}"]
