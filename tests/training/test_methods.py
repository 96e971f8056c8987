"""Every method through a whole run: what it trains, stores, samples and counts, and that it can be continued."""

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from mfd_cli.commands.benchmark import benchmark
from mfd_cli.commands.export import export
from mfd_cli.commands.sample import sample
from mfd_cli.config.load import load_recipe
from mfd_cli.errors import Interrupted, MfdError
from mfd_cli.inference import pipeline_exports
from mfd_cli.inference.sampler import load_student, load_teacher
from mfd_cli.methods.registry import methods
from mfd_cli.store.student import read_student
from mfd_cli.training import run as story
from mfd_cli.training.rehearsal import rehearse
from mfd_cli.training.run import distill
from mfd_cli.training.workshop import build

pytestmark = pytest.mark.usefixtures("tiny")

MAPS, ALONE = ("ayf", "meanflow"), ("ayf", "meanflow", "cd")
CRITICS = ("dmd2", "senseflow")
SHORT = {"ayf": ["method.tangent.warmup=2"], "senseflow": ["method.adversarial.omega=one"]}


def settings(method):
    return [f"method.type={method}", "evaluate.num=0", *SHORT.get(method, [])]


def run(method, output, *more, **options):
    return distill("tiny.yaml", output=output, overrides=[*settings(method), *more], **options)


@pytest.mark.parametrize("method", methods.names())
def test_one_key_apart(method):
    folder = run(method, f"runs/{method}")
    student = load_student(folder.root)
    for steps in (1, 3):
        samples = student.sample(8, steps=steps, seed=1)
        assert samples.shape == (8, 2) and bool(samples.isfinite().all())
    whole, part = student.sample(8, steps=3, seed=1), student.sample(3, steps=3, seed=1, first=5)
    torch.testing.assert_close(whole[5:], part)  # fresh noise, too, belongs to the sample
    assert not torch.equal(whole, student.sample(8, steps=3, seed=2))
    stored = read_student(folder.root).config
    assert stored["method"] == method and stored["student"]["flow_map"] is (method in MAPS)
    parts = {file.name for file in next(folder.checkpoints.iterdir()).glob("*.safetensors")}
    assert ("aux.safetensors" in parts) is (method not in ALONE)
    assert ("critic.safetensors" in parts) is (method in CRITICS)
    last = json.loads(folder.metrics.read_text().splitlines()[-1])
    assert ("aux_loss" in last) is (method not in ALONE) and ("critic_loss" in last) is (method in CRITICS)


@pytest.mark.parametrize("method", methods.names())
def test_a_run_that_was_stopped_ends_the_same(method, monkeypatch):
    whole = run(method, "runs/whole")
    original = story.Trainer.run

    def told(trainer, at_border, stop):
        original(trainer, at_border, lambda: trainer.progress.step >= 3)

    with monkeypatch.context() as patch:
        patch.setattr(story.Trainer, "run", told)
        with pytest.raises(Interrupted):
            run(method, "runs/cut")
    cut = run(method, "runs/cut", resume=True)
    one, two = (read_student(folder.root).config["weights_sha256"] for folder in (whole, cut))
    assert one == two


def test_warmup_and_shared_samples_survive_a_stop_in_the_middle(monkeypatch):
    """At every step of the first cycles, the samples that updates share are drawn again."""
    more = ["method.aux_updates=4", "method.aux_warmup=3", "method.aux_reuse=3", "train.accumulation=2"]
    whole = run("mfd", "runs/whole", *more)
    original = story.Trainer.run
    for end in (1, 2, 4, 7, 8, 10):
        with monkeypatch.context() as patch:
            patch.setattr(
                story.Trainer,
                "run",
                lambda trainer, at_border, stop, end=end: original(
                    trainer, at_border, lambda: trainer.progress.step >= end
                ),
            )
            with pytest.raises(Interrupted):
                run("mfd", f"runs/cut{end}", *more)
        cut = run("mfd", f"runs/cut{end}", *more, resume=True)
        one, two = (read_student(folder.root).config["weights_sha256"] for folder in (whole, cut))
        assert one == two, end


@pytest.mark.parametrize("method", ["mfd", "diff-instruct"])
def test_shared_samples_are_drawn_once_and_noised_anew(method, monkeypatch):
    more = [*settings(method), "train.batch_size=8", "method.aux_updates=4", "method.aux_reuse=4"]
    workshop = build(load_recipe("tiny.yaml", more), "cpu")
    trainer = workshop.trainer()
    seen = []
    original = trainer.method.auxiliary_loss

    def loss(batch):
        found = original(batch)
        seen.append((found.samples, found.times))
        return found

    monkeypatch.setattr(trainer.method, "auxiliary_loss", loss)
    for _ in range(5 + 4):
        trainer.step()
    assert trainer.snapshot().evaluations["student"] == 8 * (1 + 1 + 1)  # two cycles' samples, one student update
    first, second = seen[:4], seen[4:]
    for cycle in (first, second):
        assert all(torch.equal(samples, cycle[0][0]) for samples, _ in cycle)
        assert len({tuple(times.tolist()) for _, times in cycle}) == 4
    assert not torch.equal(first[0][0], second[0][0])


@pytest.mark.parametrize("method", methods.names())
def test_a_student_starts_as_the_teacher(method):
    """One step of the untrained student is one Euler step of the fitted velocity, of a map as of any other."""
    workshop = build(load_recipe("tiny.yaml", settings(method)), "cpu")
    start = workshop.teacher.initial_network(workshop.recipe.seed)
    noise = torch.randn(5, 2)
    _, student = workshop.samplers()
    with torch.no_grad():
        expected = noise + start(noise, torch.zeros(5))
        torch.testing.assert_close(student.generate(noise, {}), expected)


@pytest.mark.parametrize("method", methods.names())
def test_parts_of_a_batch_are_the_batch(method):
    """Accumulation changes the memory, not the gradient, but for a normalisation over the batch, which nobody has."""
    one, two = (run(method, f"runs/{parts}", f"train.accumulation={parts}", "train.updates=1") for parts in (1, 2))
    first, second = (read_student(folder.root).weights for folder in (one, two))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=1e-5, rtol=1e-4)


def counted(method, *more):
    workshop = build(load_recipe("tiny.yaml", [*settings(method), "train.batch_size=8", *more]), "cpu")
    trainer = workshop.trainer()
    found = []
    for _ in range(trainer.schedule.cycle):
        before = dict(trainer.snapshot().evaluations)
        trainer.step()
        after = trainer.snapshot().evaluations
        found.append({name: (after[name] - before[name]) / 8 for name in after})
    return found


@pytest.mark.parametrize(
    ("method", "more", "auxiliary", "student"),
    [
        ("mfd", ["method.solver={type: euler, steps: 4}"], (1, 1, 0), (1, 4, 4)),
        ("diff-instruct", [], (1, 1, 0), (1, 1, 1)),
        ("dmd2", ["method.adversarial=null"], (1, 1, 0), (1, 1, 1)),
        ("dmd2", [], (1, 3, 0), (1, 2, 1)),
        ("senseflow", [], (1, 1, 0), (2, 1, 2)),
        ("cd", [], None, (2, 0, 1)),
        ("cd", ["method.solver=heun"], None, (2, 0, 2)),
        ("cd", ["method.form=continuous"], None, (3, 0, 1)),
        ("ayf", [], None, (3, 0, 1)),
        ("ayf", ["method.objective=lmd"], None, (3, 0, 1)),
        ("meanflow", [], None, (3, 0, 1)),
        ("meanflow", ["method.velocity=data"], None, (3, 0, 0)),
        ("meanflow", ["method.derivative.type=difference"], None, (4, 0, 1)),
    ],
)
def test_evaluations_of_an_update(method, more, auxiliary, student):
    """Forward passes a sample by student, auxiliary and teacher; a forward-mode pass counts as two."""
    *before, last = counted(method, *more)
    assert tuple(last.values()) == student
    assert [tuple(each.values()) for each in before] == [auxiliary] * len(before)
    assert bool(before) is (auxiliary is not None)


@pytest.mark.parametrize(
    ("recipe", "main", "told"),
    [("digits", True, True), ("digits", False, False), ("occfm-tiny", True, True), ("toy", True, False)],
)
def test_networks_that_are_wavy_in_time_are_found_out_and_told_of_once(recipe, main, told, monkeypatch):
    """The toy's network embeds a few multiples of t, the others' 1000 t."""
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda self: main))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        build(load_recipe(recipe, ["method.type=meanflow"]), "cpu")
    assert sum("is wavy" in str(warning.message) for warning in said) == told


@pytest.mark.parametrize("method", CRITICS)
def test_a_student_update_leaves_auxiliary_and_critic_alone(method):
    workshop = build(load_recipe("tiny.yaml", [*settings(method), "method.aux_updates=1"]), "cpu")
    if method == "senseflow":
        workshop = build(load_recipe("tiny.yaml", [*settings(method), "method.aux_updates=1", "method.align=1"]), "cpu")
    trainer, roles = workshop.trainer(), workshop.roles

    def weights(role):
        return [value.detach().clone() for value in role.network.parameters()]

    def same(one, two):
        return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))

    for moved in ("followers", "student"):
        before = {role.name: weights(role) for role in roles.trained()}
        trainer.step()
        unchanged = {role.name: same(before[role.name], weights(role)) for role in roles.trained()}
        assert unchanged == {"student": moved == "followers", "aux": moved == "student", "critic": moved == "student"}
        assert all(value.requires_grad and value.grad is None for role in roles.trained() for value in role.parameters)


def test_alignment_happens_after_the_student_update():
    recipe = load_recipe("tiny.yaml", [*settings("senseflow"), "method.aux_updates=1", "method.align=0"])
    workshop = build(recipe, "cpu")
    trainer, roles = workshop.trainer(), workshop.roles
    trainer.step()
    trainer.step()
    for mine, its in zip(roles.student.parameters, roles.auxiliary.parameters, strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("method", [*ALONE, *CRITICS])
def test_methods_that_need_samples_say_so_where_there_are_none(method, tiny_sana, tmp_path):
    text = f"""
name: prompted
teacher: {{type: sana, model: {tiny_sana}}}
method: {{type: {method}}}
train: {{updates: 1, batch_size: 2}}
data: {{type: prompts, path: prompts.txt}}
"""
    Path("prompts.txt").write_text("a cat\na dog\n")
    Path("prompted.yaml").write_text(text)
    with pytest.raises(MfdError, match=re.escape(f"method {method} learns from real samples")) as caught:
        distill("prompted.yaml", output="runs/prompted")
    assert "mfd, diff-instruct" in caught.value.allowed and not Path("runs/prompted").exists()


def test_adapters_cannot_be_a_flow_map():
    with pytest.raises(MfdError, match="student is a flow map"):
        run("meanflow", "runs/lora", "student.weights=lora", "student.lora={targets: [layers.0]}")
    assert not Path("runs/lora").exists()


def test_a_recipe_of_a_method_without_auxiliary_has_no_optimizer_for_it():
    text = Path("tiny.yaml").read_text()
    Path("cd.yaml").write_text(re.sub(r"method:.*", "method: {type: cd}", text))
    assert "aux:" in text
    with pytest.raises(MfdError, match=r"cd\.yaml:5: optim\.aux: the method has no auxiliary.*; leave the block out"):
        load_recipe("cd.yaml")
    loaded = load_recipe("tiny.yaml", ["method.type=cd"])
    assert not hasattr(loaded.recipe.optim, "aux")
    assert any("optim.aux" in note and "left out" in note for note in loaded.notes)


def test_keys_of_one_name_that_mean_something_else_are_left_out():
    loaded = load_recipe("toy", ["method.type=cd"])
    assert loaded.recipe.method.solver == "euler" and loaded.recipe.method.times.std == 1.6
    assert any("method.solver" in note and "something else" in note for note in loaded.notes)


NOTHING = """
name: nothing
teacher: {type: digits}
network: {width: 16, depth: 1, heads: 2}
method: {type: meanflow, velocity: data}
train: {updates: 3, batch_size: 8, threads: 1}
data: {type: digits}
log: {every: 1, preview_num: 2}
evaluate: {num: 300}
"""


@pytest.fixture
def nothing():
    Path("nothing.yaml").write_text(NOTHING)
    return "nothing.yaml"


def test_from_nothing_no_teacher_is_read(nothing, monkeypatch):
    monkeypatch.setattr("teachers.digits.DigitsTeacher.load", lambda *rest: pytest.fail("a teacher was loaded"))
    folder = distill(nothing, output="runs/nothing")
    assert load_student(folder.root).sample(3, steps=2).shape == (3, 1, 8, 8)
    report = folder.read_report()
    assert [row["model"] for row in report["rows"]] == ["student"] and report["speedup"] is None
    assert json.loads(folder.record.read_text())["teacher"] == {"teacher": "none"}
    assert json.loads(folder.record.read_text())["evaluations"]["teacher"] == 0
    assert distill(nothing, output="runs/nothing", resume=True).root == folder.root
    with pytest.raises(MfdError, match="trained from nothing"):
        load_teacher(folder.root)
    result = benchmark(str(folder.root), quality=True, num=300)
    assert [row["model"] for row in result["rows"]] == ["student"]


def test_from_nothing_begins_with_fresh_weights_that_the_seed_names(nothing):
    one, again, other = (
        build(load_recipe(nothing, [f"seed={seed}"]), "cpu").roles.student.network.state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_what_needs_a_teacher_is_refused_without_one(nothing):
    with pytest.raises(MfdError, match="needs a teacher"):
        distill(nothing, output="runs/x", overrides=["method.velocity=teacher"])
    Path("mfd.yaml").write_text(NOTHING.replace("{type: meanflow, velocity: data}", "{type: mfd}"))
    with pytest.raises(MfdError, match="network: unknown key"):
        load_recipe("mfd.yaml")
    assert not Path("runs").exists()


def test_a_rehearsal_without_a_teacher(nothing):
    found = rehearse(load_recipe(nothing), "cpu")
    assert [phase.name for phase in found.phases][-2:] == ["student update", "preview picture"]
    assert {row[0]: row[1] for row in found.facts}["parameters, teacher (frozen)"].startswith("0 ")


@pytest.mark.parametrize("method", methods.names())
def test_a_rehearsal_of_every_method(method):
    found = rehearse(load_recipe("tiny.yaml", settings(method)), "cpu")
    names = [phase.name for phase in found.phases]
    assert ("auxiliary update" in names) is (method not in ALONE) and "student update" in names
    facts = {row[0]: row[1] for row in found.facts}
    assert ("parameters, critic" in facts) is (method in CRITICS)
    assert any("student.weights=lora" in text for text in found.advice) is (method not in MAPS)


@pytest.mark.parametrize(("method", "steps"), [("meanflow", 2), ("cd", 2)])
def test_an_exported_student_samples_alike_in_a_process_of_its_own(method, steps, capsys):
    folder = run(method, "runs/exported", f"student.steps={steps}")
    (done,) = export(str(folder.root))
    assert "equal bit for bit" in capsys.readouterr().out
    one, two = (load_student(path).sample(6, steps=3, seed=2) for path in (folder.root, done.file))
    assert torch.equal(one, two)
    found = pipeline_exports.refusal("--diffusers", load_student(folder.root))
    assert found is not None and ("flow map" if method == "meanflow" else "renoises") in found.found


def test_steps_that_a_student_is_not_made_for_are_warned_of(capsys):
    run("mfd", "runs/fixed")
    run("ayf", "runs/any")
    for name, warned in (("fixed", True), ("any", False)):
        sample(f"runs/{name}", steps=3, num=2, output=Path(f"{name}.npz"))
        assert ("made for 1 step" in capsys.readouterr().err) is warned
