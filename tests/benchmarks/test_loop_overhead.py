"""Exclusive timing with a clock that is turned by hand, replayed evaluations that are the step's, and a smoke run."""

import json

import pytest

from mfd_cli.config.load import load_recipe


@pytest.fixture
def module(script):
    return script("loop_overhead")


def test_time_in_inner_functions_is_theirs_and_patches_are_undone(module):
    now = [0.0]

    class Work:
        def inner(self):
            now[0] += 2.0

        def outer(self):
            now[0] += 3.0
            self.inner()
            self.inner()

    watch, work = module.Stopwatch(lambda: now[0]), Work()
    original = Work.inner
    with watch.around([(Work, "inner", "inner"), (work, "outer", "outer")]):
        work.outer()
    assert watch.seconds == {"inner": 4.0, "outer": 3.0}
    assert Work.inner is original and "outer" not in vars(work)


def test_ratios_are_medians_over_rounds(module):
    timed = [
        module.Timed(kind, step, optimizer, evaluations)
        for step in (1.0, 2.0, 9.0)
        for kind, optimizer, evaluations in (("auxiliary", 0.5, 1.0), ("student", 0.5, 2.0))
    ]
    found = module.ratios(timed, cycle=2)
    assert found["auxiliary"]["ratio"] == 2.0 and found["student"]["ratio"] == 1.0
    assert found["whole cycle"]["ratio"] == pytest.approx(4 / 3)
    assert found["whole cycle"]["ratio_without_optimizer"] == pytest.approx(1.0)
    assert found["whole cycle"]["rounds"] == 3


@pytest.mark.parametrize("recipe", ["tiny", "tiny_digits"])
def test_recorded_evaluations_are_those_of_the_repeated_steps(module, script, recipe, request):
    _, trainer = script("workbench").trainer_of(load_recipe(request.getfixturevalue(recipe)), "cpu")
    first = module.recorded(trainer, trainer.schedule.cycle)
    trainer.progress.step -= trainer.schedule.cycle
    second = module.recorded(trainer, trainer.schedule.cycle)
    shapes = [[[(call.x.shape, call.learns) for call in step] for step in plan] for plan in (first, second)]
    assert shapes[0] == shapes[1]
    assert [sum(call.learns for call in step) for step in first] == [1] * trainer.schedule.cycle


def test_a_quick_run(module, tiny, tmp_path):
    path, picture = tmp_path / "found.json", tmp_path / "found.png"
    module.main([tiny, "--quick", "--json", str(path), "--plot", str(picture)])
    found = json.loads(path.read_text())
    # two auxiliary updates of a forward each by student and auxiliary; then the student, and 4 steps of two fields
    assert found["rows_per_cycle"] == 16 * (2 * 2 + 1 + 2 * 4)
    for row in found["ratios"].values():
        assert 0 < row["optimizer_ms"] < row["step_ms"] and row["evaluations_ms"] > 0
        assert 0 < row["ratio_without_optimizer"] < row["ratio"]
    assert {"network, forward", "noise", "optimizer step", "finite check"} <= set(found["breakdown_ms_per_cycle"])
    assert picture.read_bytes().startswith(b"\x89PNG")
