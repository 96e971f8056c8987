"""What a page may not tell of the machine it was made on."""

from __future__ import annotations

from pathlib import Path

import pytest

from mfd_cli.report.private import last_part, scrubbed, shown_path


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/alice/data/prompts.txt", "prompts.txt"),
        ("/home/alice", "..."),
        ("~/data/prompts.txt", "prompts.txt"),
        ("~alice/prompts.txt", "prompts.txt"),
        ("../alice/prompts.txt", "prompts.txt"),
        (r"C:\Users\Alice Smith\prompts.txt", "prompts.txt"),
        (r"C:\Users\Alice", "..."),
        (r"\\server\share\prompts.txt", "prompts.txt"),
        ("file:///home/alice/x.txt", "x.txt"),
        ("/mnt/my data/set one", "set one"),
        ("data/prompts.txt", "data/prompts.txt"),
        ("mfd/sana-tiny", "mfd/sana-tiny"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("OSError: [Errno 28] No space left on device: '/home/alice/runs/x.bin'.",
         "OSError: [Errno 28] No space left on device: 'x.bin'."),
        ("/home/alice/a: no such file; /home/alice/b: neither", "a: no such file; b: neither"),
        ("samples / s, 1/2, and/or", "samples / s, 1/2, and/or"),
        ("", ""),
    ],
)  # fmt: skip
def test_paths_are_cut_and_nothing_else(text: str, shown: str) -> None:
    assert scrubbed(text) == shown


def test_keys_and_nested_values_are_cut_too() -> None:
    found = scrubbed({"/home/alice/k": [{"a": "/home/alice/v"}, 3, None, 0.5, True]})
    assert found == {"k": [{"a": "v"}, 3, None, 0.5, True]}


def test_the_working_and_the_home_folder_are_cut_even_where_their_names_have_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, home = tmp_path / "my work", tmp_path / "Alice Smith"
    work.mkdir()
    home.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    assert scrubbed(f"cannot read {work}/runs/toy/run.json") == "cannot read runs/toy/run.json"
    assert scrubbed(f"cannot read {home}/secret/x.txt: gone") == "cannot read x.txt: gone"


def test_a_run_is_shown_relative_to_the_working_folder_or_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert shown_path(Path("runs/toy")) == "runs/toy"
    assert shown_path(work / "runs" / "toy") == "runs/toy"
    assert shown_path(tmp_path / "elsewhere" / "toy") == "toy"
    assert shown_path(work) == "work"
    assert last_part("/") == "..."
