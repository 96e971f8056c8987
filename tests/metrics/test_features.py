"""FID and FD-DINOv2 on files: features against second forwards, references, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mfd_cli.errors import MfdError
from mfd_cli.metrics import features, images
from mfd_cli.metrics.contract import Against, Batch
from mfd_cli.metrics.features import Dinov2Features, FdDinov2, FdDinov2Settings, Fid, FidSettings, InceptionFeatures
from mfd_cli.metrics.frechet import frechet_distance
from mfd_cli.metrics.inception import Inception
from mfd_cli.metrics.mmd import Mmd, MmdSettings
from mfd_cli.metrics.neighbours import PrecisionRecall, PrecisionRecallSettings
from teachers.base import Data

CPU = torch.device("cpu")


class Pictures(Data):
    """Coloured noise, brighter from one picture to the next."""

    @classmethod
    def load(cls, settings, teacher):
        return cls()

    @property
    def size(self):
        return 12

    def condition(self, items):
        return {}

    def reference(self, count, seed):
        return _pictures(12, 5)


def _pictures(num, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num, 3, 16, 16, generator=generator) * torch.linspace(0.3, 1, num)[:, None, None, None]


def _against(num=12, real=True):
    data = Pictures()
    return Against(data, num, 0, data.reference(None, 0) if real else None)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A file of random weights with what published files hold besides."""
    torch.manual_seed(0)
    held = {name: value for name, value in Inception().state_dict().items() if "num_batches" not in name}
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(held | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(
        hidden_size=6, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56, mlp_ratio=2,
        layerscale_value=0.7,
    )  # fmt: skip
    Dinov2Model(config).save_pretrained(folder)
    return folder


def test_inception_features_of_a_file_are_the_networks(inception):
    pictures = images.to_uint8(_pictures(2, 0))
    torch.manual_seed(0)
    network = Inception().eval()
    x = images.resized_like_tensorflow(pictures, 299) / 128 - 1
    extractor = InceptionFeatures(inception, CPU)
    with torch.no_grad():
        torch.testing.assert_close(extractor(extractor.pixels(pictures)), network(x), rtol=1e-4, atol=1e-5)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"Conv2d_1a_3x3.conv.weight": torch.zeros(3)}, path)
    with pytest.raises(MfdError, match="do not fit"):
        InceptionFeatures(path, CPU)


def _naive_dinov2(state, x):
    """The forward pass of DINOv2 from its weights, without transformers."""

    def linear(name, value):
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name, value):
        centred = value - value.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]

    weight = state["embeddings.patch_embeddings.projection.weight"]
    bias = state["embeddings.patch_embeddings.projection.bias"]
    rows = [
        (x[:, None, :, 56 * i : 56 * i + 56, 56 * j : 56 * j + 56] * weight).sum((2, 3, 4)) + bias
        for i in range(4)
        for j in range(4)
    ]
    tokens = torch.cat([state["embeddings.cls_token"].expand(len(x), 1, 6), torch.stack(rows, 1)], 1)
    tokens = tokens + state["embeddings.position_embeddings"]
    for layer in range(2):
        name = f"encoder.layer.{layer}"
        if f"{name}.attention.attention.query.weight" not in state:
            pytest.fail(f"layout: {[key for key in state if key.startswith(name)]}")
        h = norm(f"{name}.norm1", tokens)
        q, k, v = (linear(f"{name}.attention.attention.{part}", h) for part in ("query", "key", "value"))
        heads = [
            torch.softmax(q[..., s] @ k[..., s].transpose(1, 2) / 3**0.5, -1) @ v[..., s]
            for s in (slice(0, 3), slice(3, 6))
        ]
        mixed = linear(f"{name}.attention.output.dense", torch.cat(heads, -1))
        tokens = tokens + state[f"{name}.layer_scale1.lambda1"] * mixed
        h = linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", tokens))
        h = linear(f"{name}.mlp.fc2", 0.5 * h * (1 + torch.erf(h / 2**0.5)))
        tokens = tokens + state[f"{name}.layer_scale2.lambda1"] * h
    return norm("layernorm", tokens)[:, 0]


def test_dinov2_features_are_the_class_token_of_a_second_forward(dinov2):
    from safetensors.torch import load_file

    pictures = images.to_uint8(_pictures(3, 0))
    shown = [Image.fromarray(one.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC) for one in pictures]
    resized = torch.from_numpy(np.stack([np.asarray(one) for one in shown])).permute(0, 3, 1, 2)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = _naive_dinov2(
        load_file(dinov2 / "model.safetensors"), (resized / 255 - mean[:, None, None]) / std[:, None, None]
    )
    extractor = Dinov2Features(dinov2, CPU)
    torch.testing.assert_close(extractor(extractor.pixels(pictures)), expected, rtol=1e-3, atol=1e-4)


def _measured(metric, samples, against):
    with torch.inference_mode():
        metric.prepare(against)
        rows = torch.cat([metric.rows(Batch(part, torch.arange(len(part)))) for part in samples.split(5)])
        return metric.figures(rows, torch.arange(len(rows)))


def test_fd_dinov2_is_the_distance_of_the_features(dinov2):
    metric = FdDinov2(FdDinov2Settings(type="fd-dinov2", model=str(dinov2)))
    samples, against = _pictures(12, 1), _against()
    found = _measured(metric, samples, against)["fd_dinov2"]
    extractor = Dinov2Features(dinov2, CPU)
    expected = frechet_distance(*(features.features_of(extractor, part) for part in (samples, against.real)))
    assert found.value == pytest.approx(expected, rel=1e-6) and found.standard_error > 0 and not found.more_is_better
    assert metric.details()["reference_num"] == 12 and metric.details()["model"] == str(dinov2)
    assert len(metric.details()["sha256"]) == 64


def test_the_reference_may_be_a_folder_or_moments(dinov2, tmp_path):
    real = images.to_uint8(_against().real)
    folder = tmp_path / "real"
    folder.mkdir()
    for index, picture in enumerate(real):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{index:02}.png")
    extractor = Dinov2Features(dinov2, CPU)
    rows = extractor(extractor.pixels(real)).double().numpy()
    np.savez(tmp_path / "moments.npz", mu=rows.mean(0), sigma=np.cov(rows, rowvar=False))
    values = [
        _measured(
            FdDinov2(FdDinov2Settings(type="fd-dinov2", model=str(dinov2), reference=reference)),
            _pictures(12, 1),
            _against(real=reference is None),
        )["fd_dinov2"].value
        for reference in (None, str(folder), str(tmp_path / "moments.npz"))
    ]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-5)


def test_fid_needs_more_samples_than_features(inception):
    metric = Fid(FidSettings(type="fid", model=str(inception)))
    with pytest.raises(MfdError, match="12 samples are too few for 'fid', which has 2048 features"):
        metric.prepare(_against())


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


def test_a_missing_reference_is_refused(inception, tmp_path):
    for reference, message in (("nowhere", "no such folder"), ("nowhere.npz", "not readable")):
        settings = FidSettings(type="fid", model=str(inception), reference=str(tmp_path / reference))
        with pytest.raises(MfdError, match=message):
            Fid.check(settings)
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(MfdError, match="mu"):
        Fid.check(FidSettings(type="fid", model=str(inception), reference=str(tmp_path / "odd.npz")))


def test_data_without_real_pictures_are_refused(dinov2):
    with pytest.raises(MfdError, match="needs real samples"):
        FdDinov2(FdDinov2Settings(type="fd-dinov2", model=str(dinov2))).prepare(_against(real=False))


def test_mmd_and_precision_work_in_the_features_of_a_network(dinov2):
    from mfd_cli.metrics.mmd import MmdTo
    from mfd_cli.metrics.neighbours import precision_recall

    samples, against = _pictures(12, 1), _against()
    extractor = Dinov2Features(dinov2, CPU)
    made, real = (features.features_of(extractor, part) for part in (samples, against.real))
    mmd = Mmd(MmdSettings(type="mmd", features="dinov2", model=str(dinov2), label="dino"))
    assert _measured(mmd, samples, against)["mmd_dino"].value == pytest.approx(
        MmdTo(real).measured(made).value, rel=1e-6
    )
    assert mmd.details()["bandwidth"] > 0
    precision = PrecisionRecall(PrecisionRecallSettings(type="precision-recall", features="dinov2", model=str(dinov2)))
    expected = precision_recall(real, made, 5)
    assert {name: figure.value for name, figure in _measured(precision, samples, against).items()} == {
        name: figure.value for name, figure in expected.items()
    }


def test_features_that_do_not_exist_are_refused_with_those_that_do():
    with pytest.raises(MfdError, match="features: vgg") as caught:
        Mmd(MmdSettings(type="mmd", features="vgg")).prepare(_against())
    assert caught.value.allowed == "samples, inception, dinov2, frechet"
    with pytest.raises(MfdError, match="mmd: 12 real and 2 generated"):
        Mmd(MmdSettings(type="mmd")).prepare(_against(num=2))
    with pytest.raises(MfdError, match="neighbours"):
        PrecisionRecall(PrecisionRecallSettings(type="precision-recall", neighbours=12)).prepare(_against())
