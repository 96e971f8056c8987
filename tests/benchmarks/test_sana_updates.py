"""The published way and mfd make the same evaluations and the same gradients for the same samples; a smoke run."""

import json

import pytest
import torch

from mfd_cli.config.load import load_recipe

pytest.importorskip("diffusers")
pytest.importorskip("peft")

SETTINGS = (
    "teacher.resolution=64", "teacher.instruction=false", "train.batch_size=4", "train.precision=fp32",
    "method.aux_updates=1", "method.solver={type: euler, step_size: 0.02}",
)  # fmt: skip


@pytest.fixture
def module(script):
    return script("sana_updates")


@pytest.fixture
def both(module, script, tmp_path, monkeypatch):
    """A trainer whose adapters have moved away from the base, and the published way with the same adapters."""
    monkeypatch.setenv("MFD_CACHE", str(tmp_path))
    workshop, trainer = script("workbench").trainer_of(load_recipe("sana-tiny", SETTINGS), "cpu")
    generator = torch.Generator().manual_seed(1)
    for role in (workshop.roles.student, workshop.roles.auxiliary):
        for value in role.parameters:
            value.data += 0.05 * torch.randn(value.shape, generator=generator)
    return trainer, module.Published.like(workshop)


def test_gradients_and_evaluations_are_those_of_mfd(both, module):
    trainer, published = both
    for step, name in ((0, "aux"), (1, "default")):
        trainer.progress.step = step
        role = trainer.roles.student if name == "default" else trainer.roles.auxiliary
        before = sum(trainer.snapshot().evaluations.values())
        trainer._gradient(step, role, name == "default")
        mine = torch.cat([value.grad.flatten() for value in role.parameters])
        gradient = published.student_gradient if name == "default" else published.auxiliary_gradient
        counted = published.evaluations
        samples = module.samples_of(trainer)
        for sample in samples:
            gradient(sample)
        trained = dict(published.pipeline.transformer.named_parameters())
        theirs = torch.cat(
            [
                trained[path.replace(".weight", f".{name}.weight")].grad.flatten()
                for path, _ in role.network.named_parameters()
            ]
        )
        torch.testing.assert_close(theirs / len(samples), mine, rtol=2e-3, atol=2e-5 * float(mine.abs().max()))
        assert sum(trainer.snapshot().evaluations.values()) - before == published.evaluations - counted > 0


def test_euler_steps_average_a_known_field(module):
    # dx/dsigma = 2 sigma; Euler from 1 to 0 in 50 steps sums 2 sigma at the steps' starts
    start, first, last = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    found = module._average(lambda x, sigma: 2 * sigma.expand_as(x), start, first, last)
    assert found.item() == pytest.approx(1 + 1 / 50)


def test_a_difference_in_evaluations_is_refused(both, module):
    trainer, published = both
    published.evaluations = 0
    original = published.update

    def one_too_many(kind, sample):
        original(kind, sample)
        published.evaluations += 1

    published.update = one_too_many
    with pytest.raises(RuntimeError, match="auxiliary update: mfd made 8 evaluations, the published way 12"):
        module.compare(trainer, published, 1, lambda: 0.0)


def test_summaries_are_medians_of_ratios(module):
    tally = module.Tally(mfd=[1.0, 2.0, 4.0], published=[5.0, 6.0, 8.0], decode=[1.0, 2.0, 4.0], evaluations=(12, 12))
    found = tally.summary(batch=2)
    assert found["ratio"]["median"] == 3.0 and found["ratio_with_decode"]["median"] == 4.0
    assert found["mfd_samples_per_second"] == 1.0 and found["mfd_evaluations_per_sample"] == 2.0


@pytest.mark.slow
def test_a_quick_run(module, tmp_path, monkeypatch):
    monkeypatch.setenv("MFD_CACHE", str(tmp_path))
    path, picture = tmp_path / "found.json", tmp_path / "found.png"
    module.main(["--quick", "--decode", "--json", str(path), "--plot", str(picture)])
    (found,) = json.loads(path.read_text())["models"]
    for row in found["updates"].values():
        assert row["ratio"]["median"] > 0
        assert row["mfd_evaluations_per_sample"] == row["published_evaluations_per_sample"]
    assert found["updates"]["student"]["decode_ms_per_sample"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
