"""The tiny SANA pipelines open as published ones do, are the same every time, and have a velocity worth distilling."""

import json
import shutil

import pytest
import torch

from teachers.errors import TeacherError
from teachers.pipelines import tiny

NAME = "mfd/sana-tiny"
PROMPTS = ("", "a red fox asleep in fresh snow", "a glass teapot on a wooden table")


def parts(folder):
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from transformers import Gemma2Model

    kinds = {"transformer": SanaTransformer2DModel, "vae": AutoencoderDC, "text_encoder": Gemma2Model}
    return {name: kind.from_pretrained(folder, subfolder=name) for name, kind in kinds.items()}


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sizes(folder):
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts(folder).items()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return tiny.build("mfd/sana-small", tmp_path_factory.mktemp("small") / "pipeline")


@pytest.fixture(params=["tiny_sana", "small"])
def field(request):
    """`field(x, sigma, prompt)`: the network's prediction in SANA's own convention."""
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(request.param)
    tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer", padding_side="right")
    models = parts(folder)
    with torch.no_grad():
        tokens = tokenizer(PROMPTS, padding=True, return_tensors="pt")
        text = models["text_encoder"](**tokens)[0]

    @torch.no_grad()
    def predict(x, sigma, prompt):
        rows = len(x)
        return models["transformer"](
            x,
            text[prompt].expand(rows, -1, -1),
            torch.full((rows,), 1000.0 * sigma),
            encoder_attention_mask=tokens.attention_mask[prompt].expand(rows, -1),
        ).sample

    return predict


def noise(rows, seed=0):
    return torch.randn(rows, 8, 2, 2, generator=torch.Generator().manual_seed(seed))


def change(before, after):
    """Relative distance of two fields."""
    return ((after - before).norm() / before.norm()).item()


def test_parameter_counts(tiny_sana, small):
    assert sizes(tiny_sana) == {"transformer": 54_344, "vae": 163_915, "text_encoder": 28_448}
    assert sizes(small) == {"transformer": 6_810_120, "vae": 163_915, "text_encoder": 81_472}


def test_every_weight_is_a_safetensors_file(tiny_sana):
    assert set(content(tiny_sana)) == set(tiny.FILES)
    assert sum(map(len, content(tiny_sana).values())) < 1.1e6


def test_layout_is_that_of_a_published_sana(tiny_sana):
    index = json.loads((tiny_sana / "model_index.json").read_text())
    classes = {name: value[1] for name, value in index.items() if isinstance(value, list)}
    assert index["_class_name"] == "SanaPipeline"
    assert classes.pop("tokenizer").startswith("GemmaTokenizer")
    assert classes == {
        "text_encoder": "Gemma2Model",
        "transformer": "SanaTransformer2DModel",
        "vae": "AutoencoderDC",
        "scheduler": "DPMSolverMultistepScheduler",
    }


def test_scheduler_makes_the_published_grid(tiny_sana):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler.from_pretrained(tiny_sana, subfolder="scheduler")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 899, 749, 499]
    assert scheduler.sigmas.tolist() == pytest.approx([0.99967, 0.89964, 0.74962, 0.49967, 0.0], abs=1e-5)
    assert scheduler.config.prediction_type == "flow_prediction"


def test_tokenizer_spells_everything(tiny_sana):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_sana, subfolder="tokenizer")
    assert len(tokenizer) == 304
    assert tokenizer("").input_ids == [2]
    assert tokenizer("a b").input_ids == [2, 262, 261, 263]
    text = "a tea-house, 東京: 3 o'clock"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_guided_sample(tiny_sana):
    from diffusers import SanaPipeline

    pipeline = SanaPipeline.from_pretrained(tiny_sana)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        list(PROMPTS[1:]), height=64, width=64, num_inference_steps=2, guidance_scale=4.5,
        use_resolution_binning=False, output_type="pt", generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert images.shape == (2, 3, 64, 64)
    assert images.isfinite().all()
    assert images.std(dim=(1, 2, 3)).min() > 0.05
    assert change(images[0], images[1]) > 0.05


def test_vae_compresses_by_32(tiny_sana):
    vae = parts(tiny_sana)["vae"]
    with torch.no_grad():
        latent = vae.encode(torch.rand(1, 3, 64, 96) * 2 - 1).latent
        assert latent.shape == (1, 8, 2, 3)
        assert vae.decode(latent).sample.shape == (1, 3, 64, 96)


def test_velocity_depends_on_noise_time_and_prompt(field):
    x = noise(32)
    here = field(x, 0.5, 1)
    assert 0.5 < here.std() < 3
    assert change(here, field(noise(32, seed=1), 0.5, 1)) > 0.3
    assert change(here, field(x, 0.0, 1)) > 0.1
    assert change(here, field(x, 0.999, 1)) > 0.1
    assert change(here, field(x, 0.5, 0)) > 0.1
    assert change(here, field(x, 0.5, 2)) > 0.05


def test_velocity_is_smooth_in_time(field):
    x = noise(8)
    fields = [field(x, 0.999 * index / 40, 1) for index in range(41)]
    assert max(map(change, fields, fields[1:])) < 0.05


def test_one_step_is_not_yet_enough(field):
    """A student has something to learn, and a teacher of 20 steps is exact enough to learn it from."""

    def integrate(steps):
        x = noise(8)
        for index in range(steps):
            x = x - field(x, min(1 - index / steps, 0.999), 1) / steps
        return x

    exact = integrate(80)
    assert change(exact, integrate(1)) > 0.2
    assert change(exact, integrate(20)) < 0.04
    assert exact.std(dim=0).mean() > 0.5, "different noises must not end in the same place"


def test_same_seed_same_files(tiny_sana, tmp_path):
    torch.manual_seed(5)
    again = content(tiny.build(NAME, tmp_path / "again"))
    assert again == content(tiny_sana)
    other = content(tiny.build(NAME, tmp_path / "other", seed=1))
    different = {name for name in again if again[name] != other[name]}
    assert different == {name for name in tiny.FILES if name.endswith(".safetensors")}


def test_process_is_left_as_it_was(tmp_path, capfd):
    from transformers.utils import logging

    before = torch.get_rng_state()
    tiny.build(NAME, tmp_path / "pipeline")
    assert torch.equal(torch.get_rng_state(), before)
    assert logging.is_progress_bar_enabled()
    assert capfd.readouterr() == ("", "")


def test_ensure_builds_once(tmp_path, monkeypatch):
    folder = tiny.ensure(NAME, tmp_path / "not" / "there")
    assert folder == tmp_path / "not" / "there" / f"mfd--sana-tiny-v{tiny.VERSION}"
    assert tiny.is_complete(folder)
    monkeypatch.setattr(tiny, "_pipeline", lambda *_: pytest.fail("built twice"))
    assert tiny.ensure(NAME, tmp_path / "not" / "there") == folder


@pytest.fixture
def copied(tiny_sana, tmp_path):
    """A pipeline that may be damaged, alone in its home."""
    return shutil.copytree(tiny_sana, tmp_path / "home" / tiny_sana.name)


@pytest.mark.parametrize("file", tiny.FILES)
def test_missing_file_is_noticed(copied, file):
    assert tiny.is_complete(copied)
    (copied / file).unlink()
    assert not tiny.is_complete(copied)


@pytest.mark.parametrize("file", ["vae/diffusion_pytorch_model.safetensors", "transformer/config.json"])
def test_damaged_folder_is_rebuilt(tiny_sana, copied, file):
    whole = (copied / file).read_bytes()
    (copied / file).write_bytes(whole[: len(whole) // 2])
    assert tiny.ensure(NAME, copied.parent) == copied
    assert content(copied) == content(tiny_sana)
    assert list(copied.parent.iterdir()) == [copied]


class Killed(BaseException):
    """Ends a build where a signal would."""


def test_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(aside, folder):
        assert tiny.is_complete(aside)
        raise Killed

    monkeypatch.setattr(tiny, "_put", interrupted)
    with pytest.raises(Killed):
        tiny.ensure(NAME, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damaged", [False, True])
def test_two_processes_build_at_once(tiny_sana, tmp_path, monkeypatch, damaged):
    folder = tmp_path / tiny_sana.name
    if damaged:
        folder.mkdir()
    put = tiny._put

    def overtaken(aside, target):
        monkeypatch.setattr(tiny, "_put", put)
        tiny.ensure(NAME, tmp_path)  # the other process, which ends first
        (folder / "mark").touch()
        put(aside, target)

    monkeypatch.setattr(tiny, "_put", overtaken)
    assert tiny.ensure(NAME, tmp_path) == folder
    assert set(content(folder)) == {*tiny.FILES, "mark"}, "the first build stays"
    assert list(tmp_path.iterdir()) == [folder]


def test_unknown_name(tmp_path):
    with pytest.raises(TeacherError, match="sana-huge") as error:
        tiny.ensure("mfd/sana-huge", tmp_path)
    assert "mfd/sana-tiny, mfd/sana-small" in error.value.allowed


def test_build_overwrites_nothing(tmp_path):
    with pytest.raises(TeacherError, match="exists"):
        tiny.build(NAME, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_home_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TeacherError, match="cannot be written"):
        tiny.ensure(NAME, tmp_path / "file" / "home")
