"""Writes that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from mfd_cli.errors import RunStopped
from mfd_cli.store import files
from mfd_cli.store.files import (
    disk_errors,
    free_bytes,
    human,
    remove_leftovers,
    sha256,
    whole_folder,
    write_bytes,
    write_json,
)


def test_a_file_is_created_replaced_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"one")
    write_bytes(tmp_path / "a", b"two")
    write_json(tmp_path / "b.json", {"word": "Fréchet"})
    assert (tmp_path / "a").read_bytes() == b"two"
    assert json.loads((tmp_path / "b.json").read_text("utf-8")) == {"word": "Fréchet"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b.json"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_a_failing_write_leaves_the_old_content_and_no_leftovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, reason: int
) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def fail(*arguments: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError if reason == errno.EACCES else RunStopped):
        write_bytes(path, b"new and longer")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_with_the_bytes_needed() -> None:
    with pytest.raises(RunStopped) as caught, disk_errors(Path("runs/a"), 2_500_000):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.found.startswith("runs/a: No space left on device, 2.5 MB needed, ")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "a", b"")
        with whole_folder(tmp_path / "folder") as aside:
            write_bytes(aside / "b", b"")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "folder/b", "folder")]
    assert modes == [0o666 & ~mask, 0o666 & ~mask, 0o777 & ~mask]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with pytest.raises(KeyError), whole_folder(target) as aside:
        (aside / "half").write_text("x")
        assert not target.exists()
        raise KeyError
    assert list(target.parent.iterdir()) == []
    with whole_folder(target) as aside:
        (aside / "all").write_text("x")
    assert [path.name for path in target.iterdir()] == ["all"]


def test_a_folder_is_replaced_only_where_asked_and_only_by_a_whole_one(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("x")
    with pytest.raises(OSError), whole_folder(target) as aside:
        (aside / "new").write_text("x")
    assert [path.name for path in target.iterdir()] == ["old"]
    with pytest.raises(KeyError), whole_folder(target, replace=True) as aside:
        raise KeyError
    assert [path.name for path in target.iterdir()] == ["old"]
    with whole_folder(target, replace=True) as aside:
        (aside / "new").write_text("x")
    assert [path.name for path in target.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [target]


def test_content_and_folder_are_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def recorded(name: str) -> None:
        original = getattr(os, name)

        def call(*arguments: object) -> object:
            calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename", "replace"):
        recorded(name)
    write_bytes(tmp_path / "a", b"x")
    assert calls == ["fsync", "replace", "fsync"]
    calls.clear()
    with whole_folder(tmp_path / "folder") as aside:
        (aside / "b").write_bytes(b"x")
    assert calls == ["fsync", "fsync", "rename", "fsync"]  # file, folder, rename, parent


def test_leftovers_of_a_killed_write_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".run.json.0a1b2c3d", ".lock", ".notes.old.txt", "run.json", ".mine.deadbeefs"):
        (tmp_path / name).write_text("x")
    for name in (".update-000004.01234567", ".student.old", "student", ".export.old", "student.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").write_text("x")
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "missing")
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock", ".notes.old.txt", "run.json", ".mine.deadbeefs", "student", "student.old",
        "export",  # it had been moved aside, and nothing took its place
    }  # fmt: skip


def test_hash_is_that_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    with open(tmp_path / "a", "rb") as file:
        assert files._slow(file) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_440_000_000, "1.4 GB"), (3e13, "30.0 TB")]
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert human(size) == text


def test_free_space_of_a_folder_that_is_yet_to_be_made(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free_bytes(tmp_path), rel=0.1)
