"""The published code's way of computing gives mfd's numbers, at sizes of milliseconds."""

import pytest
import torch

from teachers.occfm.compressor import Compressor
from teachers.occfm.transition import TransitionNetwork


@pytest.fixture
def module(script):
    return script("occfm_straight")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return TransitionNetwork(channels=4, grid=10, width=32, base=16, kernel=3, head_width=8, temporal_heads=4).eval()


@pytest.fixture
def compressor():
    torch.manual_seed(1)
    sizes = {"encoder_width": 32, "decoder_width": 64, "encoder_depths": (1, 1), "decoder_depths": (2, 2)}
    return Compressor(size=40, channels=4, **sizes).eval()


def clip(rows):
    shape = (rows, 6, 4, 10, 10)
    return torch.randn(shape), torch.rand(rows), torch.randn(shape), torch.randn(rows, 12, 2)


@torch.no_grad()
def test_velocities_are_those_of_the_network(module, network):
    x, t, history, trajectory = clip(2)
    straight = module.StraightNetwork(network.state_dict())
    found = straight(torch.cat([history, x], dim=1), t, trajectory)[:, 6:]
    torch.testing.assert_close(found, network(x, t, history, trajectory), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@torch.no_grad()
def test_guided_velocities_are_those_of_both_branches(module, network, scale):
    x, t, history, trajectory = clip(2)
    found = module.StraightNetwork(network.state_dict()).guided(x, t, history, trajectory, scale)
    without, given = network.with_and_without_history(x, t, history, trajectory)
    torch.testing.assert_close(found, without + scale * (given - without), atol=1e-4, rtol=0)


@torch.no_grad()
def test_features_are_those_of_the_decoder(module, compressor):
    latents = torch.randn(3, 4, 10, 10)
    found = module.StraightDecoder(compressor.state_dict())(latents)
    torch.testing.assert_close(found, compressor.decoder(latents), atol=1e-4, rtol=0)


@torch.no_grad()
def test_similarities_and_classes_are_those_of_the_compressor(module, compressor):
    compressor.embedding.class_embeds.weight.normal_()
    latents = torch.randn(2, 4, 10, 10)
    features, embeddings = compressor.decoder(latents), compressor.embedding.class_embeds.weight
    similarity = module.straight_similarity(features, embeddings)
    torch.testing.assert_close(similarity.permute(0, 3, 4, 1, 2), compressor.similarity(latents), atol=1e-4, rtol=0)
    classes = module.straight_classes(features, embeddings)
    best = similarity.topk(2, dim=-1).values
    clear = best[..., 0] - best[..., 1] > 1e-3  # two softmaxes round near ties away
    assert clear.float().mean() > 0.9 and classes.unique().numel() > 5
    assert torch.equal(classes[clear], compressor.decode(latents)[clear].long())
