from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mfd_cli import console
from mfd_cli.errors import MfdError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """stdout and stderr of a colour terminal, 80 wide. No fixture: pytest's capture would take the streams back."""
    stream = Terminal()
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    console._console.cache_clear()
    return stream


def test_an_error_is_a_line_for_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    console.error(MfdError("steps is 0", allowed="at least 1", do="mfd recipes list"))
    console.error(ValueError("plain"))
    console.error(ValueError())
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: steps is 0\nallowed: at least 1\ndo: mfd recipes list\nerror: plain\nerror: ValueError\n"


def test_foreign_text_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    console.error(MfdError("[bold red]x[/] \x1b[2J \x07 \r :smile: \u202e"))
    text = terminal.getvalue()
    assert "[bold red]x[/] \\x1b[2J \\x07 \\r :smile: \\u202e" in text
    assert "\x1b[2J" not in text


def test_colour_on_a_terminal_only_if_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    console.warn("coloured")
    assert "\x1b[" in terminal.getvalue()
    terminal.truncate(0)
    monkeypatch.setenv("NO_COLOR", "1")
    console.note("bare")
    console.table("t", ["a"], [[1]])
    assert "\x1b" not in terminal.getvalue()
    assert "note: bare\n" in terminal.getvalue()


def test_a_table_is_aligned_lines_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("Speed", ["model", "fps"], [["teacher", 1.5], ["student [1]", 12345.0], ["none", None]])
    assert capsys.readouterr().out == (
        "Speed\nmodel              fps\nteacher            1.5\nstudent [1]  1.234e+04\nnone                 -\n"
    )


def test_a_long_line_is_not_broken_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("", ["a"], [["x" * 500]])
    assert "x" * 500 in capsys.readouterr().out


def test_a_table_is_boxed_on_a_terminal_and_takes_text_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    console.table("Title [b]", ["name", "n"], [["[red]x", 1]])
    text = terminal.getvalue()
    assert "┃" in text and "[red]x" in text and "Title [b]" in text


def test_json_goes_to_stdout_or_whole_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"a": [1.5, float("nan"), (float("inf"),)], "b": "ä"}
    expected = {"a": [1.5, None, [None]], "b": "ä"}
    console.emit_json(data, None)
    assert capsys.readouterr().out == ""
    console.emit_json(data, "-")
    assert json.loads(capsys.readouterr().out) == expected
    console.emit_json(data, str(tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text("utf-8")) == expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]


def test_a_target_that_cannot_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "none" / "r.json"):
        with pytest.raises(MfdError):
            console.check_json_target(str(target))
        with pytest.raises(MfdError):
            console.emit_json({}, str(target))
    console.check_json_target("-")
    console.check_json_target(None)


def test_importing_the_console_costs_no_rich() -> None:
    code = "import sys, mfd_cli.console; sys.exit('rich' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_out_and_err_take_text_literally(capsys: pytest.CaptureFixture[str]) -> None:
    console._console.cache_clear()
    console.out.print("[bold]out[/]")
    console.err.print("[bold]err[/]")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("[bold]out[/]\n", "[bold]err[/]\n")
    assert console.out is console.out
