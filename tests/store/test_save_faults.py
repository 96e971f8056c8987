"""A process that dies, is interrupted or meets a bad disk at any moment of a save loses one interval at most."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mfd_cli.errors import MfdError, RunStopped
from mfd_cli.store.checkpoint import Checkpoint, newest_valid, save_checkpoint, set_aside_after, verify
from mfd_cli.store.files import remove_leftovers

EVERY = 10  # updates between two checkpoints

#: all calls of a save that pushes out an older checkpoint, in their order; names in brackets are not final yet
ORDER = [
    "mkdir (update-000030)",
    *[
        f"{call} {name}"
        for file in ("student.safetensors", "state.json", "manifest.json")
        for call, name in (("write", f"({file})"), ("fsync", f"({file})"), ("replace", file),
                           ("fsync", "(update-000030)"), ("unlink", f"({file})"))
    ],
    *["fsync FILE"] * 3,
    "fsync (update-000030)",
    "rename update-000030",
    "fsync checkpoints",
    *["unlink FILE"] * 3,
    "rmdir update-000010",
]  # fmt: skip

Start = Callable[..., Any]


def save(folder: Path, update: int) -> Path:
    weights = {"student": {"w": torch.full((64,), float(update))}}
    return save_checkpoint(folder, update=update, inside=0, parts=weights, state={}, keep=2)


def begun(folder: Path, *updates: int) -> Path:
    for update in updates:
        save(folder, update)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def valid(folder: Path) -> list[Checkpoint]:
    found = []
    for path in folder.glob("update-*"):
        try:
            found.append(verify(path))
        except MfdError:
            continue
    return found


def continued(folder: Path) -> None:
    """What a resumed run does: it finds where to go on, tidies up, and saves."""
    found, passed_over = newest_valid(folder)
    assert found is not None and not passed_over
    assert torch.equal(found.tensors("student")["w"], torch.full((64,), float(found.state["update"])))
    remove_leftovers(folder)
    set_aside_after(found)
    update = found.state["update"]
    save(folder, update + EVERY)
    assert names(folder)[-1] == f"update-{update + EVERY:06d}"
    assert not [name for name in names(folder) if not name.startswith("update-")]
    assert newest_valid(folder)[0] == verify(folder / f"update-{update + EVERY:06d}")


def test_the_calls_of_a_save_are_these_and_in_this_order(tmp_path: Path, disk: Start) -> None:
    folder = begun(tmp_path / "checkpoints", 10, 20)
    with disk(tmp_path) as watched:
        save(folder, 30)
    plain = ("student.safetensors", "state.json", "manifest.json")
    listed = [
        f"{call} FILE" if name in plain and call in ("fsync", "unlink") else f"{call} {name}"
        for call, name in (entry.split(" ") for entry in watched.calls)
    ]
    assert listed == ORDER


def moments(tmp_path: Path, disk: Start, updates: tuple[int, ...], then: int) -> tuple[int, Path]:
    """How many moments a save has, and a folder as it is before it."""
    before = begun(tmp_path / "before", *updates)
    shutil.copytree(before, tmp_path / "count")
    with disk(tmp_path) as watched:
        save(tmp_path / "count", then)
    return watched.moments, before


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power cut"])
def test_dead_at_any_moment_of_a_save(tmp_path: Path, disk: Start, power: bool) -> None:
    count, before = moments(tmp_path, disk, (10, 20), 30)
    assert count >= 50
    seen = set()
    for moment in range(1, count + 1):
        folder = tmp_path / f"{moment}"
        shutil.copytree(before, folder)
        with disk(folder, moment, power=power) as dead:
            save(folder, 30)
        assert dead.dead
        found, _ = newest_valid(folder)
        assert found is not None and found.state["update"] in (20, 30)
        assert len(valid(folder)) >= 2
        seen.add(found.state["update"])
        continued(folder)
    assert seen == {20, 30}


@pytest.mark.parametrize("updates", [(10, 20), (20,)])
def test_dead_at_any_moment_of_a_save_in_the_place_of_another(
    tmp_path: Path, disk: Start, updates: tuple[int, ...]
) -> None:
    count, before = moments(tmp_path, disk, updates, 20)
    for moment in range(1, count + 1):
        folder = tmp_path / f"{moment}"
        shutil.copytree(before, folder)
        with disk(folder, moment):
            save(folder, 20)
        found, passed_over = newest_valid(folder)
        assert found is not None and found.state["update"] == 20 and not passed_over
        if moment % 2:  # a save at the same place over whatever is left
            save(folder, 20)
            assert names(folder) == [f"update-{update:06d}" for update in updates]
        else:
            continued(folder)


def test_interrupted_at_any_moment_of_a_save(tmp_path: Path, disk: Start) -> None:
    count, before = moments(tmp_path, disk, (10, 20), 30)
    for moment in range(1, count + 1):
        folder = tmp_path / f"{moment}"
        shutil.copytree(before, folder)
        with pytest.raises(KeyboardInterrupt), disk(folder, moment, error=KeyboardInterrupt):
            save(folder, 30)
        found, passed_over = newest_valid(folder)
        assert found is not None and found.state["update"] in (20, 30) and not passed_over
        assert len(valid(folder)) >= 2
        continued(folder)


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_at_any_moment_stops_the_run_and_leaves_what_was(
    tmp_path: Path, disk: Start, reason: int
) -> None:
    count, before = moments(tmp_path, disk, (10, 20), 30)
    for moment in range(1, count + 1):
        folder = tmp_path / f"{moment}"
        shutil.copytree(before, folder)
        watched = disk(folder, moment, error=lambda: OSError(reason, os.strerror(reason)))
        with pytest.raises(RunStopped) as caught, watched:
            save(folder, 30)
        assert os.strerror(reason) in caught.value.found and caught.value.exit_code == 3
        assert len(valid(folder)) >= 2
        shutil.rmtree(folder)


def test_a_file_of_limited_size_stops_the_run_with_the_bytes_needed(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    folder = begun(tmp_path / "checkpoints", 10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(RunStopped, match=r"student\.safetensors: File too large, 400\.\d kB needed, .* free"):
            save_checkpoint(
                folder, update=20, inside=0, parts={"student": {"w": torch.ones(100_000)}}, state={}, keep=2
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(folder) == ["update-000010"] and verify(folder / "update-000010")


def test_a_checkpoint_of_another_run_is_passed_over_however_new(tmp_path: Path) -> None:
    folder = begun(tmp_path, 10, 20)
    found, passed_over = newest_valid(folder, lambda one: "another run's" if one.state["update"] == 20 else None)
    assert found is not None and found.state["update"] == 10
    assert passed_over == [f"{folder / 'update-000020'}: another run's"]
    set_aside_after(found)
    assert names(folder) == ["passed-over-update-000020", "update-000010"]


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"update": "x", "inside": 0}', '{"update": 1e999, "inside": 0}', "[" * 9000]
)
def test_a_state_without_a_position_is_no_checkpoint(tmp_path: Path, content: str) -> None:
    import hashlib
    import json

    path = save(tmp_path, 10)
    (path / "state.json").write_text(content)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.json"] = {
        "size": len(content), "sha256": hashlib.sha256(content.encode()).hexdigest()
    }  # fmt: skip
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MfdError, match=r"state\.json has no position"):
        verify(path)


def test_what_a_link_leads_to_is_never_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "update-000001").symlink_to(precious)
    (folder / ".update-000002.01234567").symlink_to(precious)
    begun(folder, 10, 20, 30)
    assert names(folder) == ["update-000020", "update-000030"]
    assert (precious / "thesis.txt").read_text() == "years"
