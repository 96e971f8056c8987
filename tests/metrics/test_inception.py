"""FID's Inception: the published layout, and values of a second implementation with the same weights."""

import hashlib

import pytest
import torch

from mfd_cli.metrics.images import resized_like_tensorflow
from mfd_cli.metrics.inception import FEATURES, SIZE, Inception


@pytest.fixture(scope="module")
def network():
    """Weights that are a formula of their place, so that another program can have the same."""
    network = Inception().eval().requires_grad_(False)
    held = network.state_dict()
    for place, name in enumerate(sorted(name for name in held if not name.endswith("num_batches_tracked"))):
        value = held[name]
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + place)
        if name.endswith("running_var"):
            wave = 1 + 0.5 * wave
        elif name.endswith("bn.weight"):
            wave = 1 + 0.2 * wave
        elif name.endswith("conv.weight"):
            wave = 1.4 * wave * (2 / value[0].numel()) ** 0.5
        else:
            wave = 0.1 * wave
        value.copy_(wave.reshape(value.shape))
    return network


def test_names_and_shapes_are_those_of_the_published_ports(network):
    """The hash is of torch-fidelity 0.4.0's network, which loads the published file, without its classifier."""
    held = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    lines = [f"{name} {list(value.shape)}" for name, value in sorted(held.items())]
    assert len(held) == 470 and sum(value.numel() for value in held.values()) == 21_820_000
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "b628bc492e0cd5a5ea154bb78c4637db2a10ffa3c528519b65fb723b9bb5a5ac"


def test_features_are_those_of_torch_fidelity(network):
    """Values of torch-fidelity 0.4.0's extractor with these weights for these pictures, 40 x 56 pixels of 8 bits."""
    place = torch.arange(2 * 3 * 40 * 56).reshape(2, 3, 40, 56)
    pictures = ((torch.sin(place * 0.013) + torch.sin(place * 0.0007)) * 60 + 128).round().to(torch.uint8)
    found = network((resized_like_tensorflow(pictures, SIZE) - 128) / 128)
    assert found.shape == (2, FEATURES)
    some = found[:, [0, 1, 500, 1000, 1500, 2000, 2047]]
    expected = torch.tensor([
        [2653920.75, 0.0, 0.0, 1688223.5, 37911.867188, 113634.242188, 16330684.0],
        [4161809.0, 0.0, 0.0, 2550041.25, 45948.640625, 223957.109375, 24329156.0],
    ])  # fmt: skip
    torch.testing.assert_close(some, expected, rtol=1e-4, atol=1)
    torch.testing.assert_close(found.sum(1), torch.tensor([2898327040.0, 4353068544.0]), rtol=1e-4, atol=1)
