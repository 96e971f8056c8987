"""Runs with a text-conditioned teacher: what the published script gets wrong, and the whole path on the tiny SANA."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from mfd_cli.config.load import load_recipe
from mfd_cli.errors import Interrupted, MfdError
from mfd_cli.inference.sampler import load_student, load_teacher
from mfd_cli.metrics import frechet
from mfd_cli.store.student import read_student
from mfd_cli.store.tensors import read_tensors
from mfd_cli.training import run as story
from mfd_cli.training.batches import Batches
from mfd_cli.training.reporting import Reporter
from mfd_cli.training.run import distill
from mfd_cli.training.workshop import build
from teachers.pipelines.sana import SanaTeacher

FEW = ["train.updates=2", "train.batch_size=4", "method.aux_updates=2", "log.checkpoint_every=0", "log.every=1",
       "log.preview_num=2", "teacher.steps=2"]  # fmt: skip


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(output="run", settings=(), **more):
    return distill("sana-tiny", output=output, overrides=[*FEW, *settings], **more)


class Preparing(Reporter):
    def __init__(self):
        self.items, self.done = None, []

    def preparing(self, title, items, done):
        self.items = items

    def stepped(self, update, inside):
        self.done.append(update)


def test_the_loop_runs_no_encoder_and_no_decoder(monkeypatch):
    workshop = build(load_recipe("sana-tiny", FEW), "cpu")
    workshop.data.prepare(lambda done, total: None)
    monkeypatch.setattr(SanaTeacher, "encode_rows", lambda *given: pytest.fail("the text encoder was asked"))
    monkeypatch.setattr(SanaTeacher, "decode", lambda *given: pytest.fail("the decoder was asked"))
    assert workshop.teacher._encoder is None
    trainer = workshop.trainer()
    for _ in range(2 * trainer.schedule.cycle):
        trainer.step()
    workshop.teacher.encode(workshop.teacher.examples(8))  # previews need none either


def test_prompts_are_encoded_once_for_all_runs(monkeypatch):
    run("first")
    monkeypatch.setattr(SanaTeacher, "encode_rows", lambda *given: pytest.fail("the text encoder was asked"))
    told = Preparing()
    run("second", reporter=told)
    assert told.items == 64 and told.done[0] == 64


def test_a_signal_while_prompts_are_encoded_ends_at_once_and_keeps_what_was_done(tmp_path, monkeypatch):
    texts = tmp_path / "many.txt"
    texts.write_text("\n".join(f"picture number {index}" for index in range(600)))
    settings = [f"data.path={texts}", f"data.cache={tmp_path / 'embeddings'}"]
    original, asked = SanaTeacher.encode_rows, []

    def until(count):
        def encode_rows(self, prompts):
            asked.extend(prompts)
            if len(asked) > count:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, prompts)

        return encode_rows

    monkeypatch.setattr(SanaTeacher, "encode_rows", until(300))
    with pytest.raises(Interrupted, match="while preparing") as caught:
        run("run", settings)
    assert caught.value.exit_code == 143 and not (tmp_path / "run").exists()
    monkeypatch.setattr(SanaTeacher, "encode_rows", until(10_000))
    asked.clear()
    assert run("run", settings).student.is_dir()
    assert len(asked) == 600 - 256  # a whole shard was there


def test_another_instruction_setting_has_other_embeddings(monkeypatch):
    run("first")
    asked = []
    original = SanaTeacher.encode_rows
    monkeypatch.setattr(SanaTeacher, "encode_rows", lambda self, texts: asked.extend(texts) or original(self, texts))
    run("second", ["teacher.instruction=false"])
    assert len(asked) > 64


def test_the_instruction_setting_of_training_is_that_of_previews_sampling_and_export():
    for wanted in (True, False):
        folder = run(f"run-{wanted}", [f"teacher.instruction={str(wanted).lower()}"])
        assert read_student(folder.root).config["teacher"]["instruction"] is wanted
        for sampler in (load_student(folder.root), load_teacher(folder.root)):
            assert sampler.teacher.encoding()["instruction"] == str(wanted).lower()
    one, other = (load_student(f"run-{wanted}").teacher.encode(["a fox"])["text"] for wanted in (True, False))
    assert not torch.allclose(one[0, -1], other[0, -1], atol=1e-3)


def test_processes_draw_noise_and_times_of_their_own():
    data = build(load_recipe("sana-tiny", FEW), "cpu").data
    streams = [Batches(data, 0, 8, 1, process, 4, torch.device("cpu")).stream(3, 0) for process in range(4)]
    for purpose, shape in (("z", (8, 2, 2)), ("x0", (8, 2, 2)), ("s", ()), ("t", ())):
        drawn = torch.cat([stream.normal(purpose, shape) if shape else stream.uniform(purpose) for stream in streams])
        assert len(drawn.flatten(1).unique(dim=0) if shape else drawn.unique()) == 8


def test_both_roles_and_their_optimizers_are_resumed_bit_for_bit(monkeypatch):
    whole = run("whole")
    original = story.Trainer.run

    def stopped(trainer, at_border, stop):
        original(trainer, at_border, lambda: trainer.progress.step >= 3)

    with monkeypatch.context() as patch:
        patch.setattr(story.Trainer, "run", stopped)
        with pytest.raises(Interrupted):
            run("cut")
    cut = run("cut", resume=True)
    (one,), (other,) = (list(folder.checkpoints.glob("update-000002")) for folder in (whole, cut))
    for part in ("student", "aux", "ema", "optim"):
        assert (one / f"{part}.safetensors").read_bytes() == (other / f"{part}.safetensors").read_bytes(), part
    first, second = (json.loads(folder.metrics.read_text().splitlines()[-1]) for folder in (whole, cut))
    assert first["loss"] == second["loss"] and first["aux_loss"] == second["aux_loss"]


@pytest.mark.parametrize(
    "changes",
    [["student.weights=full", "student.lora=null"], ["student.steps=3", "student.shift=3"],
     ["student.steps=3", "student.gradient=one-step"], ["train.accumulation=2", "train.checkpointing=true"],
     ["teacher.dtype=bf16", "train.precision=bf16"], ["train.ema=null"]],
)  # fmt: skip
def test_every_way_to_train_ends_in_a_student_that_samples(changes):
    folder = run(settings=changes)
    student = load_student(folder.root)
    images = student.sample(3, asked=["a fox", "a boat", "a fox"], seed=1)
    assert images.shape == (3, 3, 64, 64) and images.isfinite().all()
    record = json.loads(folder.record.read_text())
    per_sample = student.steps
    # two auxiliary updates (N steps and one forward pass each) and one student update (N steps and the integrations)
    assert record["evaluations"]["student"] == 2 * 4 * (3 * per_sample)
    if changes == ["teacher.dtype=bf16", "train.precision=bf16"]:
        assert {value.dtype for value in student.network.parameters()} == {torch.float32}


def test_an_adapter_on_other_weights_is_refused(tiny_sana, monkeypatch):
    folder = run()
    monkeypatch.setattr(SanaTeacher, "identity", lambda self: {"network_sha256": "other"})
    with pytest.raises(MfdError, match="not those that this adapter was trained on"):
        load_student(folder.root)


def test_prompts_for_a_teacher_without_text_are_refused():
    with pytest.raises(MfdError, match="asked with text"):
        build(load_recipe("digits", ["data.type=prompts"]), "cpu")


def test_lora_without_named_layers_is_refused():
    with pytest.raises(MfdError, match=r"student\.lora\.targets"):
        build(load_recipe("digits", ["student.weights=lora"]), "cpu")


@pytest.mark.slow
def test_the_shipped_recipe_brings_the_student_close_to_its_teacher():
    folder = distill("sana-tiny", output="run")
    student, teacher = load_student(folder.root), load_teacher(folder.root)
    texts = [f"a {colour} {thing}" for colour in ("red", "pale", "dark") for thing in ("fox", "boat", "tree", "house")]

    def latents(sampler, steps, seed, guidance=None):
        condition = sampler.teacher.encode(texts * 40)
        noise = sampler.noise(len(texts) * 40, seed=seed)
        return sampler.generate(noise, condition, steps=steps, guidance=guidance).flatten(1)

    def distance(rows):
        wanted = frechet.moments(latents(teacher, 20, 1))
        return float(frechet.frechet_between(frechet.moments(rows), wanted, frechet.symmetric_root(wanted.covariance)))

    one_step, twenty, own = latents(teacher, 1, 0), latents(teacher, 20, 0), latents(student, 1, 0)
    assert distance(own) < 0.3 * distance(one_step)
    assert distance(twenty) < 0.1 * distance(one_step)  # the measure can tell them apart


@pytest.mark.slow
def test_two_processes_train_the_same_student_as_one(start):
    settings = [part for item in FEW for part in ("--set", item)]
    for processes, output in ((1, "one"), (2, "two")):
        process = start(
            "distill", "sana-tiny", "-o", output, "--device", "cpu", "--processes", str(processes), *settings
        )
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    one, two = (read_tensors(Path(output) / "student" / "model.safetensors") for output in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)
    assert any(value.any() for name, value in two.items() if "lora_B" in name)
