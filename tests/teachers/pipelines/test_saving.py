"""What is written for diffusers, opened by diffusers: the same numbers, nothing left out, no paths of the machine."""

import itertools
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from teachers.errors import TeacherError
from teachers.pipelines import plain, saving
from teachers.pipelines.loading import Source
from teachers.pipelines.sana import SanaSettings, SanaTeacher
from teachers.pipelines.saving import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning")

TARGETS = ["to_q", "to_out.0", "ff.conv_point"]
RANK, ALPHA = 2, 6.0
PROMPTS = ["a red fox", "an old lighthouse on a cliff above the sea"]


def loaded(model, **changes):
    block = {"type": "sana", "model": str(model), "dtype": "fp32", "encoder_dtype": "fp32", "resolution": 64}
    return SanaTeacher.load(SanaSettings(**block | changes))


@pytest.fixture(scope="module")
def teacher(tiny_sana):
    return loaded(tiny_sana)


def schedule(steps, shift=1.0, first_time=0.001):
    places = [k / steps for k in range(steps + 1)]
    return Schedule([p / (p + shift * (1 - p)) for p in places], first_time)


@pytest.fixture(scope="module")
def adapter(teacher):
    """A LoRA far from zero on every kind of layer: linear, projection out, 1x1 convolution."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, module in teacher.network.named_modules():
        if any(name.endswith(target) for target in TARGETS):
            out, into = module.weight.shape[:2]
            tail = (1, 1) if module.weight.dim() == 4 else ()
            found[f"{name}.lora_A.weight"] = torch.randn(RANK, into, *tail, generator=generator) * into**-0.5
            found[f"{name}.lora_B.weight"] = torch.randn(out, RANK, *tail, generator=generator) * 0.2
    assert {value.dim() for value in found.values()} == {2, 4}
    return found


@pytest.fixture(scope="module")
def weights(teacher, adapter):
    """W + (alpha / rank) B A, written out."""
    state = dict(teacher.network.state_dict())
    for name in [name for name in adapter if ".lora_A." in name]:
        target = name.replace(".lora_A.", ".")
        up, down = adapter[name.replace("lora_A", "lora_B")], adapter[name]
        state[target] = state[target] + ALPHA / RANK * torch.einsum("or...,ri...->oi...", up, down)
    return state


@torch.no_grad()
def expected(teacher, weights, steps, noise):
    """Euler steps of the network with those weights, from the times of a schedule."""
    network = teacher.build_network()
    network.load_state_dict(weights)
    x, condition, grid = noise, teacher.encode(PROMPTS), steps.grid
    for start, end in itertools.pairwise(grid):
        told = steps.first_time + (1 - steps.first_time) * start
        x = x + (end - start) * teacher.velocity(network, x, torch.full((len(x),), told), condition)
    return x


def noise(teacher):
    return torch.randn(2, *teacher.sample_shape, generator=torch.Generator().manual_seed(2))


def drawn(teacher, folder, steps, *, adapter, embedded=False):
    """What the fresh process would return."""
    job = saving.job(teacher, folder, steps, PROMPTS, adapter=adapter)
    given = saving.inputs(teacher, noise(teacher), teacher.encode(PROMPTS))
    start = given.pop("latents")
    return plain.drawn(plain.opened(json.loads(json.dumps(job))), job, start, given if embedded else {})


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (2, 3.0), (4, 3.0)])
def test_an_adapter_on_the_base_gives_the_student_s_latents(teacher, adapter, weights, tmp_path, steps, shift):
    saving.save_adapter(teacher, tmp_path, adapter, schedule(steps, shift), rank=RANK, alpha=ALPHA, targets=TARGETS)
    assert sorted(file.name for file in tmp_path.iterdir()) == [saving.ADAPTER_FILE, "scheduler"]
    assert set(load_file(tmp_path / saving.ADAPTER_FILE)) == {f"transformer.{name}" for name in adapter}
    want = expected(teacher, weights, schedule(steps, shift), noise(teacher))
    for embedded in (True, False):
        found = drawn(teacher, tmp_path, steps, adapter=True, embedded=embedded)
        assert (found - want).abs().max() < 1e-5 * want.std()
    plain_base = expected(teacher, teacher.network.state_dict(), schedule(steps, shift), noise(teacher))
    assert (plain_base - want).abs().max() > 0.1 * want.std(), "an adapter without effect would prove nothing"


def test_alpha_is_in_the_file(teacher, adapter, weights, tmp_path):
    saving.save_adapter(teacher, tmp_path, adapter, schedule(1), rank=RANK, alpha=ALPHA, targets=TARGETS)
    file = tmp_path / saving.ADAPTER_FILE
    with safe_open(file, framework="pt") as opened:
        (config,) = [json.loads(text) for text in opened.metadata().values() if text.startswith("{")]
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (RANK, ALPHA)
    save_file(load_file(file), file, {"format": "pt"})
    want = expected(teacher, weights, schedule(1), noise(teacher))
    assert (drawn(teacher, tmp_path, 1, adapter=True) - want).abs().max() > 0.1 * want.std()


def test_a_pipeline_is_complete_and_gives_the_student_s_latents(teacher, weights, tiny_sana, tmp_path):
    saving.save_pipeline(teacher, tmp_path, weights, schedule(4, 3.0))
    found = drawn(teacher, tmp_path, 4, adapter=False)
    want = expected(teacher, weights, schedule(4, 3.0), noise(teacher))
    assert (found - want).abs().max() < 1e-5 * want.std()
    files = {file.relative_to(tiny_sana).as_posix(): file for file in tiny_sana.rglob("*") if file.is_file()}
    assert {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()} == set(files)
    network = tiny_sana / "transformer/diffusion_pytorch_model.safetensors"
    for name, file in files.items():
        changed = (tmp_path / name).read_bytes() != file.read_bytes()
        assert changed == (Path(name).name in ("model_index.json", "scheduler_config.json") or file == network), name
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    assert index["_class_name"] == "SanaPipeline"


def test_weights_keep_their_type_and_everybody_may_read_them(teacher, weights, tmp_path):
    saving.save_pipeline(teacher, tmp_path, {name: value.bfloat16() for name, value in weights.items()}, schedule(1))
    file = tmp_path / "transformer/diffusion_pytorch_model.safetensors"
    assert {value.dtype for value in load_file(file).values()} == {torch.bfloat16}
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((tmp_path / "model_index.json").stat().st_mode)


def test_weights_of_another_network_are_refused(teacher, weights, tmp_path):
    with pytest.raises(TeacherError, match="do not fit"):
        saving.save_pipeline(teacher, tmp_path, dict(list(weights.items())[1:]), schedule(1))


def test_files_of_the_variant_in_use_are_copied_under_plain_names(tiny_sana, tmp_path):
    base = shutil.copytree(tiny_sana, tmp_path / "base")
    for file in list(base.rglob("*.safetensors")):
        shutil.copy(file, file.with_name(f"{file.stem}.fp16.safetensors"))
    (base / "vae/diffusion_pytorch_model.safetensors").unlink()
    (base / "text_encoder/model.fp16.safetensors").unlink()  # a part without the variant has plain files
    for other in ("pytorch_model.bin", "model.fp16.bin", "model.int8.safetensors", "model.onnx"):
        (base / "text_encoder" / other).touch()
    teacher = loaded(base, variant="fp16")
    saving.save_pipeline(teacher, tmp_path / "out", teacher.network.state_dict(), schedule(1))
    found = {
        file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.*") if file.is_file()
    }
    assert found == {file.relative_to(tiny_sana).as_posix() for file in tiny_sana.rglob("*") if file.is_file()}


@pytest.mark.parametrize("shard", ["model.fp16-00001-of-00001.safetensors", "model-00001-of-00001.fp16.safetensors"])
def test_shards_of_a_variant_are_found_under_their_new_names(tiny_sana, tmp_path, shard):
    base = shutil.copytree(tiny_sana, tmp_path / "base")
    encoder = base / "text_encoder"
    names = list(load_file(encoder / "model.safetensors"))
    (encoder / "model.safetensors").rename(encoder / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (encoder / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    teacher = loaded(tiny_sana)
    teacher._source = Source(str(base), base, variant="fp16")
    saving.save_pipeline(teacher, tmp_path / "out", teacher.network.state_dict(), schedule(1))
    written = tmp_path / "out/text_encoder"
    assert not [file.name for file in written.iterdir() if "fp16" in file.name]
    from transformers import Gemma2Model

    copied = Gemma2Model.from_pretrained(written).state_dict()
    original = Gemma2Model.from_pretrained(tiny_sana / "text_encoder").state_dict()
    assert all(torch.equal(value, copied[name]) for name, value in original.items())


def test_links_are_followed_and_paths_of_machines_dropped(tiny_sana, tmp_path):
    base = shutil.copytree(tiny_sana, tmp_path / "base")
    (base / "LICENSE.md").write_text("terms")
    (base / "vae/diffusion_pytorch_model.safetensors").rename(tmp_path / "blob")
    (base / "vae/diffusion_pytorch_model.safetensors").symlink_to(tmp_path / "blob")
    config = json.loads((base / "text_encoder/config.json").read_text())
    (base / "text_encoder/config.json").write_text(json.dumps(config | {"_name_or_path": "/home/somebody/gemma"}))
    teacher = loaded(base)
    saving.save_pipeline(teacher, tmp_path / "out", teacher.network.state_dict(), schedule(1))
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_symlink()]
    assert json.loads((tmp_path / "out/text_encoder/config.json").read_text()) == config
    assert (tmp_path / "out/LICENSE.md").read_text() == "terms"


def test_code_of_a_repository_is_not_copied(teacher, tiny_sana, tmp_path):
    base = shutil.copytree(tiny_sana, tmp_path / "base")
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"vae": ["my_vae", "Vae"]}))
    stub = SimpleNamespace(source=Source("base", base), network_part="transformer")
    with pytest.raises(TeacherError, match="code of the repository"):
        list(saving.copied_files(stub))


def test_the_program_cannot_import_mfd():
    text = saving.script().split('if __name__ == "__main__":')[0] + "_forbid_ours()\nimport "
    for name in ("mfd_cli", "teachers.errors", "json"):
        done = subprocess.run([sys.executable, "-c", text + name], capture_output=True, text=True)
        assert (done.returncode != 0) == (name != "json")
        assert ("ModuleNotFoundError" in done.stderr) == (name != "json")
