from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mfd_cli.config import bundled
from mfd_cli.config.load import difference, dump, load_any, load_recipe, load_teacher_recipe
from mfd_cli.errors import MfdError


def refusal(reference: str | Path, *overrides: str) -> str:
    with pytest.raises(MfdError) as caught:
        load_recipe(str(reference), overrides)
    assert caught.value.exit_code == 2
    return caught.value.found


def test_a_recipe_is_complete_typed_and_knows_where_its_keys_stand(recipe: Path) -> None:
    loaded = load_recipe("demo.yaml")
    assert loaded.recipe.method.solver.step_size == 0.01
    assert loaded.recipe.optim.student.betas == (0.9, 0.999)
    assert loaded.resolved["optim"]["aux"]["betas"] == [0.9, 0.999]
    assert list(loaded.resolved)[:4] == ["name", "seed", "teacher", "student"]
    assert loaded.positions["method.solver.step_size"] == "demo.yaml:6"
    assert (loaded.source, loaded.notes, loaded.kind) == ("demo.yaml", [], "distill")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: demo", "name: demo\nsede: 3", "demo.yaml:3: sede: unknown key; allowed: name, seed"),
        ("  updates: 12", "  update: 12", "demo.yaml:9: train.update: unknown key"),
        (
            "step_size: 1e-2",
            "stepsize: 1e-2",
            "demo.yaml:6: method.solver.stepsize: unknown key; allowed: type, step_size",
        ),
        (
            "depth: 3",
            "layers: [{typ: heun}]",
            "demo.yaml:3: teacher.layers[0].typ: unknown key; allowed: type, step_size",
        ),
        ("name: demo", "name: demo\noptim: {aux: {rl: 1}}", "demo.yaml:3: optim.aux.rl: unknown key"),
    ],
)
def test_an_unknown_key_is_refused_at_every_depth_with_the_nearest(
    recipe: Path, old: str, new: str, expected: str
) -> None:
    recipe.write_text(recipe.read_text().replace(old, new))
    line = next(line for line in refusal(recipe).splitlines() if "unknown key" in line)
    assert line.strip().startswith(expected)
    assert "did you mean" in line or "rl" in line


def test_all_mistakes_are_reported_at_once_with_their_lines(recipe: Path) -> None:
    recipe.write_text("""name: demo
teacher: {type: fine, depth: "3"}
student: {steps: 0, weights: ful}
method: {type: pear, aux_updates: 010}
optim:
  student: {lr: on, betas: [0.9, 1.5]}
train: {updates: 10, batch_size: 9, accumulation: 2}
data: {type: none}
data: {type: none}
stduent: 1
""")
    found = refusal(recipe)
    for expected in (
        "9 mistakes in demo.yaml",
        'demo.yaml:2: teacher.depth: is "3"; allowed: a whole number',
        "demo.yaml:3: student.steps: is 0; allowed: at least 1",
        "demo.yaml:3: student.weights: is \"ful\"; allowed: 'full' or 'lora'; did you mean 'full'?",
        "demo.yaml:4: method.type: unknown method 'pear'; registered: ayf, cd, diff-instruct, dmd2, meanflow, mfd, "
        "pair, point, senseflow; did you",
        "demo.yaml:4: method.aux_updates: 010 has leading zeros",
        'demo.yaml:6: optim.student.lr: is "on"; allowed: a number',
        "demo.yaml:7: train: batch_size 9 is not divisible by accumulation 2",
        "demo.yaml:9: data: written twice, first in line 8",
        "demo.yaml:10: stduent: unknown key",
    ):
        assert expected in found
    lines = [int(line.split(":")[1]) for line in found.splitlines()[1:]]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: demo", "name: 3", "name: is 3; allowed: text (quote a number"),
        ("name: demo", "name: latest", "name: a name has at most 100 characters and is not 'latest'"),
        ("name: demo", "name: a/b", "name: a name is letters"),
        ("  updates: 12", "  updates: 12.0", "train.updates: is 12.0; allowed: a whole number"),
        ("  updates: 12", "  updates: true", "train.updates: is true; allowed: a whole number"),
        ("  updates: 12", "  updates:", "train.updates: is null; allowed: a whole number"),
        ("  updates: 12\n", "", "demo.yaml:8: train.updates: is missing: Student updates"),
        ("depth: 3", "range: [1]", "teacher.range[1]: is missing"),
        ("depth: 3", "range: [1, 2, 3]", "teacher.range: is [1, 2, 3]; allowed: at most 2 items"),
        (
            "depth: 3",
            "mode: atuo",
            "teacher.mode: is \"atuo\"; allowed: a whole number or 'auto'; did you mean 'auto'?",
        ),
        (
            "data: {type: none}",
            "data: 3",
            "demo.yaml:11: data: is no block of keys; allowed: data: {type: ...} with one of",
        ),
        (
            "data: {type: none}",
            "data: {}",
            "demo.yaml:11: data.type: is missing; allowed: data: {type: ...} with one of",
        ),
        ("data: {type: none}\n", "", "demo.yaml:1: data: is missing; allowed: data: {type: ...} with one of"),
        ("type: fine", "type: 3", "teacher.type: is 3; allowed: teacher: {type: ...} with one of"),
        ("type: fine", "type: lax", "teacher.type: the Settings of teacher 'lax' let unknown keys pass"),
    ],
)
def test_a_wrong_value_is_refused_alone_with_what_is_allowed(recipe: Path, old: str, new: str, expected: str) -> None:
    recipe.write_text(recipe.read_text().replace(old, new))
    found = refusal(recipe)
    assert expected in found
    assert found.startswith("one mistake")


def test_a_tag_is_refused_and_never_run(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("name: demo", "name: !!python/object/apply:os.mkdir [made]"))
    assert "demo.yaml:2: the tag '!!python/object/apply:os.mkdir'" in refusal(recipe)
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"#" * 1_000_001, "larger than 1 MB"),
        (b"name: \0", "binary"),
        (b"a: 1\nname: \xff", "demo.yaml:2: not UTF-8"),
        (b"", "empty"),
        (b"# only this\n", "empty"),
        (b"- a\n", "demo.yaml:1: a recipe is a block"),
        (b"text", "a recipe is a block"),
        (b"a: [", "not YAML"),
    ],
)
def test_what_is_no_recipe_is_refused(recipe: Path, content: bytes, words: str) -> None:
    recipe.write_bytes(content)
    assert words in refusal(recipe)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.data())
def test_whatever_stands_in_the_file_is_read_or_refused(recipe: Path, data: st.DataObject) -> None:
    text = Path("original.yaml").read_text() if Path("original.yaml").exists() else recipe.read_text()
    Path("original.yaml").write_text(text)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 12)))
    snippets = st.sampled_from(
        ["{", "}", "[", "]", ":", " ", "\n", "- ", "? ", "<<", "&a ", "*a", "!!x ", "null", "1e-4", '"', "|", "%"]
    )
    inserted = "".join(data.draw(st.lists(snippets | st.text(max_size=3), max_size=4)))
    recipe.write_bytes((text[:start] + inserted + text[end:]).encode("utf-8", "surrogatepass"))
    try:
        loaded = load_any("demo.yaml")
    except MfdError as refused:
        assert "demo.yaml" in refused.found
    else:
        Path("again.yaml").write_text(dump(loaded.resolved), "utf-8")
        assert load_any("again.yaml").resolved == loaded.resolved


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_without_waiting_for_it(recipe: Path) -> None:
    os.mkfifo("pipe.yaml")
    assert "no regular file" in refusal("pipe.yaml")


def test_an_override_passes_the_same_schema(recipe: Path) -> None:
    loaded = load_recipe(
        "demo.yaml",
        ["optim.student.lr=2e-5", "optim.student.betas=[0.5, 0.9]", "teacher.text=a=b: c".replace(": ", ":")],
    )
    assert loaded.recipe.optim.student.lr == 2e-5
    assert loaded.recipe.optim.student.betas == (0.5, 0.9)
    assert loaded.recipe.teacher.text == "a=b:c"
    assert loaded.positions["optim.student.lr"] == "--set optim.student.lr=2e-5"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.udpates=3", "--set train.udpates=3: train.udpates: unknown key"),
        ("trian.updates=3", "--set trian.updates=3: trian: unknown key"),
        ("a.b.c=3", "--set a.b.c=3: a: unknown key"),
        ("train.updates=0", "--set train.updates=0: train.updates: is 0; allowed: at least 1"),
        ("train.updates=010", "--set train.updates=010: train.updates: 010 has leading zeros"),
        ("train.updates=!!int 3", "train.updates: the tag '!!int'"),
        ("train.updates.x=3", "'train.updates' is no block of keys"),
        ("train.updates", "not of the form key.path=value"),
        ("=3", "not of the form key.path=value"),
        ("train..updates=3", "not of the form key.path=value"),
        ("train.updates=", "has no value"),
        ("train.updates=[", "not YAML"),
        ('data.path="a\\0b"', "NUL"),
        ("train.updates=#3", "is null; allowed: a whole number"),
        ("method.type=pont", "unknown method 'pont'"),
    ],
)
def test_a_wrong_override_is_refused_at_its_own_place(recipe: Path, override: str, expected: str) -> None:
    found = refusal(recipe, override)
    assert expected in found
    assert f"--set {override}" in found
    assert found.startswith("one mistake")


def test_one_key_is_not_set_twice(recipe: Path) -> None:
    assert "replaces an earlier --set" in refusal(recipe, "seed=1", "seed=2")
    assert "replaces an earlier --set" in refusal(recipe, "train.updates=1", "train={updates: 1, batch_size: 1}")
    assert load_recipe("demo.yaml", ["train={updates: 1, batch_size: 1}", "train.updates=2"]).recipe.train.updates == 2


def test_an_override_mends_a_value_the_file_has_wrong(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("updates: 12", "updates: 12:30"))
    assert load_recipe("demo.yaml", ["train.updates=3"]).recipe.train.updates == 3


def test_another_type_by_override_drops_the_keys_it_does_not_know_and_says_so(recipe: Path) -> None:
    loaded = load_recipe("demo.yaml", ["method.type=point"])
    assert loaded.recipe.method.model_dump() == {"type": "point", "aux_updates": 4}
    assert loaded.notes == ["method.solver (demo.yaml:6) is left out: method type 'point' has no such key"]
    assert not any(key.startswith("method.solver") for key in loaded.positions)


def test_another_type_drops_keys_that_mean_something_else_there() -> None:
    loaded = load_recipe("toy", ["method.type=diff-instruct"])
    assert loaded.recipe.method.times.type == "uniform" and loaded.recipe.method.aux_updates == 3
    assert not any(key.startswith("method.times") for key in loaded.positions)
    assert any("method.times (" in note and "means something else by it" in note for note in loaded.notes)


def test_another_type_by_override_keeps_what_was_set_by_hand(recipe: Path) -> None:
    found = refusal(recipe, "method.type=point", "method.solver={type: euler}")
    assert "method.solver: unknown key; allowed: type, aux_updates" in found


def test_without_an_override_of_the_type_nothing_is_dropped(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("type: pair", "type: point"))
    assert "method.solver: unknown key" in refusal(recipe)


def test_the_dump_of_a_recipe_loads_to_the_same_recipe(recipe: Path) -> None:
    loaded = load_recipe("demo.yaml", ["teacher.text=' 1e-4'", "optim.aux.eps=1e-12"])
    Path("again.yaml").write_text(dump(loaded.resolved))
    again = load_recipe("again.yaml")
    assert again.resolved == loaded.resolved
    assert again.recipe.model_dump() == loaded.recipe.model_dump()
    assert yaml.safe_load(dump(loaded.resolved))["optim"]["aux"]["eps"] == 1e-12, (
        "readers of YAML 1.1 see the number too"
    )


def test_difference_names_each_key_that_differs() -> None:
    old = {"train": {"updates": 10, "ema": None}, "name": "a", "betas": [1, 2]}
    new = {"train": {"updates": 20, "ema": None}, "betas": [1, 3], "seed": 0}
    assert difference(old, new) == [
        "train.updates: 10 -> 20", 'name: "a" -> (not set)', "betas: [1, 2] -> [1, 3]", "seed: (not set) -> 0",
    ]  # fmt: skip
    assert difference(old, old) == []


def test_a_bundled_recipe_is_found_by_name(recipe: Path, bundle: Path) -> None:
    loaded = load_recipe("small")
    assert loaded.source == "bundled small.yaml"
    assert load_teacher_recipe("teachers/small").recipe.network.model_dump() == {"width": 8, "scale": 1e-4}


def test_a_file_wins_only_if_it_looks_like_one(recipe: Path, bundle: Path) -> None:
    Path("small.yaml").write_text(recipe.read_text().replace("demo", "mine"))
    Path("plain").write_text(recipe.read_text().replace("demo", "plain"))
    Path("teachers").mkdir()
    Path("teachers/small").mkdir()
    assert load_recipe("small.yaml").recipe.name == "mine"
    bundled_one = load_recipe("small")
    assert bundled_one.recipe.name == "demo"
    assert "./small.yaml" in bundled_one.notes[0]
    assert load_recipe("plain").recipe.name == "plain"
    assert load_teacher_recipe("teachers/small").source == "bundled teachers/small.yaml"


@pytest.mark.parametrize(
    ("reference", "do"),
    [("smal", "did you mean 'small'?"), ("recipes/small.yaml", "did you mean 'small'?"), ("zzz", "mfd recipes list"),
     ("x" * 5000, "mfd recipes list"), ("../small\0.yaml", "did you mean 'small'?")],
)  # fmt: skip
def test_a_recipe_that_does_not_exist_names_those_that_do(recipe: Path, bundle: Path, reference: str, do: str) -> None:
    with pytest.raises(MfdError) as caught:
        load_recipe(reference)
    assert caught.value.do == do
    assert "small, teachers/small" in str(caught.value.allowed)


def test_an_absolute_path_is_not_shown(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "far.yaml"
    elsewhere.write_text(recipe.read_text())
    assert load_recipe(str(elsewhere)).source == "far.yaml"
    assert load_recipe(str(recipe.resolve())).source == "demo.yaml"


def test_the_other_kind_of_recipe_is_named_as_such(recipe: Path, bundle: Path) -> None:
    with pytest.raises(MfdError) as caught:
        load_recipe("teachers/small")
    assert caught.value.do == "mfd teachers train teachers/small"
    with pytest.raises(MfdError) as caught:
        load_teacher_recipe("demo.yaml")
    assert caught.value.do == "mfd distill demo.yaml"
    assert [load_any(name).kind for name in ("small", "teachers/small")] == ["distill", "teacher"]


def test_a_teacher_recipe_is_checked_as_strictly(recipe: Path, bundle: Path) -> None:
    recipe.write_text((bundle / "teachers" / "small.yaml").read_text().replace("batch_size", "batchsize"))
    with pytest.raises(MfdError, match=r"demo.yaml:5: train.batchsize: unknown key; .* did you mean 'batch_size'"):
        load_teacher_recipe("demo.yaml")


def _shipped() -> list[str]:
    try:
        return list(bundled.recipes())
    except MfdError:
        return []


@pytest.mark.parametrize("name", _shipped())
def test_every_bundled_recipe_loads_and_its_dump_loads_to_the_same(name: str, tmp_path: Path) -> None:
    loaded = load_any(name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump(loaded.resolved), "utf-8")
    assert load_any(str(copy)).resolved == loaded.resolved
    assert bundled.description(bundled.recipes()[name].read_text("utf-8")), "the first comment line says what it does"
