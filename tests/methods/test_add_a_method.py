"""docs/add-a-method.md as a reader would follow it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mfd_cli.config.load import load_recipe
from mfd_cli.methods import registry
from mfd_cli.plugins import import_plugin

DOCUMENT = (Path(__file__).parents[2] / "docs" / "add-a-method.md").read_text("utf-8")


def block(language):
    return re.search(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL).group(1)


@pytest.fixture
def method(tmp_path, monkeypatch):
    monkeypatch.setattr(registry.methods, "_registered", dict(registry.methods._registered))
    (tmp_path / "my_method.py").write_text(block("python"))
    (tmp_path / "to-data.yaml").write_text(block("yaml"))
    import_plugin(tmp_path / "my_method.py")
    recipe = load_recipe(str(tmp_path / "to-data.yaml")).recipe
    return registry.methods.get("mfd-to-data")(recipe.method)


def test_the_file_is_short():
    assert len(block("python").splitlines()) < 60


def test_the_recipe_reaches_the_method(method):
    assert method.settings.steps == 4 and method.settings.aux_updates == 5


def test_losses_move_their_own_role_alone(method, world):
    exact = world()
    method.student_loss(exact.batch(16)).value.backward()
    assert exact.gradients() == {"student.mean", "student.deviation"}
    exact.student.zero_grad()
    method.auxiliary_loss(exact.batch(16)).value.backward()
    assert exact.gradients() == {"auxiliary.mean", "auxiliary.deviation"}


@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 1.0), (-1.0, 1.0), (0.0, 2.0), (0.0, 0.5)])
def test_descent_leads_to_the_target(method, world, mean, deviation):
    exact = world(mean, deviation)
    method.student_loss(exact.batch(20_000)).value.backward()
    found = torch.stack([exact.student.mean.grad, exact.student.deviation.grad])
    wanted = torch.tensor([mean, deviation - 1.0]).sign()
    assert torch.equal(torch.where(found.abs() < 0.02, 0.0, found).sign(), wanted)


def test_a_package_brings_it_through_its_entry_point(tmp_path):
    package, about = tmp_path / "my_package", tmp_path / "my_package-1.0.dist-info"
    for folder in (package, about):
        folder.mkdir()
    (package / "__init__.py").touch()
    (package / "my_method.py").write_text(block("python"))
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    group, point = re.fullmatch(r'\[project\.entry-points\."(.*)"\]\n(.*)\n', block("toml")).groups()
    (about / "entry_points.txt").write_text(f"[{group}]\n{point.replace(chr(34), '')}\n")
    (tmp_path / "to-data.yaml").write_text(block("yaml"))
    small = ["train.updates=2", "train.batch_size=8", "evaluate.num=0", "teacher.network.width=8"]
    command = [sys.executable, "-m", "mfd_cli", "distill", "to-data.yaml"]
    done = subprocess.run(
        command + [part for key in small for part in ("--set", key)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "runs" / "to-data" / "run.json").read_text())
    assert record["status"] == "finished"
    config = json.loads((tmp_path / "runs" / "to-data" / "student" / "config.json").read_text())
    assert config["method"] == "mfd-to-data"
