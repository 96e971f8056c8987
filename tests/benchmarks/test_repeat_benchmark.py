"""Repeated speeds: what is compared with what, and what is too far apart."""

import json

import pytest

from mfd_cli.errors import RunStopped


@pytest.fixture
def module(script):
    return script("repeat_benchmark")


def test_figures_are_medians_of_alternate_rounds_and_of_quotients(module):
    benchmark = [{"student": value} for value in (10.0, 11.0, 10.0, 13.0, 12.0, 13.0)]
    loop = [{"student": value} for value in (10.5, 11.0, 10.3, 13.0, 12.6, 26.0)]
    found = module.compared(benchmark, loop)["student"]
    assert found["benchmark"] == 11.5 and found["loop"] == pytest.approx(11.8)
    assert found["repeats"] == pytest.approx((13 - 10) / 11.5), "medians of 10, 10, 12 and of 11, 13, 13"
    assert found["agrees"] == pytest.approx((1.03 + 1.05) / 2 - 1), "of 1.05, 1, 1.03, 1, 1.05, 2"
    assert found["spread"] == pytest.approx(1.5 / 11.5)


def test_what_is_beyond_the_limit_is_named_whatever_its_sign(module):
    figures = {"a": {"repeats": 0.049, "agrees": -0.05, "spread": 0.5}, "b": {"repeats": -0.06, "agrees": 0.07}}
    assert module.missed(figures, 0.05) == ["b repeats: -6.0%", "b agrees: +7.0%"]
    assert module.missed({"a": {"repeats": float("nan"), "agrees": 0.0}}, -0.06) == [
        "a repeats: +nan%", "known sleep agrees: -6.0%"
    ]  # fmt: skip


def test_a_quick_run(module, tiny, tmp_path):
    path, picture = tmp_path / "found.json", tmp_path / "found.png"
    module.main([tiny, "--quick", "--updates", "1", "--sleep", "0.001", "--json", str(path), "--plot", str(picture)])
    found = json.loads(path.read_text())
    assert list(found["figures"]) == ["teacher, 1 step", "teacher, 10 steps", "student, 1 step", "speed-up"]
    assert len(found["benchmark"]) == len(found["loop"]) == found["rounds"] == 2
    for one in (*found["benchmark"], *found["loop"]):
        assert one["speed-up"] == pytest.approx(one["teacher, 10 steps"] / one["student, 1 step"])
    assert found["sleep"]["expected_ms"] == pytest.approx(10), "ten evaluations of 1 ms"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_missed_limit_ends_with_code_3_after_the_results_are_written(module, tiny, tmp_path, monkeypatch):
    shift = iter([1.0, 1.2, 1.0, 1.2])
    figures = dict.fromkeys(("teacher, 1 step", "speed-up"), 1.0)
    monkeypatch.setattr(module, "benchmarked", lambda rows, data, seconds: dict(figures))
    monkeypatch.setattr(module, "looped", lambda rows, data, seconds, loop: {k: next(shift) for k in figures})
    monkeypatch.setattr(module, "slept", lambda *given: {"expected_ms": 10.0, "found_ms": 10.1, "off": 0.01})
    path = tmp_path / "found.json"
    with pytest.raises(RunStopped, match=r"beyond 5%: speed-up agrees: \+20\.0%") as caught:
        module.main([tiny, "--rounds", "2", "--updates", "0", "--json", str(path)])
    assert caught.value.exit_code == 3 and json.loads(path.read_text())["figures"]["speed-up"]["agrees"] > 0.1
