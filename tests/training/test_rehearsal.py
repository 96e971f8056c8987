"""The dry run: what it measures, what it advises, and that it writes nothing."""

from pathlib import Path

import pytest
import torch

from mfd_cli.config.load import load_recipe
from mfd_cli.errors import MfdError, RunStopped
from mfd_cli.training import rehearsal
from mfd_cli.training.rehearsal import duration, rehearse
from mfd_cli.training.run import distill
from mfd_cli.training.savings import savings
from mfd_cli.training.trainer import Trainer
from teachers.pipelines.sana import SanaTeacher
from teachers.prompts.cache import cache_home


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(rehearsal, "_SECONDS", 0.5)


def facts(plan):
    return {row[0]: row[1] for row in plan.facts}


def phases(plan):
    return {phase.name: phase for phase in plan.phases}


def test_evaluations_and_counts_are_those_of_the_run(tiny):
    before = set(Path().rglob("*"))
    plan = rehearse(load_recipe("tiny.yaml"))
    assert set(Path().rglob("*")) == before and "6 student updates of 16 samples" in plan.title
    found = phases(plan)
    # the student's sample and the auxiliary's forward pass; the sample, and 2 solver steps of auxiliary and teacher
    assert (found["auxiliary update"].evaluations, found["student update"].evaluations) == (2, 5)
    assert (found["auxiliary update"].count, found["student update"].count) == (12, 6)
    assert all(phase.seconds > 0 for phase in plan.phases)
    assert len(plan.table()[0]) == 6 and plan.table()[1][4] == "-"


def test_a_prompted_teacher_with_random_weights_needs_no_file_and_no_encoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MFD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(SanaTeacher, "_text_pipeline", lambda self: pytest.fail("a text encoder was loaded"))
    few = ["train.batch_size=2", "data.path=missing.tsv", "log.preview_num=1", "teacher.steps=2"]
    plan = rehearse(load_recipe("sana-tiny", few), random_weights=True)
    shown = facts(plan)
    assert shown["parameters, teacher (frozen)"].startswith("54,344 (")
    # rank 8 on 2 x 2 x 3 square layers of width 32
    assert shown["parameters, student"] == shown["parameters, auxiliary"] == "6,144 (24.6 kB)"
    assert "encode a prompt" not in phases(plan)  # a random encoder's seconds would say nothing
    assert not (tmp_path / "cache" / "embeddings").exists()


def test_a_dry_run_encodes_but_caches_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "embeddings"
    few = ["train.batch_size=2", f"data.cache={cache}", "log.preview_num=1", "teacher.steps=2"]
    asked = []
    original = SanaTeacher.encode_rows
    monkeypatch.setattr(SanaTeacher, "encode_rows", lambda self, texts: asked.extend(texts) or original(self, texts))
    plan = rehearse(load_recipe("sana-tiny", few))
    assert phases(plan)["encode a prompt"].seconds > 0 and 0 < len(asked) < 8
    assert not cache.exists() and not Path("runs").exists()
    assert cache_home().exists()


def test_random_weights_are_for_families_that_have_them(tiny):
    with pytest.raises(MfdError, match="has no random weights"):
        rehearse(load_recipe("tiny.yaml"), random_weights=True)


def test_memory_that_does_not_suffice_names_the_phase_and_what_helps(tiny, monkeypatch):
    def step(self, stop=False):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(MfdError) as caught:
        rehearse(load_recipe("tiny.yaml"))
    assert caught.value.exit_code == 2
    assert "auxiliary update" in caught.value.found and caught.value.do.count("=") >= 3
    with pytest.raises(RunStopped) as stopped:
        distill("tiny.yaml", output="run")
    assert "auxiliary update after 0 student updates" in stopped.value.found
    assert "train.accumulation=16" in stopped.value.do


def test_only_what_is_not_used_yet_is_advised(tiny):
    plain = " ".join(savings(load_recipe("tiny.yaml").recipe))
    assert "student.weights=lora" in plain and "train.accumulation=16" in plain and "resolution" not in plain
    frugal = load_recipe(
        "sana-tiny", ["train.accumulation=16", "train.checkpointing=true", "teacher.dtype=bf16", "train.ema=null",
                      "train.precision=bf16", "optim.student.type=adamw8bit"],
    )  # fmt: skip
    assert savings(frugal.recipe) == ["teacher.resolution: half the side is a quarter of the activations"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "0.012 s"), (59, "59 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (100000, "1 d 3 h")],
)
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text
