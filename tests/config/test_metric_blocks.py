"""The list `evaluate.metrics` in recipes: typed settings, strict, with every mistake at its line."""

import pytest

from mfd_cli.config.load import dump, load_recipe
from mfd_cli.config.reference import json_schema
from mfd_cli.config.schema import Evaluate
from mfd_cli.errors import MfdError
from mfd_cli.metrics.clip import ClipScoreSettings

RECIPE = """name: tiny
teacher: {type: gmm}
method: {type: mfd}
train: {updates: 6, batch_size: 16}
data: {type: gmm}
evaluate:
  num: 100
  metrics:
"""


def _recipe(tmp_path, *lines):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + "".join(f"    - {line}\n" for line in lines))
    return str(path)


def _refused(tmp_path, *lines):
    with pytest.raises(MfdError) as caught:
        load_recipe(_recipe(tmp_path, *lines))
    return caught.value.found


def test_every_item_has_the_settings_of_its_type(tmp_path):
    loaded = load_recipe(_recipe(tmp_path, "{type: clip-score, model: weights/clip}", "{type: mmd, bandwidth: 1}"))
    first, second = loaded.recipe.evaluate.metrics
    assert isinstance(first, ClipScoreSettings) and first.model == "weights/clip" and first.label is None
    assert second.bandwidth == 1.0 and second.features == "samples"
    assert loaded.resolved["evaluate"]["metrics"][0] == {
        "type": "clip-score", "label": None, "model": "weights/clip"
    }  # fmt: skip


def test_the_resolved_recipe_loads_to_the_same(tmp_path):
    loaded = load_recipe(_recipe(tmp_path, "{type: hpsv2, model: a.safetensors}"))
    path = tmp_path / "resolved.yaml"
    path.write_text(dump(loaded.resolved))
    assert load_recipe(str(path)).resolved == loaded.resolved


def test_an_override_is_checked_alike(tmp_path):
    loaded = load_recipe("toy", ["evaluate.metrics=[{type: precision-recall, neighbours: 3}]"])
    assert loaded.recipe.evaluate.metrics[0].neighbours == 3
    assert load_recipe("toy").recipe.evaluate.metrics == []
    with pytest.raises(MfdError, match="unknown metric 'precision'"):
        load_recipe("toy", ["evaluate.metrics=[{type: precision}]"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{type: clip-scor}", ["unknown metric 'clip-scor'", "did you mean 'clip-score'?"]),
        ("{type: clip-score, modle: x}", ["modle", "unknown key", "did you mean 'model'?"]),
        ("{type: precision-recall, neighbours: 0}", ["neighbours", "at least 1"]),
        ("{type: mmd, bandwidth: wide}", ["bandwidth", "a number"]),
        ("clip-score", ["a metric is a block with a type", "image-reward"]),
        ("{model: x}", ["a metric is a block with a type"]),
        ("{type: mmd, label: 'a b'}", ["label"]),
    ],
)
def test_a_mistake_is_told_at_its_line(tmp_path, line, words):
    found = _refused(tmp_path, line)
    assert "recipe.yaml:9" in found and all(word in found for word in words), found


def test_a_metric_listed_twice_needs_labels(tmp_path):
    assert "mmd twice" in _refused(tmp_path, "{type: mmd}", "{type: mmd, features: dinov2}")
    load_recipe(_recipe(tmp_path, "{type: mmd}", "{type: mmd, features: dinov2, label: dino}"))


def test_settings_that_are_made_already_are_taken_as_they_are():
    made = ClipScoreSettings(type="clip-score", model="x")
    assert Evaluate(metrics=[made]).metrics == [made]


def test_editors_know_the_settings_of_every_metric():
    definitions = json_schema()["$defs"]
    assert definitions["recipe.Evaluate"]["properties"]["metrics"]["items"] == {"$ref": "#/$defs/evaluate.metrics"}
    assert "clip-score" in definitions["evaluate.metrics"]["properties"]["type"]["enum"]
    assert "tokenizer" in definitions["evaluate.metrics.hpsv2"]["properties"]
