"""The compressor against every number stored from the published one, and its short cuts against plain ways."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional
from safetensors import safe_open

from mfd_cli.inference.sampler import Sampler
from teachers.occfm.compressor import Compressor, doubled_convolution, height_waves

FILE = Path(__file__).parents[2] / "golden" / "occfm" / "compressor_io.safetensors"
#: what was put in; all the rest came out, and each is a test below
ARGUMENTS = {"occ", "enc.eps", "ema.relative_position_index"}
with safe_open(FILE, "pt") as _file:
    STORED = set(_file.keys())
CLASSES = {name for name in STORED if name.endswith(".classes")}
#: modules whose stored outputs are theirs under another name here
PLACES = {"encoder.patch_embed_layer": "encoder.patch_embed_layer.norm"}
#: voxels whose two best classes are nearer than this may come out as either, and no more than this share may be so
NEAR, NEAR_SHARE = 1e-3, 2e-3


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def io(stored):
    return stored("compressor_io")


@pytest.fixture(scope="module")
def outputs(io, compressor, averaged, watch):
    """`outputs(group)`: what mfd computes for the stored tensors of a group, by their names; computed once."""
    latents = io["enc.sampled"]

    def enc():
        return {
            "enc.bev_features": compressor.embedding(io["occ"])[..., ::4, ::4],
            "enc.moments": torch.cat(compressor.moments(io["occ"]), dim=1),
            "enc.sampled": compressor.encode(io["occ"], io["enc.eps"]),
        }

    def dec():
        found = {"dec.decoded_map_s4": compressor.decoder(latents)[..., ::4, ::4]}
        return found | {"dec.similarity_s4": as_stored(compressor.similarity(latents))}

    def ema():
        return {"ema.similarity_s4": as_stored(averaged.similarity(latents))}

    def probe():
        return probed(compressor, io, watch)

    @cache
    def group(name):
        with torch.inference_mode():
            return {"enc": enc, "dec": dec, "ema": ema, "probe": probe}[name]()

    return group


def as_stored(similarity):
    """Every fourth place of logits [N, 16, 18, S, S], as [N, h, w, z, 18]."""
    return similarity.permute(0, 3, 4, 1, 2)[:, ::4, ::4]


def probed(compressor, io, watch):
    """Outputs of modules for the first frame alone, thinned out and laid out as the stored ones are."""
    stored = [name.removeprefix("probe.") for name in STORED if name.startswith("probe.")]
    modules = {name: PLACES.get(name.split("__")[0], name.split("__")[0]) for name in stored}

    def both_ways():
        compressor.moments(io["occ"][:1])
        compressor.decoder(io["enc.sampled"][:1])

    _, seen = watch(compressor, set(modules.values()), both_ways)
    return {f"probe.{name}": thinned(name, seen[module]) for name, module in modules.items()}


def thinned(name, value):
    if name.endswith("__tok13"):
        return value.flatten(1, 2)[:, ::13]
    if name.endswith("__s5"):
        value = value[..., ::5, ::5]
    return value.permute(0, 2, 3, 1) if "upsample_blocks" in name else value


@pytest.mark.parametrize("name", sorted(STORED - ARGUMENTS - CLASSES))
def test_a_stored_result_is_reproduced(name, io, outputs):
    close(outputs(name.split(".")[0])[name], io[name], 5e-4 if "similarity" in name else 1e-4)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_stored_classes_are_reproduced(name, io, compressor, averaged, teacher, stored):
    """Every voxel whose two best classes are not all but equal."""
    if name == "e2e.classes":
        latents = forecast(teacher, stored("transition_io"))
        classes, latents = teacher.decode(latents)[0], latents[0] / teacher.settings.rescale
    else:
        latents = io["enc.sampled"]
        classes = {"dec.classes": compressor, "ema.classes": averaged}[name].decode(latents)
    clear = clearly_best(averaged if name == "ema.classes" else compressor, latents)
    assert classes.dtype == torch.uint8 and classes.shape == io[name].shape
    assert 1 - clear.float().mean() < NEAR_SHARE
    assert torch.equal(classes[clear], io[name][clear])


def forecast(teacher, transition):
    """Network states of the first stored clip after the teacher's four steps."""
    history, trajectory = transition["sample.latents"][:1, :6], transition["sample.traj"][:1]
    sampler = Sampler("teacher", teacher, teacher.network, 4, shift=3.0, guidance=2.0)
    return sampler.generate(transition["sample.noise"][:1], {"history": 10 * history, "trajectory": trajectory})


def clearly_best(compressor, latents):
    """Where the two best logits differ by more than NEAR: bool [N, S, S, 16]."""
    with torch.inference_mode():
        best = compressor.similarity(latents).topk(2, dim=2).values
    return (best[:, :, 0] - best[:, :, 1] > NEAR).permute(0, 2, 3, 1)


def test_nothing_is_taken_for_an_argument_that_is_not_stored():
    assert ARGUMENTS < STORED
    assert {name.split(".")[0] for name in CLASSES} == {"dec", "ema", "e2e"}


def test_index_buffers_are_used_as_loaded(io, compressor, averaged):
    """Averaging has moved entries of the index; about one voxel in eight depends on it."""
    latents = io["enc.sampled"]
    with torch.inference_mode():
        changed = (averaged.decode(latents) != compressor.decode(latents)).float().mean()
    assert 0.11 < changed < 0.13


def test_classes_are_the_most_similar_ones(io, compressor):
    latents = io["enc.sampled"]
    with torch.inference_mode():
        expected = compressor.similarity(latents).argmax(dim=2).permute(0, 2, 3, 1)
        found = compressor.decode(latents)
    clear = clearly_best(compressor, latents)
    assert torch.equal(found[clear].long(), expected[clear])
    assert (found != expected).float().mean() < NEAR_SHARE


def test_similarity_is_a_product_with_the_embedding_of_each_class(io, compressor):
    latents = io["enc.sampled"][:1]
    with torch.inference_mode():
        features, found = compressor.decoder(latents)[0], compressor.similarity(latents)[0]
    for height, kind, row, column in ((0, 0, 0, 0), (15, 17, 39, 39), (3, 4, 7, 31), (9, 11, 20, 2)):
        voxel = features[8 * height : 8 * height + 8, row, column]
        expected = voxel @ compressor.embedding.class_embeds.weight[kind]
        torch.testing.assert_close(found[height, kind, row, column], expected, rtol=1e-4, atol=1e-4)


def test_frames_decoded_together_or_apart_have_the_same_classes(io, compressor, averaged):
    latents = torch.cat([io["enc.sampled"], io["enc.sampled"].flip(2)])[:3]
    clear = clearly_best(compressor, latents)
    with torch.inference_mode():
        expected = compressor.decode(latents)
        for at_once in (1, 2, 3, 100):
            found = compressor.decode(latents, at_once)
            assert found.shape == expected.shape and torch.equal(found[clear], expected[clear])


def test_encoding_draws_around_the_mean(io, compressor):
    labels, noise = io["occ"][:1], io["enc.eps"][:1]
    with torch.inference_mode():
        mean, log_variance = compressor.moments(labels)
        assert torch.equal(compressor.encode(labels, torch.zeros_like(noise)), mean)
        found = compressor.encode(labels, noise)
    torch.testing.assert_close(found, mean + torch.exp(log_variance / 2) * noise, rtol=0, atol=1e-6)


def test_a_batch_is_encoded_and_decoded_as_its_frames_alone(io, compressor):
    with torch.inference_mode():
        together = compressor.moments(io["occ"])[0], compressor.decoder(io["enc.sampled"])
        for row in (slice(0, 1), slice(1, 2)):
            alone = compressor.moments(io["occ"][row])[0], compressor.decoder(io["enc.sampled"][row])
            for both, one in zip(together, alone, strict=True):
                close(both[row], one, 3e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (3, 5), (4, 4), (7, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_of_the_repeated_grid_without_the_repeated_grid(height, width, layout):
    """Values and gradients, against repeating each place and then convolving, in double precision."""
    generator = torch.Generator().manual_seed(height * 10 + width)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = draw(2, 3, height, width).contiguous(memory_format=layout).requires_grad_()
    weight, bias, seen = draw(5, 3, 3, 3).requires_grad_(), draw(5).requires_grad_(), draw(2, 5, 2 * height, 2 * width)
    found = doubled_convolution(x, weight, bias)
    expected = functional.conv2d(functional.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    got, wanted = (torch.autograd.grad((value * seen).sum(), (x, weight, bias)) for value in (found, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    without = doubled_convolution(x, weight, None)
    torch.testing.assert_close(without, expected - bias[:, None, None], rtol=1e-12, atol=1e-12)


def test_gradients_reach_every_weight_that_is_trained(io, compressor):
    trained = copy.deepcopy(compressor).train().requires_grad_(True)
    trained.embedding.height_embedding.requires_grad_(False)
    found = trained.similarity(trained.encode(io["occ"][:1], io["enc.eps"][:1]))
    (found[:, :, 1:] - found[:, :, :1]).square().mean().backward()
    still = {name for name, value in trained.named_parameters() if value.grad is None or not value.grad.abs().max() > 0}
    above = {name for name in still if name.endswith("logit_scale")}  # heads above the largest scale have no slope
    assert still - above == {"embedding.height_embedding"}


def test_heights_of_voxels_are_embedded_by_their_share_of_the_range(weights):
    """[sin 0, cos 0, sin(pi q), cos(pi q)] with q the height of the voxel's middle over 6.4 m."""
    found = height_waves()
    for height in range(16):
        angle = torch.tensor(torch.pi * (0.4 * height + 0.2) / 6.4)
        torch.testing.assert_close(found[height], torch.tensor([0.0, 1.0, angle.sin(), angle.cos()]))
    close(weights["embedding.height_embedding"], found, 1e-6)


def test_what_is_not_trained_is_marked_so():
    fresh = Compressor(
        size=10, channels=2, encoder_width=8, decoder_width=8, encoder_depths=[2], decoder_depths=[2], window=5
    )
    assert [name for name, value in fresh.named_parameters() if not value.requires_grad] == [
        "embedding.height_embedding"
    ]
