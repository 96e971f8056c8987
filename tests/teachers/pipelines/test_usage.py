"""What cards tell of exports: code and notes that fit the student, the base's licence, no paths of the machine."""

import pytest

from teachers.pipelines import saving, usage
from teachers.pipelines.loading import Source
from teachers.pipelines.sana import SanaSettings, SanaTeacher

pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning")


def loaded(model, **changes):
    block = {"type": "sana", "model": str(model), "dtype": "fp32", "encoder_dtype": "fp32", "resolution": 64}
    return SanaTeacher.load(SanaSettings(**block | changes))


@pytest.fixture(scope="module")
def teacher(tiny_sana):
    return loaded(tiny_sana)


def test_the_call_reads_prompts_as_the_student_did(tiny_sana, teacher):
    assert "complex_human_instruction" not in saving.call(teacher, 2)
    assert saving.call(teacher, 2)["num_inference_steps"] == 2 and saving.call(teacher, 2)["guidance_scale"] == 1.0
    bare = loaded(tiny_sana, instruction=False, max_sequence_length=77)
    asked = saving.call(bare, 1)
    assert asked["complex_human_instruction"] is None and asked["max_sequence_length"] == 77
    assert any("complex_human_instruction=None" in note for note in usage.notes(bare, 1, adapter=True))
    assert "complex_human_instruction=None" in usage.code(bare, 1, "a fox", adapter=True, dtype="fp32")


def test_the_code_names_the_base_as_others_find_it(teacher, tiny_sana):
    code = usage.code(teacher, 1, "a fox", adapter=True, dtype="bf16")
    assert str(tiny_sana) not in code and '"path/to/the/base"' in code and "torch.bfloat16" in code
    hub = loaded(tiny_sana)
    hub._source = Source("owner/name", tiny_sana, commit="c" * 40, variant="fp16")
    code = usage.code(hub, 1, "a fox", adapter=True, dtype="bf16")
    assert f'from_pretrained("owner/name", revision="{"c" * 40}", variant="fp16", torch_dtype=types)' in code
    assert "owner/name" not in usage.code(hub, 1, "a fox", adapter=False, dtype="bf16")


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# Base", {"license": "mit"}),
        ("---\nlicense: other\nlicense_name: own\n---\n", {"license": "other", "license_name": "own"}),
        ("---\ntags: [a]\n---\nlicense: no\n", {}), ("---\nlicense: [\n---\n", {}), ("# Base\nlicense: mit", {}),
        (None, {}),
        ('---\nlicense: "mit\\nx: y\\e[31m\\u202e"\n---\n', {"license": "mit x: y[31m"}),
        ('---\nlicense: "\\e"\n---\n', {}),
    ],
)  # fmt: skip
def test_the_licence_is_what_the_base_s_card_states(tmp_path, card, found):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert usage.licence(Source("base", tmp_path)) == found
