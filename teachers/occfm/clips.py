"""OccFM's cached latents as clips of 12 keyframes: 6 of history, 6 to forecast.

A cache holds one entry a frame, in no order; the scene infos give the order. A clip is 12 frames that follow each
other in one scene, 0.5 s apart. Shapes: B clips, N cached frames, C x H x W one latent (published: 16 x 50 x 50).
Latents are as cached, not multiplied by the factor that the network works with.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from teachers.arrays import read_arrays
from teachers.errors import TeacherError
from teachers.occfm.classes import CLASSES
from teachers.occfm.pickles import read_pickle
from teachers.occfm.transition import FRAMES, HISTORY

LABELS = (200, 200, 16)  # voxels of a frame: x, y, z

_LATENTS, _INDEX = "latents.npy", "index.json"
_CACHE = "a list of entries with `x_sampled` (or `mu` and `sigmas`), `gt_path` and `gt_trajs`"
_DOWNLOAD = "download Occ3D-nuScenes and put its `gts` folder below {root}, or name the folder that holds `data/`"


@dataclass(frozen=True, eq=False)
class Clips:
    """Clips of a cache, numbered in the order of the scene infos.

    Attributes:
        frames: latents of all cached frames, float32 [N, C, H, W]; on disk if they come from a converted folder.
        steps: displacement of the vehicle from each frame to the next, x and y in metres, float32 [N, 2].
        paths: the label file of each frame, relative; N.
        rows: the 12 frames of each clip, as rows of the above; int64 [len, 12].
        scenes: the scene number of each clip, its place in `scene_names`; int64 [len].
        scene_names: scenes of the infos that have frames in the cache.
        history_last: frames just before the forecast that are kept; earlier ones are zeros.
        labels_root: the folder that label paths are relative to.
        label_shape: voxels of a label file.
        missing: frames that the infos list in these scenes and the cache lacks.
        skipped: clips that are not made because a frame is missing.
    """

    frames: np.ndarray = field(repr=False)
    steps: np.ndarray = field(repr=False)
    paths: list[str] = field(repr=False)
    rows: np.ndarray = field(repr=False)
    scenes: np.ndarray = field(repr=False)
    scene_names: list[str] = field(repr=False)
    history_last: int
    labels_root: Path
    label_shape: tuple[int, ...]
    missing: int
    skipped: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return self.frames.shape[1:]

    def latents(self, index: Tensor) -> Tensor:
        """Latents of clips, float32 [B, 12, C, H, W], for clip numbers int64 [B]; frames before the kept ones are 0."""
        return self._without_early(self.frames[self.rows[index.cpu().numpy()]])

    def trajectory(self, index: Tensor) -> Tensor:
        """Displacements of clips in metres, float32 [B, 12, 2]: row k leads from frame k to k + 1; early rows are 0."""
        return self._without_early(self.steps[self.rows[index.cpu().numpy()]])

    def scene(self, index: Tensor) -> Tensor:
        """Scene numbers of clips, int64 [B]; `scene_names` gives the names."""
        return torch.from_numpy(self.scenes[index.cpu().numpy()])

    def label_paths(self, clip: int) -> list[Path]:
        """The label files of a clip's 12 frames."""
        return [self.labels_root / self.paths[row] for row in self.rows[clip]]

    def missing_labels(self) -> list[Path]:
        """Label files of any clip's frames that are not there, each once, in the order of clips."""
        paths = (self.labels_root / self.paths[row] for row in dict.fromkeys(self.rows.flat))
        return [path for path in paths if not path.is_file()]

    def truth(self, index: Tensor) -> Tensor:
        """Labels of the six frames to forecast, uint8 [B, 6, 200, 200, 16]; 17 is free.

        Raises:
            TeacherError: label files are missing, damaged, or of another shape or type.
        """
        return self._labels(index, slice(HISTORY, FRAMES))

    def history_labels(self, index: Tensor) -> Tensor:
        """Labels of the six frames before, uint8 [B, 6, 200, 200, 16]. Raises TeacherError as `truth` does."""
        return self._labels(index, slice(0, HISTORY))

    def _labels(self, index: Tensor, part: slice) -> Tensor:
        paths = [path for clip in index.tolist() for path in self.label_paths(clip)[part]]
        absent = [path for path in paths if not path.is_file()]
        if absent:
            raise TeacherError(
                f"{len(absent)} of {len(paths)} label files are missing, the first is {absent[0]}",
                allowed=f"labels.npz files of Occ3D-nuScenes, looked for in {self.labels_root.resolve()}",
                do=_DOWNLOAD.format(root=self.labels_root / "data" / "nuscenes"),
            )
        labels = np.empty((len(paths), *self.label_shape), dtype=np.uint8)
        for row, path in enumerate(paths):
            labels[row] = _read_labels(path, self.label_shape)
        return torch.from_numpy(labels).reshape(len(index), HISTORY, *self.label_shape)

    def _without_early(self, values: np.ndarray) -> Tensor:
        chosen = np.array(values)  # a copy, also of what lies on disk
        chosen[:, : HISTORY - self.history_last] = 0
        return torch.from_numpy(chosen)


def read_clips(
    cache: Path,
    infos: Path,
    history_last: int = 4,
    labels_root: Path | None = None,
    *,
    label_shape: tuple[int, ...] = LABELS,
) -> Clips:
    """All clips of a latent cache.

    A clip whose frames do not all lie in the cache is left out and counted, so that none joins frames that are not
    neighbours. Scenes without any cached frame belong to another split and are not counted.

    Where a cache holds `mu` and `sigmas` instead of a sample, the latent is mu + sigmas * eps. eps is N(0, 1) from
    numpy's RandomState, whose stream is fixed, seeded by the eight 32-bit words of the token's SHA-256: the same frame
    has the same latent wherever it is read. Of entries with one token the first counts.

    Args:
        cache: the published pickle, or a folder that `convert_cache` made of it.
        infos: the pickle of scene infos, which gives the order of frames.
        history_last: of the six frames of history, how many are kept; the published models use 4 or 6.
        labels_root: the folder that holds `data/nuscenes/gts`; the current one by default.
        label_shape: voxels of a label file.

    Raises:
        TeacherError: a file is missing, damaged or something else, or no clip remains.
    """
    if not 1 <= history_last <= HISTORY:
        raise TeacherError(f"{history_last} frames of history", allowed=f"1 to {HISTORY}")
    frames, steps, paths = _read_folder(cache) if cache.is_dir() else _read_cache(cache)
    row_of = {_token(path): row for row, path in enumerate(paths)}
    rows: list[list[int]] = []
    scenes: list[int] = []
    names: list[str] = []
    missing = skipped = 0
    for name, tokens in _read_scenes(infos).items():
        line = [row_of.get(token, -1) for token in tokens]
        if max(line, default=-1) < 0:
            continue
        _refuse_other_scene(name, [paths[row] for row in line if row >= 0], cache)
        windows = [line[start : start + FRAMES] for start in range(len(line) - FRAMES + 1)]
        whole = [window for window in windows if min(window) >= 0]
        rows += whole
        scenes += [len(names)] * len(whole)
        names.append(name)
        missing += line.count(-1)
        skipped += len(windows) - len(whole)
    if not rows:
        raise _no_clips(cache, infos, len(names), missing, skipped)
    root = labels_root if labels_root is not None else Path()
    return Clips(
        frames, steps, paths, np.array(rows), np.array(scenes), names, history_last, root, label_shape, missing, skipped
    )


def convert_cache(cache: Path, folder: Path) -> int:
    """Rewrites a pickled cache, once, as a folder whose latents are read from disk as they are needed.

    Args:
        cache: the published pickle.
        folder: the folder to make: `latents.npy` float32 [N, C, H, W] and `index.json` with label paths and steps.

    Returns:
        Number of frames.

    Raises:
        TeacherError: the cache is no cache, or the folder exists or cannot be written.
    """
    if folder.exists():
        raise TeacherError(f"{folder}: exists", do="give another folder, or remove it")
    entries = _entries(cache)
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.mkdir()
        shape = _shape(entries, cache)
        latents = np.lib.format.open_memmap(aside / _LATENTS, mode="w+", dtype=np.float32, shape=shape)
        steps, paths = _fill(latents, entries, cache)
        latents.flush()
        del latents
        content = json.dumps({"paths": paths, "steps": steps.tolist()}, indent=0)
        (aside / _INDEX).write_text(content + "\n", encoding="utf-8")
        os.rename(aside, folder)
    except OSError as error:
        raise TeacherError(
            f"{folder}: cannot be written ({error.strerror or error})",
            do="give a folder in a place that exists and has room",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return len(paths)


def _read_cache(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Latents [N, C, H, W], steps [N, 2] and label paths of a pickled cache."""
    entries = _entries(path)
    latents = np.empty(_shape(entries, path), dtype=np.float32)
    return latents, *_fill(latents, entries, path)


def _entries(path: Path) -> dict[str, Mapping[str, Any]]:
    """Entries of a pickled cache by label path, the first of each token, in their order."""
    content = read_pickle(path)
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        raise TeacherError(f"{path}: not a cache of latents", allowed=_CACHE)
    entries: dict[str, Mapping[str, Any]] = {}
    seen: set[str] = set()
    for position, entry in enumerate(content):
        label = entry.get("gt_path")
        while isinstance(label, list | tuple) and len(label) == 1:
            label = label[0]
        label = _relative(label, f"{path}: entry {position}")
        if _token(label) not in seen:
            seen.add(_token(label))
            entries[label] = entry
    return entries


def _relative(label: Any, where: str) -> str:
    """A label path as it is, if it can only lead to a place below the labels' root."""
    parts = PurePosixPath(label).parts if isinstance(label, str) else ()
    if len(parts) < 3 or parts[-1] != "labels.npz":
        raise TeacherError(f"{where}: label path {label!r}", allowed="data/nuscenes/gts/<scene>/<token>/labels.npz")
    if parts[0] == "/" or ".." in parts or "\\" in label or ":" in label:
        raise TeacherError(
            f"{where}: label path {label!r} leads out of the folder of labels",
            allowed="relative paths: data/nuscenes/gts/<scene>/<token>/labels.npz",
            do="make the cache with relative paths; mfd reads labels only below the root it is given",
        )
    return label


def _token(label: str) -> str:
    return PurePosixPath(label).parts[-2]


def _shape(entries: Mapping[str, Mapping[str, Any]], path: Path) -> tuple[int, ...]:
    label, entry = next(iter(entries.items()))
    return len(entries), *_latent(entry, label, path).shape


def _fill(latents: np.ndarray, entries: dict[str, Mapping[str, Any]], path: Path) -> tuple[np.ndarray, list[str]]:
    """Copies the entries' latents into an array; returns their steps and label paths. Uses the entries up."""
    paths = list(entries)
    steps = np.empty((len(paths), 2), dtype=np.float32)
    for row, label in enumerate(paths):
        entry = entries.pop(label)
        latent = _latent(entry, label, path)
        if latent.shape != latents.shape[1:]:
            raise TeacherError(
                f"{path}: latent of {_token(label)} of shape {list(latent.shape)}",
                allowed=f"the first frame's: {list(latents.shape[1:])}",
            )
        latents[row] = latent
        steps[row] = _numbers(entry, "gt_trajs", (2,), f"{path}: {label}")
    return steps, paths


def _latent(entry: Mapping[str, Any], label: str, path: Path) -> np.ndarray:
    """The latent of an entry, float32 [C, H, W]; drawn as `read_clips` says if it holds a distribution."""
    where = f"{path}: {label}"
    if "x_sampled" in entry or "mu" not in entry:
        return _numbers(entry, "x_sampled", (None, None, None), where)
    mu = _numbers(entry, "mu", (None, None, None), where)
    seed = np.frombuffer(hashlib.sha256(_token(label).encode()).digest(), dtype="<u4")
    noise = np.random.RandomState(seed).standard_normal(mu.shape).astype(np.float32)
    return mu + _numbers(entry, "sigmas", mu.shape, where) * noise


def _numbers(entry: Mapping[str, Any], key: str, shape: tuple[int | None, ...], where: str) -> np.ndarray:
    """An array of an entry as float32 of a shape; a leading axis of length 1 is taken off."""
    value = entry.get(key)
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        raise TeacherError(f"{where}: no array of floating-point numbers in `{key}`", allowed=_CACHE)
    array = value[0] if value.ndim == len(shape) + 1 and len(value) == 1 else value
    fits = array.ndim == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
    if not fits or not array.size:
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise TeacherError(f"{where}: `{key}` of shape {list(value.shape)}", allowed=f"[1, {wanted}]")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise TeacherError(f"{where}: NaN or infinite values in `{key}`", do="make or download the cache again")
    return array


def _read_folder(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What `convert_cache` wrote: latents on disk [N, C, H, W], steps [N, 2] and label paths."""
    try:
        latents = np.load(folder / _LATENTS, mmap_mode="r")
        content = json.loads((folder / _INDEX).read_text("utf-8"))
        steps = np.array(content["steps"], dtype=np.float32)
        paths = [_relative(path, f"{folder / _INDEX}") for path in content["paths"]]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise TeacherError(
            f"{folder}: not a folder of latents ({error})",
            allowed=f"a folder with {_LATENTS} and {_INDEX}, made from a cache",
            do="convert the cache again",
        ) from error
    fits = latents.dtype == np.float32 and latents.ndim == 4 and len(latents) == len(paths)
    if not fits or steps.shape != (len(paths), 2) or not np.isfinite(steps).all():
        raise TeacherError(
            f"{folder}: {latents.dtype} latents of shape {list(latents.shape)} for {len(paths)} label paths and steps "
            f"of shape {list(steps.shape)}",
            do="convert the cache again",
        )
    return latents, steps, paths


def _read_scenes(path: Path) -> dict[str, list[str]]:
    """Tokens of each scene's frames, in order of time."""
    content = read_pickle(path)
    try:
        scenes = {str(name): [frame["token"] for frame in frames] for name, frames in content["infos"].items()}
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise TeacherError(
            f"{path}: not scene infos",
            allowed="a dict whose `infos` holds a list of frames with `token` for each scene",
            do="take the nuscenes_infos_*_temporal_v3_scene.pkl that belongs to the cache",
        ) from error
    return scenes


def _refuse_other_scene(name: str, paths: list[str], cache: Path) -> None:
    for path in paths:
        if PurePosixPath(path).parts[-3] != name:
            raise TeacherError(
                f"{cache}: {path} is a frame of {name} according to the scene infos",
                do="take the infos that belong to the cache",
            )


def _no_clips(cache: Path, infos: Path, scenes: int, missing: int, skipped: int) -> TeacherError:
    if not scenes:
        return TeacherError(
            f"{cache}: none of its frames is listed in {infos}",
            do="take the cache and the infos of the same split: training with train, validation with val",
        )
    return TeacherError(
        f"{cache}: no {FRAMES} neighbouring frames in any of {scenes} scenes of {infos}; "
        f"{missing} frames are missing in the cache, which costs {skipped} clips",
        do="make or download the whole cache",
    )


def _read_labels(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        (labels,) = read_arrays(path, "semantics")
    except ValueError as error:
        raise TeacherError(
            f"{path}: no readable labels ({error})",
            allowed="an npz file with `semantics`, as Occ3D-nuScenes has it",
            do="copy or download it again",
        ) from error
    if labels.dtype != np.uint8 or labels.shape != shape:
        raise TeacherError(
            f"{path}: `semantics` of type {labels.dtype} and shape {list(labels.shape)}",
            allowed=f"uint8 of shape {list(shape)}",
        )
    if labels.max() >= len(CLASSES):
        raise TeacherError(f"{path}: label {labels.max()}", allowed=f"0 to {len(CLASSES) - 1}")
    return labels
