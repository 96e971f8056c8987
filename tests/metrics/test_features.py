"""Features of pictures against second forward passes, and feature spaces by name."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mfd_cli.errors import MfdError
from mfd_cli.metrics import features, images
from mfd_cli.metrics.features import Dinov2Features, InceptionFeatures
from mfd_cli.metrics.inception import Inception
from mfd_cli.metrics.mmd import Mmd, MmdSettings
from mfd_cli.metrics.neighbours import PrecisionRecall, PrecisionRecallSettings

CPU = torch.device("cpu")


def test_inception_features_of_a_file_are_the_networks(inception_weights, noise_pictures):
    pictures = images.to_uint8(noise_pictures(2, 0))
    torch.manual_seed(0)
    network = Inception().eval()
    x = images.resized_like_tensorflow(pictures, 299) / 128 - 1
    extractor = InceptionFeatures(inception_weights, CPU)
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


def test_dinov2_features_are_the_class_token_of_a_second_forward(dinov2, noise_pictures):
    from safetensors.torch import load_file

    pictures = images.to_uint8(noise_pictures(3, 0))
    shown = [Image.fromarray(one.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC) for one in pictures]
    resized = torch.from_numpy(np.stack([np.asarray(one) for one in shown])).permute(0, 3, 1, 2)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = _naive_dinov2(
        load_file(dinov2 / "model.safetensors"), (resized / 255 - mean[:, None, None]) / std[:, None, None]
    )
    extractor = Dinov2Features(dinov2, CPU)
    torch.testing.assert_close(extractor(extractor.pixels(pictures)), expected, rtol=1e-3, atol=1e-4)


def test_mmd_and_precision_work_in_the_features_of_a_network(dinov2, noise_pictures, held_against, distance):
    from mfd_cli.metrics.mmd import MmdTo, gaussian, median_distance
    from mfd_cli.metrics.neighbours import precision_recall

    samples, against = noise_pictures(12, 1), held_against(noise_pictures(12, 5))
    extractor = Dinov2Features(dinov2, CPU)
    made, real = (features.features_of(extractor, part) for part in (samples, against.real))
    mmd = Mmd(MmdSettings(type="mmd", features="dinov2", model=str(dinov2), label="dino"))
    assert distance(mmd, samples, against)["mmd_dino"].value == pytest.approx(
        MmdTo(real, gaussian(median_distance(real))).measured(made).value, rel=1e-6
    )
    assert mmd.details()["bandwidth"] > 0
    precision = PrecisionRecall(PrecisionRecallSettings(type="precision-recall", features="dinov2", model=str(dinov2)))
    expected = precision_recall(real, made, 5)
    assert {name: figure.value for name, figure in distance(precision, samples, against).items()} == {
        name: figure.value for name, figure in expected.items()
    }


def test_features_that_do_not_exist_are_refused_with_those_that_do(noise_pictures, held_against):
    real = noise_pictures(12, 5)
    with pytest.raises(MfdError, match="features: vgg") as caught:
        Mmd(MmdSettings(type="mmd", features="vgg")).prepare(held_against(real))
    assert caught.value.allowed == "samples, inception, dinov2, frechet"
    with pytest.raises(MfdError, match="mmd: 2 samples"):
        Mmd(MmdSettings(type="mmd")).prepare(held_against(real, 2))
    with pytest.raises(MfdError, match="neighbours"):
        PrecisionRecall(PrecisionRecallSettings(type="precision-recall", neighbours=12)).prepare(held_against(real))
