"""Buffers of window attention against loops and stored ones, and windows against attention over the whole grid."""

import math

import pytest
import torch

from teachers.occfm.swin import (
    SwinBlock,
    SwinStage,
    WindowAttention,
    relative_coordinates,
    relative_index,
    shifted_mask,
)


def close(found, expected, tolerance=1e-6):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def drawn(module, seed=0):
    """The module with every weight drawn, none of which is 0 or 1 by chance."""
    generator = torch.Generator().manual_seed(seed)
    for value in module.parameters():
        value.data = 0.5 * torch.randn(value.shape, generator=generator) + (value.dim() == 1) * 0.3
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_the_index_of_a_pair_counts_its_two_distances(window):
    found = relative_index(window)
    assert found.dtype == torch.int64 and found.shape == (window**2, window**2)
    across = 2 * window - 1
    for query in range(window**2):
        for key in range(window**2):
            down, right = query // window - key // window, query % window - key % window
            assert found[query, key] == (down + window - 1) * across + right + window - 1


@pytest.mark.parametrize("window", [2, 3, 5])
def test_distances_are_on_a_logarithmic_scale(window):
    found = relative_coordinates(window)
    assert found.shape == (1, 2 * window - 1, 2 * window - 1, 2)
    for row, down in enumerate(range(1 - window, window)):
        for column, right in enumerate(range(1 - window, window)):
            for axis, distance in enumerate((down, right)):
                scaled = 8 * distance / (window - 1)
                expected = math.copysign(math.log2(abs(scaled) + 1) / math.log2(8), scaled)
                assert float(found[0, row, column, axis]) == pytest.approx(expected, abs=1e-6)


def test_the_table_of_one_place_is_zero():
    close(relative_coordinates(1), torch.zeros(1, 1, 1, 2))


@pytest.mark.parametrize(("size", "window", "shift"), [(10, 5, 2), (20, 5, 2), (6, 3, 1), (8, 4, 2), (4, 2, 1)])
def test_the_mask_parts_tokens_that_only_rolling_brought_together(size, window, shift):
    """Two places share a window of the rolled grid; masked where the roll wrapped one of them around and not the
    other, on either axis."""
    found = shifted_mask(size, window, shift)
    count = size // window
    assert found.shape == (count**2, window**2, window**2)
    for index in range(count**2):
        places = [
            (window * (index // count) + token // window, window * (index % count) + token % window)
            for token in range(window**2)
        ]
        wrapped = [(row + shift >= size, column + shift >= size) for row, column in places]
        for query in range(window**2):
            for key in range(window**2):
                assert found[index, query, key] == (0 if wrapped[query] == wrapped[key] else -100)


def test_fresh_buffers_are_those_of_the_published_files(compressor, weights):
    names = [name for name, _ in compressor.named_buffers()]
    assert {name.split(".")[-1] for name in names} == {
        "attn_mask",
        "relative_coords_table",
        "relative_position_index",
    }
    for name in names:
        part, blocks, level = name.split(".")[:3]
        stage = compressor.get_submodule(f"{part}.{blocks}.{level}")
        side = {"encoder": 40, "decoder": 10}[part]
        side = side // 2 ** (int(level) // 2) if part == "encoder" else side * 2 ** (int(level) // 2)
        width = stage.blocks[0].norm1.weight.numel()
        fresh = SwinStage(width, 8, side, 5, len(stage.blocks))
        close(fresh.get_buffer(name.split(".", 3)[3]), weights[name])


def test_the_index_after_averaging_is_no_fresh_one(stored):
    """Entries of some distances are one lower, so that rebuilding the buffer would give other numbers."""
    moved, fresh = stored("compressor_io")["ema.relative_position_index"], relative_index(5)
    changed = moved != fresh
    assert torch.equal(moved[changed], fresh[changed] - 1)
    assert set(fresh[changed].tolist()) == {11, 22, 29, 31, 39, 44, 53, 58, 62, 69, 78, 79}


def test_attention_inside_a_window_against_loops():
    """Cosines of query and key, scaled by at most 100, with a bias between 0 and 16 from the pair's distance."""
    torch.manual_seed(0)
    attention, width, heads, window = drawn(WindowAttention(4, 2, 2)), 4, 2, 2
    attention.logit_scale.copy_(torch.tensor([1.0, 7.0])[:, None, None])  # the second is above the largest
    x = torch.randn(1, 1, window**2, width)
    query, key, value = ((x[0, 0] @ attention.qkv.weight[part * width : (part + 1) * width].T) for part in range(3))
    query, value = query + attention.q_bias, value + attention.v_bias
    table = attention.cpb_mlp(attention.relative_coords_table)[0]
    expected = torch.zeros(window**2, width)
    for head in range(heads):
        own, scale = slice(2 * head, 2 * head + 2), (math.exp(1.0), 100.0)[head]
        for i in range(window**2):
            logits = torch.empty(window**2)
            for j in range(window**2):
                cosine = torch.dot(query[i, own], key[j, own]) / (query[i, own].norm() * key[j, own].norm())
                down, right = i // window - j // window, i % window - j % window
                bias = 16 / (1 + math.exp(-table[down + window - 1, right + window - 1, head]))
                logits[j] = scale * cosine + bias
            expected[i, own] = logits.softmax(dim=0) @ value[:, own]
    close(attention(x, None)[0, 0], attention.proj(expected), 1e-5)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_block_attends_inside_its_windows_only(shifted):
    """A change of one place reaches the places of its window and no other, rolled or not."""
    block = drawn(SwinBlock(8, 2, 12, 3, shifted))
    torch.manual_seed(1)
    x = torch.randn(1, 12, 12, 8)
    place = torch.arange(12)
    own = (place - block.shift) // 3  # of a place's row or column: which window; those before the shift have their own
    for row, column in ((0, 0), (5, 7), (11, 11), (0, 11), (4, 1)):
        changed = x.clone()
        changed[0, row, column] += 1
        reached = (block(changed) - block(x)).abs().amax(dim=-1)[0] > 1e-6
        expected = (own == own[row])[:, None] & (own == own[column])[None, :]
        assert torch.equal(reached, expected)


def test_moving_the_grid_by_a_window_moves_the_result():
    block = drawn(SwinBlock(8, 2, 12, 3, False))
    x = torch.randn(2, 12, 12, 8, generator=torch.Generator().manual_seed(2))
    close(block(x.roll((3, -6), (1, 2))), block(x).roll((3, -6), (1, 2)), 1e-5)


@pytest.mark.parametrize(("size", "window"), [(5, 5), (3, 5), (4, 7)])
def test_a_grid_no_larger_than_a_window_is_one_window_that_is_not_shifted(size, window):
    block = drawn(SwinBlock(8, 2, size, window, True))
    assert block.window == size and block.shift == 0 and block.attn_mask is None
    assert not [name for name in block.state_dict() if name.endswith("attn_mask")]
    x = torch.randn(1, size, size, 8, generator=torch.Generator().manual_seed(3))
    changed = x.clone()
    changed[0, 0, 0] += 1
    assert ((block(changed) - block(x)).abs().amax(dim=-1) > 1e-6).all()


def test_every_other_block_of_a_stage_is_shifted():
    stage = SwinStage(8, 2, 10, 5, 4)
    assert [block.shift for block in stage.blocks] == [0, 2, 0, 2]
    masks = [name for name in stage.state_dict() if name.endswith("attn_mask")]
    assert masks == ["blocks.1.attn_mask", "blocks.3.attn_mask"]
