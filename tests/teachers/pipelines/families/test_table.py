"""Which pipelines are taken, and what those are told that are not."""

import json
import shutil

import pytest

from teachers.errors import TeacherError
from teachers.pipelines.families.table import FAMILIES, family_of, recognised
from teachers.pipelines.loading import Source


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sd3", "StableDiffusion3"), ("auraflow", "AuraFlow"), ("flux", "Flux"), ("schnell", "Flux"),
     ("qwen", "QwenImage"), ("lumina2", "Lumina2"), ("zimage", "ZImage"), ("wan", "Wan"), ("ltx", "LTXVideo")],
)  # fmt: skip
def test_pipelines_are_recognised(folders, name, kind):
    assert type(recognised(Source(name, folders(name)))).__name__ == kind


def test_no_family_of_an_unknown_name():
    with pytest.raises(TeacherError, match="UnknownPipeline") as caught:
        family_of("UnknownPipeline")
    assert "FluxPipeline" in caught.value.allowed


@pytest.fixture
def copy(folders, tmp_path):
    """`copy(name)`: a pipeline that may be changed."""
    return lambda name: shutil.copytree(folders(name), tmp_path / name)


def change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder):
    with pytest.raises(TeacherError) as caught:
        recognised(Source(str(folder), folder))
    return str(caught.value)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "PixArtAlphaPipeline"])
def test_a_diffusion_model_of_another_kind_is_refused(copy, name):
    folder = copy("sd3")
    change(folder / "model_index.json", _class_name=name)
    change(folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler", prediction_type="epsilon")
    assert "not a flow-matching model" in refusal(folder) and "'epsilon'" in refusal(folder)


def test_a_flow_model_without_a_family_is_refused(copy):
    folder = copy("sd3")
    change(folder / "model_index.json", _class_name="HunyuanVideoPipeline")
    message = refusal(folder)
    assert "HunyuanVideoPipeline" in message and all(name in message for name in FAMILIES)


@pytest.mark.parametrize(
    ("name", "word"),
    [("SanaSprintPipeline", "TrigFlow"), ("LatentConsistencyModelPipeline", "consistency"), ("SanaPipeline", "sana")],
)
def test_what_is_no_velocity_or_another_type_is_refused(copy, name, word):
    folder = copy("sd3")
    change(folder / "model_index.json", _class_name=name)
    assert word in refusal(folder)


def test_wan_with_two_networks_is_refused(copy):
    folder = copy("wan")
    change(folder / "model_index.json", boundary_ratio=0.9)
    assert "two networks" in refusal(folder)


def test_a_pipeline_without_one_of_its_encoders_is_refused(copy):
    folder = copy("sd3")
    change(folder / "model_index.json", text_encoder_3=[None, None])
    assert "no text_encoder_3" in refusal(folder)


def test_guidance_as_an_unknown_input_is_refused(copy):
    folder = copy("qwen")
    change(folder / "transformer" / "config.json", guidance_embeds=True)
    assert "takes guidance as an input" in refusal(folder)


def test_several_latents_in_one_token_are_refused(copy):
    folder = copy("ltx")
    change(folder / "transformer" / "config.json", patch_size=2)
    assert "several latents" in refusal(folder)
