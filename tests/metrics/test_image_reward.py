"""ImageReward on a tiny state dict in its published layout, against a forward pass written from that layout."""

import math

import pytest
import torch
from safetensors.torch import save_file

from mfd_cli.errors import MfdError
from mfd_cli.metrics import images
from mfd_cli.metrics.image_reward import Blip, ImageReward, ImageRewardSettings

WIDTH, TEXT, LAYERS, PATCH, SIDE, WORDS = 32, 24, 2, 8, 4, 40
VISION, BERT = "blip.visual_encoder", "blip.text_encoder"


@pytest.fixture(scope="module")
def state():
    """Random weights under the published names."""
    generator = torch.Generator().manual_seed(0)

    def made(*shape):
        return torch.randn(shape, generator=generator)

    def linear(name, inside, outside):
        return {f"{name}.weight": made(outside, inside) / inside**0.5, f"{name}.bias": 0.2 * made(outside)}

    def norm(name, width):
        return {f"{name}.weight": 1 + 0.2 * made(width), f"{name}.bias": 0.2 * made(width)}

    held = {
        f"{VISION}.cls_token": made(1, 1, WIDTH), f"{VISION}.pos_embed": made(1, 1 + SIDE**2, WIDTH),
        f"{VISION}.patch_embed.proj.weight": made(WIDTH, 3, PATCH, PATCH) / PATCH,
        f"{VISION}.patch_embed.proj.bias": made(WIDTH), **norm(f"{VISION}.norm", WIDTH),
        f"{BERT}.embeddings.position_ids": torch.arange(37)[None],
        f"{BERT}.embeddings.word_embeddings.weight": made(WORDS, TEXT),
        f"{BERT}.embeddings.position_embeddings.weight": made(37, TEXT), **norm(f"{BERT}.embeddings.LayerNorm", TEXT),
    }  # fmt: skip
    for layer in range(LAYERS):
        name = f"{VISION}.blocks.{layer}"
        held |= norm(f"{name}.norm1", WIDTH) | norm(f"{name}.norm2", WIDTH)
        held |= linear(f"{name}.attn.qkv", WIDTH, 3 * WIDTH) | linear(f"{name}.attn.proj", WIDTH, WIDTH)
        held |= linear(f"{name}.mlp.fc1", WIDTH, 2 * WIDTH) | linear(f"{name}.mlp.fc2", 2 * WIDTH, WIDTH)
        name = f"{BERT}.encoder.layer.{layer}"
        for kind, seen in (("attention", TEXT), ("crossattention", WIDTH)):
            held |= linear(f"{name}.{kind}.self.query", TEXT, TEXT) | linear(f"{name}.{kind}.self.key", seen, TEXT)
            held |= linear(f"{name}.{kind}.self.value", seen, TEXT) | linear(f"{name}.{kind}.output.dense", TEXT, TEXT)
            held |= norm(f"{name}.{kind}.output.LayerNorm", TEXT)
        held |= linear(f"{name}.intermediate.dense", TEXT, 50) | linear(f"{name}.output.dense", 50, TEXT)
        held |= norm(f"{name}.output.LayerNorm", TEXT)
    widths = [TEXT, 1024, 128, 64, 16, 1]
    for place, inside, outside in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        held |= linear(f"mlp.layers.{place}", inside, outside)
    return held


class Naive:
    """One picture and one prompt at a time, in the order in which the original names its parts."""

    def __init__(self, state):
        self.state = state

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, name, x, eps):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attend(self, q, k, v, heads):
        width = q.shape[1] // heads
        parts = [slice(head * width, (head + 1) * width) for head in range(heads)]
        return torch.cat([torch.softmax(q[:, p] @ k[:, p].T / math.sqrt(width), -1) @ v[:, p] for p in parts], -1)

    def gelu(self, x):
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    def see(self, pixels):
        weight, bias = (self.state[f"{VISION}.patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
        patches = torch.stack([
            (pixels[:, PATCH * i : PATCH * (i + 1), PATCH * j : PATCH * (j + 1)] * weight).sum((1, 2, 3)) + bias
            for i in range(SIDE)
            for j in range(SIDE)
        ])  # fmt: skip
        x = torch.cat([self.state[f"{VISION}.cls_token"][0], patches]) + self.state[f"{VISION}.pos_embed"][0]
        for layer in range(LAYERS):
            name = f"{VISION}.blocks.{layer}"
            q, k, v = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x, 1e-6)).chunk(3, -1)
            x = x + self.linear(f"{name}.attn.proj", self.attend(q, k, v, 16))
            h = self.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x, 1e-6)))
            x = x + self.linear(f"{name}.mlp.fc2", h)
        return self.norm(f"{VISION}.norm", x, 1e-6)

    def read(self, numbers, seen):
        """First hidden state of a prompt without its padding: what is masked has no effect."""
        x = self.state[f"{BERT}.embeddings.word_embeddings.weight"][numbers]
        x = x + self.state[f"{BERT}.embeddings.position_embeddings.weight"][: len(numbers)]
        x = self.norm(f"{BERT}.embeddings.LayerNorm", x, 1e-12)
        for layer in range(LAYERS):
            name = f"{BERT}.encoder.layer.{layer}"
            for kind in ("attention", "crossattention"):
                other = x if kind == "attention" else seen
                q = self.linear(f"{name}.{kind}.self.query", x)
                k, v = (self.linear(f"{name}.{kind}.self.{part}", other) for part in ("key", "value"))
                mixed = self.linear(f"{name}.{kind}.output.dense", self.attend(q, k, v, 12))
                x = self.norm(f"{name}.{kind}.output.LayerNorm", x + mixed, 1e-12)
            h = self.linear(f"{name}.output.dense", self.gelu(self.linear(f"{name}.intermediate.dense", x)))
            x = self.norm(f"{name}.output.LayerNorm", x + h, 1e-12)
        return x[0]

    def __call__(self, pixels, numbers):
        x = self.read(numbers, self.see(pixels))
        for place in (0, 2, 4, 6, 7):
            x = self.linear(f"mlp.layers.{place}", x)
        return (x[0] - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture
def bert(tmp_path):
    """A BERT tokenizer that knows single letters."""
    from transformers import BertTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in "aeiosxdn"), ","]
    assert len(words) == WORDS
    file = tmp_path / "words.txt"
    file.write_text("\n".join(words) + "\n")
    folder = tmp_path / "bert"
    try:
        tokenizer = BertTokenizer(vocab=str(file))
    except TypeError:  # transformers 4
        tokenizer = BertTokenizer(str(file))
    tokenizer.save_pretrained(folder)
    return folder


def test_the_reward_is_that_of_the_published_layout(state, bert, pictures, tmp_path, scores):
    from transformers import AutoTokenizer

    path = tmp_path / "reward.safetensors"
    save_file(state, path)
    settings = ImageRewardSettings(type="image-reward", model=str(path), tokenizer=str(bert))
    ImageReward.check(settings)
    metric = ImageReward(settings)
    prompts = ["a b c", "s, " * 30, "x"]
    found = scores(metric, pictures, prompts)
    naive, tokenizer = Naive(state), AutoTokenizer.from_pretrained(bert)
    shown = images.normalised(images.short_side_to(images.to_uint8(pictures), 32), images.CLIP_MEAN, images.CLIP_STD)
    numbers = [tokenizer(prompt, truncation=True, max_length=35).input_ids for prompt in prompts]
    assert [len(each) for each in numbers] == [5, 35, 3] and len({*numbers[1]}) > 3
    expected = torch.stack([naive(pixels, each) for pixels, each in zip(shown, numbers, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 0.05
    assert metric.figures(found, torch.arange(3))["image_reward"].value == pytest.approx(
        expected.mean().item(), rel=1e-3
    )


def test_other_weights_are_refused(state, tmp_path):
    with pytest.raises(MfdError, match="no weights of ImageReward"):
        Blip({"anything": torch.zeros(1)}, tmp_path / "x.safetensors")
    cut = {name: value for name, value in state.items() if not name.endswith("crossattention.self.query.bias")}
    with pytest.raises(MfdError, match="do not fit"):
        Blip(cut, tmp_path / "x.safetensors")
