"""Prompts, pictures and scores from recipe to report, on the smallest SANA and the smallest CLIP."""

import json
from pathlib import Path

import pytest
import torch

from mfd_cli.commands.benchmark import benchmark
from mfd_cli.errors import MfdError
from mfd_cli.inference.sampler import load_data, load_student
from mfd_cli.metrics.clip import ClipScore, ClipScoreSettings
from mfd_cli.metrics.contract import Against, Batch
from mfd_cli.store.layout import RunFolder
from mfd_cli.training.run import distill

FEW = ["train.updates=2", "train.batch_size=4", "method.aux_updates=1", "log.checkpoint_every=0", "log.preview_num=2",
       "teacher.steps=2", "evaluate.num=6", "evaluate.batch_size=4"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_clip):
    folder = tmp_path_factory.mktemp("runs") / "run"
    texts = folder.with_name("texts.txt")
    texts.write_text("\n".join(f"picture number {index}" for index in range(6)))
    settings = [f"data.path={texts}", f"evaluate.metrics=[{{type: clip-score, model: {tiny_clip}}}]"]
    return distill("sana-tiny", output=str(folder), overrides=[*FEW, *settings]).root


def test_the_closing_check_scores_the_pictures_of_student_and_teacher(run):
    found = json.loads(RunFolder(run).report.read_text())
    assert found["notes"] == [] and found["num"] == 6
    assert [row["metrics"].keys() for row in found["rows"]] == 3 * [{"clip_score"}]


def test_the_benchmark_takes_the_recipes_metrics(run, tiny_clip, capsys):
    found = benchmark(str(run), quality=True, json_target="-")
    assert json.loads(capsys.readouterr().out) == found
    assert [row["metrics"].keys() for row in found["rows"]] == 3 * [{"clip_score"}]
    assert all(row["standard_errors"]["clip_score"] > 0 for row in found["rows"])
    assert found["num"] == 6 and found["reference_num"] is None and found["better"] == {"clip_score": "more"}
    assert found["metric_details"]["clip_score"]["model"] == str(tiny_clip)
    entry = found["rows"][-1]["differences"]["clip_score"]
    assert entry["value"] == pytest.approx(
        found["rows"][-1]["metrics"]["clip_score"] - found["rows"][1]["metrics"]["clip_score"]
    )


def test_the_score_is_that_of_the_pictures_and_their_own_prompts(run, tiny_clip):
    found = benchmark(str(run), quality=True)["rows"][-1]["metrics"]["clip_score"]
    student = load_student(run)
    data = load_data(student.config, student.teacher)
    from mfd_cli.inference.generation import items_of

    items = items_of(data, 0, 0, 6)
    texts = data.texts(items)
    pictures = student.sample(6, seed=0, asked=texts)
    metric = ClipScore(ClipScoreSettings(type="clip-score", model=str(tiny_clip)))
    with torch.inference_mode():
        metric.prepare(Against(data, 6, 0))
        own = metric.rows(Batch(pictures, items, None, texts)).mean().item()
        other = metric.rows(Batch(pictures, items, None, texts[1:] + texts[:1])).mean().item()
    assert found == pytest.approx(own, rel=3e-6) and found != pytest.approx(other, rel=3e-6)


def test_one_command_holds_the_student_against_its_teacher(run, tiny_clip, capsys):
    flag = f"{{type: cmmd, model: {tiny_clip}, reference: teacher}}"
    found = benchmark(str(run), quality=True, metrics=[flag], json_target="-")
    assert json.loads(capsys.readouterr().out) == found
    assert all(row["standard_errors"]["cmmd_teacher"] > 0 for row in found["rows"])
    assert found["better"]["cmmd_teacher"] == "less"
    details = found["metric_details"]["cmmd_teacher"]
    assert (details["type"], details["reference"], details["reference_num"]) == ("cmmd", "teacher", 6)


def test_a_flag_names_metrics_as_a_recipe_does(run, tiny_clip, capsys):
    block = f"{{type: clip-score, label: again, model: {tiny_clip}}}"
    found = benchmark(str(run), quality=True, num=4, metrics=[f"clip-score={tiny_clip}", block])
    assert list(found["rows"][0]["metrics"]) == ["clip_score", "clip_score_again"]
    assert found["rows"][0]["metrics"]["clip_score"] == found["rows"][0]["metrics"]["clip_score_again"]
    out = capsys.readouterr().out
    assert f"clip_score, clip_score_again: by {tiny_clip}" in out and "4 samples" in out and "against" not in out


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("clip-scor", "unknown metric 'clip-scor'"),
        ("clip-score=", "--metric clip-score="),
        ("=x", "--metric =x"),
        ("{type: clip-score, modle: x}", "unknown key"),
        ("{type: [", "--metric"),
        ("clip-score=./nowhere", "no such folder"),
        ("hpsv2=weights.pt", "is a pickle"),
        ("mmd", "mmd needs real samples"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_sampled(run, flag, message, monkeypatch):
    from mfd_cli.inference.sampler import Sampler

    monkeypatch.setattr(Sampler, "generate", lambda *given, **options: pytest.fail("sampled"))
    with pytest.raises(MfdError) as caught:
        benchmark(str(run), quality=True, metrics=[flag])
    assert message in caught.value.found


def test_flags_of_one_type_need_labels(run, tiny_clip):
    with pytest.raises(MfdError, match="clip-score twice"):
        benchmark(str(run), metrics=2 * [f"clip-score={tiny_clip}"])


def test_a_metric_is_measured_beside_speed(run, tiny_clip):
    found = benchmark(str(run), fps=True, num=4, metrics=[f"clip-score={tiny_clip}"])
    assert found["rows"][0]["fps"] > 0 and "clip_score" in found["rows"][0]["metrics"]


def test_a_recipe_whose_metric_has_no_weights_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = "evaluate.metrics=[{type: clip-score, model: ./nowhere}]"
    with pytest.raises(MfdError, match=r"\./nowhere: no such folder"):
        distill("sana-tiny", output="run", overrides=[*FEW, listed])
    assert not Path("run").exists()
