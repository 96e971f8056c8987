"""docs/add-a-teacher.md as a reader would follow it: train a network elsewhere, plug it in, prove it, distill it."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError
from mfd_cli.inference.sampler import load_student
from mfd_cli.plugins import import_plugin
from mfd_cli.training.run import distill
from teachers import registry
from teachers.conformance import check

DOCUMENT = (Path(__file__).parents[2] / "docs" / "add-a-teacher.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


def train(network, data):
    """Flow matching in the model's own convention: time 1 is noise, the target noise - data."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3, fused=True)
    for update in range(500):
        items = torch.arange(update * 256, (update + 1) * 256)
        x1, label = data.states(items), data.condition(items)["label"]
        label = torch.where(torch.rand(256, generator=generator) < 0.1, 2, label)
        noise, time = torch.randn(256, 2, generator=generator), torch.rand(256, generator=generator)
        x = (1 - time[:, None]) * x1 + time[:, None] * noise
        loss = (network(x, 1000 * time, label) - (noise - x1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with the plugin, the recipe and trained weights; the plugin is registered while the tests run."""
    folder = tmp_path_factory.mktemp("moons")
    (folder / "my_teacher.py").write_text("\n\n".join(blocks("python")))
    (folder / "moons.yaml").write_text(
        blocks("yaml")[0].replace("moons.safetensors", str(folder / "moons.safetensors"))
    )
    with pytest.MonkeyPatch.context() as patch:
        for known in (registry.teachers, registry.data):
            patch.setattr(known, "_registered", dict(known._registered))
        import_plugin(folder / "my_teacher.py")
        teacher = registry.teachers.get("moons")
        torch.manual_seed(0)
        network = teacher(None, {"width": 64}).build_network()
        train(network, registry.data.get("moons")())
        save_file(network.state_dict(), folder / "moons.safetensors")
        yield folder


def test_the_file_is_short():
    assert [len(text.splitlines()) <= 60 for text in blocks("python")] == [True, True]


def test_the_plugin_keeps_the_contract(workshop):
    recipe = load_recipe(str(workshop / "moons.yaml")).recipe
    teacher = registry.teachers.get("moons").load(recipe.teacher)
    data = registry.data.get("moons").load(recipe.data, teacher)
    findings = check(teacher, data)
    assert {finding.name for finding in findings if finding.passed is False} == set()
    assert {finding.name for finding in findings if finding.passed is None} == {"features", "flow map"}
    explained = [finding.name for finding in findings if re.search(rf"[|,] {finding.name}[ ,]", DOCUMENT)]
    assert explained == [finding.name for finding in findings], "the document's table says what each means"


def test_without_the_translation_the_check_says_what_is_wrong(workshop):
    recipe = load_recipe(str(workshop / "moons.yaml")).recipe
    kind = registry.teachers.get("moons")
    raw = type("Raw", (kind,), {"velocity": lambda self, network, x, t, condition: network(x, t, **condition)})
    teacher = raw.load(recipe.teacher)
    failed = {finding.name: finding.what for finding in check(teacher, registry.data.get("moons")())}
    assert "-u(x, 1000 (1 - t))" in failed["sign"]


def test_the_recipe_distills(workshop, monkeypatch):
    monkeypatch.chdir(workshop)
    run = distill(
        workshop / "moons.yaml",
        output=workshop / "run",
        overrides=["train.updates=2", "train.batch_size=8", "method.aux_updates=1", "evaluate.num=0"],
        device="cpu",
    )
    assert load_student(str(run.root)).sample(4, steps=1).shape == (4, 2)


def test_missing_weights_are_one_clear_error(workshop):
    kind = registry.teachers.get("moons")
    with pytest.raises(MfdError, match="nowhere: no such file"):
        kind.load(kind.Settings(type="moons", weights="nowhere"))
