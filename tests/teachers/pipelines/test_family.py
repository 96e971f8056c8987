"""Every family of `diffusers` against its pipeline: the same latents after the same steps, embeddings, pictures."""

from typing import NamedTuple

import pytest
import torch

from mfd_cli.flow import time_grid
from mfd_cli.solvers import integrate_grid
from teachers import conformance
from teachers.base import Data
from teachers.errors import TeacherError
from teachers.guidance import Evaluations, VelocityField
from teachers.pipelines.family import DiffusersSettings, DiffusersTeacher, _strip
from teachers.pipelines.schedule import scheduler_config
from teachers.registry import teachers

TEXTS = ["a red fox asleep in snow", "two cups", "a tram on a steep street at dusk, oil"]
NEGATIVE = "blurry"


class Case(NamedTuple):
    """What differs when a pipeline is called.

    Attributes:
        tokens: small, to be quick, but enough for the family's own instruction.
        pixels: height and width.
        frames: of a video.
        scale: name of the pipeline's guidance scale.
        less: what the pipeline's scale is smaller by.
    """

    tokens: int = 48
    pixels: tuple[int, int] = (32, 48)
    frames: int | None = None
    scale: str = "guidance_scale"
    less: float = 0.0


CASES = {
    "sd3": Case(),
    "auraflow": Case(),
    "flux": Case(),
    "schnell": Case(scale="true_cfg_scale"),
    "qwen": Case(tokens=240, scale="true_cfg_scale"),
    "lumina2": Case(tokens=240),
    "zimage": Case(tokens=80, less=1.0),
    "wan": Case(frames=5),
    "wan_expanded": Case(frames=5),
    "ltx": Case(pixels=(64, 96), frames=9),
}
GUIDED = [name for name in CASES if name != "flux"]


def settings(folder, name, **changes):
    case = CASES[name]
    given = {
        "type": "diffusers", "model": str(folder), "dtype": "fp32", "encoder_dtype": "fp32", "guidance": 1.0,
        "negative_prompt": NEGATIVE, "max_sequence_length": case.tokens, "resolution": case.pixels,
        "num_frames": case.frames,
    }  # fmt: skip
    return DiffusersSettings(**(given | changes))


@pytest.fixture(scope="module")
def loaded(folders):
    """`loaded(name)`: the family's teacher and the pipeline, both from the folder."""
    made = {}

    def of(name):
        if name not in made:
            import diffusers

            pipeline = diffusers.DiffusionPipeline.from_pretrained(folders(name))
            pipeline.set_progress_bar_config(disable=True)
            made[name] = DiffusersTeacher.load(settings(folders(name), name)), pipeline
        return made[name]

    return of


def noise(teacher, rows, seed=0):
    return torch.randn(rows, *teacher.sample_shape, generator=torch.Generator().manual_seed(seed))


def handed(pipeline, x):
    """Latents as the pipeline wants them."""
    if not hasattr(pipeline, "_pack_latents"):
        return x.clone()
    if x.dim() == 5:
        return pipeline._pack_latents(x, 1, 1)
    return pipeline._pack_latents(x, *x.shape)


def returned(pipeline, latents, like):
    """Latents as plain states."""
    if not hasattr(pipeline, "_unpack_latents"):
        return latents
    if like.dim() == 5:
        return pipeline._unpack_latents(latents, *like.shape[2:])
    return pipeline._unpack_latents(latents, 8 * like.shape[2], 8 * like.shape[3], 8).reshape(like.shape)


def called(name, pipeline, x, *, steps, guidance, scheduler=None, **more):
    """The pipeline's own latents [B, ...] after `steps`."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    case, before = CASES[name], pipeline.scheduler
    if scheduler is not None:
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**scheduler)
    if case.frames is not None:
        more["num_frames"] = case.frames
    if name != "flux" and guidance != 1.0:
        more["negative_prompt"] = [NEGATIVE] * len(TEXTS)
    try:
        out = pipeline(
            list(TEXTS), num_inference_steps=steps, latents=handed(pipeline, x), height=case.pixels[0],
            width=case.pixels[1], max_sequence_length=case.tokens, output_type="latent", return_dict=False,
            **{case.scale: guidance - case.less}, **more,
        )[0]  # fmt: skip
        return returned(pipeline, out, x), pipeline.scheduler.sigmas
    finally:
        pipeline.scheduler = before


def euler(teacher, x, times, guidance):
    field = VelocityField(teacher, teacher.network, teacher.encode(TEXTS), guidance)
    with torch.no_grad():
        return integrate_grid(field, x, times).end


def gap(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("name", GUIDED)
def test_two_steps_of_the_pipelines_own_scheduler(loaded, name, guidance):
    teacher, pipeline = loaded(name)
    x = noise(teacher, len(TEXTS))
    theirs, sigmas = called(name, pipeline, x, steps=2, guidance=guidance)
    ours = euler(teacher, x, 1 - sigmas, guidance)
    assert gap(ours, theirs) < 1e-5 < 1e-2 < gap(x, theirs)


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (2, 3.0), (3, 3.0)])
@pytest.mark.parametrize("name", GUIDED)
def test_steps_of_a_students_schedule(loaded, name, steps, shift):
    teacher, pipeline = loaded(name)
    grid, x = time_grid(steps, shift), noise(teacher, len(TEXTS))
    config = scheduler_config(grid.tolist(), given_sigmas=teacher.family.given_sigmas)
    theirs, _ = called(name, pipeline, x, steps=steps, guidance=1.0, scheduler=config)
    assert gap(euler(teacher, x, grid, 1.0), theirs) < 1e-5


def flux(folder, **changes):
    return DiffusersTeacher.load(settings(folder, "flux", guidance=3.5, **changes))


def test_two_steps_of_a_model_that_takes_its_guidance_as_an_input(loaded, folders):
    _, pipeline = loaded("flux")
    teacher = flux(folders("flux"))
    x = noise(teacher, len(TEXTS))
    theirs, sigmas = called("flux", pipeline, x, steps=2, guidance=3.5)
    other, _ = called("flux", pipeline, x, steps=2, guidance=1.0)
    assert gap(euler(teacher, x, 1 - sigmas, 3.5), theirs) < 1e-5 < 1e-3 < gap(other, theirs)


def test_guidance_that_is_an_input_costs_one_evaluation_and_needs_no_negative_prompt(folders):
    teacher, counter = flux(folders("flux")), Evaluations()
    condition = teacher.encode(TEXTS)
    assert teacher.guidance_embedded and teacher.own_texts() == [] and teacher.null_condition(condition) is None
    x, t = noise(teacher, 3), torch.full((3,), 0.3)
    with torch.no_grad():
        guided = VelocityField(teacher, teacher.network, condition, 3.5, counter)(x, t)
        student = VelocityField(teacher, teacher.initial_network(0), condition)(x, t)
    assert counter.rows == 3
    torch.testing.assert_close(student, guided)
    with pytest.raises(TeacherError, match=r"guidance 2 asked .* which is 3.5 here"):
        VelocityField(teacher, teacher.network, condition, 2.0)


@pytest.mark.parametrize("name", CASES)
def test_time_and_every_part_of_the_condition_matter(loaded, name):
    """Else a wrong argument would go unseen above."""
    teacher, _ = loaded(name)
    x, condition = noise(teacher, 3), teacher.encode(TEXTS)
    with torch.no_grad():

        def velocity(t=0.4, **changes):
            return teacher.velocity(teacher.network, x, torch.full((3,), t), {**condition, **changes})

        here = velocity()
        assert gap(velocity(0.6), here) > 1e-3
        for key in ("text", "pooled"):
            if key in condition:
                assert gap(velocity(**{key: condition[key].roll(1, 0)}), here) > 1e-4, key


@pytest.mark.parametrize("name", CASES)
def test_a_prompts_row_does_not_depend_on_others(loaded, name):
    teacher, _ = loaded(name)
    together = teacher.encode_rows(TEXTS)
    assert (len({len(row["text"]) for row in together}) == 1) == (teacher.family.text == "whole")
    for text, row in zip(TEXTS, together, strict=True):
        (alone,) = teacher.encode_rows([text])
        assert row.keys() == alone.keys()
        for key in row:
            torch.testing.assert_close(row[key], alone[key], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_text_is_cut_only_where_that_changes_nothing(loaded, name):
    teacher, _ = loaded(name)
    x, t, condition = noise(teacher, 3), torch.full((3,), 0.4), teacher.encode(TEXTS)

    def velocity(given):
        with torch.no_grad():
            return teacher.velocity(teacher.network, x, t, given)

    if teacher.family.text == "masked":
        more = {
            "text": torch.nn.functional.pad(condition["text"], (0, 0, 0, 9), value=7.0),
            "text_mask": torch.nn.functional.pad(condition["text_mask"], (0, 9)),
        }
        assert condition["text_mask"].sum(dim=1).tolist() == [len(row["text"]) for row in teacher.encode_rows(TEXTS)]
        assert gap(velocity(more), velocity(condition)) < 1e-5
    else:
        fixed = teacher.family.leading_tokens + CASES[name].tokens
        assert condition["text"].shape[1] == fixed and "text_mask" not in condition
        assert gap(velocity({**condition, "text": condition["text"][:, :-1]}), velocity(condition)) > 1e-6


@pytest.mark.parametrize("name", ["sd3", "auraflow", "flux", "qwen", "lumina2", "zimage", "wan", "ltx"])
def test_pictures_are_the_pipelines(loaded, name):
    teacher, pipeline = loaded(name)
    case, x = CASES[name], noise(teacher, 1)
    video = {} if case.frames is None else {"num_frames": case.frames}
    arguments = {
        "num_inference_steps": 2, "latents": handed(pipeline, x), "height": case.pixels[0], "width": case.pixels[1],
        "max_sequence_length": case.tokens, "return_dict": False, **{case.scale: 1.0 - case.less}, **video,
    }  # fmt: skip
    latents = returned(pipeline, pipeline(TEXTS[:1], output_type="latent", **arguments)[0], x)
    theirs = pipeline(TEXTS[:1], output_type="pt", **arguments | {"latents": handed(pipeline, x)})[0]
    if video:
        theirs = _strip(theirs.transpose(1, 2))
    ours = teacher.decode(latents)
    assert ours.shape == theirs.shape and ours.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_strip_shows_eight_evenly_spaced_frames():
    video = torch.arange(15.0).reshape(1, 1, 15, 1, 1).expand(2, 3, 15, 4, 5)
    strip = _strip(video)
    assert strip.shape == (2, 3, 4, 40)
    assert strip[1, 2, 3, ::5].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert _strip(video[:, :, :3]).shape == (2, 3, 4, 15)


class Prompts(Data):
    """Texts in turn, as the data of a check."""

    size = None

    def __init__(self, teacher):
        self._teacher = teacher

    @classmethod
    def load(cls, settings, teacher):
        return cls(teacher)

    def condition(self, items):
        return self._teacher.encode([TEXTS[index % 3] for index in items.tolist()])


#: what random weights cannot pass: they were fitted to no path from noise to data
FITTED = {"velocity", "time direction", "sign", "time scale", "velocity scale", "noise end"}


@pytest.mark.parametrize("name", ["sd3", "auraflow", "flux", "qwen", "lumina2", "zimage", "wan", "ltx"])
def test_the_contract_is_kept(loaded, name, monkeypatch):
    teacher, _ = loaded(name)
    monkeypatch.setattr(conformance.case, "OWN_STEPS", 2)
    monkeypatch.setattr(teacher, "settings", teacher.settings.model_copy(update={"steps": 1}))
    findings = conformance.check(teacher, Prompts(teacher), samples=6)
    broken = [finding for finding in findings if finding.passed is False and finding.name not in FITTED]
    assert broken == []
    told = {finding.name for finding in findings if finding.passed}
    assert {"shape", "determinism", "rows", "gradient", "frozen teacher", "save and load", "decode"} <= told
    assert ("guidance" in told) == (name != "flux")


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen", "zimage", "wan", "ltx"])
def test_half_precision_is_nearly_the_same(loaded, folders, name):
    exact, _ = loaded(name)
    half = DiffusersTeacher.load(settings(folders(name), name, dtype="bf16", encoder_dtype="bf16"))
    x, t, condition = noise(exact, 3), torch.full((3,), 0.5), exact.encode(TEXTS)
    with torch.no_grad():
        rough, fine = (teacher.velocity(teacher.network, x, t, condition) for teacher in (half, exact))
    assert rough.dtype == torch.bfloat16 and float((rough - fine).norm() / fine.norm()) < 0.05
    assert half.encode(TEXTS)["text"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen", "lumina2", "wan"])
def test_random_weights_need_no_encoder(folders, name):
    teacher = DiffusersTeacher.random(settings(folders(name), name))
    condition = teacher.encode(TEXTS)
    assert teacher.velocity(teacher.network, noise(teacher, 3), torch.rand(3), condition).shape[0] == 3
    assert teacher.decode(noise(teacher, 1)).dim() == 4
    assert teacher.encoding() == {"family": teacher.family.pipeline, "encoder": "random"}


def test_embeddings_depend_on_the_number_of_tokens_read(folders):
    one, other = (
        DiffusersTeacher.load(settings(folders("wan"), "wan", max_sequence_length=n)).encoding() for n in (48, None)
    )
    assert (one.pop("max_sequence_length"), other.pop("max_sequence_length")) == ("48", "512")
    assert one == other


@pytest.mark.parametrize(
    ("name", "shape"),
    [("sd3", (4, 8, 8)), ("flux", (4, 128, 128)), ("wan", (4, 21, 60, 104)), ("ltx", (4, 21, 16, 22))],
)
def test_shapes_without_being_asked(folders, name, shape):
    own = DiffusersTeacher.load(settings(folders(name), name, resolution=None, num_frames=None))
    assert own.sample_shape == shape


def test_layers_for_adapters_exist(loaded):
    for name in CASES:
        teacher, _ = loaded(name)
        names = {layer.rpartition(".")[2] for layer, _ in teacher.network.named_modules()}
        assert set(teacher.lora_targets) <= names, name


def test_it_is_registered():
    assert teachers.get("diffusers") is DiffusersTeacher


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("sd3", {"resolution": 40}, "multiples of 16"),
        ("sd3", {"resolution": 256}, "at most 128 pixels"),
        ("auraflow", {"resolution": (32, 256)}, "at most 128 pixels"),
        ("flux", {"num_frames": 5}, "makes images"),
        ("wan", {"num_frames": 6}, "multiple of 4"),
        ("ltx", {"num_frames": 13}, "multiple of 8"),
        ("ltx", {"resolution": 48}, "multiples of 32"),
    ],
)
def test_sizes_that_do_not_come_out_even_are_refused(folders, name, changes, word):
    with pytest.raises(TeacherError, match=word):
        DiffusersTeacher.load(settings(folders(name), name, **changes))
