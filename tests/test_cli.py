"""The command line: its surface, its exit codes, and what a user sees who makes a mistake."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from mfd_cli import cli

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"} | {"PYTHONPATH": str(ROOT)}

#: command to the options and arguments that the contract names; there may be more
SURFACE = {
    "distill": ["RECIPE", "-o", "--set", "--resume", "--force", "--dry-run", "--processes", "--device"],
    "sample": ["[RUN]", "--steps", "--num", "--seed", "--teacher", "--prompt", "--prompts", "--label", "--guidance",
               "--batch-size", "-o", "--device"],
    "benchmark": ["[RUN]", "--fps", "--quality", "--steps", "--teacher-steps", "--batch-size", "--num", "--seed",
                  "--compare", "--json", "--device"],
    "report": ["[RUN]", "-o", "--benchmark", "--force", "--json", "--device", "--dtype"],
    "export": ["[RUN]", "--safetensors", "--diffusers", "--lora", "--merged", "--onnx", "--dtype", "-o"],
    "teachers list": ["--json"],
    "teachers check": ["NAME-OR-RECIPE", "--json"],
    "teachers train": ["RECIPE", "-o", "--set", "--force"],
    "recipes list": ["--json"],
    "recipes show": ["RECIPE"],
    "recipes copy": ["RECIPE", "[PATH]"],
    "recipes check": ["PATH...", "--json"],
    "doctor": ["--json"],
}  # fmt: skip

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mfd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mfd", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err  # type: ignore[return-value]

    return run


def everything() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


# surface ------------------------------------------------------------------------------------------------------------


def test_every_verb_of_the_contract_is_there(mfd: Run) -> None:
    code, out, err = mfd("--help")
    assert code == 0 and not err
    for name in {command.split()[0] for command in SURFACE} | {"--plugin", "--debug", "--version"}:
        assert re.search(rf"^\s+{name}\b", out, re.MULTILINE), name


@pytest.mark.parametrize("command", SURFACE)
def test_a_verb_has_its_options_and_an_example(command: str, mfd: Run) -> None:
    code, out, err = mfd(*command.split(), "--help")
    assert code == 0 and not err
    words = set(re.findall(r"[^\s,]+", out))
    assert not [name for name in SURFACE[command] if name not in words]
    assert f"Example: mfd {command}" in " ".join(out.split())


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command below a group, with the words that lead to it."""
    for name, command in group.commands.items():
        words = f"{path} {name}".strip()
        yield from commands(command, words) if hasattr(command, "commands") else [(words, command)]


def test_every_command_has_an_example_of_itself() -> None:
    found = dict(commands(typer.main.get_command(cli.app)))
    assert set(SURFACE) <= set(found)
    for words, command in found.items():
        example = re.search(r"Example: mfd (.*)", command.help or "", re.S)
        assert example is not None and example[1].startswith(words), words


def test_version(mfd: Run) -> None:
    from mfd_cli import __version__

    assert mfd("--version") == (0, f"mfd {__version__}\n", "")


def test_help_imports_no_torch_and_nothing_else_that_is_heavy() -> None:
    code = """
import sys
from mfd_cli.cli import main
sys.argv = ["mfd", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
print([name for name in ("torch", "numpy", "yaml", "matplotlib", "accelerate", "diffusers") if name in sys.modules])
"""
    for arguments in (["--help"], ["distill", "--help"], ["--version"], ["teachers", "train", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.splitlines()[-1] == "[]", (arguments, done.stdout[-300:], done.stderr)


# mistakes -----------------------------------------------------------------------------------------------------------

FIVE = """name: tiny
teacher: {type: gmn}
method: {type: mfd, solver: {steps: 2, step_size: 0.1}, aux_update: 2}
train: {updates: 0, batch_size: 16}
data: {type: gmm}
log: {keep: 1}
"""


def refused(result: tuple[int, str, str], *words: str, lines: int = 3) -> None:
    """Exit 2; a message of at most a few lines on stderr that has the words; nothing on stdout."""
    code, out, err = result
    assert code == 2 and not out, result
    assert "Traceback" not in err and "\x1b" not in err
    assert 1 <= len(err.splitlines()) <= lines, err
    for word in words:
        assert word in err, err


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distill", "toi"], ["error: no recipe 'toi'", "allowed: ", "toy", "do: did you mean 'toy'?"]),
        (["distill", "missing.yaml"], ["no recipe 'missing.yaml'"]),
        (["distill", "tiny.yaml", "--set", "train.update=3"], ["train.update", "unknown key", "updates"]),
        (["distill", "tiny.yaml", "--device", "cuda"], ["--device cuda: not here", "allowed: cpu"]),
        (["distill", "tiny.yaml", "--device", "tpu", "--dry-run"], ["--device tpu: not here"]),
        (["distill", "tiny.yaml", "--processes", "0"], ["--processes 0", "1 or more"]),
        (["distill", "tiny.yaml", "--resume"], ["runs/tiny: no run to resume"]),
        (["distill", "tiny.yaml", "--resume", "--force"], ["--resume and --force together"]),
        (["distill", "tiny.yaml", "-o", "tiny.yaml"], ["tiny.yaml: a file stands where"]),
        (["distill", "tiny.yaml", "-o", "tiny.yaml/run"], ["cannot be written"]),
        (["distill", "tiny.yaml", "-o", "x" * 300], ["name too long"]),
        (["distill", "images.yaml"], ["nowhere.safetensors: no such file"]),
        (["sample"], ["no run found", "mfd distill toy"]),
        (["sample", "nowhere"], ["nowhere: no such run, export or file"]),
        (["sample", "tiny.yaml"], ["neither a run folder nor an export"]),
        (["sample", "damaged.safetensors"], ["damaged.safetensors: not a readable safetensors file"]),
        (["sample", "foreign.safetensors"], ["not one that mfd wrote"]),
        (["sample", "--device", "cuda"], ["--device cuda: not here"]),
        (["benchmark", "nowhere"], ["nowhere: no such run"]),
        (["benchmark", "--steps", "0"], ["--steps 0", "whole numbers from 1"]),
        (["export", "nowhere"], ["nowhere: no such run"]),
        (["--plugin", "missing.py", "teachers", "list"], ["--plugin missing.py: no such Python file"]),
        (["--plugin", "tiny.yaml", "teachers", "list"], ["--plugin tiny.yaml: no such Python file"]),
        (["--plugin", "broken.py", "teachers", "list"], ["--plugin broken.py: ZeroDivisionError: oh", "--debug"]),
        (["--plugin", "unparsable.py", "doctor"], ["--plugin unparsable.py: SyntaxError"]),
        (["recipes", "show", "toi"], ["recipe 'toi'", "did you mean 'toy'?"]),
        (["teachers", "train", "tiny.yaml"], ["it trains no teacher", "mfd distill tiny.yaml"]),
        (["teachers", "check", "nobody"], ["nobody"]),
        (["doctor", "--json", "missing/x.json"], ["the folder missing does not exist"]),
    ],
)
def test_a_mistake_is_exit_2_one_message_and_nothing_written(
    arguments: list[str], words: list[str], mfd: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    Path("damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    save_file({"w": torch.zeros(1)}, "foreign.safetensors")
    Path("broken.py").write_text("raise ZeroDivisionError('oh')")
    Path("unparsable.py").write_text("def (:")
    Path("images.yaml").write_text(
        Path("tiny.yaml").read_text().replace("{type: gmm, ring: {modes: 3}, network: {width: 16, depth: 1, "
        "frequencies: 2}}", "{type: images, weights: nowhere.safetensors}")
    )  # fmt: skip
    before = everything()
    refused(mfd(*arguments), *words, lines=4)
    assert everything() == before


@pytest.mark.parametrize(
    "arguments", [["distill"], ["distill", "toy", "--sett", "a=b"], ["distil", "toy"], ["sample", "--num", "many"]]
)
def test_a_wrong_flag_is_exit_2(
    arguments: list[str], mfd: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = mfd(*arguments)
    assert "Traceback" not in err and len((out + err).splitlines()) < 40
    assert (code == 2 and not everything()) or arguments == ["distill"]


@pytest.mark.usefixtures("tiny")
def test_five_mistakes_are_told_at_once(mfd: Run) -> None:
    Path("five.yaml").write_text(FIVE)
    code, out, err = mfd("distill", "five.yaml")
    assert code == 2 and not out and "Traceback" not in err
    for words in (
        "5 mistakes in five.yaml", "five.yaml:2: teacher.type", "did you mean 'gmm'", "give step_size or steps",
        "aux_update: unknown key", "train.updates: is 0", "log.keep: is 1",
    ):  # fmt: skip
        assert words in err, err
    assert not Path("runs").exists()


@pytest.mark.usefixtures("tiny")
def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from mfd_cli.errors import MfdError

    monkeypatch.setattr(sys, "argv", ["mfd", "--debug", "distill", "nowhere.yaml"])
    with pytest.raises(MfdError):
        cli.main()


# runs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
def test_a_run_then_sample_with_nothing_else_typed(mfd: Run) -> None:
    code, out, err = mfd("distill", "tiny.yaml", "--device", "cpu")
    assert code == 0 and "runs/tiny/student/model.safetensors" in out and "update 6/6" in err
    assert "\x1b" not in out + err and "\r" not in out + err
    refused(mfd("distill", "tiny.yaml"), "runs/tiny: holds a run (finished)", "--force")
    refused(mfd("sample", "--steps", "0"), "0")
    refused(mfd("sample", "--num", "0"), "0")
    code, out, err = mfd("sample", "--num", "4", "-o", "größe √2.npz")
    assert code == 0 and Path("größe √2.npz").is_file()
    code, _, err = mfd("distill", "tiny.yaml", "--resume")
    assert code == 0 and "this run is finished; nothing to do" in err
    Path("runs/tiny/student/model.safetensors").write_bytes(b"short")
    refused(mfd("sample"), "not a readable safetensors file")


@pytest.mark.usefixtures("tiny")
def test_a_folder_with_a_name_of_many_kinds(mfd: Run) -> None:
    assert mfd("distill", "tiny.yaml", "-o", "my größe √2/the [bold]run[/]")[0] == 0
    code, _, _ = mfd("sample", "my größe √2/the [bold]run[/]", "--num", "2", "-o", "a.npz")
    assert code == 0 and Path("a.npz").is_file()


@pytest.mark.usefixtures("tiny")
def test_a_run_that_stops_itself_is_exit_3(mfd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfd_cli.methods.base import Loss
    from mfd_cli.methods.mfd import MeanFlowDistillation

    def nan(method: Any, batch: Any) -> Loss:
        return Loss(batch.generate().sum() * float("nan"))

    monkeypatch.setattr(MeanFlowDistillation, "student_loss", nan)
    code, out, err = mfd("distill", "tiny.yaml")
    assert code == 3 and not out
    told = err[err.index("error: ") :]
    assert told.startswith("error: student: not finite at update 0: loss nan") and len(told.splitlines()) == 2


@pytest.mark.usefixtures("tiny")
def test_a_dry_run_writes_nothing(mfd: Run) -> None:
    before = everything()
    code, out, _ = mfd("distill", "tiny.yaml", "--dry-run")
    assert code == 0 and "student update" in out and "if it does not fit" in out and everything() == before


@pytest.mark.usefixtures("tiny")
def test_a_plugin_adds_a_method(mfd: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from mfd_cli.methods.registry import methods

    monkeypatch.setattr(methods, "_registered", dict(methods._registered))
    Path("mine.py").write_text(
        "from mfd_cli.methods.mfd import MeanFlowDistillation\nfrom mfd_cli.methods.registry import register\n\n\n"
        "@register('mine')\nclass Mine(MeanFlowDistillation):\n    pass\n"
    )
    refused(mfd("distill", "tiny.yaml", "--set", "method.type=mine"), "unknown method 'mine'")
    code, out, _ = mfd("--plugin", "mine.py", "distill", "tiny.yaml", "--set", "method.type=mine")
    assert code == 0, out


# processes ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["teachers/__init__.py", "teachers/mine.txt", "recipes/toy.yaml", "torch.txt"])
def test_folders_of_the_same_names_do_not_disturb(inside: str, start: Any) -> None:
    path = Path(inside)
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    process = start("recipes", "check", "tiny.yaml")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "ok" in out, err


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_python_m_does_not_look_into_the_working_folder() -> None:
    for folder in ("teachers", "torch", "typer"):
        Path(folder).mkdir()
        Path(folder, "__init__.py").write_text("")
    Path("where.py").write_text("import sys, teachers\nprint(teachers.__file__, file=sys.stderr)\n")
    done = subprocess.run(
        [sys.executable, "-m", "mfd_cli", "--plugin", "where.py", "recipes", "check", "tiny.yaml"],
        capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(Path.cwd()) not in done.stderr


@pytest.mark.slow
def test_a_closed_pipe_is_no_error() -> None:
    for arguments in ("recipes show toy", "teachers list", "recipes schema"):
        for reader in ("head -n 1", "true"):
            line = f"set -o pipefail; {sys.executable} -m mfd_cli {arguments} | {reader}"
            done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
            assert not done.stderr and done.returncode == 0, (arguments, reader, done)
            assert done.stdout or reader == "true"
