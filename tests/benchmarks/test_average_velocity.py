"""Errors on a field with a known average velocity fall as the order of a solver says; a smoke run on the toy."""

import json
from dataclasses import replace

import pytest
import torch


@pytest.fixture
def module(script):
    return script("average_velocity")


@pytest.fixture
def scene(module):
    """dx/dt = x over [0, t]: the average velocity is x (e^t - 1) / t."""
    t = torch.linspace(0.2, 1.0, 9)
    return module.Scene(None, torch.ones(9, 2), torch.zeros(9), t, {"teacher": lambda x, t: x})


def rows_of(module, scene, *rules):
    return {row["solver"]: row for row in module.measure(scene, rules, fine=0.05)}


def test_errors_fall_with_the_order_of_the_solver(module, scene):
    rules = [module.Rule(name, steps=steps) for name in ("euler", "midpoint") for steps in (10, 20)]
    rows = rows_of(module, scene, *rules)
    error = {solver: row["errors"]["teacher"]["mean"] for solver, row in rows.items()}
    assert error["euler, 10 steps"] / error["euler, 20 steps"] == pytest.approx(2, rel=0.05)
    assert error["midpoint, 10 steps"] / error["midpoint, 20 steps"] == pytest.approx(4, rel=0.1)


def test_a_known_error(module, scene):
    one = replace(scene, x=scene.x[:1], s=scene.s[:1], t=torch.ones(1))
    row = rows_of(module, one, module.Rule("euler", steps=1))["euler, 1 steps"]
    exact = torch.e - 1  # one Euler step says 1
    assert row["errors"]["teacher"] == pytest.approx(
        {"mean": (exact - 1) / exact, "p95": (exact - 1) / exact}, rel=1e-4
    )


def test_evaluations_and_verdicts_are_relative_to_the_paper(module, scene):
    rows = rows_of(module, scene, module.Rule("euler", steps=2), module.Rule("midpoint", steps=4))
    paper = rows[str(module.PAPER)]
    assert paper["share"] == 1 and paper["evaluations"] == pytest.approx(30)  # t / 0.02, t from 0.2 to 1
    assert rows["midpoint, 4 steps"]["share"] == pytest.approx(8 / 30)
    assert rows["midpoint, 4 steps"]["as_exact"] == {"mean": True, "throughout": True}
    assert rows["euler, 2 steps"]["as_exact"] == {"mean": False, "throughout": False}


def test_the_cheapest_solver_is_as_exact_everywhere(module):
    def case(**shares):
        rows = [
            {"solver": solver, "share": abs(share), "as_exact": {"mean": share > 0}} for solver, share in shares.items()
        ]
        return {"rows": [*rows, {"solver": str(module.PAPER), "share": 1.0, "as_exact": {"mean": True}}]}

    # a negative share: not as exact
    cases = {"one": case(a=0.2, b=0.5, c=0.3), "two": case(a=-0.2, b=0.4, c=0.7)}
    assert module.cheapest(cases, "mean") == {"solver": "b", "shares": {"one": 0.5, "two": 0.4}}
    assert module.cheapest({"one": case(a=-0.2)}, "mean") is None


def test_a_guided_field_has_three_errors(module):
    scene = module.scene_of(module.CASES["digits"], [], 4, "cpu")
    row = rows_of(module, scene, module.Rule("euler", steps=1))["euler, 1 steps"]
    assert set(row["errors"]) == {"teacher", "auxiliary", "difference"}
    assert scene.fields["teacher"].cost == 2 and scene.fields["auxiliary"].cost == 1


def test_a_quick_run(module, tmp_path):
    path, picture = tmp_path / "found.json", tmp_path / "found.png"
    module.main(["--cases", "toy", "--quick", "--json", str(path), "--plot", str(picture)])
    found = json.loads(path.read_text())["cases"]["toy"]
    assert found["samples"] == 64 and len(found["rows"]) == len(module.RULES)
    assert picture.read_bytes().startswith(b"\x89PNG")
