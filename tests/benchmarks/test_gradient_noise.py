"""The noise of a student's gradient at a checkpoint of a real run."""

import pytest
import torch

from mfd_cli.store.layout import RunFolder
from mfd_cli.training.run import distill


@pytest.fixture
def module(script):
    return script("gradient_noise")


def _run(tiny, folder, *overrides):
    distill(tiny, overrides=["log.checkpoint_every=2", *overrides], output=folder)
    run = RunFolder(folder)
    return run, run.checkpoints / "update-000002"


@pytest.mark.parametrize("method", ["mfd", "dmd2", "cd", "meanflow"])
def test_every_kind_of_method_has_a_noise(module, tiny, tmp_path, method):
    run, checkpoint = _run(tiny, tmp_path / "run", f"method.type={method}")
    found = module.gradient_noise(run, checkpoint, 6, "cpu")
    assert found.update == 2 and found.error > 0
    assert found == module.gradient_noise(run, checkpoint, 6, "cpu")


def test_the_noise_is_the_spread_over_the_mean(module, tiny, tmp_path, monkeypatch):
    run, checkpoint = _run(tiny, tmp_path / "run")
    seen, real = [], module.statistics
    monkeypatch.setattr(module, "statistics", lambda rows, reference: seen.append(rows) or real(rows, reference))
    found = module.gradient_noise(run, checkpoint, 6, "cpu")
    rows = seen[0].double()
    assert len(rows) == 6 and not torch.equal(rows[0], rows[1])
    spread = rows.var(dim=0).sum()
    assert found.value == pytest.approx((spread / (rows.mean(0).square().sum() - spread / 6)).item(), rel=1e-4)
