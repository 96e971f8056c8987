"""Networks of the published sizes: names, shapes and types of their tensors, initial values, and their results.

Weights come from a recipe, as those of this size would be too large to store: see tests/golden/occfm/README.md.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from teachers.occfm import transition
from teachers.occfm.architecture import TRANSITION, compressor_sizes, transition_sizes
from teachers.occfm.blocks import relative_buckets
from teachers.occfm.compressor import Compressor, height_waves
from teachers.occfm.transition import TransitionNetwork, frame_embedding, spatial_embedding

GOLDEN = Path(__file__).parents[2] / "golden" / "occfm"
SALT = 1
#: stored results of the networks; all others are initial values
RESULTS = ["net.out_s5", "net.out_mean_std", "dec.decoded_map_s10", "dec.classes_s4", "enc.moments_s5"]
INITIAL = {
    "init.pos_embed_rows": lambda: spatial_embedding(50, 128)[0, ::97],
    "init.temp_embed": lambda: frame_embedding(12, 128)[0],
    "init.height_embedding": height_waves,
    "init.rel_pos_bucket_T12": lambda: relative_buckets(12),
}
#: last parts of the names of tensors that are made by formulas, not by the recipe
FORMULAS = (
    "pos_embed",
    "temp_embed",
    "height_embedding",
    "relative_coords_table",
    "relative_position_index",
    "attn_mask",
)
#: tensors whose shapes depend on the number of latent channels, or of rows of the trajectory
BY_CHANNELS = {
    "transition_model.init_conv.weight",
    "transition_model.final_conv.1.weight",
    "transition_model.final_conv.1.bias",
    "encoder.conv_out.weight",
    "encoder.conv_out.bias",
    "decoder.conv_in.weight",
}
BY_ROWS = {"transition_model.traj_encoder.0.weight"}


def published():
    """Shape and type of every tensor in a published file."""
    listed = json.loads((GOLDEN / "published_state_dict_keys.json").read_text())
    return {name: (tuple(shape), getattr(torch, kind)) for name, (shape, kind) in listed.items()}


def own(network, compressor):
    """The tensors of both networks under the published names."""
    named = {TRANSITION + name: value for name, value in network.state_dict().items()}
    return named | compressor.state_dict()


def described(tensors):
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def built(**sizes):
    """Both networks without memory for their tensors."""
    channels = {name: value for name, value in sizes.items() if name == "channels"}
    with torch.device("meta"):
        return TransitionNetwork(**sizes), Compressor(**channels)


def drawn(name, shape):
    """float64 numbers that depend on the name alone."""
    return np.random.RandomState(zlib.crc32(f"{SALT}:{name}".encode())).standard_normal(shape)


def argument(name, shape):
    return torch.from_numpy(drawn(f"input:{name}", shape).astype(np.float32))


def by_recipe(name, shape):
    """A weight's values."""
    numbers, last = drawn(name, shape), name.split(".")[-1]
    if last == "logit_scale":
        numbers = np.log(10) + 0.3 * numbers
    elif last == "gamma" or (last == "weight" and len(shape) == 1):
        numbers = 1 + 0.1 * numbers
    elif len(shape) == 1:
        numbers = 0.05 * numbers
    elif last == "absolute_pos_embed":
        numbers = 0.5 * numbers
    else:
        numbers = numbers / np.sqrt(numbers.size / shape[0])
    return torch.from_numpy(np.asarray(numbers, dtype=np.float32))


def filled(network, prefix=""):
    """The network with the recipe's weights; what formulas make stays as the network made it."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.split(".")[-1] not in FORMULAS:
                value.copy_(by_recipe(prefix + name, tuple(value.shape)))
    return network.eval().requires_grad_(False)


def close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_every_stored_number_has_a_test():
    with safe_open(GOLDEN / "full_config.safetensors", "pt") as file:
        assert set(file.keys()) == {*RESULTS, *INITIAL}


def test_tensors_are_those_of_the_published_files():
    expected = published()
    assert len(expected) == 607
    assert described(own(TransitionNetwork(), Compressor())) == expected


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [*(({"channels": channels}, BY_CHANNELS) for channels in (4, 8, 64)), ({"trajectory_rows": 12}, BY_ROWS)],
)
def test_other_published_kinds_differ_in_a_few_tensors(sizes, expected):
    found = described(own(*built(**sizes)))
    listed = published()
    assert found.keys() == listed.keys()
    assert {name for name in found if found[name] != listed[name]} == expected


@pytest.mark.parametrize("changed", [{}, {"channels": 4}, {"channels": 64}, {"trajectory_rows": 12}])
def test_sizes_are_read_off_the_published_tensors(changed):
    network, compressor = built(**changed)
    transition = {
        "channels": 16, "grid": 50, "width": 128, "base": 64, "levels": [2, 4], "trajectory_rows": 6, "kernel": 7,
        "head_width": 32, "temporal_heads": 8, "spatial_heads": 8,
    }  # fmt: skip
    assert transition_sizes(network.state_dict()) == transition | changed
    assert compressor_sizes(compressor.state_dict()) == {
        "size": 200, "channels": changed.get("channels", 16), "encoder_width": 128, "decoder_width": 128,
        "encoder_depths": [2, 6], "decoder_depths": [6, 2], "heads": 8, "window": 5,
    }  # fmt: skip


@pytest.mark.parametrize("name", INITIAL)
def test_initial_values_are_the_published_ones(name, stored):
    close(INITIAL[name](), stored("full_config")[name], 1e-6)


def test_networks_start_with_those_initial_values():
    network = TransitionNetwork(grid=4, width=16, base=8, levels=[2])
    close(network.pos_embed, spatial_embedding(4, 16), 0)
    close(network.temp_embed, frame_embedding(12, 16), 0)
    assert network.t_embedder[0].weight.std() < 0.03 < network.traj_encoder[0].weight.std()
    gates = network.downs[0][2].adaLN_modulation[1]
    assert gates.weight.std() > 0.05 and not gates.bias.any()


@pytest.mark.slow
def test_velocities_of_the_published_size(stored, monkeypatch):
    """Stored ones are of all twelve frames, so the past ones, which mfd leaves unfinished, are finished here."""
    expected, network = stored("full_config"), filled(TransitionNetwork(), TRANSITION)
    x, trajectory = argument("x", (1, 12, 16, 50, 50)), argument("traj", (1, 12, 2))
    monkeypatch.setattr(transition, "HISTORY", 0)
    with torch.inference_mode():
        frames = network(x[:, 6:], torch.tensor([0.4125]), x[:, :6], trajectory)
    close(frames[..., ::5, ::5], expected["net.out_s5"], 5e-5)
    close(torch.stack([frames.mean(), frames.std()]), expected["net.out_mean_std"], 1e-5)


@pytest.mark.slow
def test_encoder_and_decoder_of_the_published_size(stored):
    expected, compressor = stored("full_config"), filled(Compressor())
    latents = argument("z", (1, 16, 50, 50))
    source = np.random.RandomState(zlib.crc32(f"{SALT}:input:occ".encode())).randint(0, 18, (1, 50, 50, 4))
    labels = torch.from_numpy(source.astype(np.uint8).repeat(4, 1).repeat(4, 2).repeat(4, 3))
    with torch.inference_mode():
        close(torch.cat(compressor.moments(labels), dim=1)[..., ::5, ::5], expected["enc.moments_s5"], 1e-4)
        close(compressor.decoder(latents)[:, :, ::10, ::10], expected["dec.decoded_map_s10"], 1e-4)
        best = compressor.similarity(latents)[..., ::4, ::4].topk(2, dim=2).values
        classes = compressor.decode(latents)[:, ::4, ::4]
    clear = (best[:, :, 0] - best[:, :, 1] > 1e-3).permute(0, 2, 3, 1)
    assert clear.float().mean() > 0.995
    assert torch.equal(classes[clear], expected["dec.classes_s4"][clear])
