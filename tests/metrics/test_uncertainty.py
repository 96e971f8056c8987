"""Standard errors against closed forms and against the spread over many repetitions."""

import math

import pytest
import torch

from mfd_cli.metrics.uncertainty import (
    Measured,
    bootstrap,
    bootstrapped,
    combined_error,
    difference,
    mean_of,
    recovered,
    share_of,
    standard_error,
)


def _normal(num: int, dimension: int, seed: int) -> torch.Tensor:
    return torch.randn(num, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bootstrap_error_of_a_mean_is_its_closed_form():
    x = _normal(2000, 1, 0)[:, 0]
    found = standard_error(lambda drawn: x[drawn].mean().item(), len(x), resamples=200)
    assert found == pytest.approx(x.std().item() / math.sqrt(len(x)), rel=0.2)
    hits = (x > 0.5).double()
    found = standard_error(lambda drawn: hits[drawn].mean().item(), len(x), resamples=200)
    assert found == pytest.approx(share_of(x > 0.5).standard_error, rel=0.2)


def test_a_share_has_the_binomial_error():
    found = share_of(torch.tensor([True, True, False, True]))
    assert found.value == 0.75 and found.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_a_mean_has_the_error_of_independent_scores():
    scores = _normal(50, 1, 3)[:, 0]
    found = mean_of(scores)
    assert found.value == pytest.approx(scores.mean().item())
    assert found.standard_error == pytest.approx((scores.std() / 50**0.5).item(), rel=1e-12)
    assert mean_of(scores, torch.arange(50)).standard_error == pytest.approx(found.standard_error, rel=1e-12)
    assert mean_of(torch.ones(1)).standard_error == 0, "one score says nothing of others"


def test_scores_of_one_prompt_count_as_one():
    groups = torch.arange(10).repeat_interleave(8)
    level = _normal(10, 1, 0)[:, 0]
    scores = level[groups] + 1e-6 * _normal(80, 1, 1)[:, 0]
    found = mean_of(scores, groups)
    assert found.standard_error == pytest.approx((level.std() / 10**0.5).item(), rel=1e-4)
    assert mean_of(scores).standard_error < found.standard_error / 2


def test_a_difference_of_paired_scores_has_the_error_of_their_differences():
    common = 10 * _normal(300, 1, 0)[:, 0]
    first, second = common + _normal(300, 1, 1)[:, 0], common + _normal(300, 1, 2)[:, 0]
    found = difference(mean_of(first), mean_of(second))
    assert found.value == pytest.approx((first - second).mean().item())
    assert found.standard_error == pytest.approx(((first - second).std() / 300**0.5).item(), rel=1e-12)
    assert found.standard_error < mean_of(first).standard_error / 4


def test_bootstrapped_figures_of_the_same_draws_are_paired():
    x = _normal(200, 1, 0)[:, 0]
    first = bootstrapped(x.mean().item(), lambda drawn: x[drawn].mean().item(), 200, seed=3)
    second = bootstrapped(x.mean().item() + 5, lambda drawn: x[drawn].mean().item() + 5, 200, seed=3)
    assert first.standard_error > 0.01
    assert difference(second, first).standard_error == pytest.approx(0, abs=1e-12)
    other = bootstrap(lambda drawn: {"": x[drawn].mean().item()}, 200, seed=4)[""]
    assert not torch.allclose(other, first.deviations)


def test_figures_without_common_draws_are_independent():
    first, second = Measured(1.0, 0.3, 10), Measured(2.0, 0.4, 10)
    assert difference(first, second).standard_error == pytest.approx(0.5)
    unequal = mean_of(_normal(5, 1, 0)[:, 0]), mean_of(_normal(7, 1, 0)[:, 0])
    expected = math.hypot(unequal[0].standard_error, unequal[1].standard_error)
    assert combined_error((1.0, unequal[0]), (-1.0, unequal[1])) == pytest.approx(expected)


@pytest.mark.parametrize(("gap", "within"), [(0.0, True), (0.19, True), (-0.19, True), (0.21, False), (-0.3, False)])
def test_twice_the_error_tells_two_models_apart(gap, within):
    assert difference(Measured(1 + gap, 0.06, 10), Measured(1.0, 0.08, 10)).within_error is within


def test_equal_figures_are_within_error_even_without_any():
    assert difference(Measured(1.0, 0.0, 10), Measured(1.0, 0.0, 10)).within_error


def test_the_error_of_the_recovered_gap_is_its_spread():
    """To first order, so the three figures have small errors against the gap; pairing counts."""
    found = []
    for seed in range(200):
        common = _normal(400, 1, 3 * seed)[:, 0]
        few, many = 10 + common + 0.5 * _normal(400, 1, 3 * seed + 1)[:, 0], 4 + common
        student = 5 + common + 0.5 * _normal(400, 1, 3 * seed + 2)[:, 0]
        found.append(recovered(mean_of(few), mean_of(student), mean_of(many)))
    shares = torch.tensor([share.value for share in found])
    assert shares.mean().item() == pytest.approx(5 / 6, abs=0.005)
    assert shares.std().item() == pytest.approx(found[0].standard_error, rel=0.2)


def test_no_gap_within_twice_its_paired_error():
    noise = _normal(100, 1, 0)[:, 0]
    few, many = mean_of(0.1 + noise), mean_of(noise)
    assert recovered(few, many, many).value == pytest.approx(1), "their common noise does not hide the gap"
    unpaired = [Measured(figure.value, figure.standard_error, 100) for figure in (few, many)]
    assert recovered(unpaired[0], unpaired[1], unpaired[1]) is None
