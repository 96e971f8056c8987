"""`mfd export`: a student as one file that others can use."""

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
    safetensors: bool = False,
    diffusers: bool = False,
    lora: bool = False,
    merged: bool = False,
    onnx: bool = False,
    dtype: str = "fp32",
    output: Path | None = None,
) -> Export:
    """Writes one self-describing file and its model card, checks them, and prints what was written.

    Args:
        run: run folder, checkpoint or export; the newest run if None.
        safetensors: the format that is written if none is named, too.
        diffusers: a diffusers pipeline, where the family has one.
        lora: the adapter alone, of a student trained as one.
        merged: the adapter merged into full weights.
        onnx: an ONNX graph.
        dtype: type of the stored weights: fp32, bf16 or fp16.
        output: folder to write into; `<run>/export` if None.

    Raises:
        MfdError: a format that this student cannot have, or a folder that holds something else; nothing was written.
        RunStopped: the written file failed its check and was not kept.
    """
    if output is not None and output.exists() and not output.is_dir():
        raise MfdError(f"-o {output} is a file", allowed="a folder")

    from mfd_cli.inference.exporters import export_student, refuse_format
    from mfd_cli.inference.sampler import load_student, precision
    from mfd_cli.store.files import human
    from mfd_cli.store.layout import find, run_of

    precision(dtype)
    path = find(run)
    run_folder = run_of(path)
    folder = output if output is not None else _default_folder(path, run_folder)
    student = load_student(path)
    asked = {"--lora": lora, "--merged": merged, "--diffusers": diffusers, "--onnx": onnx}
    for flag in [name for name, wanted in asked.items() if wanted]:
        raise refuse_format(flag, student)
    console.note("writing, then sampling from the file in a fresh process")
    done = export_student(student, folder, dtype=dtype, benchmark=run_folder.read_report() if run_folder else None)
    if done.already_there:
        console.note(f"{done.file} already held this export")
    rows = [
        [str(done.file), human(done.file.stat().st_size), done.sha256[:12], done.check],
        [str(done.card), human(done.card.stat().st_size), "", "model card: state the licence before publishing"],
    ]
    console.table("", ["file", "size", "sha256", "check"], rows)
    return done


def _default_folder(path: Path, run: RunFolder | None) -> Path:
    """Where an export goes if `-o` is left out: beside the finished student, a checkpoint's in a folder of its own."""
    if run is None:
        raise MfdError(f"{path} is an export already", do="say where another one goes, with -o DIR")
    folder = run.export
    return folder / path.name if path.parent == run.checkpoints else folder
