"""Nothing runs code by accident, reaches out of its folder, or tells secrets."""

from __future__ import annotations

import ast
import importlib
import io
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mfd_cli import cli
from mfd_cli.config.load import load_any, load_recipe
from mfd_cli.errors import MfdError
from mfd_cli.training.run import distill

ROOT = Path(__file__).parents[1]
SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt", ".npy", ".npz", ".pkl", ".yaml", ".json", ".txt")

#: every option and argument that takes a path, as a command line in which FILE is that path
PATHS = [
    "distill FILE", "distill tiny.yaml -o FILE", "distill FILE --resume", "sample FILE", "sample FILE -o x.png",
    "sample --prompts FILE", "benchmark FILE", "benchmark FILE --compare FILE", "export FILE", "export FILE -o out",
    "teachers train FILE", "teachers check FILE", "teachers convert occfm FILE -o out.safetensors",
    "recipes check FILE", "recipes show FILE", "recipes copy FILE", "--plugin FILE teachers list",
    "distill toy --set teacher.type=images --set teacher.weights=FILE --dry-run",
    "distill digits --set teacher.weights=FILE --dry-run", "distill occfm-tiny --set teacher.weights=FILE --dry-run",
    "distill digits --set data.type=images --set data.path=FILE --dry-run",
    "teachers train teachers/digits --set data.type=images --set data.path=FILE -o out.safetensors",
]  # fmt: skip


class Marker:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("marker",)


def hostile(suffix: str) -> bytes:
    """A file that would run code if it were loaded the careless way."""
    memory = io.BytesIO()
    if suffix in (".pt", ".bin", ".ckpt"):
        torch.save({"state_dict": {"encoder.w": torch.ones(1)}, "epoch": Marker()}, memory)
    elif suffix == ".npy":
        np.save(memory, np.array([Marker()], dtype=object), allow_pickle=True)
    elif suffix == ".npz":
        np.savez(memory, images=np.array([Marker()], dtype=object), labels=np.array([Marker()], dtype=object))
    elif suffix in (".yaml", ".json", ".txt"):
        return b"name: !!python/object/apply:os.mkdir [marker]\nteacher: {type: gmm}\n"
    else:
        return pickle.dumps(Marker())
    return memory.getvalue()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("line", PATHS)
def test_no_path_runs_what_is_in_the_file(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in SUFFIXES:
        path = Path(f"hostile{suffix}")
        path.write_bytes(hostile(suffix))
        before = set(Path().rglob("*"))
        monkeypatch.setattr(sys, "argv", ["mfd", *line.replace("FILE", str(path)).split()])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        told = capsys.readouterr()
        assert not Path("marker").exists(), suffix
        assert caught.value.code == 2 and "Traceback" not in told.err, (suffix, told)
        assert "error: " in told.err or "Usage" in told.err, told
        assert set(Path().rglob("*")) == before, suffix


def test_the_hostile_files_are_what_they_are_meant_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(hostile(".pkl"))
    assert Path("marker").is_dir()
    Path("marker").rmdir()
    assert zipfile.is_zipfile(io.BytesIO(hostile(".ckpt")))
    np.load(io.BytesIO(hostile(".npy")), allow_pickle=True)
    assert Path("marker").is_dir()


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Every call of a method or function of this name in our packages, with its file."""
    found = []
    for package in ("mfd_cli", "teachers"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
                    found.append((path.relative_to(ROOT).as_posix(), node))
    return found


@pytest.mark.parametrize("name", ["from_pretrained", "download", "snapshot_download", "hf_hub_download"])
def test_hub_calls_take_safetensors_of_a_revision(name: str) -> None:
    found = calls(name)
    assert found or name == "hf_hub_download"
    for path, call in found:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        text = ast.unparse(call)
        assert "revision" in given or given.get("local_files_only") == "True" or _local(text), (path, text)
        # settings of schedulers and tokenizers are no weights; what metrics download is looked at below
        plain = "scheduler" in text or "Tokenizer" in text
        weights = not (plain or given.get("allow_patterns") in ("['*.json']", "patterns"))
        assert not weights or given.get("use_safetensors") == "True" or None in given, (path, text)
        assert not {"trust_remote_code", "custom_pipeline", "custom_revision"} & given.keys(), (path, text)


def test_metrics_download_safetensors_of_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from mfd_cli.metrics import weights

    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **given: Any) -> str:
        asked.append({"name": name, **given})
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(MfdError, match="hf download owner/model --revision abc"):
        try:
            weights.locate("clip-score", "model", "owner/model@abc")
        except MfdError as error:
            raise MfdError(error.do or "") from error
    assert [call["name"] for call in asked] == ["owner/model"] * 2 and {call["revision"] for call in asked} == {"abc"}
    for pattern in asked[-1]["allow_patterns"]:
        assert pattern.endswith((".json", ".txt", ".safetensors"))


def _local(text: str) -> bool:
    """A scheduler's settings beside an adapter that has just been written: no weights, no hub."""
    return "scheduler" in text and "adapter" in text


@pytest.mark.parametrize("recipe", ["digits", "sana", "occfm-tiny"])
def test_no_recipe_field_is_imported_or_fetched(recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    resolved = load_recipe(recipe).resolved
    keys = [f"{block}.{key}" for block, values in resolved.items() if isinstance(values, dict) for key in values]
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("import os; os.mkdir('marker')")
    asked: list[str] = []
    original = importlib.import_module

    def watched(name: str, *rest: Any) -> Any:
        asked.append(name)
        return original(name, *rest)

    def no_network(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("a recipe opened a connection")

    monkeypatch.setattr(importlib, "import_module", watched)
    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.syspath_prepend(str(tmp_path))
    texts = ("evil", "evil:Teacher", "evil.py", "./evil.py", "os.system", "https://example.org/evil.py")
    for index, key in enumerate(keys):
        for text in (texts[index % 6], texts[(index + 3) % 6]):
            try:
                load_any(recipe, [f"{key}={text}"])
            except MfdError:
                continue
    assert not Path("marker").exists() and "evil" not in sys.modules
    assert not [name for name in asked if name.split(".")[0] not in ("mfd_cli", "teachers")]


SECRETS = {
    "HF_TOKEN": "hf_SecretSecretSecret", "WANDB_API_KEY": "wandbSecretSecret",
    "AWS_SECRET_ACCESS_KEY": "awsSecretSecret",
    "HTTPS_PROXY": "http://ann:proxySecret@proxy.invalid:3128", "OPENAI_API_KEY": "sk-SecretSecret",
}  # fmt: skip


@pytest.mark.usefixtures("tiny")
def test_a_run_and_its_errors_hold_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    run = distill("tiny.yaml", output="run")
    for command in (["doctor"], ["distill", "tiny.yaml", "-o", "run"], ["export", "run"], ["sample", "nowhere"]):
        monkeypatch.setattr(sys, "argv", ["mfd", *command])
        with pytest.raises(SystemExit):
            cli.main()
    told = capsys.readouterr()
    written = b"".join(path.read_bytes() for path in run.root.rglob("*") if path.is_file())
    for value in SECRETS.values():
        assert value not in told.out + told.err and value.encode() not in written
    assert b"ecretSecret" not in written and str(Path.home()).encode() + b"/" not in written


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("command", "folder"), [("sample", "samples"), ("export", "export")])
def test_nothing_is_written_through_a_link_out_of_the_run_folder(
    command: str, folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = distill("tiny.yaml", output="run", overrides=["train.updates=1"])
    Path("outside").mkdir()
    (run.root / folder).symlink_to(Path("outside").resolve())
    monkeypatch.setattr(sys, "argv", ["mfd", command, "run"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2 and "a link that leads out of the run folder" in capsys.readouterr().err
    assert not list(Path("outside").iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["teachers", "list"]])
def test_a_broken_package_breaks_itself_alone(arguments: list[str], tmp_path: Path) -> None:
    package = tmp_path / "broken-0.1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.1\n")
    (package / "entry_points.txt").write_text("[mfd.teachers]\nbroken = broken_teacher:Teacher\n")
    (tmp_path / "broken_teacher.py").write_text("raise RuntimeError('\\x1b[31mhostile')\n")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-m", "mfd_cli", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr and "\x1b" not in done.stdout + done.stderr
    if arguments != ["--help"]:
        assert "broken" in done.stdout and "digits" in done.stdout and "hostile" in done.stdout + done.stderr


@pytest.mark.usefixtures("tiny")
def test_every_file_of_a_run_has_the_mode_that_the_umask_gives() -> None:
    before = os.umask(0o027)
    try:
        run = distill("tiny.yaml", output="run", overrides=["log.checkpoint_every=2"])
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in [run.root, *run.root.rglob("*"), Path("runs/latest")]}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o640}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o750}
