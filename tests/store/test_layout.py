"""How a RUN is found, and what is said where there is none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from mfd_cli.errors import MfdError
from mfd_cli.store.checkpoint import save_checkpoint
from mfd_cli.store.layout import RunFolder, find, is_checkpoint, point_latest, run_of


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(root: str, when: int | None = None) -> RunFolder:
    run = RunFolder(Path(root))
    run.root.mkdir(parents=True)
    run.update_record(status="finished")
    if when is not None:
        os.utime(run.record, (when, when))
    return run


def checkpoint(run: RunFolder) -> Path:
    return save_checkpoint(
        run.checkpoints, update=3, inside=0, parts={"student": {"w": torch.zeros(1)}}, state={}, keep=2
    )


def test_every_kind_of_run_is_found() -> None:
    run = make("runs/a")
    saved = checkpoint(run)
    run.student.mkdir()
    (run.student / "config.json").write_text("{}")
    export = Path("my export ü")
    export.mkdir()
    (export / "a.safetensors").write_text("x")
    assert find("runs/a") == run.root and find("runs/a/") == run.root
    assert find(str(saved)) == saved and is_checkpoint(saved)
    assert find("runs/a/student") == run.student
    assert find("my export ü") == export / "a.safetensors" == find("my export ü/a.safetensors")


def test_the_run_of_a_found_path() -> None:
    run = make("runs/a")
    assert run_of(run.root) == run_of(checkpoint(run)) == run
    assert run_of(run.student) == run_of(run.student / "model.safetensors") == run
    assert run_of(Path("elsewhere/model.safetensors")) is None and run_of(Path("x.safetensors")) is None


def test_left_out_it_is_the_run_that_latest_names() -> None:
    make("runs/old", when=1000)
    make("runs/new", when=2000)
    outside = make("other/place", when=500)
    assert find(None) == Path("runs/new")
    for run in (RunFolder(Path("runs/old")), outside):
        point_latest(run)
        assert find(None) == run.root == find("runs/latest")
    assert Path("runs/latest").read_text() == f"{Path('..', 'other', 'place')}\n"


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe\x00", b"gone", b"a" * 5000, b"../..", b"/dev/null", None])
def test_a_damaged_pointer_is_no_loss(content: bytes | None) -> None:
    make("runs/old", when=1000)
    newest = make("runs/new", when=2000)
    if content is None:
        Path("runs/latest").mkdir()
    else:
        Path("runs/latest").write_bytes(content)
    assert find(None) == newest.root


def test_no_run_at_all_says_what_to_do() -> None:
    with pytest.raises(MfdError, match="no run found") as caught:
        find(None)
    assert "mfd distill toy" in str(caught.value.do)


@pytest.mark.parametrize("reference", ["nowhere", "runs/b", "", "a\0b", "nowhere/model.safetensors"])
def test_what_does_not_exist_lists_what_does(reference: str) -> None:
    make("runs/a")
    with pytest.raises(MfdError) as caught:
        find(reference)
    assert "runs here: runs/a" in str(caught.value)


def test_what_is_no_run_is_refused() -> None:
    Path("folder").mkdir()
    Path("file.txt").write_text("x")
    Path("two").mkdir()
    for name in ("a", "b"):
        Path(f"two/{name}.safetensors").write_text("x")
    for reference in ("folder", "file.txt", "two"):
        with pytest.raises(MfdError, match=f"^{reference}: neither a run folder nor an export"):
            find(reference)


def test_the_record_keeps_what_is_not_changed() -> None:
    run = make("runs/a")
    run.update_record(update=3)
    assert run.read_record() == {"status": "finished", "update": 3}
    assert json.loads(run.record.read_text()) == run.read_record()


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "3", '"text"'])
def test_a_damaged_record_is_an_error_that_names_it(content: str) -> None:
    run = make("runs/a")
    run.record.write_text(content)
    with pytest.raises(MfdError, match=r"run\.json: cannot be read"):
        run.read_record()


def test_a_report_is_read_and_a_damaged_one_refused() -> None:
    run = make("runs/a")
    assert run.read_report() is None
    run.report.write_text("{")
    with pytest.raises(MfdError, match="cannot be read"):
        run.read_report()
    run.report.write_text('{"schema": 1}')
    assert run.read_report() == {"schema": 1}


def test_the_pointer_is_replaced_and_never_written_through() -> None:
    precious = Path("thesis.txt")
    precious.write_text("years")
    run = make("runs/a")
    Path("runs/latest").symlink_to(precious.resolve())
    point_latest(run)
    assert precious.read_text() == "years" and not Path("runs/latest").is_symlink()
    assert find(None) == run.root


def test_what_the_pointer_names_outside_is_a_run_or_nothing() -> None:
    make("runs/a")
    Path("elsewhere").mkdir()
    for text in ("../elsewhere", str(Path("elsewhere").resolve()), "../../../../etc", "a\0b"):
        Path("runs/latest").write_text(text)
        assert find(None) == Path("runs/a")
