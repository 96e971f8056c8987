"""Occupancy figures: the original's own numbers, a loop over voxels, and both rules for absent classes."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mfd_cli.errors import MfdError
from mfd_cli.inference.occupancy import (
    CLASSES,
    FREE,
    Counts,
    bootstrap_deviations,
    class_iou,
    count,
    figures,
    mean_iou,
    occupied_iou,
    per_class,
    pooled,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "occfm" / "metrics.safetensors"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


def _random_labels(seed, *shape, classes=18):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def _frame(*labels):
    """Labels of one clip with one frame: [1, 1, len(labels), 1, 1]."""
    return torch.tensor(labels, dtype=torch.uint8)[None, None, :, None, None]


def test_figures_are_those_of_the_original(golden):
    counts = pooled(count(golden["pred"], golden["gt"]))
    torch.testing.assert_close(mean_iou(counts, "one"), golden["miou_per_frame"], atol=1e-4, rtol=0)
    torch.testing.assert_close(occupied_iou(counts), golden["iou_per_frame"], atol=1e-4, rtol=0)
    by_rule = class_iou(counts).where(counts.truths[:, :FREE] > 0, 1.0)
    torch.testing.assert_close(by_rule, golden["class_iou_per_frame"], atol=1e-6, rtol=0)
    found = figures(counts)
    assert found["miou"] == pytest.approx(golden["mean_miou"].item(), abs=1e-4)
    assert found["iou"] == pytest.approx(golden["mean_iou"].item(), abs=1e-4)
    classes = torch.tensor(list(per_class(counts).values()), dtype=torch.float64)
    torch.testing.assert_close(classes, 100 * golden["class_iou_per_frame"].mean(0), atol=1e-4, rtol=0)


def test_the_original_case_holds_both_kinds_of_absent_class(golden):
    counts = pooled(count(golden["pred"], golden["gt"]))
    assert counts.truths[:, 3].tolist() == [0] * 6
    assert counts.truths[2, 6] == 0 and counts.predictions[2, 6] > 0
    assert class_iou(counts)[2, 6] == 0
    # the predicted class falls from 1 to 0; if class 3 is never predicted, it leaves the mean
    assert mean_iou(counts, "strict")[2] < mean_iou(counts, "one")[2]


def _naive(predicted, truth):
    """Per frame, by a loop over voxels: 17 ratios (None if undefined), the occupied ratio, which are labelled."""
    clips, frames, *grid = truth.shape
    rows = []
    for t in range(frames):
        hits, truths, predictions, both, either = [0] * 18, [0] * 18, [0] * 18, 0, 0
        for voxel in range(clips * grid[0] * grid[1] * grid[2]):
            p = predicted[:, t].flatten()[voxel].item()
            g = truth[:, t].flatten()[voxel].item()
            truths[g] += 1
            predictions[p] += 1
            hits[g] += p == g
            both += p != 17 and g != 17
            either += p != 17 or g != 17
        unions = [truths[c] + predictions[c] - hits[c] for c in range(17)]
        ratios = [hits[c] / unions[c] if unions[c] else None for c in range(17)]
        rows.append((ratios, both / either if either else 1.0, [truths[c] > 0 for c in range(17)]))
    return rows


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    clips=st.integers(1, 2),
    frames=st.integers(1, 3),
    classes=st.sampled_from([2, 6, 18]),
    upwards=st.booleans(),
)
def test_figures_equal_a_loop_over_voxels(seed, clips, frames, classes, upwards):
    shape = (clips, frames, 3, 2, 2)
    predicted, truth = _random_labels(seed, *shape, classes=classes), _random_labels(seed + 1, *shape, classes=classes)
    if upwards:  # few classes, of which one is free
        predicted, truth = 17 - predicted, 17 - truth
    counts = pooled(count(predicted, truth))
    for t, (ratios, occupied, labelled) in enumerate(_naive(predicted, truth)):
        original = [ratio if there else 1.0 for ratio, there in zip(ratios, labelled, strict=True)]
        strict = [ratio for ratio in ratios if ratio is not None]
        assert mean_iou(counts, "one")[t].item() == pytest.approx(100 * sum(original) / 17)
        expected = 100 * sum(strict) / len(strict) if strict else 100
        assert mean_iou(counts, "strict")[t].item() == pytest.approx(expected)
        assert occupied_iou(counts)[t].item() == pytest.approx(100 * occupied)
        found = [None if value != value else value for value in class_iou(counts)[t].tolist()]
        assert found == pytest.approx(ratios)


def test_an_absent_class_counts_one_or_not_at_all():
    # class 4 is half right, class 9 is predicted but nowhere labelled, no other is there
    counts = pooled(count(_frame(4, 9, 17), _frame(4, 4, 17)))
    assert mean_iou(counts, "one").item() == pytest.approx(100 * (16 + 0.5) / 17)
    assert mean_iou(counts, "strict").item() == pytest.approx(100 * (0.5 + 0) / 2)
    assert class_iou(counts)[0, [4, 9]].tolist() == [0.5, 0.0]
    assert class_iou(counts).isnan().sum() == 15
    assert occupied_iou(counts).item() == 100


def test_two_empty_frames_agree():
    counts = pooled(count(_frame(17, 17), _frame(17, 17)))
    assert [mean_iou(counts, "one").item(), mean_iou(counts, "strict").item()] == [100, 100]
    assert occupied_iou(counts).item() == 100
    assert occupied_iou(pooled(count(_frame(17, 3), _frame(17, 17)))).item() == 0


def test_counts_keep_clips_and_frames_apart():
    predicted, truth = _random_labels(0, 3, 2, 4, 4, 4), _random_labels(1, 3, 2, 4, 4, 4)
    counts = count(predicted, truth)
    for clip in range(3):
        alone = count(predicted[clip : clip + 1], truth[clip : clip + 1])
        for part, whole in zip(alone, counts, strict=True):
            assert whole.shape == (3, 2, 18) and whole.dtype == torch.int64
            assert torch.equal(part[0], whole[clip])
    assert counts.truths[1, 0, 5] == (truth[1, 0] == 5).sum()
    assert counts.truths[2, 1, 17] == (truth[2, 1] != FREE).sum()
    assert counts.predictions[0, 1, 17] == (predicted[0, 1] != FREE).sum()


def test_clips_are_summed_before_dividing():
    # a clip with 1 of 1 right and one with 1 of 3: pooled 2/4, the mean of the clips would be 2/3
    first = count(_frame(4, 17, 17, 17), _frame(4, 17, 17, 17))
    second = count(_frame(4, 17, 17, 17), _frame(4, 4, 4, 17))
    together = pooled(Counts(*(torch.cat(parts) for parts in zip(first, second, strict=True))))
    assert class_iou(together)[0, 4].item() == 0.5
    assert occupied_iou(together).item() == 50
    assert (occupied_iou(first) + occupied_iou(second)).item() / 2 == pytest.approx(200 / 3)


def test_counts_stay_exact_above_what_single_precision_holds():
    number = 2**24 + 1
    labels = torch.full((1, 1, number, 1, 1), 4, dtype=torch.uint8)
    counts = count(labels, labels)
    assert [part[0, 0, 4].item() for part in counts] == [number] * 3
    assert [part[0, 0, 17].item() for part in counts] == [number] * 3
    twice = pooled(Counts(*(torch.cat([part, part]) for part in counts)))
    assert twice.truths[0, 4].item() == 2 * number


def test_averages_differ_as_their_names_say():
    # of 10 voxels of class 4, 10 - t are found in frame t
    hits = torch.zeros(6, 18, dtype=torch.int64)
    hits[:, [4, 17]] = torch.tensor([10, 9, 8, 7, 6, 5])[:, None]
    truths = torch.zeros_like(hits)
    truths[:, [4, 17]] = 10
    found = figures(Counts(hits, truths, hits))
    assert found["iou"] == pytest.approx(75)
    assert found["iou_1_2_3s"] == pytest.approx((90 + 70 + 50) / 3)
    assert found["miou"] == pytest.approx(100 * (16 + 0.75) / 17)
    assert found["miou_1_2_3s"] == pytest.approx(100 * (16 + 0.7) / 17)
    assert found["miou_strict"] == pytest.approx(75)
    seconds = ["0.5s", "1.0s", "1.5s", "2.0s", "2.5s", "3.0s"]
    assert [found[f"iou_{each}"] for each in seconds] == pytest.approx([100, 90, 80, 70, 60, 50])
    assert found["miou_3.0s"] == pytest.approx(100 * (16 + 0.5) / 17)
    assert len(found) == 5 + 12


def test_seconds_that_are_not_there_are_not_reported():
    counts = pooled(count(_random_labels(0, 1, 4, 2, 2, 2), _random_labels(1, 1, 4, 2, 2, 2)))
    assert "iou_1_2_3s" not in figures(counts)
    assert "miou_1.0s" in figures(counts, seconds_per_frame=0.25)


def test_classes_are_reported_by_name():
    counts = pooled(count(_frame(4, 9, 17), _frame(4, 4, 17)))
    found = per_class(counts)
    assert list(found) == list(CLASSES[:17])
    assert found["car"] == 50 and found["trailer"] == 100 and "free" not in found


def test_figures_of_unpooled_counts_are_refused():
    with pytest.raises(ValueError, match="pooled"):
        figures(count(_frame(4), _frame(4)))


@pytest.mark.parametrize(
    ("predicted", "truth"),
    [
        (_frame(1, 2), _frame(1, 2, 3)),
        (_frame(1)[0], _frame(1)[0]),
        (_frame(18), _frame(1)),
        (_frame(1), _frame(255)),
        (_frame(1).long(), _frame(1).long()),
    ],
)
def test_what_cannot_be_compared_is_refused(predicted, truth):
    with pytest.raises(MfdError):
        count(predicted, truth)


def _clips_of_scenes(share):
    """Counts of 100 clips, 10 from each of 10 scenes; each voxel is right with its scene's probability."""
    truth = torch.full((100, 6, 4, 4, 4), 4, dtype=torch.uint8)
    chance = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))
    return count(torch.where(chance < share[:, None, None, None, None], 4, 17).to(torch.uint8), truth)


def bootstrap_errors(*given, **options):
    return {name: moves.norm().item() for name, moves in bootstrap_deviations(*given, **options).items()}


def test_bootstrap_draws_scenes_not_clips():
    scenes = torch.arange(10).repeat_interleave(10)
    share = torch.linspace(0.2, 0.8, 10)
    counts = _clips_of_scenes(share[scenes])
    errors = bootstrap_errors(counts, 7 * scenes, seed=0, resamples=100)
    assert errors.keys() == figures(pooled(counts)).keys()
    # the error of a mean of 10 scenes, with N in place of N - 1 as the bootstrap has it
    expected = 100 * share.std(correction=0).item() / 10**0.5
    assert errors["iou"] == pytest.approx(expected, rel=0.25)
    assert errors["miou"] == pytest.approx(expected / 17, rel=0.25)
    clipwise = bootstrap_errors(counts, torch.arange(100), seed=0, resamples=100)
    assert clipwise["iou"] < errors["iou"] / 2


def test_bootstrap_is_a_function_of_its_seed_and_not_of_the_clips_order():
    scenes = torch.arange(10).repeat_interleave(10)
    counts = _clips_of_scenes(torch.linspace(0.2, 0.8, 10)[scenes])
    errors = bootstrap_errors(counts, scenes, seed=1)
    turned = Counts(*(part.flip(0) for part in counts))
    assert bootstrap_errors(turned, scenes.flip(0), seed=1) == errors
    assert bootstrap_errors(counts, scenes, seed=2) != errors


def test_one_scene_gives_no_error():
    counts = count(_random_labels(0, 2, 1, 2, 2, 2), _random_labels(1, 2, 1, 2, 2, 2))
    assert bootstrap_errors(counts, torch.zeros(2, dtype=torch.int64), seed=0) == {}
    with pytest.raises(MfdError, match="scene numbers"):
        bootstrap_errors(counts, torch.zeros(3, dtype=torch.int64), seed=0)
