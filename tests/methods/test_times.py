"""Laws of training times."""

import pytest
import torch
from scipy import stats

from mfd_cli.methods.diff_instruct import DiffInstruct, DiffInstructSettings, StartTimes
from mfd_cli.methods.times import Times, intervals
from mfd_cli.seeds import Stream

N = 40_000


def drawn(rows=N, first=0, **settings):
    s, t = intervals(Stream(0, 0, first, rows), Times(**settings))
    return s.double(), t.double()


def starts(**settings):
    method = DiffInstruct(DiffInstructSettings(type="diff-instruct", times=StartTimes(**settings)))

    class OnlyNoise:
        random = Stream(0, 0, 0, N)

    return method.start_times(OnlyNoise()).double()


def same_law(values, law):
    return stats.kstest(values.numpy(), law).pvalue > 1e-3


def test_sorted_uniform_pairs():
    """s has density 2 (1 - s), t has 2 t, and the mean interval is a third."""
    s, t = drawn()
    assert bool((s <= t).all()) and float(s.min()) > 0 and float(t.max()) < 1
    assert same_law(s, stats.beta(1, 2).cdf) and same_law(t, stats.beta(2, 1).cdf)
    assert abs(float(s.mean()) - 1 / 3) < 0.005 and abs(float(t.mean()) - 2 / 3) < 0.005
    assert abs(float((t - s).mean()) - 1 / 3) < 0.005


@pytest.mark.parametrize("gap", [0.02, 0.3, 0.9])
def test_smallest_interval_of_uniform_pairs(gap):
    """The same law as throwing short pairs away and drawing again."""
    s, t = drawn(min_interval=gap)
    assert float((t - s).min()) > gap - 1e-6 and float(t.max()) <= 1
    assert same_law(s / (1 - gap), stats.beta(1, 2).cdf)
    assert same_law((t - s - gap) / (1 - gap), stats.beta(1, 2).cdf)


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.3])
def test_uniform_starts(gap):
    s, t = drawn(type="uniform-start", min_interval=gap)
    assert float((t - s).min()) > gap - 1e-6 and float(t.max()) <= 1
    assert same_law(s / (1 - gap), stats.uniform().cdf)
    share = (t - s - gap) / (1 - gap - s)
    assert same_law(share, stats.uniform().cdf) and abs(float(torch.corrcoef(torch.stack([s, share]))[0, 1])) < 0.02


def test_sorted_logit_normal_pairs():
    s, t = drawn(type="logit-normal", mean=0.4, std=1.0)
    law = stats.norm(0.4, 1.0)
    assert same_law(s.logit(), lambda x: 1 - (1 - law.cdf(x)) ** 2) and same_law(t.logit(), lambda x: law.cdf(x) ** 2)


def test_smallest_interval_of_logit_normal_pairs_is_kept_exactly():
    s, t = intervals(Stream(0, 0, 0, 5000), Times(type="logit-normal", min_interval=0.3))
    assert bool((t - s >= 0.3).all())


def test_an_interval_that_never_comes_is_refused():
    with pytest.raises(ValueError, match=r"no interval of at least 0\.9"):
        drawn(4, type="logit-normal", std=0.01, min_interval=0.9)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_share_of_intervals(share):
    s, t = drawn(interval_share=share)
    assert abs(float((t > s).double().mean()) - share) < 0.01
    assert same_law(s, stats.beta(1, 2).cdf), "the starts keep their law"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_interval": 0.2},
        {"type": "logit-normal", "min_interval": 0.2},
        {"interval_share": 0.5},
        {"type": "uniform-start", "min_interval": 0.2},
    ],
)
def test_times_do_not_depend_on_how_the_batch_is_split(settings):
    whole = torch.stack(drawn(12, **settings))
    parts = [torch.stack(drawn(count, first, **settings)) for first, count in ((0, 5), (5, 1), (6, 6))]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_starts_of_diff_instruct():
    assert same_law(starts(), stats.uniform().cdf)
    assert same_law(starts(max_start=0.5) * 2, stats.uniform().cdf)
    assert same_law(starts(type="logit-normal").logit(), stats.norm(1.2, 1.2).cdf)
    assert torch.equal(starts(type="sorted-pair"), drawn()[0]), "the starts of MFD on the same seed"


@pytest.mark.parametrize("kind", ["uniform", "logit-normal", "uniform-start"])
def test_even_intervals_have_the_law_of_random_ones(kind):
    found = {}
    for spread in ("random", "even"):
        times = Times(type=kind, spread=spread, mean=0.4, std=1.0, min_interval=0.05)
        pairs = [torch.stack(intervals(Stream(0, update, 0, 256), times)) for update in range(200)]
        found[spread] = torch.cat(pairs, dim=1)
        assert bool((found[spread][1] - found[spread][0] >= 0.05 - 1e-6).all())
        found[spread + " means"] = torch.stack([pair.mean(dim=1) for pair in pairs])
    for share in (0.1, 0.5, 0.9):
        torch.testing.assert_close(
            found["even"].quantile(share, dim=1), found["random"].quantile(share, dim=1), atol=0.01, rtol=0
        )
    assert bool((found["even means"].std(0) < 0.75 * found["random means"].std(0)).all())
