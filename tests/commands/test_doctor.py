from __future__ import annotations

import getpass
import json
from pathlib import Path

import pytest

from mfd_cli.commands import doctor
from teachers.registry import teachers


def test_the_report_has_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.doctor("-")
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == 1
    assert {"mfd", "python", "torch", "accelerate", "diffusers", "safetensors"} <= report["versions"].keys()
    assert report["cpu"]["usable"] >= 1 and report["free_disk_gib"] > 0 and report["devices"]
    assert report["registered"]["method"]["mfd"].startswith("built in")


def test_the_table_has_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.doctor()
    out = capsys.readouterr().out
    assert "mfd (built in" in out and "python" in out and "free disk here" in out


def test_a_broken_plugin_is_listed_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(teachers._builtin, "broken", "teachers.no_such_module:Class")
    report = doctor.report()
    assert report["registered"]["teacher"]["broken"] == "built in, broken"
    assert any("'broken'" in problem and "no_such_module" in problem for problem in report["problems"])


def test_home_user_and_tokens_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    text = json.dumps(doctor.report())
    assert str(Path.home()) + "/" not in text and "hf_abc" not in text
    private = doctor._private(
        {"a": ["/home/ann/x", "/home/anne/x", "/data/ann/y ann", "https://ann:pw@host hf_abcdefghij"]},
        Path("/home/ann"),
        "ann",
    )
    assert private == {"a": ["~/x", "/home/anne/x", "/data/<user>/y ann", "https://<secret>host <secret>"]}


def test_a_user_without_a_name_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert doctor._user() == ""


def test_folders_that_hide_a_package_are_named(tmp_path: Path) -> None:
    assert doctor._shadowed(tmp_path) == []
    (tmp_path / "teachers").mkdir()
    assert doctor._shadowed(tmp_path) == [], "a folder without code hides nothing"
    (tmp_path / "teachers" / "__init__.py").touch()
    (tmp_path / "mfd_cli.py").touch()
    (tmp_path / "recipes").mkdir()
    hidden = doctor._shadowed(tmp_path)
    assert [line.split()[0] for line in hidden] == ["./mfd_cli.py", "./teachers", "./recipes"]


def test_the_checkout_itself_hides_nothing() -> None:
    assert doctor._shadowed(Path(doctor.__file__).parents[2]) == []
