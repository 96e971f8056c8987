"""A student as one self-describing `.safetensors` file with a model card, checked before it counts as written.

The file is made under a hidden name, loaded again by a fresh process, sampled there and compared with the student it
came from; only then does it get its name. So an export that exists has passed.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfd_cli.errors import MfdError
from mfd_cli.inference.card import CARD, CARD_MARK, model_card, pathless
from mfd_cli.inference.fresh import failed, run_fresh
from mfd_cli.inference.sampler import Sampler, precision
from mfd_cli.store.files import sha256, write_bytes
from mfd_cli.store.student import (
    StoredStudent,
    content,
    fingerprint,
    read_student,
    save_student_file,
    student_tensors,
)
from teachers.registry import teachers as teacher_registry

#: largest root-mean-square difference of samples, relative to their standard deviation; fp32 has to agree in every bit
TOLERANCE = {"fp32": 0.0, "bf16": 0.05, "fp16": 0.01}

_CHECK_COUNT, _CHECK_SEED, _CHECK_SECONDS = 8, 0, 1800

#: run by the fresh process: file, count, seed, threads and the plugin's file come as arguments, samples go to stdout
_CHECK = """
import sys
import numpy, torch
file, count, seed, threads, plugin = sys.argv[1:]
torch.set_num_threads(int(threads))
if plugin:
    import pathlib
    from mfd_cli.plugins import import_plugin
    import_plugin(pathlib.Path(plugin))
from mfd_cli import load_student
student = load_student(file)
student.find_clips(stand_in=True)
samples = student.sample(int(count), seed=int(seed))
numpy.save(sys.stdout.buffer, samples.float().numpy(), allow_pickle=False)
"""


@dataclass(frozen=True)
class Export:
    """What an export wrote.

    Attributes:
        file: the weights with their config.
        card: the model card beside it.
        sha256: of the file.
        check: what the fresh process found, for people.
        already_there: whether the same export stood there before.
    """

    file: Path
    card: Path
    sha256: str
    check: str
    already_there: bool = False


def export_student(
    student: Sampler, folder: Path, *, dtype: str = "fp32", benchmark: Mapping[str, Any] | None = None
) -> Export:
    """Writes `<recipe name>.safetensors` and a model card into a folder.

    Args:
        student: a loaded student on the CPU.
        folder: where to; made if needed.
        dtype: type of the stored weights, fp32, bf16 or fp16; they are computed with in fp32 again when loaded.
        benchmark: report of `mfd benchmark` for the card's figures.

    Raises:
        MfdError: the folder holds another export or a foreign README, or the weights do not fit the type.
        RunStopped: the file did not give the student's samples when loaded again; it is not kept.
    """
    config = export_config(student, dtype)
    weights = cast_weights(student_tensors(student.network, student.teacher.carried()), dtype)
    file, card = folder / f"{config['recipe']['name']}.safetensors", folder / CARD
    _refuse_foreign(file, card)
    present = _identical(file, config, weights)
    made_here = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as aside:
            fresh = file if present else Path(aside) / file.name
            if not present:
                save_student_file(fresh, config, weights)
            check = check_export(fresh, student, dtype)
            if not present:
                os.replace(fresh, file)
    except BaseException:
        if made_here and not any(folder.iterdir()):
            folder.rmdir()
        raise
    digest = sha256(file)
    write_bytes(card, model_card(config, file.name, digest, check, benchmark).encode())
    return Export(file, card, digest, check, present)


def export_config(student: Sampler, dtype: str) -> dict[str, Any]:
    """A student's config as an exported file carries it: complete, but without paths of the machine it was made on."""
    config = content(student.config)
    if "name" not in (config.get("recipe") or {}):
        raise MfdError("the student's config holds no recipe, so the export has no name", do="train it again")
    return pathless(config | {"dtype": dtype})


def cast_weights(weights: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Weights in another floating-point type; integer tensors stay as they are.

    Raises:
        MfdError: a weight is not finite, or too large for the type.
    """
    cast = {
        name: value.detach().cpu().to(precision(dtype)) if value.is_floating_point() else value.detach().cpu()
        for name, value in weights.items()
    }
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise MfdError(f"NaN or infinite values in {', '.join(broken[:5])}", do="export an earlier checkpoint")
    large = [name for name, value in cast.items() if value.is_floating_point() and not value.isfinite().all()]
    if large:
        raise MfdError(f"{dtype} cannot hold the values of {', '.join(large[:5])}", allowed="--dtype bf16 or fp32")
    return cast


def check_export(file: Path, student: Sampler, dtype: str) -> str:
    """Loads a file in a fresh process, compares its samples with the student's, and says what was found.

    Raises:
        RunStopped: the process failed, or the samples differ by more than TOLERANCE.
    """
    known = student.teacher.clips
    student.find_clips(stand_in=True)  # what the data's own files hold need not be there
    expected = student.sample(_CHECK_COUNT, seed=_CHECK_SEED).float().numpy()
    student.teacher.clips = known
    found = _samples_of_fresh_process(file, student)
    if dtype == "fp32":
        if found.shape != expected.shape or found.tobytes() != expected.tobytes():
            raise failed(f"its samples differ from the student's by up to {_largest(found, expected)}")
        return f"{_CHECK_COUNT} samples equal bit for bit"
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise failed("its samples have another shape or are not finite")
    difference = float(np.sqrt(np.mean((found - expected) ** 2)) / max(float(expected.std()), 1e-12))
    if difference > TOLERANCE[dtype]:
        raise failed(f"its samples differ from the fp32 student's by {difference:.2g} of their standard deviation")
    return f"{_CHECK_COUNT} samples within {difference:.1g} of fp32 (allowed {TOLERANCE[dtype]:g})"


def _refuse_foreign(file: Path, card: Path) -> None:
    """Raises MfdError if a README that mfd did not write, or another student's file, stands in the folder."""
    elsewhere = "choose another folder with -o"
    if card.exists() and not card.read_text(encoding="utf-8", errors="replace").startswith(f"---\n{CARD_MARK}"):
        raise MfdError(f"{card} exists and is not a model card of mfd", do=elsewhere)
    others = [other.name for other in file.parent.glob("*.safetensors") if other.name != file.name]
    if others:
        raise MfdError(f"{file.parent} already holds {', '.join(sorted(others)[:3])}", do=elsewhere)


def _identical(file: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> bool:
    """Whether the file already holds this student; False if there is no file.

    Raises:
        MfdError: it holds something else.
    """
    if not file.exists():
        return False
    try:
        stored: StoredStudent | None = read_student(file)
    except MfdError:
        stored = None
    same = stored is not None and content(stored.config) == config
    if same and stored.config["weights_sha256"] == fingerprint(weights):  # type: ignore[union-attr]
        return True
    raise MfdError(f"{file} exists and holds something else", do="choose another folder with -o")


def _samples_of_fresh_process(file: Path, student: Sampler) -> np.ndarray:
    name = student.config["teacher"]["type"]
    plugin = ""
    if teacher_registry.origin(name) == "plugin":
        plugin = str(getattr(sys.modules.get(type(student.teacher).__module__), "__file__", None) or "")
    arguments = [str(file.resolve()), str(_CHECK_COUNT), str(_CHECK_SEED), str(torch.get_num_threads()), plugin]
    return np.load(io.BytesIO(run_fresh(_CHECK, arguments, seconds=_CHECK_SECONDS)), allow_pickle=False)


def _largest(found: np.ndarray, expected: np.ndarray) -> str:
    if found.shape != expected.shape:
        return f"their shape ({list(found.shape)} instead of {list(expected.shape)})"
    return f"{float(np.abs(found - expected).max()):.2g}"
