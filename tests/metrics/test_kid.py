"""KID and CMMD against their definitions as loops, their errors against the spread over independent sets."""

import pytest
import torch
from torch.nn import functional

from mfd_cli.errors import MfdError
from mfd_cli.metrics import images
from mfd_cli.metrics.features import InceptionFeatures
from mfd_cli.metrics.kid import Cmmd, CmmdSettings, Kid, KidSettings, cubic, kid, subset
from mfd_cli.metrics.mmd import MmdTo


def _points(num, dimension, seed, shift=0.0):
    return torch.randn(num, dimension, generator=torch.Generator().manual_seed(seed)) + shift


def _naive(x, y):
    """One subset, with Python's numbers."""
    x, y, width = x.tolist(), y.tolist(), x.shape[1]

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / width + 1) ** 3

    def within(points):
        found = [kernel(a, b) for i, a in enumerate(points) for j, b in enumerate(points) if i != j]
        return sum(found) / len(found)

    return within(x) + within(y) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


def test_kid_is_the_mean_over_subsets_of_the_sums_written_out():
    x, y = _points(20, 4, 0, 0.5), _points(30, 4, 1)
    found = kid(x, y, subsets=3, size=8, seed=7)
    expected = [
        _naive(x[subset(20, 8, 7, number, "generated")], y[subset(30, 8, 7, number, "reference")])
        for number in range(3)
    ]
    assert found.value == pytest.approx(sum(expected) / 3, rel=1e-9) and not found.more_is_better and found.num == 20


def test_subsets_hold_different_pictures_and_are_named_by_seed_and_number():
    drawn = subset(50, 20, 0, 0, "generated")
    assert len(set(drawn.tolist())) == 20 and drawn.min() >= 0 and drawn.max() < 50
    assert torch.equal(drawn, subset(50, 20, 0, 0, "generated"))
    others = [subset(50, 20, 1, 0, "generated"), subset(50, 20, 0, 1, "generated"), subset(50, 20, 0, 0, "reference")]
    assert not any(torch.equal(drawn, other) for other in others)
    assert sorted(subset(5, 5, 0, 0, "x").tolist()) == [0, 1, 2, 3, 4]


def test_a_subset_of_everything_is_the_discrepancy_of_everything():
    x, y = _points(25, 3, 0, 0.3), _points(25, 3, 1)
    found, whole = kid(x, y, subsets=2, size=25, seed=0), MmdTo(y, cubic).measured(x)
    assert found.value == pytest.approx(whole.value, rel=1e-9)
    assert found.standard_error == pytest.approx(whole.standard_error, rel=1e-9)
    torch.testing.assert_close(found.deviations, whole.deviations)


def test_kid_does_not_depend_on_the_number_of_pictures_in_expectation():
    sets = [(_points(60, 3, 2 * seed, 0.2), _points(60, 3, 2 * seed + 1)) for seed in range(40)]
    many, few = (
        torch.tensor([kid(x[:num], y[:num], subsets=4, size=10, seed=0).value for x, y in sets]) for num in (60, 10)
    )
    error = ((many.var() + few.var()) / 40).sqrt()
    assert abs(many.mean() - few.mean()) < 3 * error


@pytest.mark.parametrize(("subsets", "size"), [(5, 40), (40, 40)])
def test_the_error_is_the_spread_over_independent_sets_however_often_samples_are_drawn(subsets, size):
    reference = _points(200, 3, 0)
    sets = [kid(_points(200, 3, 1 + seed, 0.5), reference, subsets=subsets, size=size, seed=0) for seed in range(40)]
    spread = torch.tensor([found.value for found in sets]).std().item()
    typical = torch.tensor([found.standard_error for found in sets]).median().item()
    assert typical == pytest.approx(spread, rel=0.3)


class MeanColour:
    """Three features a picture, in place of Inception's 2048."""

    width = 3

    def pixels(self, pictures):
        return pictures.float() / 255

    def __call__(self, pixels):
        return pixels.mean((2, 3))


class Small(Kid):
    def extractor(self, device):
        return MeanColour(), {"model": "mean colour"}


def test_kid_needs_as_many_pictures_as_a_subset_has(held_against, noise_pictures):
    with pytest.raises(MfdError, match="kid: 12 pictures for subsets of 1000") as caught:
        Small(KidSettings(type="kid")).prepare(held_against(noise_pictures(12, 0)))
    assert "subset_size" in caught.value.do
    with pytest.raises(MfdError, match="kid: 3 pictures for subsets of 4"):
        Small(KidSettings(type="kid", subset_size=4)).prepare(held_against(noise_pictures(3, 0), 12))
    with pytest.raises(MfdError, match=r"kid: model: x\.pth is a pickle") as caught:
        Kid.check(KidSettings(type="kid", model="x.pth"))
    assert "mfd metrics convert fid x.pth" in caught.value.do


def test_kid_is_that_of_its_extractors_features(held_against, noise_pictures, distance):
    real, made = noise_pictures(9, 0), noise_pictures(12, 1)
    metric = Small(KidSettings(type="kid", subsets=2, subset_size=4))
    found = distance(metric, made, held_against(real, 12))["kid"]
    mine, theirs = (images.to_uint8(part).float().mean((2, 3)) / 255 for part in (made, real))
    assert found.value == pytest.approx(kid(mine, theirs, subsets=2, size=4, seed=0).value, rel=1e-5)
    assert metric.details() == {
        "model": "mean colour", "reference": "data", "reference_num": 9, "subsets": 2, "subset_size": 4
    }  # fmt: skip


def test_kids_network_is_fids(inception_weights):
    extractor, details = Kid(KidSettings(type="kid", model=str(inception_weights))).extractor(torch.device("cpu"))
    assert type(extractor) is InceptionFeatures and extractor.width == 2048
    assert details["model"] == str(inception_weights)


def test_cmmd_is_its_definition_on_transformers_embeddings(tiny_clip, held_against, noise_pictures, distance, stored):
    from transformers import CLIPModel

    real, made = noise_pictures(6, 0, side=32), noise_pictures(8, 1, side=32)
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    embedded = []
    with torch.no_grad():
        for part in (made, real):
            pixels = images.normalised(images.to_uint8(part), images.CLIP_MEAN, images.CLIP_STD)
            embedding = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
            embedded.append(functional.normalize(embedding, dim=1).double())

    def mean(a, b):
        values = [torch.exp(-(p - q).square().sum() / 200) for p in a for q in b]
        return sum(values) / len(values)

    x, y = embedded
    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)).item()
    settings = [CmmdSettings(type="cmmd", model=str(tiny_clip), reference=place) for place in (None, str(stored(real)))]
    for own, against in zip(settings, (held_against(real, 8), held_against(None, 8)), strict=True):
        Cmmd.check(own)
        metric = Cmmd(own)
        found = distance(metric, made, against)["cmmd"]
        assert found.value == pytest.approx(expected, rel=1e-3) and expected > 0.01
        assert found.standard_error > 0 and metric.details()["reference_num"] == 6
        assert found.deviations.norm().item() == pytest.approx(found.standard_error)


def test_equal_sets_have_no_cmmd(tiny_clip, held_against, noise_pictures, distance):
    real = noise_pictures(6, 0, side=32)
    metric = Cmmd(CmmdSettings(type="cmmd", model=str(tiny_clip)))
    assert distance(metric, real, held_against(real))["cmmd"].value == pytest.approx(0, abs=1e-4)
    with pytest.raises(MfdError, match="cmmd: 2 pictures"):
        metric.prepare(held_against(real, 2))
