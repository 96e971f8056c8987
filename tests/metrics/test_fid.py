"""FID, FID of patches and FD-DINOv2 on files: distances of features, references, and what is refused."""

import numpy as np
import pytest
import torch

from mfd_cli.errors import MfdError
from mfd_cli.metrics import features
from mfd_cli.metrics.contract import Batch
from mfd_cli.metrics.features import Dinov2Features, InceptionPatch
from mfd_cli.metrics.fid import FdDinov2, FdDinov2Settings, Fid, FidSettings, PatchFid
from mfd_cli.metrics.frechet import frechet_distance
from mfd_cli.metrics.inception import Inception

CPU = torch.device("cpu")


def test_fd_dinov2_is_the_distance_of_the_features(dinov2, noise_pictures, held_against, distance):
    metric = FdDinov2(FdDinov2Settings(type="fd-dinov2", model=str(dinov2)))
    samples, against = noise_pictures(12, 1), held_against(noise_pictures(12, 5))
    found = distance(metric, samples, against)["fd_dinov2"]
    extractor = Dinov2Features(dinov2, CPU)
    expected = frechet_distance(*(features.features_of(extractor, part) for part in (samples, against.real)))
    assert found.value == pytest.approx(expected, rel=1e-6) and found.standard_error > 0 and not found.more_is_better
    assert metric.details()["reference_num"] == 12 and metric.details()["model"] == str(dinov2)
    assert len(metric.details()["sha256"]) == 64


def test_the_reference_may_be_a_folder_or_moments(dinov2, noise_pictures, held_against, distance, stored, tmp_path):
    real = noise_pictures(12, 5)
    extractor = Dinov2Features(dinov2, CPU)
    rows = features.features_of(extractor, real).double().numpy()
    np.savez(tmp_path / "moments.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    values = [
        distance(
            FdDinov2(FdDinov2Settings(type="fd-dinov2", model=str(dinov2), reference=reference)),
            noise_pictures(12, 1),
            held_against(real if reference is None else None, 12),
        )["fd_dinov2"].value
        for reference in (None, str(stored(real)), str(tmp_path / "moments.npz"))
    ]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-5)


def test_the_teacher_as_reference_is_taken_when_its_rows_come(dinov2, noise_pictures, held_against):
    metric = FdDinov2(FdDinov2Settings(type="fd-dinov2", model=str(dinov2), reference="teacher", label="x"))
    FdDinov2.check(metric.settings)
    made, teachers = noise_pictures(12, 1), noise_pictures(12, 2)
    with torch.inference_mode():
        metric.prepare(held_against(None, 12))
        mine, theirs = (metric.rows(Batch(part, torch.arange(12))) for part in (made, teachers))
        metric.hold_against(theirs)
        (name, figure), *more = metric.figures(mine, torch.arange(12)).items()
    assert name == "fd_dinov2_teacher_x" and more == []
    assert figure.value == pytest.approx(frechet_distance(mine, theirs), rel=1e-9)
    assert metric.details()["reference"] == "teacher" and metric.details()["reference_num"] == 12


def test_patches_are_the_middle_of_pictures_as_it_is(inception_weights):
    torch.manual_seed(0)
    network = Inception().eval()
    pictures = torch.randint(0, 256, (1, 3, 304, 320), dtype=torch.uint8)
    extractor = InceptionPatch(inception_weights, CPU)
    with torch.no_grad():
        expected = network((pictures[:, :, 2:301, 10:309].float() - 128) / 128)
        torch.testing.assert_close(extractor(extractor.pixels(pictures)), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(MfdError, match="320 x 298 pixels have no 299 x 299") as caught:
        extractor.pixels(torch.zeros(1, 3, 298, 320, dtype=torch.uint8))
    assert caught.value.allowed == "pictures of at least 299 x 299 pixels"


def test_patch_fid_is_fid_of_patches(inception_weights, held_against):
    metric = PatchFid(FidSettings(type="patch-fid", model=str(inception_weights)))
    with pytest.raises(MfdError, match="12 samples are too few for 'patch_fid', which has 2048 features"):
        metric.prepare(held_against(torch.zeros(12, 3, 299, 299)))
    extractor, details = metric.extractor(CPU)
    assert type(extractor) is InceptionPatch and details["model"] == str(inception_weights)
    with pytest.raises(MfdError, match=r"patch-fid: model: x\.pth is a pickle") as caught:
        PatchFid.check(FidSettings(type="patch-fid", model="x.pth"))
    assert caught.value.do == "mfd metrics convert fid x.pth -o x.safetensors"


def test_fid_needs_more_samples_than_features(inception_weights, held_against, noise_pictures):
    metric = Fid(FidSettings(type="fid", model=str(inception_weights)))
    with pytest.raises(MfdError, match="12 samples are too few for 'fid', which has 2048 features"):
        metric.prepare(held_against(noise_pictures(12, 5)))


@pytest.mark.parametrize(
    ("settings", "message", "do"),
    [
        ({}, "fid needs model", "mfd metrics convert fid"),
        ({"model": "nowhere.safetensors"}, "no such file", "mfd metrics convert fid"),
        ({"model": "pt_inception.pth"}, "is a pickle", "mfd metrics convert fid pt_inception.pth"),
    ],
)
def test_missing_weights_of_fid_are_told_with_the_way_to_get_them(settings, message, do):
    with pytest.raises(MfdError, match=message) as caught:
        Fid.check(FidSettings(type="fid", **settings))
    assert do in caught.value.do


def test_a_missing_reference_is_refused(inception_weights, tmp_path):
    for reference, message in (("nowhere", "no such folder"), ("nowhere.npz", "not readable")):
        settings = FidSettings(type="fid", model=str(inception_weights), reference=str(tmp_path / reference))
        with pytest.raises(MfdError, match=message):
            Fid.check(settings)
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(MfdError, match="mu"):
        Fid.check(FidSettings(type="fid", model=str(inception_weights), reference=str(tmp_path / "odd.npz")))


def test_data_without_real_pictures_are_refused(dinov2, held_against):
    with pytest.raises(MfdError, match="needs real samples"):
        FdDinov2(FdDinov2Settings(type="fd-dinov2", model=str(dinov2))).prepare(held_against(None, 12))
