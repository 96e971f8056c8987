"""Without a network, what needs none works, and what needs one says what is missing and how to get it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

#: a plugin under which no connection can be opened and no name is known
BLOCKED = """
import socket

def refused(*arguments, **more):
    raise OSError(101, "Network is unreachable")

socket.socket.connect = socket.socket.connect_ex = refused
socket.getaddrinfo = socket.create_connection = refused
"""


@pytest.mark.slow
def test_the_toy_runs_from_recipe_to_export(start: Any) -> None:
    for arguments in (
        ["distill", "tiny.yaml", "-o", "run"], ["sample", "run", "--num", "2", "-o", "x.npz"],
        ["benchmark", "run", "--fps"], ["export", "run"],
    ):  # fmt: skip
        process = start(*arguments, plugin=BLOCKED)
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, (arguments, told)
    assert Path("run/export/tiny.safetensors").is_file()


@pytest.mark.slow
def test_sana_says_what_is_missing_and_how_to_fetch_it(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(Path("hub").resolve()))
    Path("prompts.tsv").write_text("0\ta fox\n")
    for arguments in (["distill", "sana", "-o", "run"], ["distill", "sana", "--dry-run"]):
        process = start(*arguments, plugin=BLOCKED)
        out, told = process.communicate(timeout=300)
        assert process.returncode == 2 and not out and "Traceback" not in told, told
        assert "the hub did not give it" in told
        assert "hf download Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers" in told
    assert not Path("run").exists() and not list(Path().glob("runs*"))
