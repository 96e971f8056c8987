"""The gradient statistics against naive ones, the added errors against closed forms, and a smoke run."""

import json

import pytest
import torch

from mfd_cli.config.load import load_recipe


@pytest.fixture
def module(script):
    return script("gradient_variance")


@pytest.fixture
def scene(module, script, tiny):
    workshop, _ = script("workbench").trainer_of(load_recipe(tiny), "cpu")
    return module.Scene(workshop, workshop.roles.student.network, workshop.roles.auxiliary.network)


def _naive(gradients, reference):
    """The protocol's formulas, word by word."""
    count = len(gradients)
    mean = gradients.mean(0)
    spread = float(sum((row - mean).square().sum() for row in gradients) / (count - 1))
    signal = float(mean.square().sum()) - spread / count
    cross = sum(float(a @ b) for i, a in enumerate(gradients) for j, b in enumerate(reference) if i != j)
    return spread, signal, spread / signal, cross / (count * (count - 1))


def test_statistics_are_the_protocols_and_their_errors_the_jackknifes(module):
    torch.manual_seed(0)
    gradients = 1 + torch.randn(9, 5, dtype=torch.float64)
    reference = gradients + 0.1 * torch.randn(9, 5, dtype=torch.float64)
    found = module.statistics(gradients, reference)
    spread, signal, ratio, cross = _naive(gradients, reference)
    assert found["tr_cov"].value == pytest.approx(spread)
    assert found["signal"].value == pytest.approx(signal)
    assert found["nsr"].value == pytest.approx(ratio)
    length = _naive(reference, reference)[1]
    assert found["cosine"].value == pytest.approx(cross / (signal * length) ** 0.5)
    kept = [[row for row in range(9) if row != left] for left in range(9)]
    for name, place in (("tr_cov", 0), ("nsr", 2)):
        replicates = torch.tensor([_naive(gradients[rows], reference[rows])[place] for rows in kept])
        assert found[name].error == pytest.approx((8 / 9 * (replicates - replicates.mean()).square().sum()) ** 0.5)


def test_added_noise_has_the_variance_it_should(module, scene):
    """D gains independent noise of sd 2 / sqrt(n) in both elements: s D gains 2 x 4 x E[s^2] / n, E[s^2] = 1/6."""
    for method, steps in ((module.vsd("sorted-pair"), 1), (module.mfd(steps=8), 8)):
        clean, _ = module.direction_variance(scene, method, 512, 32)
        noisy, _ = module.direction_variance(module.replace(scene, disturbance="noise"), method, 512, 32)
        assert noisy - clean == pytest.approx(8 / 6 / steps, rel=0.15)


def test_every_estimator_sees_the_same_noise_and_pays_what_it_should(module, scene):
    by_name = {estimator.name: estimator for estimator in module.estimators(quick=False)}
    same, _ = by_name["VSD, s as MFD"].gradient(scene, 3)
    one_step, rows = module.Estimator("", module.mfd(steps=1)).gradient(scene, 3)
    torch.testing.assert_close(one_step, same)  # MFD of one Euler step is VSD
    assert rows == 2 * module.BATCH
    larger = by_name["VSD, s as MFD, batch x8"].gradient(scene, 3)[1]
    assert larger == by_name["MFD n=8"].gradient(scene, 3)[1] == 8 * rows


@pytest.mark.parametrize("recipe", ["tiny", "tiny_digits"])
def test_a_quick_run(module, recipe, request, tmp_path, capsys):
    path, picture = tmp_path / "found.json", tmp_path / "found.png"
    recipe = request.getfixturevalue(recipe)
    module.main(["--recipe", recipe, "--quick", "--json", str(path), "--plot", str(picture)])
    (stage,) = json.loads(path.read_text())["stages"]
    assert stage["updates"] == 1
    base = stage["converged"]["gradients"]["clean"][1]
    assert base["estimator"] == "VSD, s as MFD" and base["tr_cov_ratio"] == {"value": 1, "error": 0}
    assert set(stage["converged"]["gradients"]) == {"clean", "noise", "oscillation"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "MFD n=8" in shown and "machine: cpu" in shown
