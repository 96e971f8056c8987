"""Checkpoints: whole or absent, verified, the newest valid one found, the oldest removed last."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mfd_cli.errors import MfdError, RunStopped
from mfd_cli.store import checkpoint as module
from mfd_cli.store.checkpoint import newest_valid, save_checkpoint, verify

PARTS = {"student": {"w": torch.arange(8.0)}, "aux": {"w": torch.ones(8)}, "optim": {"a/w/step": torch.tensor(3.0)}}


def save(
    folder: Path, update: int, inside: int = 0, keep: int = 2, parts: dict[str, dict[str, Tensor]] = PARTS
) -> Path:
    return save_checkpoint(folder, update=update, inside=inside, parts=parts, state={"note": "x"}, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints", 12)
    assert path.name == "update-000012"
    assert names(path) == [
        "aux.safetensors", "manifest.json", "optim.safetensors", "state.json", "student.safetensors",
    ]  # fmt: skip
    found = verify(path)
    assert found.state == {"format": 1, "update": 12, "inside": 0, "note": "x"}
    assert torch.equal(found.tensors("student")["w"], PARTS["student"]["w"])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: flip(path / "aux.safetensors"), ["aux.safetensors has changed (SHA-256 differs)"]),
        (lambda path: flip(path / "state.json"), ["state.json has changed"]),
        (
            lambda path: (path / "optim.safetensors").write_bytes((path / "optim.safetensors").read_bytes()[:-1]),
            ["optim.safetensors has ", " bytes instead of "],
        ),
        (lambda path: (path / "student.safetensors").unlink(), ["student.safetensors is missing"]),
        (
            lambda path: (
                (path / "aux.safetensors").rename(path / "x"),
                (path / "student.safetensors").rename(path / "aux.safetensors"),
                (path / "x").rename(path / "student.safetensors"),
            ),
            ["aux.safetensors has changed", "student.safetensors has changed"],
        ),
        (lambda path: (path / "manifest.json").unlink(), ["no readable manifest.json"]),
        (lambda path: (path / "manifest.json").write_text("{}"), ["no readable manifest.json"]),
        (lambda path: (path / "manifest.json").write_text("[1]"), ["no readable manifest.json"]),
        (lambda path: (path / "manifest.json").write_text('{"format": 1, "files": {}}'), ["state.json is not listed"]),
    ],
)
def test_every_damage_is_found_and_named(tmp_path: Path, damage: object, words: list[str]) -> None:
    path = save(tmp_path, 1)
    damage(path)  # type: ignore[operator]
    with pytest.raises(MfdError) as caught:
        verify(path)
    for word in words:
        assert word in caught.value.found


def test_no_flipped_bit_of_any_file_passes_or_breaks_the_check(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    before = verify(path)
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for position in range(0, len(content), 7):
            file.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
            try:
                found = verify(path)
            except MfdError:
                continue
            # only white space of the manifest carries nothing
            assert file.name == "manifest.json" and found == before
        file.write_bytes(content)


def test_a_newer_format_is_refused_politely(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 9}))
    with pytest.raises(MfdError, match="checkpoint format 9, this mfd reads up to 1") as caught:
        verify(path)
    assert caught.value.do == "use a newer mfd"


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (tmp_path / "secret").write_text("x")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"size": 1, "sha256": "0" * 64}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MfdError, match=r"\.\./secret is missing"):
        verify(path)


def test_newest_valid_passes_over_damaged_ones_and_says_so(tmp_path: Path) -> None:
    for update in (1, 2, 3):
        save(tmp_path, update, keep=5)
    save(tmp_path, 3, inside=2, keep=5)
    flip(tmp_path / "update-000003.2" / "aux.safetensors")
    (tmp_path / "update-000003" / "manifest.json").unlink()
    found, passed_over = newest_valid(tmp_path)
    assert found is not None and found.path.name == "update-000002"
    assert "update-000003.2: damaged: aux.safetensors has changed" in passed_over[0]
    assert "update-000003: no readable manifest.json" in passed_over[1]
    assert newest_valid(tmp_path / "missing") == (None, [])


def test_order_is_by_progress_and_not_by_text(tmp_path: Path) -> None:
    for update, inside in ((999_999, 0), (1_000_000, 0), (1_000_000, 2), (1_000_000, 10)):
        save(tmp_path, update, inside, keep=9)
        found, _ = newest_valid(tmp_path)
        assert found is not None and (found.state["update"], found.state["inside"]) == (update, inside)


def test_the_oldest_are_removed_after_the_new_one_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for update in (1, 2, 3):
        save(tmp_path, update)
    assert names(tmp_path) == ["update-000002", "update-000003"]

    def bad(path: Path) -> None:
        raise MfdError("damaged on the way to the disk")

    monkeypatch.setattr(module, "verify", bad)
    with pytest.raises(MfdError):
        save(tmp_path, 4)
    assert names(tmp_path)[:2] == ["update-000002", "update-000003"]


def test_checkpoints_that_claim_more_progress_do_not_push_out_the_new_one(tmp_path: Path) -> None:
    for update in (100, 200):
        save(tmp_path, update)
    save(tmp_path, 10)
    save(tmp_path, 20)
    save(tmp_path, 30)
    assert names(tmp_path) == ["update-000020", "update-000030"]


def test_other_things_in_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "update-final").mkdir()
    for update in (1, 2, 3):
        save(tmp_path, update)
    assert {"notes.txt", "update-final"} < set(names(tmp_path))


def test_no_space_is_found_before_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(module, "free_bytes", lambda path: 60)
    with pytest.raises(RunStopped, match="a checkpoint needs 68 B and 60 B are free"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["update-000001"] and verify(tmp_path / "update-000001")


def test_no_space_while_writing_leaves_the_earlier_ones_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    original, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 5:  # a file of the new checkpoint
            raise OSError(28, "No space left on device")
        original(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunStopped):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert names(tmp_path) == ["update-000001"] and verify(tmp_path / "update-000001")


def test_leftovers_of_a_killed_save_do_not_hinder_the_next(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    shutil.copytree(path, tmp_path / ".update-000002.0123abcd")
    assert newest_valid(tmp_path)[0] == verify(path)
    save(tmp_path, 2)
    assert names(tmp_path) == ["update-000001", "update-000002"]


KILLED = """
import os, sys
from pathlib import Path
import torch
from mfd_cli.store.checkpoint import newest_valid, save_checkpoint

count = where = 0

def event():
    global count
    count += 1
    if count == where:
        os.kill(os.getpid(), 9)

def dying(name, module):
    original = getattr(module, name)
    def call(*arguments, **more):
        event()
        result = original(*arguments, **more)
        event()
        return result
    setattr(module, name, call)

folder = Path(sys.argv[1])
def save(update):
    save_checkpoint(folder, update=update, inside=0, parts={"student": {"w": torch.full((4,), float(update))}},
                    state={}, keep=2)
for update in (1, 2):
    save(update)
for child in range(1, 150):
    where = child
    pid = os.fork()
    if pid == 0:
        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
            dying(name, os)
        found = newest_valid(folder)[0]
        save(found.state["update"] + 1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    found, passed = newest_valid(folder)
    assert found is not None and not passed, (child, passed)
    assert float(found.tensors("student")["w"][0]) == found.state["update"]
    if code == 0:
        print("events", child - 1)
        break
else:
    raise SystemExit("never came to an end")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_call_of_a_save_there_is_a_valid_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "checkpoints")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 40
