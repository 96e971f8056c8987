"""The files beside recipes that `fuzz.py` breaks: weights of every kind, and what stands beside them."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from fuzz_inputs import (
    Target,
    bytes_changed,
    header_changed,
    json_changed,
    length_changed,
    many_tensors,
    metadata_changed,
)
from torch import nn

from mfd_cli.store.checkpoint import newest_valid, save_checkpoint, verify
from mfd_cli.store.layout import RunFolder, find
from mfd_cli.store.student import read_student, save_student, save_student_file
from mfd_cli.store.tensors import load_into, read_header, read_tensors, restore_optimizer, write_tensors
from teachers.images import ImagesSettings, ImagesTeacher, read_images
from teachers.networks.dit import DiT
from teachers.occfm.checkpoints import convert, read_weights
from teachers.occfm.pickles import read_pickle
from teachers.pipelines.loading import locate, require_flow
from teachers.prompts.cache import EmbeddingCache
from teachers.prompts.files import DIGEST, PromptFile

Break = Callable[[bytes, Random], bytes]

SAFETENSORS: tuple[Break, ...] = (bytes_changed, length_changed, header_changed, header_changed, many_tensors)
OURS: tuple[Break, ...] = (bytes_changed, length_changed, header_changed, metadata_changed, metadata_changed)
JSON: tuple[Break, ...] = (bytes_changed, json_changed, json_changed, json_changed)
BYTES: tuple[Break, ...] = (bytes_changed,)


def weight_targets(home: Path) -> list[Target]:
    """Every kind of file, written whole below a folder."""
    torch.manual_seed(0)
    return [
        *_plain(home), *_teachers(home), *_students(home), *_checkpoints(home), *_pipelines(home), *_prompts(home),
        *_embeddings(home), *_arrays(home), *_pickles(home),
    ]  # fmt: skip


def _target(name: str, path: Path, breaks: tuple[Break, ...], read: Callable[[], Any]) -> Target:
    return Target(name, path, path.read_bytes(), breaks, lambda random: read())


def _plain(home: Path) -> list[Target]:
    layer, path = nn.Linear(4, 3), home / "plain.safetensors"
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    names = [name for name, _ in layer.named_parameters()]
    write_tensors(path, layer.state_dict())
    moments = {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in zip(names, layer.parameters(), strict=True)
        for key, value in optimizer.state[parameter].items()
    }
    state = home / "optim.safetensors"
    write_tensors(state, moments)
    return [
        _target("network", path, SAFETENSORS, lambda: load_into(layer, read_tensors(path), path)),
        _target("optimizer", state, SAFETENSORS,
                lambda: restore_optimizer(optimizer, names, read_tensors(state), state)),
    ]  # fmt: skip


def _teachers(home: Path) -> list[Target]:
    sizes = {"image_size": 4, "channels": 1, "num_classes": 2, "patch_size": 2, "width": 8, "depth": 1, "heads": 2}
    path = home / "teacher.safetensors"
    write_tensors(path, DiT(**sizes).state_dict(), {"type": "images", "architecture": sizes})
    settings = ImagesSettings(type="images", weights=str(path))
    forecaster = home / "occfm.safetensors"
    write_tensors(forecaster, {"encoder.w": torch.ones(2), "transition_model.w": torch.ones(2, 2)})
    return [
        _target("teacher", path, OURS, lambda: ImagesTeacher.load(settings)),
        _target("occfm weights", forecaster, SAFETENSORS, lambda: read_weights(forecaster)),
    ]


def _students(home: Path) -> list[Target]:
    config = {"architecture": {"width": 8}, "student": {"steps": 1}, "recipe": {"name": "x"}, "teacher": {}, "data": {}}
    weights = {"a": torch.ones(4), "carried.b": torch.zeros(2, 2)}
    file, folder = home / "student.safetensors", home / "exported"
    save_student_file(file, config, weights)
    save_student(folder, config, weights)
    return [
        _target("student", file, OURS, lambda: (read_student(find(str(file))).network, read_header(file))),
        _target("student folder", folder / "model.safetensors", OURS, lambda: read_student(find(str(folder)))),
        _target("student config", folder / "config.json", JSON, lambda: read_student(find(str(folder)))),
    ]


def _checkpoints(home: Path) -> list[Target]:
    run = RunFolder(home / "runs" / "a")
    parts = {"student": {"w": torch.ones(4)}, "optim": {"student/w/step": torch.tensor(1.0)}}
    state = {"progress": {"step": 3}, "student": {"ema": None, "recipe": {}, "architecture": {}}}
    path = save_checkpoint(run.checkpoints, update=1, inside=0, parts=parts, state=state, keep=2)
    run.update_record(status="running", update=1)
    (home / "runs" / "latest").write_text("a\n")

    def whole() -> None:
        newest_valid(run.checkpoints)
        found = verify(path)
        for part in parts:
            found.tensors(part)
        read_student(path)

    return [
        *[_target(f"checkpoint {file.name}", file, OURS if file.suffix == ".safetensors" else JSON, whole)
          for file in sorted(path.iterdir())],
        _target("record", run.record, JSON, run.read_record),
        _target("pointer", home / "runs" / "latest", BYTES, lambda: find(None)),
    ]  # fmt: skip


def _pipelines(home: Path) -> list[Target]:
    folder = home / "pipeline"
    for part in ("scheduler", "transformer"):
        (folder / part).mkdir(parents=True)
    index = folder / "model_index.json"
    index.write_text(
        '{"_class_name": "FluxPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], '
        '"transformer": ["diffusers", "FluxTransformer2DModel"]}'
    )
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}')
    (folder / "transformer" / "config.json").write_text('{"_class_name": "FluxTransformer2DModel", "num_layers": 1}')

    def opened() -> None:
        source = locate(str(folder))
        require_flow(source)
        for part in ("scheduler", "transformer"):
            source.part_class(part)
            source.config(part)
        str(source.pipeline)

    return [
        _target("pipeline index", index, JSON, opened),
        _target("scheduler", scheduler, JSON, opened),
        _target("part", folder / "transformer" / "config.json", JSON, opened),
    ]


def _prompts(home: Path) -> list[Target]:
    texts = {
        "prompts.txt": "a red cube\n\nan étude\nthe sea\n",
        "prompts.tsv": "id\ttext\tscore\turl\n1\ta red cube\t6.5\tx\n2\tthe sea\t5.9\ty\n",
        "prompts.jsonl": '{"prompt": "a red cube"}\n{"prompt": "the sea", "n": 1}\n',
    }
    found = []
    for name, text in texts.items():
        path = home / name
        path.write_text(text, encoding="utf-8")

        def read(path: Path = path) -> None:
            for malformed in ("refuse", "skip"):
                prompts = PromptFile(path, malformed=malformed)  # type: ignore[arg-type]
                prompts.texts(range(len(prompts)))

        found.append(_target(name, path, BYTES, read))
    return found


def _embeddings(home: Path) -> list[Target]:
    cache = EmbeddingCache(home / "cache", {"encoder": "x"})
    digests = np.arange(3 * DIGEST, dtype=np.uint8).reshape(3, DIGEST)
    cache.write(digests, [{"rows": torch.ones(n + 1, 4), "one": torch.tensor(1.0)} for n in range(3)])
    cache.open()

    def read() -> None:
        found = EmbeddingCache(home / "cache", {"encoder": "x"}).open(repair=False)
        for digest in digests:
            found.read(digest)

    return [
        *[_target("embeddings", path, SAFETENSORS, read) for path in cache.folder.glob("*.safetensors")],
        _target("embeddings verified", cache.folder / "verified.json", JSON, read),
    ]


def _arrays(home: Path) -> list[Target]:
    path = home / "images.npz"
    np.savez_compressed(path, images=np.zeros((4, 4, 4), np.uint8), labels=np.arange(4))
    plain = home / "plain.npz"
    np.savez(plain, images=np.zeros((4, 4, 4), np.uint8), labels=np.arange(4))
    return [
        _target("images", path, BYTES, lambda: read_images(path)),
        _target("images, not compressed", plain, BYTES, lambda: read_images(plain)),
    ]


def _pickles(home: Path) -> list[Target]:
    data = {"a": [np.arange(6.0).reshape(2, 3), "text", 3], "b": OrderedDict(x=np.array(["u", "v"])), "c": (1, None)}
    path = home / "cache.pkl"
    path.write_bytes(pickletools.optimize(pickle.dumps(data, protocol=4)))
    checkpoint, target = home / "model.ckpt", home / "converted.safetensors"
    memory = io.BytesIO()
    torch.save({"state_dict": {"encoder.w": torch.ones(2), "embedding.w": torch.ones(3)}, "epoch": 3}, memory)
    checkpoint.write_bytes(memory.getvalue())

    def converted() -> None:
        try:
            convert(checkpoint, target)
        finally:
            target.unlink(missing_ok=True)

    return [
        _target("pickle", path, BYTES, lambda: read_pickle(path)),
        _target("checkpoint to convert", checkpoint, BYTES, converted),
    ]
