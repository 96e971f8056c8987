"""Layers of the transition network against plain second implementations, most of them in the published layout."""

import math

import pytest
import torch
import torch.nn.functional as functional

from teachers.occfm.blocks import (
    ChannelNorm,
    ChannelRms,
    DiTBlock,
    FrameConv,
    FrameUpsample,
    NormedAttention,
    RelativeBias,
    ResnetBlock,
    relative_buckets,
    timestep_embedding,
    trajectory_embedding,
)


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(module):
    """The module with every weight drawn, none of which is 0 or 1 by chance."""
    generator = torch.Generator().manual_seed(5)
    for value in module.parameters():
        value.data = 0.4 * torch.randn(value.shape, generator=generator) + (value.squeeze().dim() == 1) * 0.5
    return module.eval().requires_grad_(False)


def channels_first(x):
    """[B, F, H, W, c] to [B, c, F, H, W]."""
    return x.permute(0, 4, 1, 2, 3)


def channels_last(x):
    return x.permute(0, 2, 3, 4, 1)


def test_the_norm_over_channels_has_a_gain_and_no_shift():
    norm, x = drawn(ChannelNorm(6)), 3 * randn(2, 3, 4, 4, 6) + 1
    found, values = norm(x), channels_first(x)
    spread = (values.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    close(found, channels_last((values - values.mean(dim=1, keepdim=True)) / spread * norm.gamma))


def test_the_rms_norm_divides_by_the_length_of_a_place():
    norm, x = drawn(ChannelRms(6)), randn(2, 3, 4, 4, 6)
    values = channels_first(x)
    length = values.square().sum(dim=1, keepdim=True).sqrt()
    close(norm(x), channels_last(values / length * math.sqrt(6) * norm.gamma))
    assert torch.equal(norm(torch.zeros(1, 1, 1, 1, 6)), torch.zeros(1, 1, 1, 1, 6))


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (7, 1), (4, 2)])
def test_a_convolution_of_frames_is_one_of_volumes_that_is_flat_in_time(kernel, stride):
    conv, x = drawn(FrameConv(3, 5, kernel, stride)), randn(2, 4, 6, 6, 3)
    side = (kernel - 1) // 2
    expected = functional.conv3d(channels_first(x), conv.weight, conv.bias, (1, stride, stride), (0, side, side))
    close(conv(x), channels_last(expected))
    assert conv(x).shape == (2, 4, 6 // stride, 6 // stride, 5)


def test_upsampling_is_a_transposed_convolution_that_is_flat_in_time():
    conv, x = drawn(FrameUpsample(3, 5)), randn(2, 4, 3, 3, 3)
    expected = functional.conv_transpose3d(channels_first(x), conv.weight, conv.bias, (1, 2, 2), (0, 1, 1))
    close(conv(x), channels_last(expected))
    assert conv(x).shape == (2, 4, 6, 6, 5)


@pytest.mark.parametrize(("inputs", "embedding"), [(4, 8), (8, 8), (4, None), (8, None)])
def test_a_resnet_block_step_by_step(inputs, embedding):
    block, x = drawn(ResnetBlock(inputs, 8, embedding)), randn(2, 3, 4, 4, inputs)
    given = None if embedding is None else randn(2, embedding, seed=1)

    def convolved(part, values):
        values = functional.conv3d(values, part.proj.weight, part.proj.bias, padding=(0, 1, 1))
        return values / values.norm(dim=1, keepdim=True) * math.sqrt(8) * part.norm.gamma

    values = convolved(block.block1, channels_first(x))
    if given is not None:
        scale, shift = block.mlp[1](functional.silu(given))[:, :, None, None, None].chunk(2, dim=1)
        values = values * (scale + 1) + shift
    values = functional.silu(convolved(block.block2, functional.silu(values)))
    straight = channels_first(x)
    assert (block.res_conv is None) == (inputs == 8)
    if block.res_conv is not None:
        straight = functional.conv3d(straight, block.res_conv.weight, block.res_conv.bias)
    close(block(x, given), channels_last(values + straight))


@pytest.mark.parametrize("biased", [True, False])
def test_attention_with_a_norm_before_it_against_loops(biased):
    heads, head_width, tokens = 2, 3, 4
    attention, x = drawn(NormedAttention(5, heads, head_width)), randn(2, 3, tokens, 5)
    bias = randn(heads, tokens, tokens, seed=2) if biased else None
    weights = attention.fn.fn.fn
    normed = attention.fn.norm(x)
    expected = torch.zeros(2, 3, tokens, heads * head_width)
    for batch in range(2):
        for sequence in range(3):
            query, key, value = (normed[batch, sequence] @ weights.to_qkv.weight.T).split(heads * head_width, dim=1)
            for head in range(heads):
                own = slice(head * head_width, (head + 1) * head_width)
                for i in range(tokens):
                    logits = torch.stack([query[i, own] @ key[j, own] for j in range(tokens)]) / math.sqrt(head_width)
                    logits = logits + bias[head, i] if biased else logits
                    expected[batch, sequence, i, own] = logits.softmax(dim=0) @ value[:, own]
    close(attention(x, bias), x + expected @ weights.to_out.weight.T)


def test_a_transformer_block_against_loops():
    """Its heads stay in front of the tokens when they are merged: slot r of token n is place (n heads + r) % N of
    head (n heads + r) // N."""
    heads, tokens, width = 2, 6, 8
    block, x, embedding = drawn(DiTBlock(width, heads, 4)), randn(2, 3, tokens, width), randn(2, 4, seed=1)
    each = width // heads
    for batch in range(2):
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = block.adaLN_modulation[1](
            functional.silu(embedding[batch])
        ).chunk(6)
        for sequence in range(3):
            start = x[batch, sequence]
            normed = functional.layer_norm(start, (width,), eps=1e-6) * (1 + scale) + shift
            query, key, value = block.attn.qkv(normed).split(width, dim=1)
            found = torch.zeros(heads, tokens, each)
            for head in range(heads):
                own = slice(head * each, (head + 1) * each)
                found[head] = (query[:, own] @ key[:, own].T / math.sqrt(each)).softmax(dim=1) @ value[:, own]
            merged = torch.zeros(tokens, width)
            for token in range(tokens):
                for slot in range(heads):
                    place = token * heads + slot
                    merged[token, slot * each : (slot + 1) * each] = found[place // tokens, place % tokens]
            middle = start + gate * block.attn.proj(merged)
            normed = functional.layer_norm(middle, (width,), eps=1e-6) * (1 + scale_mlp) + shift_mlp
            hidden = functional.gelu(block.mlp.fc1(normed), approximate="tanh")
            close(block(x, embedding)[batch, sequence], middle + gate_mlp * block.mlp.fc2(hidden), 3e-5)


@pytest.mark.parametrize("frames", [1, 12, 40])
def test_buckets_of_distances_between_frames(frames):
    found = relative_buckets(frames)
    assert found.dtype == torch.int64 and found.shape == (frames, frames)
    for query in range(frames):
        for key in range(frames):
            distance = abs(query - key)
            size = distance if distance < 8 else min(15, 8 + int(math.log(distance / 8) / math.log(2) * 8))
            assert found[query, key] == size + (16 if query < key else 0)


def test_buckets_are_the_published_ones(stored):
    assert torch.equal(relative_buckets(12), stored("full_config")["init.rel_pos_bucket_T12"])


def test_the_bias_of_a_pair_is_that_of_its_bucket():
    bias = drawn(RelativeBias(3, 12))
    assert bias().shape == (3, 12, 12) and "buckets" not in bias.state_dict()
    for head, query, key in ((0, 0, 0), (1, 3, 11), (2, 11, 3), (0, 5, 4)):
        expected = bias.relative_attention_bias.weight[relative_buckets(12)[query, key], head]
        assert bias()[head, query, key] == expected


@pytest.mark.parametrize("width", [8, 9])
def test_times_are_embedded_by_cosines_before_sines(width):
    times = torch.tensor([0.0, 0.3, 1.0])
    found = timestep_embedding(times, width)
    assert found.shape == (3, width)
    for row, time in enumerate(times.tolist()):
        for index in range(4):
            angle = 1000 * time * 10_000 ** (-index / 4)
            assert float(found[row, index]) == pytest.approx(math.cos(angle), abs=1e-4)
            assert float(found[row, 4 + index]) == pytest.approx(math.sin(angle), abs=1e-4)
    assert torch.equal(found[:, 8:], torch.zeros(3, width - 8))


def test_a_trajectory_is_embedded_by_frequency_then_wave_then_coordinate():
    metres = randn(2, 3, 2)
    found = trajectory_embedding(metres)
    assert found.shape == (2, 3 * 32)
    for row in range(3):
        for index in range(8):
            for wave, function in enumerate((math.sin, math.cos)):
                for coordinate in range(2):
                    expected = function(100 ** (index / 8) * float(metres[1, row, coordinate]))
                    place = row * 32 + index * 4 + wave * 2 + coordinate
                    assert float(found[1, place]) == pytest.approx(expected, abs=1e-4)


def test_embeddings_are_computed_in_float32_whatever_comes_in():
    times, metres = torch.tensor([0.3, 0.7]), randn(2, 6, 2)
    for kind in (torch.bfloat16, torch.float64):
        found, expected = timestep_embedding(times.to(kind), 16), timestep_embedding(times.to(kind).float(), 16)
        assert found.dtype == torch.float32 and torch.equal(found, expected)
        assert torch.equal(trajectory_embedding(metres.to(kind)), trajectory_embedding(metres.to(kind).float()))
