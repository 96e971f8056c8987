"""Every family's exports, opened and called by diffusers alone: the latents of the student that they were made of."""

import inspect
import itertools
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mfd_cli.config.schema import Lora
from mfd_cli.flow import time_grid
from mfd_cli.inference.pipeline_exports import export_pipeline
from mfd_cli.inference.sampler import load_student
from mfd_cli.networks.roles import share_base
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import save_student
from teachers.errors import TeacherError
from teachers.pipelines import plain, saving, usage
from teachers.pipelines.families.images import AuraFlow, QwenImage, ZImage
from teachers.pipelines.families.stock import stock_of
from teachers.pipelines.family import DiffusersSettings, DiffusersTeacher
from teachers.pipelines.saving import Schedule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have any effect"),
]

PROMPTS = ["a red fox", "an old lighthouse on a cliff above the sea"]
RANK, ALPHA = 2, 6.0
#: settings beside those of all; enough tokens for the family's own instruction
CASES = {
    "sd3": {}, "auraflow": {}, "flux": {"guidance": 2.5}, "schnell": {}, "qwen": {"max_sequence_length": 240},
    "lumina2": {"max_sequence_length": 240}, "zimage": {"max_sequence_length": 80}, "wan": {"num_frames": 5},
    "wan_expanded": {"num_frames": 5}, "ltx": {"num_frames": 9, "resolution": (64, 96)},
}  # fmt: skip
VIDEOS = {"wan", "wan_expanded", "ltx"}


@pytest.fixture(scope="module")
def base(folders, tmp_path_factory):
    """`base(name)`: a folder of the family. AuraFlow's tiny network hardly heeds its prompts: it gets more weight."""
    made = {}

    def of(name):
        if name not in made:
            made[name] = folders(name)
            if name == "auraflow":
                made[name] = shutil.copytree(made[name], tmp_path_factory.mktemp("heavy") / name)
                file = made[name] / "transformer/diffusion_pytorch_model.safetensors"
                save_file({key: 5 * value for key, value in load_file(file).items()}, file, {"format": "pt"})
        return made[name]

    return of


@pytest.fixture(scope="module")
def loaded(base):
    """`loaded(name, **settings)`: the family's teacher."""

    def of(name, **changes):
        block = {"type": "diffusers", "model": str(base(name)), "dtype": "fp32", "encoder_dtype": "fp32",
                 "guidance": 1.0, "max_sequence_length": 48, "resolution": (32, 48)}  # fmt: skip
        return DiffusersTeacher.load(DiffusersSettings(**block | CASES[name] | changes))

    return of


def adapter_of(teacher):
    """A LoRA far from zero."""
    generator, found = torch.Generator().manual_seed(1), {}
    for name, module in teacher.network.named_modules():
        if name.rpartition(".")[2] in teacher.lora_targets:
            out, into = module.weight.shape
            found[f"{name}.lora_A.weight"] = torch.randn(RANK, into, generator=generator) * into**-0.5
            found[f"{name}.lora_B.weight"] = torch.randn(out, RANK, generator=generator) * 0.5
    return found


def with_adapter(teacher, adapter):
    """W + (alpha / rank) B A."""
    state = {name: value.float() for name, value in teacher.network.state_dict().items()}
    for name in [name for name in adapter if ".lora_A." in name]:
        change = adapter[name.replace("lora_A", "lora_B")] @ adapter[name]
        target = name.replace(".lora_A.", ".")
        state[target] = state[target] + ALPHA / RANK * change
    return state


def noise(teacher):
    return torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def expected(teacher, weights, schedule, prompts=PROMPTS):
    """Euler steps in float32."""
    network = teacher.build_network()
    network.load_state_dict(weights)
    x, condition = noise(teacher), teacher.encode(prompts)
    for start, end in itertools.pairwise(schedule.grid):
        x = x + (end - start) * teacher.velocity(network, x, torch.full((len(x),), start), condition)
    return x


def drawn(teacher, folder, schedule, *, adapter, **changes):
    """What the fresh process would return, from embeddings and from prompts."""
    job = saving.job(teacher, folder, schedule.steps, PROMPTS, adapter=adapter)
    job["call"] |= changes
    given = saving.inputs(teacher, noise(teacher), teacher.encode(PROMPTS))
    start, pipe = given.pop("latents"), plain.opened(json.loads(json.dumps(job)))
    return [saving.latents(teacher, plain.drawn(pipe, job, start, asked)) for asked in (given, {})]


def gap(found, wanted):
    return float((found - wanted).square().mean().sqrt() / wanted.std())


def schedule_of(steps):
    return Schedule(time_grid(steps, 3.0).tolist())


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_on_the_base_gives_the_student_s_latents(loaded, name, tmp_path):
    teacher, schedule = loaded(name), schedule_of(2)
    adapter, targets = adapter_of(teacher), teacher.lora_targets
    saving.save_adapter(teacher, tmp_path, adapter, schedule, rank=RANK, alpha=ALPHA, targets=targets)
    wanted = expected(teacher, with_adapter(teacher, adapter), schedule)
    for found in drawn(teacher, tmp_path, schedule, adapter=True):
        assert gap(found, wanted) < 1e-6
    # else the agreement would prove nothing
    assert gap(expected(teacher, teacher.network.state_dict(), schedule), wanted) > 1e-3
    assert gap(expected(teacher, with_adapter(teacher, adapter), schedule, PROMPTS[::-1]), wanted) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_a_complete_pipeline_gives_the_student_s_latents(loaded, name, tmp_path):
    """From half precision, so that parts of other types meet: as stored, and embeddings as encoded."""
    teacher, schedule = loaded(name, dtype="bf16", encoder_dtype="bf16"), schedule_of(1)
    weights = {key: value.bfloat16() for key, value in with_adapter(teacher, adapter_of(teacher)).items()}
    saving.save_pipeline(teacher, tmp_path, weights, schedule)
    wanted = expected(teacher, weights, schedule)
    embedded, prompted = drawn(teacher, tmp_path, schedule, adapter=False)
    assert gap(embedded, wanted) < 1e-6 and gap(prompted, wanted) < 0.01


def test_a_base_with_another_scheduler_gets_the_student_s(loaded, base, tmp_path):
    from diffusers import UniPCMultistepScheduler

    wan = shutil.copytree(base("wan"), tmp_path / "base")
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True).save_pretrained(wan / "scheduler")
    index = json.loads((wan / "model_index.json").read_text())
    (wan / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "UniPCMultistepScheduler"]}))
    teacher, schedule = loaded("wan", model=str(wan)), schedule_of(2)
    weights = with_adapter(teacher, adapter_of(teacher))
    saving.save_pipeline(teacher, tmp_path / "out", weights, schedule)
    wanted = expected(teacher, weights, schedule)
    for found in drawn(teacher, tmp_path / "out", schedule, adapter=False):
        assert gap(found, wanted) < 1e-6


def test_guidance_that_is_an_input_is_the_trained_one(loaded, tmp_path):
    teacher, schedule = loaded("flux"), schedule_of(1)
    assert saving.call(teacher, 1)["guidance_scale"] == 2.5
    assert any("`guidance_scale=2.5` is an input" in note for note in usage.notes(teacher, 1, adapter=True))
    assert "    guidance_scale=2.5," in usage.code(teacher, 1, "a fox", adapter=True, dtype="bf16")
    weights = teacher.network.state_dict()
    saving.save_pipeline(teacher, tmp_path, weights, schedule)
    for found in drawn(teacher, tmp_path, schedule, adapter=False, guidance_scale=1.0):
        assert gap(found, expected(teacher, weights, schedule)) > 1e-3
    schnell = loaded("schnell", guidance=4.0)
    assert saving.call(schnell, 1)["guidance_scale"] == 1.0
    assert not any("is an input" in note for note in usage.notes(schnell, 1, adapter=True))


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("sd3", {"guidance_scale": 1.0, "max_sequence_length": 48}),
        ("qwen", {"true_cfg_scale": 1.0, "max_sequence_length": 240}),
        ("zimage", {"guidance_scale": 0.0, "max_sequence_length": 80}),
        ("wan", {"guidance_scale": 1.0, "num_frames": 5, "max_sequence_length": 48}),
    ],
)
def test_what_the_plain_call_is_told(loaded, name, asked):
    size = {"num_inference_steps": 3, "height": 32, "width": 48}
    assert saving.call(loaded(name), 3) == size | asked
    own = {key: value for key, value in asked.items() if key != "max_sequence_length"}
    assert saving.call(loaded(name, max_sequence_length=None), 3) == size | own


def test_the_call_has_every_argument(loaded):
    import diffusers

    for name in CASES:
        teacher = loaded(name)
        known = inspect.signature(getattr(diffusers, teacher.architecture["pipeline"]).__call__).parameters
        given = saving.inputs(teacher, noise(teacher), teacher.encode(PROMPTS))
        names = {*saving.call(teacher, 1), *(key.partition("/")[0] for key in given), "output_type"}
        assert names <= set(known), name
        assert teacher.stock.tokens == known["max_sequence_length"].default


def test_conditions_as_calls_take_them():
    text, mask = torch.arange(12.0).reshape(2, 3, 2), torch.tensor([[1, 1, 0], [1, 1, 1]])
    rows = ZImage().embeddings({"text": text, "text_mask": mask})["prompt_embeds"]
    assert [row.tolist() for row in rows] == [text[0, :2].tolist(), text[1].tolist()]
    assert AuraFlow().embeddings({"text": text})["prompt_attention_mask"].tolist() == [[1, 1, 1]] * 2
    assert set(QwenImage().embeddings({"text": text, "text_mask": mask})) == {"prompt_embeds", "prompt_embeds_mask"}
    items = {f"rows/{index:03d}": index for index in range(12)}
    assert plain.listed({"mask": 0} | items) == {"mask": 0, "rows": list(range(12))}


def test_an_adapter_is_refused_where_diffusers_cannot_load_it(loaded, monkeypatch):
    import diffusers

    teacher = loaded("sd3")
    assert saving.adapter_refusal(teacher) is None
    pipeline = type("StableDiffusion3Pipeline", (), {"save_lora_weights": lambda layers: None})
    monkeypatch.setattr(diffusers, "StableDiffusion3Pipeline", pipeline)
    assert "stores no alpha" in saving.adapter_refusal(teacher)
    monkeypatch.setattr(diffusers, "StableDiffusion3Pipeline", type("StableDiffusion3Pipeline", (), {}))
    assert "has no LoRA loader" in saving.adapter_refusal(teacher)


def test_a_teacher_that_tells_nothing_of_its_call_is_not_supported(loaded):
    teacher = loaded("sd3")
    assert saving.supports(teacher)
    teacher.stock = None
    assert not saving.supports(teacher)
    with pytest.raises(TeacherError, match="give it a StockCall"):
        stock_of(teacher)


@pytest.mark.parametrize("name", CASES)
def test_code_has_one_type_where_parts_may_not_differ(loaded, name):
    teacher = loaded(name, encoder_dtype="bf16")
    code = usage.code(teacher, 1, "a fox", adapter=False, dtype="fp16")
    assert ("types = torch.float16\n" in code) != ('"text_encoder": torch.bfloat16' in code)
    assert ("torch.bfloat16" in code) == teacher.stock.mixes_types
    assert (").frames[0]" in code) == (name in VIDEOS) == ("num_frames=" in code)


def stored(root, teacher):
    """A run folder with a student of two steps."""
    lora = {"rank": RANK, "alpha": ALPHA, "targets": None}
    network = share_base(teacher, Lora(**lora), ["student"]).networks["student"]
    adapter = adapter_of(teacher)
    assert adapter.keys() == network.state_dict().keys()
    config = {
        "teacher": teacher.settings.model_dump(), "architecture": teacher.architecture, "update": 1, "method": "mfd",
        "student": {"steps": 2, "shift": 3.0, "sampler": "euler", "grid": time_grid(2, 3.0).tolist(),
                    "weights": "lora", "lora": lora, "first_time": teacher.first_time},
        "data": {"type": "prompts"}, "identity": teacher.identity(),
        "recipe": {"name": "tiny", "teacher": teacher.settings.model_dump()},
    }  # fmt: skip
    root.mkdir(parents=True)
    run = RunFolder(root)
    run.update_record(status="done")
    save_student(run.student, config, adapter)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_process_without_mfd_agrees_and_the_card_s_code_runs(loaded, base, name, tmp_path):
    """Adapter and complete pipeline in turn, to be half as slow."""
    kind = ("lora", "diffusers")[list(CASES).index(name) % 2]
    done = export_pipeline(load_student(stored(tmp_path / "run", loaded(name))), tmp_path / "out", kind)
    assert re.match(r"latents within (0|\de-\d\d) \(from embeddings", done.check)
    card = done.card.read_text()
    assert (f"text-to-{'video' if name in VIDEOS else 'image'}" in card) and str(tmp_path) not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = "import sys; sys.modules['mfd_cli'] = None\n" + code.replace("path/to/the/base", str(base(name)))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out", check=True, capture_output=True, timeout=120)
    assert (tmp_path / "out" / ("video.webp" if name in VIDEOS else "image.png")).is_file()
