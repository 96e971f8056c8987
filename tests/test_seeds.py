"""Random numbers are a function of (seed, purpose, update, sample) and nothing else, and have the right law."""

import pytest
import torch
from scipy import stats

from mfd_cli.seeds import Stream, key, order


@pytest.mark.parametrize("law", ["normal", "uniform"])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (2, 5)])
@pytest.mark.parametrize("parts", [[8], [1, 7], [3, 3, 2], [1] * 8])
def test_a_sample_does_not_depend_on_how_the_batch_is_split(law, shape, parts):
    whole = getattr(Stream(7, 3, 0, 8), law)("z", shape)
    firsts = [sum(parts[:index]) for index in range(len(parts))]
    split = [getattr(Stream(7, 3, first, count), law)("z", shape) for first, count in zip(firsts, parts, strict=True)]
    assert torch.equal(torch.cat(split), whole)
    assert whole.shape == (8, *shape) and whole.dtype == torch.float32


def test_equal_names_give_equal_numbers():
    assert torch.equal(Stream(0, 1, 0, 4).normal("z", (5,)), Stream(0, 1, 0, 4).normal("z", (5,)))


@pytest.mark.parametrize("other", [(1, 0, "z"), (0, 1, "z"), (0, 0, "x0")])
def test_other_seeds_updates_and_purposes_are_independent(other):
    seed, update, purpose = other
    first = Stream(0, 0, 0, 2000).normal("z", (10,))
    second = Stream(seed, update, 0, 2000).normal(purpose, (10,))
    correlation = float((first * second).mean())
    assert abs(correlation) < 4 / 20000**0.5


def test_neighbouring_samples_and_elements_are_independent():
    x = Stream(0, 0, 0, 5000).normal("z", (8,)).double()
    assert abs(float((x[1:] * x[:-1]).mean())) < 4 / 40000**0.5
    assert abs(float((x[:, 1:] * x[:, :-1]).mean())) < 4 / 35000**0.5


def test_keys_do_not_run_together():
    names = [(1, "a", 23), (12, "a", 3), (1, "a2", 3), (1, "a", 2, 3), (1, "a", 2), (1, "a")]
    assert len({key(*name) for name in names}) == len(names)


def test_normal_law():
    x = Stream(0, 0, 0, 20000).normal("z", (5,)).double().flatten().numpy()
    n = len(x)
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(stats.kurtosis(x)) < 4 * (24 / n) ** 0.5
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert abs(x).max() < 6.8  # 32 bits: -2 log(2^-33) is 6.76 squared


def test_uniform_law():
    x = Stream(0, 0, 0, 100000).uniform("t").double().numpy()
    assert x.min() > 0 and x.max() < 1
    assert stats.kstest(x, "uniform").pvalue > 1e-3


def test_uniform_numbers_are_never_an_end(monkeypatch):
    """Even for the lowest and highest integers of the generator."""
    import numpy as np

    for extreme in (0, 2**64 - 1):
        monkeypatch.setattr(Stream, "_raw", lambda *_, value=extreme: np.full((1, 1), value, dtype=np.uint64))
        value = float(Stream(0, 0, 0, 1).uniform("t"))
        assert 0 < value < 1
        assert bool(Stream(0, 0, 0, 1).normal("t", ()).isfinite())


@pytest.mark.parametrize("size", [1, 7, 100])
def test_every_item_comes_once_an_epoch(size):
    items = order(0, size, 0, 3 * size).reshape(3, size)
    assert torch.equal(items.sort(dim=1).values, torch.arange(size).expand(3, -1))


def test_epochs_and_seeds_are_shuffled_differently():
    first, second = order(0, 100, 0, 200).reshape(2, 100)
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(100))
    assert not torch.equal(first, order(1, 100, 0, 100))


def test_order_does_not_depend_on_how_it_is_asked():
    whole = order(3, 10, 0, 64)
    parts = [order(3, 10, first, 8) for first in range(0, 64, 8)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(torch.cat(parts[::-1]), torch.cat([whole[first : first + 8] for first in range(56, -8, -8)]))


def test_batches_across_the_border_of_epochs():
    assert torch.equal(order(0, 10, 8, 5), torch.cat([order(0, 10, 8, 2), order(0, 10, 10, 3)]))


@pytest.mark.parametrize("dimensions", [1, 2])
def test_even_points_are_uniform_in_each_axis_and_fill_the_cube_better(dimensions):
    even = Stream(0, 3, 0, 512).even("t", dimensions)
    assert even.shape == (512, dimensions) and bool(((even > 0) & (even < 1)).all())
    cells = 16 if dimensions == 1 else 4

    def emptiest(points):
        index = (points * cells).long().clamp(max=cells - 1)
        flat = index[:, 0] if dimensions == 1 else index[:, 0] * cells + index[:, 1]
        return int(torch.bincount(flat, minlength=cells**dimensions).min())

    assert emptiest(even) >= 28  # 32 each on average
    assert emptiest(Stream(0, 3, 0, 512).uniform("t", (dimensions,))) < 28
    means = torch.stack([Stream(0, update, 0, 4).even("t", dimensions).mean(0) for update in range(3000)])
    torch.testing.assert_close(means.mean(0), torch.full((dimensions,), 0.5), atol=0.01, rtol=0)


def test_even_points_do_not_depend_on_how_a_batch_is_split():
    whole = Stream(1, 2, 0, 8).even("t", 2)
    parts = [Stream(1, 2, first, 4).even("t", 2) for first in (0, 4)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole, Stream(1, 3, 0, 8).even("t", 2))
