"""SANA: convention, labels, prompts, guidance and refusals, against diffusers' own pipeline."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mfd_cli.flow import time_grid, told_times
from mfd_cli.solvers import integrate_grid
from teachers.errors import MfdError, TeacherError
from teachers.guidance import VelocityField
from teachers.pipelines.sana import SanaSettings, SanaTeacher, complex_human_instruction
from teachers.pipelines.schedule import scheduler_config

TEXTS = ["a red fox", "an old lighthouse on a cliff above the sea", "x"]


def settings(model, **changes):
    return SanaSettings(**{"type": "sana", "model": str(model), "dtype": "fp32", "encoder_dtype": "fp32",
                           "resolution": 64} | changes)  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tiny_sana):
    return SanaTeacher.load(settings(tiny_sana))


@pytest.fixture(scope="module")
def pipeline(tiny_sana):
    from diffusers import SanaPipeline

    loaded = SanaPipeline.from_pretrained(tiny_sana, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def copy(tiny_sana, tmp_path):
    """A pipeline's folder that may be spoilt."""
    return shutil.copytree(tiny_sana, tmp_path / "copy")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def noise(teacher, count, seed=0):
    return torch.randn(count, *teacher.sample_shape, generator=torch.Generator().manual_seed(seed))


class Spy(torch.nn.Module):
    """A network that keeps what it is told."""

    dtype = torch.bfloat16

    def forward(self, x, *, timestep, encoder_attention_mask, **rest):
        self.x, self.timestep, self.mask, self.rest = x, timestep, encoder_attention_mask, rest
        return (torch.ones_like(x),)


def test_time_and_sign_are_turned_round(teacher):
    x, condition = noise(teacher, 3), teacher.encode(TEXTS)
    with torch.no_grad():
        u = teacher.velocity(teacher.network, x, torch.tensor([0.25, 0.5, 1.0]), condition)
        n = teacher.network(
            x, encoder_hidden_states=condition["text"], encoder_attention_mask=condition["text_mask"],
            timestep=torch.tensor([750.0, 500.0, 0.0]),
        ).sample  # fmt: skip
    torch.testing.assert_close(u, -n)


def test_labels_go_from_0_to_999_in_fp32_whatever_the_network_computes_in(teacher):
    spy, t = Spy(), torch.linspace(0, 1, 2001)
    x = torch.zeros(2001, *teacher.sample_shape)
    teacher.velocity(spy, x, t, {"text": torch.zeros(2001, 3, 32), "text_mask": torch.ones(2001, 3)})
    assert spy.timestep.dtype == torch.float32 and spy.timestep.shape == (2001,) and spy.x.dtype == torch.bfloat16
    torch.testing.assert_close(spy.timestep, (1000 * (1 - t)).clamp(max=999), atol=2e-4, rtol=0)
    assert float(spy.timestep.max()) == 999 and float(spy.timestep.min()) == 0
    assert len(spy.timestep.unique()) > 1990  # rounded to bf16 there would be about 500


def test_rows_with_times_of_their_own_are_as_one_by_one(teacher):
    x, t, condition = noise(teacher, 3), torch.tensor([0.1, 0.5, 0.9]), teacher.encode(TEXTS)
    with torch.no_grad():
        together = teacher.velocity(teacher.network, x, t, condition)
        for row in range(3):
            part = {name: value[row : row + 1] for name, value in condition.items()}
            alone = teacher.velocity(teacher.network, x[row : row + 1], t[row : row + 1], part)
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("instruction", [True, False])
def test_embeddings_are_the_pipelines_and_cut_to_their_own_tokens(tiny_sana, pipeline, instruction):
    own = SanaTeacher.load(settings(tiny_sana, instruction=instruction))
    text, mask, *_ = pipeline.encode_prompt(
        TEXTS, do_classifier_free_guidance=False, complex_human_instruction=complex_human_instruction() if instruction
        else None,
    )  # fmt: skip
    for row, theirs, kept in zip(own.encode_rows(TEXTS), text, mask, strict=True):
        torch.testing.assert_close(row["text"], theirs[: kept.sum()], atol=1e-5, rtol=1e-5)
    assert own.encoding()["instruction"] == str(instruction).lower()


def test_the_instruction_changes_prompts_but_never_the_negative_prompt(tiny_sana):
    rows = []
    for instruction in (True, False):
        own = SanaTeacher.load(settings(tiny_sana, instruction=instruction, negative_prompt="blurry"))
        rows.append(own.encode_rows(["blurry", *own.own_texts()]))
    (with_it, negative), (without, also_negative) = rows
    assert not torch.allclose(with_it["text"][-1], without["text"][-1], atol=1e-3)
    torch.testing.assert_close(negative["text"], also_negative["text"])
    torch.testing.assert_close(negative["text"], without["text"])


def test_an_empty_negative_prompt_is_one_token(teacher):
    (row,) = teacher.encode_rows(teacher.own_texts())
    assert row["text"].shape == (1, 32)
    null = teacher.null_condition(teacher.encode(TEXTS))
    assert null["text_mask"].sum(dim=1).tolist() == [1, 1, 1]
    assert null["text"].shape == teacher.encode(TEXTS)["text"].shape


def test_a_negative_prompt_longer_than_the_batch_fits(tiny_sana):
    own = SanaTeacher.load(settings(tiny_sana, negative_prompt="a very long list of what is not wanted"))
    condition = own.encode(["x"])
    null = own.null_condition(condition)
    assert {name: value.shape for name, value in null.items()} == {n: v.shape for n, v in condition.items()}
    with torch.no_grad():
        VelocityField(own, own.network, condition, 4.5)(noise(own, 1), torch.tensor([0.5]))


def test_text_is_cut_to_the_longest_prompt_and_that_changes_nothing(teacher):
    x, t, condition = noise(teacher, 3), torch.full((3,), 0.4), teacher.encode(TEXTS)
    lengths = [len(row["text"]) for row in teacher.encode_rows(TEXTS)]
    assert condition["text"].shape[1] == max(lengths) < 300
    assert condition["text_mask"].sum(dim=1).tolist() == lengths
    padded = {
        "text": torch.nn.functional.pad(condition["text"], (0, 0, 0, 300 - max(lengths)), value=7.0),
        "text_mask": torch.nn.functional.pad(condition["text_mask"], (0, 300 - max(lengths))),
    }
    with torch.no_grad():
        cut, whole = (teacher.velocity(teacher.network, x, t, c) for c in (condition, padded))
    torch.testing.assert_close(cut, whole, atol=1e-5, rtol=1e-5)


def called(pipeline, teacher, latents, *, steps, guidance, scheduler=None):
    from diffusers import FlowMatchEulerDiscreteScheduler

    before = pipeline.scheduler
    if scheduler is not None:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**scheduler)
    try:
        return pipeline(
            TEXTS, num_inference_steps=steps, guidance_scale=guidance, latents=latents.clone(), height=64, width=64,
            use_resolution_binning=False, output_type="latent",
        ).images  # fmt: skip
    finally:
        pipeline.scheduler = before


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (2, 1.0), (4, 3.0)])
@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_euler_steps_are_the_pipelines(teacher, pipeline, steps, shift, guidance):
    grid, x = time_grid(steps, shift), noise(teacher, 3)
    config = scheduler_config(grid.tolist(), teacher.first_time)
    theirs = called(pipeline, teacher, x, steps=steps, guidance=guidance, scheduler=config)
    field = VelocityField(teacher, teacher.network, teacher.encode(TEXTS), guidance)
    with torch.no_grad():
        ours = integrate_grid(field, x, grid, told=told_times(grid, teacher.first_time)).end
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)


def test_one_step_of_the_stock_scheduler_is_nearly_the_students(teacher, pipeline):
    # the published scheduler starts at sigma 0.99967 with the label 999
    x = noise(teacher, 3)
    theirs = called(pipeline, teacher, x, steps=1, guidance=1.0)
    with torch.no_grad():
        field = VelocityField(teacher, teacher.network, teacher.encode(TEXTS))
        ours = x + field(x, torch.zeros(3))
    assert float((ours - theirs).std() / theirs.std()) < 1e-3


def test_decoding_is_the_pipelines_and_in_fp32_under_autocast(teacher, pipeline):
    latents = noise(teacher, 2)
    with torch.no_grad():
        images = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        with torch.autocast("cpu", torch.bfloat16):
            ours = teacher.decode(latents)
    assert ours.dtype == torch.float32 and ours.shape == (2, 3, 64, 64)
    torch.testing.assert_close(ours, (images / 2 + 0.5).clamp(0, 1))


def test_tiling_is_switched_on_when_asked(tiny_sana):
    assert SanaTeacher.load(settings(tiny_sana, vae_tiling=True))._decoder().use_tiling
    assert not SanaTeacher.load(settings(tiny_sana))._decoder().use_tiling


@pytest.mark.parametrize(
    ("resolution", "shape"), [(64, (8, 2, 2)), ((64, 96), (8, 2, 3)), (None, (8, 16, 16)), (1024, (8, 32, 32))]
)
def test_any_resolution_that_the_autoencoder_allows(tiny_sana, resolution, shape):
    assert SanaTeacher.load(settings(tiny_sana, resolution=resolution)).sample_shape == shape


@pytest.mark.parametrize("resolution", [65, 16, (64, 70)])
def test_other_resolutions_are_refused(tiny_sana, resolution):
    with pytest.raises(TeacherError) as caught:
        SanaTeacher.load(settings(tiny_sana, resolution=resolution))
    assert "multiples of 32" in caught.value.allowed


@pytest.mark.parametrize(
    ("name", "dtype", "parameters"),
    [("Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", "bf16", 1_604_462_752),
     ("Efficient-Large-Model/Sana_600M_512px_diffusers", "fp32", 591_747_872)],
)  # fmt: skip
def test_the_published_models_have_their_published_size(name, dtype, parameters):
    import diffusers

    described = SanaTeacher.published(settings(name, dtype=dtype, resolution=None))
    with torch.device("meta"):
        network = diffusers.SanaTransformer2DModel.from_config(described["transformer"])
        vae = diffusers.AutoencoderDC.from_config(described["vae"])
    assert sum(value.numel() for value in network.parameters()) == parameters
    assert round(sum(value.numel() for value in vae.parameters()) / 1e6) == 312
    assert described["pixels"] == ([1024, 1024] if "1024" in name else [512, 512])


def test_random_weights_need_no_encoder_and_are_never_cached_as_real(tiny_sana):
    own = SanaTeacher.random(settings(tiny_sana))
    condition = own.encode(TEXTS)
    assert own.encoding() != SanaTeacher.load(settings(tiny_sana)).encoding() and own._source is None
    assert own.velocity(own.network, noise(own, 3), torch.rand(3), condition).shape == (3, *own.sample_shape)
    assert own.decode(noise(own, 1)).shape == (1, 3, 64, 64)


def test_identity_is_the_networks_content(tiny_sana, copy):
    assert SanaTeacher.load(settings(copy)).identity() == SanaTeacher.load(settings(tiny_sana)).identity()
    other = copy.rename(copy.parent / "other")  # contents are hashed once for each folder
    file = other / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["proj_out.bias"] += 1
    save_file(weights, file, {"format": "pt"})
    assert SanaTeacher.load(settings(other)).identity() != SanaTeacher.load(settings(tiny_sana)).identity()


def refusal(folder, **changes):
    with pytest.raises(TeacherError) as caught:
        SanaTeacher.load(settings(folder, **changes))
    return str(caught.value)


def test_what_is_no_velocity_field_is_refused_with_the_reason(copy):
    change(copy / "model_index.json", _class_name="SanaSprintPipeline")
    assert "TrigFlow" in refusal(copy)
    change(copy / "model_index.json", _class_name="SanaPipeline")
    change(copy / "transformer" / "config.json", guidance_embeds=True)
    assert "Sprint" in refusal(copy)
    change(copy / "transformer" / "config.json", guidance_embeds=False)
    change(copy / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    assert "not a flow-matching model" in refusal(copy) and "epsilon" in refusal(copy)


def test_other_pipelines_are_sent_to_the_general_adapter(copy):
    change(copy / "model_index.json", _class_name="FluxPipeline")
    assert "teacher.type: diffusers" in refusal(copy)


def test_code_of_a_repository_is_never_run(copy):
    change(copy / "model_index.json", transformer=["my_module", "MyTransformer"])
    assert "never run" in refusal(copy)


def test_pickled_weights_are_refused(copy):
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.bin"))
    assert "pickled weights only" in refusal(copy)


def test_missing_and_damaged_weights_are_named(copy):
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "transformer" in refusal(copy)
    file.unlink()
    assert "transformer" in refusal(copy)
    (copy / "model_index.json").unlink()
    assert "model_index.json" in refusal(copy)


def test_a_variant_that_is_not_there_names_those_that_are(copy):
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model.bf16.safetensors"))
    assert "teacher.variant: bf16" in refusal(copy)
    assert SanaTeacher.load(settings(copy, variant="bf16")).network is not None


@pytest.mark.parametrize("model", ["./nowhere", "nowhere", "mfd/sana-huge"])
def test_a_model_that_is_nowhere_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "teacher.model" in refusal(model)


def test_a_hub_name_without_network_says_how_to_fetch_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refusal("somebody/some-sana")
    assert "hf download somebody/some-sana" in message and "--random-weights" in message


@pytest.mark.parametrize("name", ["../secret.safetensors", "/secret.safetensors", "a\0b.safetensors", "", None, 3])
def test_a_list_of_weight_files_that_leads_out_of_its_folder_is_refused(name, copy):
    save_file({"proj_out.bias": torch.ones(1)}, copy / "secret.safetensors")
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    index = copy / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"proj_out.bias": name}}))
    with pytest.raises(MfdError, match=r"index\.json: lists .* leads out of its folder"):
        SanaTeacher.load(settings(copy))
    index.write_text("[1]")
    with pytest.raises(MfdError, match="no readable list of weight files"):
        SanaTeacher.load(settings(copy))


def test_weights_in_several_files_are_read(copy, tiny_sana):
    file = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    file.unlink()
    shards = {name: f"diffusion_pytorch_model-0000{1 + number % 2}-of-00002.safetensors"
              for number, name in enumerate(weights)}  # fmt: skip
    for shard in set(shards.values()):
        own = {name: value for name, value in weights.items() if shards[name] == shard}
        save_file(own, file.with_name(shard), {"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": shards}
    file.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    read = SanaTeacher.load(settings(copy)).network.state_dict()
    assert all(torch.equal(read[name], value) for name, value in weights.items())


@pytest.mark.parametrize("part", ["../secret", "/secret", "a/b", ".", ""])
def test_a_part_is_a_folder_of_the_pipeline(part, copy):
    change(copy / "model_index.json", **{part: ["transformers", "CLIPTokenizer"]})
    assert "is no name of a part" in refusal(copy)
