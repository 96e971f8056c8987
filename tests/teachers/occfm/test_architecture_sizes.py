"""Sizes read off tensors, networks of other sizes than the published ones, and sizes that no network has."""

import re

import pytest
import torch

from teachers.errors import TeacherError
from teachers.occfm.architecture import COMPRESSOR, TRANSITION, below, compressor_sizes, transition_sizes
from teachers.occfm.compressor import Compressor
from teachers.occfm.transition import TransitionNetwork

TRANSITION_SIZES = {
    "channels": 4,
    "grid": 4,
    "width": 16,
    "base": 8,
    "levels": [2, 4],
    "trajectory_rows": 6,
    "kernel": 3,
    "head_width": 4,
    "temporal_heads": 2,
    "spatial_heads": 4,
}
COMPRESSOR_SIZES = {
    "size": 20,
    "channels": 4,
    "encoder_width": 8,
    "decoder_width": 16,
    "encoder_depths": [2, 1],
    "decoder_depths": [1, 2],
    "heads": 4,
    "window": 5,
}
OTHER_TRANSITIONS = {
    "as it is": {},
    "4 channels": {"channels": 4},
    "8 channels": {"channels": 8},
    "64 channels": {"channels": 64},
    "the whole trajectory": {"trajectory_rows": 12},
    "one level": {"levels": [2], "grid": 3},
    "three levels": {"levels": [2, 3, 5], "grid": 8},
    "a first level as wide as the base": {"levels": [1, 2], "width": 8},
    "another grid": {"grid": 6, "kernel": 5},
    "other heads": {"head_width": 6, "temporal_heads": 3, "spatial_heads": 2},
}
OTHER_COMPRESSORS = {
    "as it is": {},
    "64 channels": {"channels": 64},
    "one level": {"size": 10, "encoder_depths": [3], "decoder_depths": [2]},
    "three levels": {"size": 40, "encoder_depths": [1, 2, 1], "decoder_depths": [2, 1, 1]},
    "another window": {"size": 12, "window": 3},
    "a window as large as the latent grid": {"size": 16, "window": 4},
    "a window as large as the whole grid": {"size": 4, "window": 4, "encoder_depths": [2, 2]},
    "other widths": {"encoder_width": 64, "decoder_width": 12, "heads": 2},
}


def drawn(network):
    """Every weight drawn, so that nothing is left out by being zero, and outputs of every layer are of order 1."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.named_parameters():
        gain = name.endswith("gamma") or (value.dim() == 1 and name.endswith("weight"))
        spread = 0.1 if value.dim() == 1 or gain else (value.numel() / len(value)) ** -0.5
        value.data = spread * torch.randn(value.shape, generator=generator) + float(gain)
    return network.eval().requires_grad_(False)


def arguments(network, rows=2):
    """Random arguments of a transition network's forward pass."""
    generator = torch.Generator().manual_seed(1)
    side = (rows, 6, network.channels, network.grid, network.grid)
    x, history = (torch.randn(side, generator=generator) for _ in range(2))
    return x, torch.linspace(0.1, 0.9, rows), history, torch.randn(rows, 12, 2, generator=generator)


def shapes(network):
    return {name: (tuple(value.shape), value.dtype) for name, value in network.state_dict().items()}


@pytest.mark.parametrize("changed", OTHER_TRANSITIONS.values(), ids=list(OTHER_TRANSITIONS))
def test_a_transition_network_is_rebuilt_from_its_tensors(changed):
    sizes = TRANSITION_SIZES | changed
    network = TransitionNetwork(**sizes)
    assert transition_sizes(network.state_dict()) == sizes


@pytest.mark.parametrize("changed", OTHER_COMPRESSORS.values(), ids=list(OTHER_COMPRESSORS))
def test_a_compressor_is_rebuilt_from_its_tensors(changed):
    sizes = COMPRESSOR_SIZES | changed
    compressor = Compressor(**sizes)
    assert compressor_sizes(compressor.state_dict()) == sizes
    halvings = 2 ** len(sizes["encoder_depths"])
    assert compressor.latent_shape == (sizes["channels"], sizes["size"] // halvings, sizes["size"] // halvings)


def test_a_window_larger_than_the_grid_is_read_as_the_grid_which_is_the_same_network():
    compressor = Compressor(**COMPRESSOR_SIZES | {"size": 4})
    found = compressor_sizes(compressor.state_dict())
    assert found == COMPRESSOR_SIZES | {"size": 4, "window": 4}
    assert shapes(Compressor(**found)) == shapes(compressor)


def test_the_tiny_model_has_the_sizes_it_was_made_with(weights):
    assert transition_sizes(below(TRANSITION, weights)) == {
        "channels": 4,
        "grid": 10,
        "width": 32,
        "base": 16,
        "levels": [2, 4],
        "trajectory_rows": 6,
        "kernel": 7,
        "head_width": 8,
        "temporal_heads": 4,
        "spatial_heads": 8,
    }
    assert compressor_sizes(weights) == {
        "size": 40,
        "channels": 4,
        "encoder_width": 32,
        "decoder_width": 128,
        "encoder_depths": [2, 2],
        "decoder_depths": [2, 2],
        "heads": 8,
        "window": 5,
    }
    assert all(name.startswith((TRANSITION, *COMPRESSOR)) for name in weights)


@pytest.mark.parametrize("changed", OTHER_TRANSITIONS.values(), ids=list(OTHER_TRANSITIONS))
def test_velocities_have_the_shape_of_the_states_and_clips_do_not_mix(changed):
    network = drawn(TransitionNetwork(**TRANSITION_SIZES | changed))
    x, t, history, trajectory = arguments(network)
    together = network(x, t, history, trajectory)
    assert together.shape == x.shape and together.isfinite().all()
    assert together.std() > 0
    for row in (slice(0, 1), slice(1, 2)):
        alone = network(x[row], t[row], history[row], trajectory[row])
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)
    branches = network.with_and_without_history(x, t, history, trajectory)
    for found, past in zip(branches, (0 * history, history), strict=True):
        torch.testing.assert_close(found, network(x, t, past, trajectory), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 6, 12])
def test_the_rows_of_the_trajectory_that_are_used_are_the_first(rows):
    network = drawn(TransitionNetwork(**TRANSITION_SIZES | {"trajectory_rows": rows}))
    x, t, history, trajectory = arguments(network)
    expected = network(x, t, history, trajectory)
    for row in range(12):
        changed = trajectory.clone()
        changed[:, row] += 1
        assert torch.equal(network(x, t, history, changed), expected) == (row >= rows)


def test_a_first_level_as_wide_as_the_base_has_no_convolution_beside_it():
    narrow = TransitionNetwork(**TRANSITION_SIZES | {"levels": [1, 2], "width": 8}).state_dict()
    wide = TransitionNetwork(**TRANSITION_SIZES).state_dict()
    assert "downs.0.0.res_conv.weight" in wide and "downs.0.0.res_conv.weight" not in narrow
    assert "downs.1.0.res_conv.weight" in narrow and "ups.1.0.res_conv.weight" in narrow


@pytest.mark.parametrize("changed", OTHER_COMPRESSORS.values(), ids=list(OTHER_COMPRESSORS))
def test_frames_go_to_latents_and_back(changed):
    compressor = drawn(Compressor(**COMPRESSOR_SIZES | changed))
    size, generator = compressor.size, torch.Generator().manual_seed(2)
    labels = torch.randint(0, 18, (2, size, size, 16), generator=generator, dtype=torch.uint8)
    mean, log_variance = compressor.moments(labels)
    assert mean.shape == log_variance.shape == (2, *compressor.latent_shape)
    torch.testing.assert_close(compressor.moments(labels[1:])[0], mean[1:], rtol=1e-4, atol=1e-4)
    classes, logits = compressor.decode(mean), compressor.similarity(mean)
    assert classes.shape == labels.shape and classes.dtype == torch.uint8
    assert logits.shape == (2, 16, 18, size, size)
    best = logits.gather(2, classes.permute(0, 3, 1, 2)[:, :, None].long())[:, :, 0]
    torch.testing.assert_close(best, logits.amax(dim=2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"levels": []}, "no levels"),
        ({"width": 24}, "embedding width 24, first level 16"),
        ({"base": 5, "width": 10, "spatial_heads": 5}, "10 is no multiple of 4"),
        ({"grid": 5}, "grid 5 cannot be halved 1 times"),
        ({"levels": [2, 4, 8], "grid": 6}, "grid 6 cannot be halved 2 times"),
        ({"trajectory_rows": 0}, "0 trajectory rows of 12"),
        ({"trajectory_rows": 13}, "13 trajectory rows of 12"),
        ({"kernel": 4}, "first kernel 4 is even"),
        ({"spatial_heads": 3}, r"\[8, 16, 32\] are no multiples of 3 heads"),
        ({"spatial_heads": 0}, "0 heads"),
        ({"grid": 5, "kernel": 2}, "grid 5 .*; first kernel 2 is even"),
    ],
)
def test_a_transition_network_of_impossible_sizes_says_what_is_wrong(changed, message):
    with pytest.raises(ValueError, match=message):
        TransitionNetwork(**TRANSITION_SIZES | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"decoder_depths": [1]}, "2 encoder levels, 1 decoder levels"),
        ({"size": 18}, "size 18 cannot be halved 2 times"),
        ({"size": 24}, r"windows of 5 do not divide sides \[24, 12, 6\]"),
        ({"heads": 3}, "widths 8 and 16 are no multiples of 3 heads"),
        ({"decoder_width": 40}, "groups"),
        ({"encoder_width": 6, "heads": 2}, "groups"),
        ({"heads": 0}, "0 heads"),
        ({"window": 0}, "window 0"),
    ],
)
def test_a_compressor_of_impossible_sizes_says_what_is_wrong(changed, message):
    with pytest.raises(ValueError, match=message):
        Compressor(**COMPRESSOR_SIZES | changed)


@pytest.mark.parametrize(
    "name",
    [
        "init_conv.weight",
        "time_rel_pos_bias.relative_attention_bias.weight",
        "init_temporal_attn.fn.fn.fn.to_qkv.weight",
        "mid_spatial_attn.fn.fn.fn.to_qkv.weight",
        "pos_embed",
        "downs.0.0.block1.proj.weight",
        "traj_encoder.0.weight",
    ],
)
def test_a_tensor_missing_from_a_transition_network_is_named(name, weights):
    state = below(TRANSITION, weights)
    del state[name]
    with pytest.raises(TeacherError, match=re.escape(f"no tensor '{name}' of OccFM's transition network")):
        transition_sizes(state)


@pytest.mark.parametrize(
    "name",
    [
        "decoder.conv_in.weight",
        "encoder.absolute_pos_embed",
        "encoder.patch_embed_layer.proj.weight",
        "encoder.net_blocks.0.blocks.0.attn.logit_scale",
        "encoder.net_blocks.0.blocks.0.attn.relative_coords_table",
    ],
)
def test_a_tensor_missing_from_a_compressor_is_named(name, weights):
    state = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(TeacherError, match=re.escape(f"no tensor '{name}' of OccFM's compressor")):
        compressor_sizes(state)


def test_a_level_missing_from_the_middle_is_named(weights):
    for prefix, read in ((f"{TRANSITION}downs.0.", transition_sizes), ("decoder.net_blocks.2.", compressor_sizes)):
        state = {name: value for name, value in weights.items() if not name.startswith(prefix)}
        state = below(TRANSITION, state) if read is transition_sizes else state
        with pytest.raises(TeacherError, match=re.escape(f"'{prefix.removeprefix(TRANSITION).rstrip('.')}")):
            read(state)


def test_no_tensors_at_all_are_no_network():
    for read in (transition_sizes, compressor_sizes):
        with pytest.raises(TeacherError, match=r"among 0[\s\S]*none here"):
            read({})


def test_tensors_with_other_axes_are_refused(weights):
    for name, read in (
        (f"{TRANSITION}init_conv.weight", transition_sizes),
        ("decoder.conv_in.weight", compressor_sizes),
    ):
        state = weights | {name: weights[name].flatten()}
        state = below(TRANSITION, state) if read is transition_sizes else state
        with pytest.raises(TeacherError, match="other axes than the published ones"):
            read(state)
