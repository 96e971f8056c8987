"""`mfd export`: a student in forms that others can use, each checked in a fresh process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mfd_cli import console
from mfd_cli.errors import MfdError

if TYPE_CHECKING:
    from mfd_cli.inference.exporters import Export
    from mfd_cli.store.layout import RunFolder


def export(
    run: str | None = None,
    *,
    checkpoint: str | None = None,
    safetensors: bool = False,
    diffusers: bool = False,
    lora: bool = False,
    merged: bool = False,
    onnx: bool = False,
    dtype: str = "fp32",
    output: Path | None = None,
) -> list[Export]:
    """Writes the formats asked for with their model cards, checks them, and prints what was written.

    Args:
        run: run folder, checkpoint or export; the newest run if None.
        checkpoint: which student of a run folder: "best" by quick judgements, "last", or an update; the finished one
            if None.
        safetensors: one self-describing file; written if no format is named, too.
        diffusers: a diffusers pipeline, where the family has one, with an adapter merged in.
        lora: the adapter alone, of a student trained as one.
        merged: the same as `diffusers`, of a student trained as an adapter.
        onnx: the whole sampler as an ONNX graph, in a folder with a card.
        dtype: type of the stored weights: fp32, bf16 or fp16.
        output: folder to write into, with a folder for each format if there are several; `<run>/export` if None.

    Returns:
        What was written, in the order file, adapter, pipeline, graph.

    Raises:
        MfdError: a format that this student cannot have, or a folder that holds something else.
        RunStopped: what was written failed its check and was not kept, or there is no space for it.
    """
    if output is not None and output.exists() and not output.is_dir():
        raise MfdError(f"-o {output} is a file", allowed="a folder")

    from mfd_cli.inference.exporters import export_student
    from mfd_cli.inference.onnx_export import export_onnx, require_packages
    from mfd_cli.inference.pipeline_exports import export_pipeline, refusal
    from mfd_cli.inference.sampler import load_student, precision
    from mfd_cli.store.best import select
    from mfd_cli.store.layout import find, run_of

    precision(dtype)
    if onnx:
        require_packages()
    path = select(find(run), checkpoint)
    run_folder = run_of(path)
    default = None if output is not None else _default_folder(path, run_folder)
    student = load_student(path)
    safetensors = safetensors or not (diffusers or lora or merged or onnx)
    asked = {
        "--safetensors": safetensors, "--lora": lora, "--merged": merged, "--diffusers": diffusers, "--onnx": onnx,
    }  # fmt: skip
    for flag in [name for name, wanted in asked.items() if wanted]:
        if reason := refusal(flag, student):
            raise reason
    wanted = [("safetensors", safetensors), ("lora", lora), ("diffusers", merged or diffusers), ("onnx", onnx)]
    kinds = [kind for kind, chosen in wanted if chosen]
    # the report is about the finished student alone
    benchmark = run_folder.read_report() if run_folder and path in (run_folder.root, run_folder.student) else None
    done = []
    for kind in kinds:
        console.note(f"{kind}: writing, then sampling from it in a fresh process")
        folder = _folder(output, default, kind, len(kinds))
        if kind == "safetensors":
            done.append(export_student(student, folder, dtype=dtype, benchmark=benchmark))
        elif kind == "onnx":
            done.append(export_onnx(student, folder, dtype=dtype, benchmark=benchmark))
        else:
            done.append(export_pipeline(student, folder, kind, dtype=dtype, benchmark=benchmark))
        _report(done[-1], whole=kind != "safetensors")
    return done


def _report(done: Export, *, whole: bool) -> None:
    """Prints what was written; a whole folder by its name, or one file in it."""
    from mfd_cli.store.files import human

    folder = done.card.parent
    if done.already_there:
        console.note(f"{folder if whole else done.file} already held this export")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if whole else _size(done.file)
    rows = [
        [str(folder if whole else done.file), human(size), done.sha256[:12], done.check],
        [str(done.card), human(_size(done.card)), "", "model card: see to the licence before publishing"],
    ]
    console.table("", ["file", "size", "sha256", "check"], rows)


def _size(file: Path) -> int:
    return file.stat().st_size


def _folder(output: Path | None, default: Path | None, kind: str, count: int) -> Path:
    """Where one of `count` formats goes: into `-o` itself if it is alone; by default the file goes to the top."""
    if output is not None:
        return output if count == 1 else output / kind
    assert default is not None
    return default if kind == "safetensors" else default / kind


def _default_folder(path: Path, run: RunFolder | None) -> Path:
    """Where an export goes if `-o` is left out: beside the finished student, a checkpoint's in a folder of its own."""
    if run is None:
        raise MfdError(f"{path} is an export already", do="say where another one goes, with -o DIR")
    folder = run.export
    run.require_own(folder)
    return folder / path.name if path.parent in (run.checkpoints, run.best) else folder
