"""CLIP score, PickScore and the aesthetic score on tiny models, against second computations."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mfd_cli.errors import MfdError
from mfd_cli.metrics import images
from mfd_cli.metrics.aesthetic import Aesthetic, AestheticSettings
from mfd_cli.metrics.clip import ClipScore, ClipScoreSettings, PickScore, PickScoreSettings


def _by_transformers(folder, pictures, prompts):
    """Cosines as the model card's own lines compute them: processor, model, its own logits."""
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    shown = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in images.to_uint8(pictures)]
    tokens = tokenizer(prompts, padding=True, truncation=True, max_length=20, return_tensors="pt")
    with torch.no_grad():
        found = model(**tokens, pixel_values=processor(images=shown, return_tensors="pt").pixel_values)
    return found.logits_per_image.diagonal(), model.logit_scale.exp().item()


def test_clip_score_is_100_times_transformers_cosine(tiny_clip, pictures, prompts, scores):
    found = scores(ClipScore(ClipScoreSettings(type="clip-score", model=str(tiny_clip))), pictures, prompts)
    logits, scale = _by_transformers(tiny_clip, pictures, prompts)
    torch.testing.assert_close(found, 100 * logits / scale, rtol=1e-3, atol=1e-3)
    assert found.std() > 1, "the pictures differ by more than the tolerance"


def test_pickscore_is_transformers_logit(tiny_clip, pictures, prompts, tmp_path, scores):
    folder = tmp_path / "pick"
    shutil.copytree(tiny_clip, folder)
    held = load_file(folder / "model.safetensors")
    save_file(held | {"logit_scale": torch.tensor(3.3)}, folder / "model.safetensors", metadata={"format": "pt"})
    for tokenizer in (None, str(tiny_clip)):
        settings = PickScoreSettings(type="pickscore", model=str(folder), tokenizer=tokenizer)
        PickScore.check(settings)
        metric = PickScore(settings)
        logits, scale = _by_transformers(folder, pictures, prompts)
        assert scale == pytest.approx(np.exp(3.3), rel=1e-5)
        torch.testing.assert_close(scores(metric, pictures, prompts), logits, rtol=1e-3, atol=1e-4)


def test_a_prompt_scores_the_same_whatever_else_is_asked(tiny_clip, pictures, prompts, scores):
    metric = ClipScore(ClipScoreSettings(type="clip-score", model=str(tiny_clip)))
    together = scores(metric, pictures, prompts)
    alone = torch.cat([scores(metric, pictures[i : i + 1], prompts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_the_figure_is_the_mean_over_prompts(tiny_clip):
    metric = ClipScore(ClipScoreSettings(type="clip-score", model=str(tiny_clip), label="b32"))
    rows = torch.tensor([20.0, 22.0, 30.0, 32.0])
    found = metric.figures(rows, torch.tensor([0, 0, 1, 1]))["clip_score_b32"]
    assert found.value == 26 and found.num == 4 and found.more_is_better
    assert found.standard_error == pytest.approx(5), "of two prompts, not of four pictures"


def test_the_aesthetic_score_is_one_affine_map_of_the_embedding(tiny_clip, pictures, tmp_path, scores, unprompted):
    generator = torch.Generator().manual_seed(0)
    widths = [24, 1024, 128, 64, 16, 1]
    layers = {}
    for place, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        layers[f"layers.{place}.weight"] = torch.randn(after, before, generator=generator) / before**0.5
        layers[f"layers.{place}.bias"] = torch.randn(after, generator=generator)
    path = tmp_path / "head.safetensors"
    save_file(layers, path)
    settings = AestheticSettings(type="aesthetic", model=str(path), clip=str(tiny_clip))
    Aesthetic.check(settings)
    found = scores(Aesthetic(settings), pictures, None, unprompted)
    assert found.shape == (3,)

    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(tiny_clip).eval()
    pixels = images.normalised(images.short_side_to(images.to_uint8(pictures), 32), images.CLIP_MEAN, images.CLIP_STD)
    with torch.no_grad():
        embedding = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    x = embedding / embedding.square().sum(1, keepdim=True).sqrt()
    matrix, shift = torch.eye(24), torch.zeros(24)
    for place in (0, 2, 4, 6, 7):  # the five layers as one
        weight = layers[f"layers.{place}.weight"]
        matrix, shift = weight @ matrix, weight @ shift + layers[f"layers.{place}.bias"]
    torch.testing.assert_close(found, (x @ matrix.T + shift)[:, 0], rtol=1e-3, atol=1e-4)


def test_a_head_of_another_width_is_refused(tiny_clip, tmp_path, unprompted):
    path = tmp_path / "head.safetensors"
    save_file({"layers.0.weight": torch.zeros(1024, 768)}, path)
    metric = Aesthetic(AestheticSettings(type="aesthetic", model=str(path), clip=str(tiny_clip)))
    with pytest.raises(MfdError, match="do not fit"):
        metric.prepare(unprompted)


def test_pictures_without_prompts_have_no_clip_score(tiny_clip, unprompted):
    metric = ClipScore(ClipScoreSettings(type="clip-score", model=str(tiny_clip)))
    with pytest.raises(MfdError, match="against prompts, and the data have none"):
        metric.prepare(unprompted)


def test_absent_weights_are_told_with_the_line_that_gets_them(monkeypatch):
    import huggingface_hub

    def offline(*given, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(MfdError, match="the hub did not give it") as caught:
        ClipScore.check(ClipScoreSettings(type="clip-score"))
    assert "hf download openai/clip-vit-large-patch14" in caught.value.do
    with pytest.raises(MfdError, match="no such folder"):
        ClipScore.check(ClipScoreSettings(type="clip-score", model="./nowhere"))
    with pytest.raises(MfdError, match="aesthetic needs model") as caught:
        Aesthetic.check(AestheticSettings(type="aesthetic"))
    assert "mfd metrics convert aesthetic" in caught.value.do


def test_pickled_or_incomplete_weights_are_refused(tiny_clip, tmp_path, prompted):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(MfdError, match="pickled weights only"):
        ClipScore.check(ClipScoreSettings(type="clip-score", model=str(tmp_path)))
    folder = tmp_path / "cut"
    shutil.copytree(tiny_clip, folder)
    held = load_file(folder / "model.safetensors")
    save_file({name: held[name] for name in held if "text" not in name}, folder / "model.safetensors")
    with pytest.raises(MfdError, match=r"lacks \d+ of the weights"):
        ClipScore(ClipScoreSettings(type="clip-score", model=str(folder))).prepare(prompted)


def test_a_list_of_weight_files_that_leads_out_of_its_folder_is_refused(tiny_clip, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder)
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"")
    listed = {"weight_map": {"logit_scale": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    with pytest.raises(MfdError, match="leads out of its folder"):
        ClipScore.check(ClipScoreSettings(type="clip-score", model=str(folder)))
