"""`mfd sample`: samples of a student, alone or beside its teacher on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfd_cli import console
from mfd_cli.errors import MfdError

if TYPE_CHECKING:
    from torch import Tensor

    from mfd_cli.inference.sampler import Sampler
    from teachers.base import Data, Teacher

_POINTS = 2000  # samples if --num is left out
_FORMATS = "a picture (.png), numbers (.npz), of forecasts a film (.gif), or a folder of pictures (no suffix)"
_TAKES = {
    "none": "no conditions",
    "label": "class indices (--label)",
    "prompt": "texts (--prompt, --prompts)",
    "clip": "numbers of held-out clips (--clip)",
}


def sample(
    run: str | None = None,
    *,
    checkpoint: str | None = None,
    steps: int | None = None,
    num: int | None = None,
    seed: int = 0,
    teacher: bool | None = None,
    prompt: Sequence[str] = (),
    prompts: Path | None = None,
    label: Sequence[int] = (),
    clip: Sequence[int] = (),
    guidance: float | None = None,
    batch_size: int | None = None,
    output: str | Path | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
) -> Path:
    """Writes samples and prints where they are.

    Args:
        run: run folder, checkpoint, export; the newest run if None.
        checkpoint: which student of a run folder: "best" by quick judgements, "last", or an update; the finished one
            if None.
        steps: the student's Euler steps; those it was made for if None.
        num: number of samples; enough for a picture if None, or one for each prompt.
        seed: sample i has the noise of (seed, i).
        teacher: whether the teacher samples too, in its own steps; None: of forecasts where it can be loaded, else no.
        prompt: texts to draw, repeated until there are `num`.
        prompts: UTF-8 file with one text a line, after those of `prompt`.
        label: class indices, repeated until there are `num`.
        clip: numbers of held-out clips to forecast, repeated until there are `num`.
        guidance: guidance scale of the teacher if it samples too, else of the student.
        batch_size: samples computed at once; the family's choice if None.
        output: .png, .npz, .gif (forecasts) or a folder; a picture in the run folder (for an export: here) if None,
            of forecasts also films and numbers.
        device: where to compute.
        dtype: precision that networks compute in: fp32, bf16 or fp16.

    Returns:
        What was written.

    Raises:
        MfdError: flags that do not fit each other or the family.
        TeacherError: a class or prompt that does not exist, or guidance for a family without a null condition.
    """
    _check_numbers(steps, num, batch_size, guidance)
    texts = [*prompt, *(_read_prompts(prompts) if prompts is not None else [])]
    kind = _kind_of(output)

    from mfd_cli.inference.sampler import load_student
    from mfd_cli.store.best import select
    from mfd_cli.store.layout import find

    path = select(find(run), checkpoint)
    student = load_student(path, device=device, dtype=dtype)
    student.find_clips()
    asked, count = _asked(student.teacher, {"prompt": texts, "label": label, "clip": clip}, num)
    if output is None and student.teacher.sample_kind == "occupancy":
        kind = "all"
    _check_kind(student.teacher, kind, count)
    steps = steps or student.steps
    loaded = _teacher(path, student, teacher, device, dtype)
    _warn_student(student, steps, None if loaded else guidance)
    samplers = [(student if loaded or guidance is None else replace(student, guidance=guidance), steps)]
    if loaded is not None:
        samplers.insert(0, (loaded if guidance is None else replace(loaded, guidance=guidance), loaded.steps))
    target = _default_output(path, student, steps, seed, bool(teacher)) if output is None else Path(output)
    request = {"count": count, "seed": seed, "asked": asked, "batch_size": batch_size}
    if student.teacher.sample_kind == "occupancy":
        target = _write_forecasts(target, kind, samplers, request)
    elif kind == "png":
        _write_picture(target, samplers, request)
    elif kind == "npz":
        _write_numbers(target, samplers, request)
    else:
        _write_folder(target, samplers, request)
    for sampler, taken in samplers:
        each = sampler.evaluations.rows / count
        cost = f"{taken} step{'s'[: taken != 1]}, {each:g} evaluation{'s'[: each != 1]} each"
        console.note(f"{sampler.name}: {count} sample{'s'[: count != 1]}, {cost}")
    print(console.literal(str(target)))
    return target


def _check_numbers(steps: int | None, num: int | None, batch_size: int | None, guidance: float | None) -> None:
    for flag, value in (("--steps", steps), ("--num", num), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise MfdError(f"{flag} {value}", allowed="at least 1")
    if guidance is not None and not (guidance >= 0 and math.isfinite(guidance)):
        raise MfdError(f"--guidance {guidance}", allowed="0 or more; 1 is none")


def _read_prompts(path: Path) -> list[str]:
    """The lines of a prompt file that are not empty."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise MfdError(f"--prompts {path}: {error.strerror}", allowed="a text file with one prompt a line") from error
    except UnicodeDecodeError as error:
        raise MfdError(f"--prompts {path}: not UTF-8 text", allowed="a text file with one prompt a line") from error
    if not any(lines):
        raise MfdError(f"--prompts {path}: no prompt in it", allowed="a text file with one prompt a line")
    return [line for line in lines if line]


def _kind_of(output: str | Path | None) -> str:
    """What the output's name asks for: "png", "npz" or "folder"."""
    if output is None:
        return "png"
    path = Path(output)
    if path.is_dir() or str(output).endswith(("/", "\\")) or not path.suffix:
        if path.is_file():
            raise MfdError(f"-o {path} is a file, not a folder", allowed=_FORMATS)
        return "folder"
    if path.suffix.lower() not in (".png", ".npz", ".gif"):
        raise MfdError(f"-o {path}: no format '{path.suffix}'", allowed=_FORMATS)
    return path.suffix.lower()[1:]


def _asked(
    teacher: Teacher, given: Mapping[str, Sequence[int | str]], num: int | None
) -> tuple[list[int | str] | None, int]:
    """The condition of each sample (None: the family's examples) and their number; `given` by the flags' names."""
    kind, name = teacher.condition_kind, teacher.settings.type
    for flag, items in given.items():
        if items and flag != kind:
            raise MfdError(f"--{flag}: the family '{name}' takes no {flag}s", allowed=f"'{name}' takes {_TAKES[kind]}")
    wanted = list(given.get(kind, ()))
    if not wanted:
        return None, num or (_POINTS if teacher.sample_kind == "points" else teacher.shown)
    count = num or (max(teacher.shown, len(wanted)) if kind == "label" else len(wanted))
    if count < len(wanted):
        raise MfdError(
            f"--num {count} for {len(wanted)} {kind}s", allowed=f"at least {len(wanted)}, so that each is drawn"
        )
    if kind != "prompt":
        teacher.encode(wanted)  # what does not exist is refused before anything is computed
    return list(islice(cycle(wanted), count)), count


def _teacher(path: Path, student: Sampler, wanted: bool | None, device: str, dtype: str) -> Sampler | None:
    """The teacher if it is to sample too; without being asked only of forecasts, and where its weights are here."""
    from mfd_cli.inference.sampler import load_teacher

    if not (student.teacher.sample_kind == "occupancy" if wanted is None else wanted):
        return None
    try:
        loaded = load_teacher(path, device=device, dtype=dtype)
        loaded.teacher.clips = student.teacher.clips  # the same data need not be read twice
        return loaded
    except MfdError as error:
        if wanted:
            raise
        console.note(f"the teacher is left out: {error.found}")
        return None


def _check_kind(teacher: Teacher, kind: str, count: int) -> None:
    if teacher.sample_kind == "points" and kind == "folder":
        raise MfdError(
            f"a folder of pictures of '{teacher.settings.type}', whose samples are points", allowed=".png or .npz"
        )
    if teacher.sample_kind != "occupancy" and kind == "gif":
        raise MfdError(f"a film of '{teacher.settings.type}', whose samples do not move", allowed=".png or .npz")
    if teacher.sample_kind == "images" and kind == "png":
        from mfd_cli.inference.pictures import require_grid

        require_grid(count)
    if teacher.sample_kind == "occupancy" and kind == "png":
        from mfd_cli.inference.forecast_pictures import require_page

        require_page(count)


def _warn_student(student: Sampler, steps: int, guidance: float | None) -> None:
    made_for = student.steps
    if steps != made_for and not student.any_steps:
        console.warn(
            f"this student is made for {made_for} step{'s'[: made_for != 1]}; with {steps} its quality is not what was "
            "trained"
        )
    if guidance not in (None, 1.0):
        console.warn(
            f"guidance {guidance:g}: students are distilled to sample without; the teacher's guidance is already in "
            "them"
        )


def _default_output(path: Path, student: Sampler, steps: int, seed: int, teacher: bool) -> Path:
    from mfd_cli.store.layout import run_of

    recipe = student.config.get("recipe") or {}
    run = run_of(path)
    parts = [str(recipe.get("name") or path.stem)]
    if run is not None and path.parent in (run.checkpoints, run.best):
        parts.append(path.name)
    if teacher:
        parts.append("teacher")
    name = "-".join([*parts, f"steps{steps}", f"seed{seed}.png"])
    if run is None:
        return Path(name)
    run.require_own(run.samples)
    return run.samples / name


def _write_picture(target: Path, samplers: list[tuple[Sampler, int]], request: dict[str, Any]) -> None:
    from mfd_cli.inference.pictures import comparison, save_png

    student = samplers[-1][0]
    points = student.teacher.sample_kind == "points"
    data = _data_of(student) if points else None
    picture = comparison(
        samplers,
        **request,
        noise=points and len(samplers) > 1,
        modes=data.modes() if data else None,
        target=data.reference(request["count"], request["seed"]) if data else None,
    )
    save_png(target, picture, _facts(samplers, request))


def _data_of(student: Sampler) -> Data | None:
    """The data that a student's points are drawn against; None, with a note, where it cannot be had."""
    from mfd_cli.inference.sampler import load_data

    try:
        data = load_data(student.config, student.teacher)
        data.reference(1, 0)
    except MfdError as error:
        console.note(f"the picture shows no target: {error.found}")
        return None
    return data


def _write_numbers(target: Path, samplers: list[tuple[Sampler, int]], request: dict[str, Any]) -> None:
    import io

    import numpy as np

    from mfd_cli.store.files import write_bytes

    student = samplers[-1][0]
    arrays: dict[str, Any] = {"seed": request["seed"]}
    for sampler, steps in samplers:
        prefix = "teacher_" if sampler.name == "teacher" else ""
        arrays[f"{prefix}samples"] = _samples(sampler, steps, request).numpy()
        arrays[f"{prefix}steps"], arrays[f"{prefix}guidance"] = steps, sampler.guidance
    if student.teacher.condition_kind != "none":
        asked = request["asked"] or student.teacher.examples(request["count"])
        arrays[f"{student.teacher.condition_kind}s"] = np.array(asked)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, buffer.getvalue())


def _write_folder(target: Path, samplers: list[tuple[Sampler, int]], request: dict[str, Any]) -> None:
    from mfd_cli.inference.pictures import save_png, to_picture

    folders = [target / sampler.name if len(samplers) > 1 else target for sampler, _ in samplers]
    for folder in folders:
        _refuse_leftovers(folder, request["count"])
    for folder, (sampler, steps) in zip(folders, samplers, strict=True):
        facts = _facts([(sampler, steps)], request)
        for number, image in enumerate(_samples(sampler, steps, request)):
            save_png(folder / f"{number:06d}.png", to_picture(image), facts | {"sample": number})


def _refuse_leftovers(folder: Path, count: int) -> None:
    """Raises MfdError if pictures of a longer earlier sampling would stay behind and mix with the new ones."""
    extra = [file for file in folder.glob("[0-9]*.png") if file.stem.isdigit() and int(file.stem) >= count]
    if extra:
        raise MfdError(
            f"-o {folder}: {len(extra)} pictures of an earlier, longer sampling would stay among the new {count}",
            do="choose another folder, or empty this one",
        )


def _write_forecasts(target: Path, kind: str, samplers: list[tuple[Sampler, int]], request: dict[str, Any]) -> Path:
    """Pictures, films and numbers of forecasts: all beside each other, in a folder, or the one kind asked for.

    Returns:
        The target; the folder that it is in where files of other names were written in its place.
    """
    from mfd_cli.inference.forecast_pictures import files, forecast
    from mfd_cli.store.files import write_bytes

    found = forecast(samplers, **request)
    for note in found.notes:
        console.note(note)
    several = kind in ("all", "folder")
    stem, folder = ("forecasts", target) if kind == "folder" else (target.stem, target.parent)
    folder.mkdir(parents=True, exist_ok=True)
    contents = files(found, stem, _facts(samplers, request), ("png", "gif", "npz") if several else (kind,))
    if not several and len(contents) == 1:  # the very name that was asked for
        contents = {target.name: next(iter(contents.values()))}
    for name, content in contents.items():
        write_bytes(folder / name, content)
        console.note(str(folder / name))
    return target if kind == "folder" or target.name in contents else folder


def _samples(sampler: Sampler, steps: int, request: dict[str, Any]) -> Tensor:
    return sampler.sample(
        request["count"],
        steps=steps,
        seed=request["seed"],
        asked=request["asked"],
        batch_size=request["batch_size"],
    )


def _facts(samplers: list[tuple[Sampler, int]], request: dict[str, Any]) -> dict[str, object]:
    """What a PNG says about itself."""
    from mfd_cli.inference.pictures import title_of

    return {"Software": "mfd", "seed": request["seed"]} | {
        "models": "; ".join(title_of(sampler, steps) for sampler, steps in samplers)
    }
