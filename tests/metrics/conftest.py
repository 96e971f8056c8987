"""Tiny models with random weights, in the layouts of the published ones."""

import json

import pytest
import torch

PROMPTS = ["a red fox", "an old boat at sea, oil painting", "tea"]


def clip_tokenizer(folder):
    """A CLIP tokenizer that knows single letters; the last two words are the beginning and the end of a text."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return len(words)


def randomised(model, seed=0):
    """The model with weights far from their initial values, so that no part of it is without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """Folder of a CLIP with two layers a tower and its tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    words = clip_tokenizer(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        projection_dim=24,
        vision_config={"image_size": 32, "patch_size": 8, **sizes},
        text_config={"vocab_size": words, "max_position_embeddings": 20, "eos_token_id": words - 1,
                     "bos_token_id": words - 2, "pad_token_id": words - 1, **sizes},
    )  # fmt: skip
    randomised(CLIPModel(config)).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures():
    """Three pictures that are not square, with structure at several scales, [3, 3, 40, 56] in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(3, 3, 5, 7, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return (coarse + 0.2 * torch.rand(coarse.shape, generator=generator)).clamp(0, 1)


@pytest.fixture
def prompts():
    """A prompt for each of them, the second longer than the tiny models read."""
    return list(PROMPTS)
