"""HPSv2 on a tiny state dict in open_clip's layout, against a forward pass written from that layout."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mfd_cli.errors import MfdError
from mfd_cli.metrics import hpsv2, images
from mfd_cli.metrics.hpsv2 import Hpsv2, Hpsv2Settings

WIDTH, TEXT, OUT, LAYERS, PATCH, SIDE, PLACES, HEADS = 32, 48, 20, 2, 8, 4, 18, 16


def _tower(prefix, width, made):
    layers = {}
    for layer in range(LAYERS):
        name = f"{prefix}transformer.resblocks.{layer}"
        layers |= {
            f"{name}.ln_1.weight": 1 + 0.2 * made(width), f"{name}.ln_1.bias": 0.2 * made(width),
            f"{name}.ln_2.weight": 1 + 0.2 * made(width), f"{name}.ln_2.bias": 0.2 * made(width),
            f"{name}.attn.in_proj_weight": made(3 * width, width) / width**0.5,
            f"{name}.attn.in_proj_bias": 0.2 * made(3 * width),
            f"{name}.attn.out_proj.weight": made(width, width) / width**0.5,
            f"{name}.attn.out_proj.bias": 0.2 * made(width),
            f"{name}.mlp.c_fc.weight": made(2 * width, width) / width**0.5,
            f"{name}.mlp.c_fc.bias": 0.2 * made(2 * width),
            f"{name}.mlp.c_proj.weight": made(width, 2 * width) / width**0.5,
            f"{name}.mlp.c_proj.bias": 0.2 * made(width),
        }  # fmt: skip
    return layers


@pytest.fixture(scope="module")
def state(tiny_clip):
    """Random weights under open_clip's names."""
    from transformers import AutoTokenizer

    generator = torch.Generator().manual_seed(0)

    def made(*shape):
        return torch.randn(shape, generator=generator)

    words = len(AutoTokenizer.from_pretrained(tiny_clip))
    return {
        "positional_embedding": made(PLACES, TEXT), "text_projection": made(TEXT, OUT),
        "logit_scale": torch.tensor(4.6), "token_embedding.weight": made(words, TEXT),
        "ln_final.weight": 1 + 0.2 * made(TEXT), "ln_final.bias": made(TEXT),
        "visual.class_embedding": made(WIDTH), "visual.positional_embedding": made(1 + SIDE**2, WIDTH),
        "visual.proj": made(WIDTH, OUT), "visual.conv1.weight": made(WIDTH, 3, PATCH, PATCH) / PATCH,
        "visual.ln_pre.weight": 1 + 0.2 * made(WIDTH), "visual.ln_pre.bias": 0.2 * made(WIDTH),
        "visual.ln_post.weight": 1 + 0.2 * made(WIDTH), "visual.ln_post.bias": 0.2 * made(WIDTH),
        **_tower("visual.", WIDTH, made), **_tower("", TEXT, made),
    }  # fmt: skip


def _norm(state, name, x):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def _blocks(state, prefix, x, causal):
    """x [T, W] through the blocks of a tower, head by head."""
    width = x.shape[1] // HEADS
    for layer in range(LAYERS):
        name = f"{prefix}transformer.resblocks.{layer}"
        h = _norm(state, f"{name}.ln_1", x)
        q, k, v = (h @ state[f"{name}.attn.in_proj_weight"].T + state[f"{name}.attn.in_proj_bias"]).chunk(3, -1)
        heads = []
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            logits = q[:, part] @ k[:, part].T / math.sqrt(width)
            if causal:
                logits = logits + torch.full_like(logits, -math.inf).triu(1)
            heads.append(torch.softmax(logits, -1) @ v[:, part])
        x = x + torch.cat(heads, -1) @ state[f"{name}.attn.out_proj.weight"].T + state[f"{name}.attn.out_proj.bias"]
        h = _norm(state, f"{name}.ln_2", x) @ state[f"{name}.mlp.c_fc.weight"].T + state[f"{name}.mlp.c_fc.bias"]
        h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
        x = x + h @ state[f"{name}.mlp.c_proj.weight"].T + state[f"{name}.mlp.c_proj.bias"]
    return x


def _picture(state, pixels):
    """Embedding of normalised pixels [3, 32, 32]."""
    kernel, places = state["visual.conv1.weight"], [PATCH * index for index in range(SIDE)]
    patches = torch.stack([
        (pixels[:, i : i + PATCH, j : j + PATCH] * kernel).sum((1, 2, 3)) for i in places for j in places
    ])  # fmt: skip
    x = torch.cat([state["visual.class_embedding"][None], patches]) + state["visual.positional_embedding"]
    x = _blocks(state, "visual.", _norm(state, "visual.ln_pre", x), causal=False)
    return _norm(state, "visual.ln_post", x[0]) @ state["visual.proj"]


def _text(state, numbers):
    """Embedding of a text's token numbers, beginning and end included."""
    x = state["token_embedding.weight"][numbers] + state["positional_embedding"][: len(numbers)]
    x = _norm(state, "ln_final", _blocks(state, "", x, causal=True))
    return x[max(range(len(numbers)), key=lambda place: numbers[place])] @ state["text_projection"]


def _reference(state, folder, pictures, prompts):
    from transformers import AutoTokenizer

    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    mean, std = torch.tensor(images.CLIP_MEAN), torch.tensor(images.CLIP_STD)
    for picture, prompt in zip(images.to_uint8(pictures), prompts, strict=True):
        # 40 x 56 with its long side at 32: 23 x 32, in the middle of black
        small = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((32, 23), Image.BICUBIC)
        square = np.zeros((32, 32, 3), np.uint8)
        square[4:27] = np.asarray(small)
        pixels = (torch.from_numpy(square).permute(2, 0, 1) / 255 - mean[:, None, None]) / std[:, None, None]
        one = _picture(state, pixels)
        other = _text(state, tokenizer(prompt, truncation=True, max_length=PLACES).input_ids)
        found.append(one @ other / (one.norm() * other.norm()))
    return torch.stack(found)


def test_the_score_is_that_of_open_clips_layout(state, tiny_clip, pictures, prompts, tmp_path, scores):
    path = tmp_path / "hpsv2.safetensors"
    save_file(state, path)
    settings = Hpsv2Settings(type="hpsv2", model=str(path), tokenizer=str(tiny_clip))
    Hpsv2.check(settings)
    metric = Hpsv2(settings)
    found = scores(metric, pictures, prompts)
    expected = _reference(state, tiny_clip, pictures, prompts)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert expected.std() > 0.02
    figure = metric.figures(found, torch.arange(3))["hpsv2"]
    assert figure.value == pytest.approx(expected.mean().item(), rel=1e-3)
    assert metric.details()["model"] == str(path)


def test_every_tensor_has_a_place(state, tmp_path):
    named = hpsv2.transformers_names(state | {"attn_mask": torch.zeros(2, 2)})
    assert sum(value.numel() for value in named.values()) == sum(value.numel() for value in state.values())
    for odd in ("visual.attnpool.weight", "transformer.resblocks.0.ls_1.gamma"):
        with pytest.raises(ValueError, match="unknown"):
            hpsv2.transformers_names(state | {odd: torch.zeros(1)})
    with pytest.raises(MfdError, match="no weights of an open_clip ViT"):
        hpsv2.clip_of({"anything": torch.zeros(1)}, tmp_path / "x.safetensors")


def test_the_published_sizes_are_read_off_the_published_shapes():
    """ViT-H-14 as open_clip names it: 1280 wide, 32 blocks, patches of 14; text 1024 wide, 24 blocks."""
    with torch.device("meta"):
        published = {
            "visual.conv1.weight": torch.zeros(1280, 3, 14, 14), "visual.positional_embedding": torch.zeros(257, 1280),
            "visual.proj": torch.zeros(1280, 1024), "token_embedding.weight": torch.zeros(49408, 1024),
            "positional_embedding": torch.zeros(77, 1024),
            "visual.transformer.resblocks.0.mlp.c_fc.bias": torch.zeros(5120),
            "transformer.resblocks.0.mlp.c_fc.bias": torch.zeros(4096),
            "visual.transformer.resblocks.31.ln_1.bias": torch.zeros(1280),
            "transformer.resblocks.23.ln_1.bias": torch.zeros(1024),
        }  # fmt: skip
    found = hpsv2._config(published)
    vision, text = found.vision_config, found.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.intermediate_size) == (
        1280,
        32,
        224,
        5120,
    )
    assert (text.hidden_size, text.num_hidden_layers, text.max_position_embeddings) == (1024, 24, 77)
    assert (text.eos_token_id, vision.hidden_act, vision.num_attention_heads) == (49407, "gelu", 16)
