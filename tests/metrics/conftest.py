"""Tiny models with random weights, in the layouts of the published ones."""

import json

import pytest
import torch
from PIL import Image

from mfd_cli.metrics.contract import Against, Batch
from mfd_cli.metrics.images import to_uint8
from teachers.base import Data

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


class Things(Data):
    """Nothing but what metrics ask of data: real samples, or prompts, or neither.

    Args:
        real: real samples [M, ...].
        texts: prompts.
    """

    def __init__(self, real=None, texts=None):
        self._real, self._texts = real, texts

    @classmethod
    def load(cls, settings, teacher):
        raise NotImplementedError

    @property
    def size(self):
        return max((len(held) for held in (self._real, self._texts) if held is not None), default=0)

    def condition(self, items):
        return {}

    def reference(self, count, seed):
        return super().reference(count, seed) if self._real is None else self._real

    def texts(self, items):
        return None if self._texts is None else [self._texts[item] for item in items.tolist()]


@pytest.fixture
def prompted():
    """What models are held against whose data are prompts."""
    return Against(Things(texts=PROMPTS), len(PROMPTS), 0)


@pytest.fixture
def unprompted():
    """What models are held against whose data have neither prompts nor real samples."""
    return Against(Things(), 3, 0)


@pytest.fixture
def scores(prompted):
    """A function from a metric of single pictures to its scores of pictures for their prompts."""

    def of(metric, pictures, prompts, against=prompted):
        with torch.inference_mode():
            metric.prepare(against)
            return metric.rows(Batch(pictures, torch.arange(len(pictures)), None, prompts))

    return of


def noise_pictures(num, seed, side=16):
    """Coloured noise, brighter from one picture to the next [num, 3, side, side] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num, 3, side, side, generator=generator) * torch.linspace(0.3, 1, num)[:, None, None, None]


@pytest.fixture(name="noise_pictures")
def _noise_pictures():
    return noise_pictures


@pytest.fixture
def held_against():
    """A function from real samples, or None, and a number of generated ones to what metrics are given."""

    def of(real, num=None):
        return Against(Things(real=real), len(real) if num is None else num, 0, real)

    return of


@pytest.fixture
def distance():
    """A function from a metric between sets and samples to its figures."""

    def of(metric, samples, against):
        with torch.inference_mode():
            metric.prepare(against)
            rows = torch.cat([metric.rows(Batch(part, torch.arange(len(part)))) for part in samples.split(5)])
            return metric.figures(rows, torch.arange(len(rows)))

    return of


@pytest.fixture
def stored(tmp_path):
    """A function that writes pictures [N, 3, H, W] as files and returns their folder."""

    def of(pictures, name="real"):
        folder = tmp_path / name
        folder.mkdir()
        for index, picture in enumerate(to_uint8(pictures)):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{index:02}.png")
        return folder

    return of


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory):
    """A file of random weights with what published files hold besides."""
    from safetensors.torch import save_file

    from mfd_cli.metrics.inception import Inception

    torch.manual_seed(0)
    held = {name: value for name, value in Inception().state_dict().items() if "num_batches" not in name}
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(held | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory):
    """Folder of a DINOv2 with two layers and six features."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(
        hidden_size=6, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56, mlp_ratio=2,
        layerscale_value=0.7,
    )  # fmt: skip
    Dinov2Model(config).save_pretrained(folder)
    return folder
