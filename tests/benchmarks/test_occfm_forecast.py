"""The arithmetic of its rows, a route's classes, and a smoke run."""

import json

import pytest
import torch


@pytest.fixture
def module(script):
    return script("occfm_forecast")


def test_the_stages_of_a_forecast_add_up_and_its_classes_are_the_teachers(module):
    case = module.case_of("cpu", quick=True)
    clock = module.Clock(torch.device("cpu"))
    found = clock.timed("total", lambda: module.forecast(case, module.routes_of(case, compiled=False)["mfd"], clock))
    parts = [clock.seconds[stage] for stage in module.STAGES]
    assert min(parts) > 0 and sum(parts) <= clock.seconds["total"]
    condition = {"history": case.history, "trajectory": case.trajectory}
    with torch.inference_mode():
        velocity = case.teacher.velocity(case.network, case.noise, case.time, condition)
        expected = case.teacher.decode(case.noise + velocity)[0]
    assert found.shape == (6, 40, 40, 16) and (found == expected).float().mean() > 0.999  # but for ties


def test_runs_in_turns_give_a_median_for_each_stage(module):
    order = []
    works = {name: lambda clock, name=name: clock.timed("part", lambda: order.append(name)) for name in "ab"}
    found = module.in_turns(works, torch.device("cpu"), 2)
    assert order == ["a", "b"] * 3  # the first turn is not counted
    assert found.keys() == {"a", "b"} and found["a"].keys() == {"part", "total"}
    assert found["a"]["part"]["p10"] <= found["a"]["part"]["median"] <= found["a"]["total"]["p90"]


def test_a_repeat_less_than_one_is_refused(module):
    with pytest.raises(module.MfdError, match="below 1"):
        module.main(["--repeats", "0"])


@pytest.mark.slow
def test_a_quick_run(module, tmp_path):
    path = tmp_path / "found.json"
    module.main(["--quick", "--steps", "1,2", "--json", str(path)])
    found = json.loads(path.read_text())
    assert [row["path"] for row in found["stages"]] == ["published", "published, one branch", "mfd", "mfd, bf16"]
    assert found["stages"][0]["speedup"] == {"network": 1, "decoder": 1, "classes": 1, "total": 1}
    ours = next(row for row in found["agreement"] if row["path"] == "mfd")
    assert ours["equal"] > 0.999 and ours["largest_gap"] < 1e-3
    assert [(row["path"], row["steps"]) for row in found["complete"]][:2] == [
        ("published, guided", 1),
        ("mfd teacher, guided", 1),
    ]
    assert all(row["frames_per_second"] == pytest.approx(6 * row["forecasts_per_second"]) for row in found["complete"])
