"""Model cards: complete, and silent about the machine that they were written on."""

import pytest
import yaml

from mfd_cli.inference.card import content_of, model_card, pathless, pipeline_card

CONFIG = {
    "teacher": {"type": "gmm"},
    "student": {"steps": 1, "weights": "full"},
    "method": "mfd",
    "update": 10,
    "ema": 0.99,
    "dtype": "bf16",
    "identity": {"mixture": "abc"},
    "recipe": {"name": "toy", "seed": 0, "data": {"path": "/home/somebody/pictures"}},
}
HUB = CONFIG | {
    "teacher": {"type": "sana", "model": "owner/name"},
    "identity": {"model": "owner/name", "revision": "c" * 40},
}
LOCAL = CONFIG | {
    "teacher": {"type": "sana", "model": "/home/somebody/base"},
    "identity": {"network_sha256": "d" * 64},
}
CONTENT = "a" * 64
DIGESTS = {"b.safetensors": "2" * 64, "a.safetensors": "1" * 64}


def card(config, **changes):
    return pipeline_card(config, CONTENT, DIGESTS, "checked", "import torch", **{"adapter": True} | changes)


def front(text):
    return yaml.safe_load(text.split("---")[1])


def test_card_says_what_it_is():
    text = model_card(CONFIG, "toy.safetensors", "f" * 64, "checked")
    for part in ("library_name: mfd", "in 1 step\n", "family `gmm`", "method `mfd`, 10 updates", "mixture: `abc`",
                 "f" * 64, 'load_student("toy.safetensors")', "name: toy", "## Licence"):  # fmt: skip
        assert part in text
    assert "## Figures" not in text and "adapter" not in text


def test_a_file_that_needs_its_base_says_so():
    text = model_card(HUB | {"student": {"steps": 1, "weights": "lora"}}, "x.safetensors", "f" * 64, "checked")
    assert "adapter alone" in text and "owner/name" in text and "c" * 40 in text


def test_a_pipeline_s_card_names_base_files_and_code():
    text = card(HUB, notes=["heed this"], benchmark={"rows": [{"model": "student", "fps": 2.0}]})
    found = front(text)
    assert found["library_name"] == "diffusers" and "lora" in found["tags"]
    assert (found["base_model"], found["base_model_relation"]) == ("owner/name", "adapter")
    assert text.index("1" * 64) < text.index("2" * 64)
    for part in ("Checked after writing, in a process with diffusers alone: checked.", "```python\nimport torch\n```",
                 "- heed this", "## Figures", "weights in bf16"):  # fmt: skip
        assert part in text


def test_a_complete_pipeline_is_no_adapter():
    found = front(card(HUB, adapter=False))
    assert found["base_model_relation"] == "finetune" and "lora" not in found["tags"]
    assert "A complete pipeline" in card(HUB, adapter=False)


def test_a_video_is_tagged_as_one():
    assert front(card(HUB))["pipeline_tag"] == "text-to-image"
    assert front(card(HUB | {"architecture": {"frames": None}}))["pipeline_tag"] == "text-to-image"
    assert front(card(HUB | {"architecture": {"frames": 81}}))["pipeline_tag"] == "text-to-video"


def test_a_local_base_is_named_without_its_path():
    text = card(LOCAL)
    assert "somebody" not in text and "`base`" in text and "base_model" not in front(text)


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        ({}, "State the licence here before publishing."),
        ({"license": "mit"}, "The base's card states `mit`."),
        ({"license": "other", "license_name": "own"}, "The base's card states `own`."),
        ({"license": 'mit x: "y" # z', "license_link": "https://a.b/c"}, 'The base\'s card states `mit x: "y" # z`.'),
        ({"license": "a`b: c"}, "The base's card states `a'b: c`."),
    ],
)
def test_the_licence_is_the_base_s_or_yet_to_be_stated(licence, said):
    text = card(HUB, licence=licence)
    assert said in text
    assert {key: value for key, value in front(text).items() if key.startswith("license")} == licence


def test_content_is_found_again(tmp_path):
    assert content_of(tmp_path) is None
    (tmp_path / "README.md").write_text(card(HUB))
    assert content_of(tmp_path) == CONTENT
    (tmp_path / "README.md").write_text("# mine")
    assert content_of(tmp_path) is None


def test_pathless_cuts_absolute_paths_only():
    found = pathless({"a": ["/x/y.txt", "C:\\u\\z.txt", "~/w"], "b": "runs/toy", "c": 1, "d": "1 / 2", "e": None})
    assert found == {"a": ["y.txt", "z.txt", "w"], "b": "runs/toy", "c": 1, "d": "1 / 2", "e": None}
