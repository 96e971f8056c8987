"""Students as ONNX graphs: a folder with the graph, its card, and a condition to try it with where one is needed.

A folder is made under a hidden name. A process that can import neither mfd nor torch runs the graph with onnxruntime at
two batch sizes (of prompts of two lengths), runs the card's code, and what it got has to agree with the student's own
sampler. Only then does the folder get its name. So an export that exists has passed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mfd_cli
from mfd_cli.errors import MfdError
from mfd_cli.inference import onnx_graph
from mfd_cli.inference.card import CARD, onnx_card
from mfd_cli.inference.export_folders import aside, computing_in_float32, is_present
from mfd_cli.inference.exporters import Export, export_config
from mfd_cli.inference.fresh import failed, run_fresh
from mfd_cli.inference.onnx_graph import FRESH_NOISE, NOISE
from mfd_cli.inference.sampler import Sampler
from mfd_cli.store.files import sha256, write_bytes
from mfd_cli.store.student import fingerprint, student_tensors
from teachers.pipelines import usage
from teachers.pipelines.base import PipelineTeacher

#: largest root-mean-square difference of samples, relative to their standard deviation, by the type of the weights; of
#: class indices, the largest share that may differ
TOLERANCE = {"fp32": 1e-4, "fp16": 0.01, "bf16": 0.05}
#: a condition of two samples, for the card's code, in folders of students that are not asked with class indices
EXAMPLE = "example.npz"

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_SEED, _CHECK_SECONDS = 0, 7200
#: samples of the card's code, and of the two checks
_SHOWN, _COUNTS = 2, (1, 3)
#: what inputs mean; others are the family's condition
_MEANINGS = {
    NOISE: "standard normal noise, where sampling begins",
    FRESH_NOISE: "standard normal noise for each point between two steps, where the student noises its sample afresh",
    "label": "class index",
    "history": "latents of the past frames, as the network sees them",
    "trajectory": "displacements in metres, one row a frame",
    "text": "prompt embeddings of the base's text encoder, zeros behind",
    "text_mask": "1 for a prompt's own tokens, 0 for what fills up",
}

#: run by the fresh process; the card's code comes behind it. Arguments: graph, folder of inputs, threads
_CHECK = """
import sys
for name in ("mfd_cli", "teachers", "torch"):
    sys.modules[name] = None
import pathlib
import numpy
import onnxruntime
graph, folder, threads = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
for file in pathlib.Path(folder).glob("*.npz"):
    with numpy.load(file) as inputs:
        numpy.save(file.with_suffix(".npy"), session.run(None, dict(inputs))[0])
del session
"""


def require_packages() -> None:
    """Raises MfdError where a package that writes or runs ONNX graphs is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MfdError(f"--onnx needs {', '.join(missing)}, not installed here", do="pip install 'mfd[onnx]'")


def export_onnx(
    student: Sampler, folder: Path, *, dtype: str = "fp32", benchmark: Mapping[str, Any] | None = None
) -> Export:
    """Writes a student's sampler as an ONNX graph with a card.

    Args:
        student: a loaded student on the CPU.
        folder: where to; must not exist, be empty, or hold this very export.
        dtype: type of the network's stored weights, fp32, bf16 or fp16; the graph computes in float32.
        benchmark: report of `mfd benchmark` for the card's figures.

    Raises:
        MfdError: the folder holds something else, the sampler cannot be traced, or the weights do not fit the type.
        RunStopped: no space; or onnxruntime did not give the student's samples, and the folder was not kept.
    """
    config = export_config(student, dtype)
    tensors = student_tensors(student.network, student.teacher.carried())
    told = ["onnx", config, fingerprint(tensors)]
    content = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    file = f"{config['recipe']['name']}.onnx"
    present = is_present(folder, content)
    known = student.teacher.clips
    student.find_clips(stand_in=True)  # what the data's own files hold need not be there
    try:
        with computing_in_float32(student.teacher.network):
            if present:
                return _described(folder / file, student, config, content, benchmark, already_there=True)
            needed = sum(value.numel() * value.element_size() for value in tensors.values())
            with aside(folder, needed) as fresh:
                _write(fresh / file, student, config, content)
                made = _described(fresh / file, student, config, content, benchmark)
    finally:
        student.teacher.clips = known
    return Export(folder / file, folder / CARD, made.sha256, made.check)


def check_graph(file: Path, student: Sampler, dtype: str, use: str) -> str:
    """Runs a graph and the card's code in a fresh process without mfd and torch, compares, and says what was found.

    Args:
        file: the graph.
        student: what it was made of, its network in float32.
        dtype: type of the stored weights.
        use: the card's code.

    Raises:
        RunStopped: the process failed, or the samples differ by more than TOLERANCE.
    """
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="mfd-check-") as place:
        expected = {}
        for count in _COUNTS:
            inputs, samples = _case(student, count)
            np.savez(Path(place, f"{count}.npz"), **_arrays(inputs))
            expected[count] = samples.cpu().numpy()
        arguments = [str(file.resolve()), place, str(torch.get_num_threads())]
        run_fresh(f"{_CHECK}\n{use}\nassert numpy.isfinite({onnx_graph.output_name(student)}).all()", arguments,
                  seconds=_CHECK_SECONDS, folder=file.parent)  # fmt: skip
        for count, known in expected.items():
            found = np.load(Path(place, f"{count}.npy"), allow_pickle=False)
            worst = max(worst, _difference(found, known, dtype))
    counts = " and ".join(map(str, _COUNTS))
    return f"batches of {counts} within {worst:.1g} of the student's samples ({TOLERANCE[dtype]:g} allowed)"


def _difference(found: np.ndarray, expected: np.ndarray, dtype: str) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype or not np.isfinite(found).all():
        raise failed("onnxruntime's samples have another shape or type, or are not finite")
    if expected.dtype == np.uint8:
        difference, of = float((found != expected).mean()), "share of class indices"
    else:
        squared = np.square(found.astype(np.float64) - expected).mean()
        difference, of = float(np.sqrt(squared) / max(float(expected.std()), 1e-12)), "part of their standard deviation"
    if difference > TOLERANCE[dtype]:
        raise failed(
            f"onnxruntime's samples differ from the student's by {difference:.2g} ({of}; {TOLERANCE[dtype]:g} allowed)"
        )
    return difference


def _case(student: Sampler, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of `count` samples, and the student's own samples from them."""
    teacher = student.teacher
    condition = dict(teacher.encode(teacher.examples(count)))
    if isinstance(teacher, PipelineTeacher) and teacher.filled_to is None:
        condition = _lengthened(condition, teacher.ragged, count)
    source = student.fresh(count, seed=_SEED)
    points = range(1, student.steps) if student.kind == "renoise" else ()
    fresh = torch.stack([source(point) for point in points], dim=1) if points else None
    inputs = onnx_graph.graph_inputs(student, student.noise(count, seed=_SEED), fresh, condition)
    asked = {name: value for name, value in inputs.items() if name not in (NOISE, FRESH_NOISE)}
    states = student.generate(inputs[NOISE], asked, fresh=source)
    return inputs, student.decode(states) if onnx_graph.decodes(student) else states


def _lengthened(condition: Mapping[str, Tensor], ragged: tuple[str, ...], tokens: int) -> dict[str, Tensor]:
    """Texts with further masked tokens, so that no two checks have the same number of them."""
    longer = dict(condition)
    for name in ragged:
        for part in (name, f"{name}_mask"):
            value = condition[part]
            longer[part] = torch.cat([value, value.new_zeros(len(value), tokens, *value.shape[2:])], dim=1)
    return longer


def _write(file: Path, student: Sampler, config: Mapping[str, Any], content: str) -> None:
    """Writes the graph, and the example that the card's code reads."""
    inputs, _ = _case(student, _SHOWN)
    notes = _notes(student, config, inputs, content)
    onnx_graph.write_graph(student, inputs, file, dtype=config["dtype"], notes=notes)
    condition = {name: value for name, value in inputs.items() if name not in (NOISE, FRESH_NOISE)}
    if condition and set(condition) != {"label"}:
        np.savez(file.parent / EXAMPLE, **_arrays(condition))


def _notes(student: Sampler, config: Mapping[str, Any], inputs: Mapping[str, Tensor], content: str) -> dict[str, str]:
    """What the file says about itself."""
    said = {
        "mfd_version": mfd_cli.__version__,
        "mfd_export": content,
        "recipe": config["recipe"]["name"],
        "teacher": config["teacher"]["type"],
        "method": str(config.get("method")),
        "steps": str(student.steps),
        "schedule": json.dumps(config["student"]["grid"]),
        "sampler": student.kind,
        "guidance": f"absorbed: {config['teacher'].get('guidance', 1.0)}",
        "weights": config["dtype"],
        "inputs": json.dumps(_meanings(student, inputs)),
        "outputs": json.dumps({onnx_graph.output_name(student): _output_meaning(student)}),
    }
    return said


def _meanings(student: Sampler, inputs: Mapping[str, Tensor]) -> dict[str, str]:
    """What each input is, with its type and shape."""
    axes, said = onnx_graph.free_axes(student, inputs), {}
    for name, value in inputs.items():
        shape = ", ".join(axes[name].get(axis, str(size)) for axis, size in enumerate(value.shape))
        kind = str(value.dtype).removeprefix("torch.")
        said[name] = f"{_MEANINGS.get(name, 'part of the condition')}; {kind} [{shape}]"
    return said


def _output_meaning(student: Sampler) -> str:
    kinds = {
        "points": "points", "images": "images with values from 0 to 1", "occupancy": "class of every voxel",
    }  # fmt: skip
    if onnx_graph.decodes(student):
        return kinds[student.teacher.sample_kind]
    return "latents, which the base's VAE decodes; the graph holds the transformer alone"


def _described(
    file: Path,
    student: Sampler,
    config: Mapping[str, Any],
    content: str,
    benchmark: Mapping[str, Any] | None,
    already_there: bool = False,
) -> Export:
    """Checks a folder and writes its card."""
    inputs, _ = _case(student, _SHOWN)
    use = _use(file.name, inputs, onnx_graph.output_name(student))
    check = check_graph(file, student, config["dtype"], use)
    digests = {other.name: sha256(other) for other in sorted(file.parent.iterdir()) if other.name != CARD}
    teacher = student.teacher
    card = onnx_card(
        config, content, digests, check, use,
        inputs=_meanings(student, inputs), output=(onnx_graph.output_name(student), _output_meaning(student)),
        licence=usage.licence(teacher.source) if isinstance(teacher, PipelineTeacher) else None, benchmark=benchmark,
    )  # fmt: skip
    write_bytes(file.parent / CARD, card.encode())
    return Export(file, file.parent / CARD, digests[file.name], check, already_there)


def _use(file: str, inputs: Mapping[str, Tensor], output: str) -> str:
    """Ten lines that sample with onnxruntime."""
    lines = ["import numpy as np", "import onnxruntime", "", f'session = onnxruntime.InferenceSession("{file}")']
    lines += ["random = np.random.default_rng()"]
    if "label" in inputs:
        lines.append(f'inputs = {{"label": np.array({inputs["label"].tolist()}, dtype=np.int64)}}')
    else:
        given = f'dict(np.load("{EXAMPLE}"))  # a condition' if set(inputs) - {NOISE, FRESH_NOISE} else "{}"
        lines.append(f"inputs = {given}")
    lines += [
        f'inputs["{name}"] = random.standard_normal({tuple(inputs[name].shape)}, dtype=np.float32)'
        for name in (NOISE, FRESH_NOISE)
        if name in inputs
    ]
    return "\n".join([*lines, f"({output},) = session.run(None, inputs)"])


def _arrays(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.cpu().numpy() for name, value in inputs.items()}
