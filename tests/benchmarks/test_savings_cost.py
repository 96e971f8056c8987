"""The cost of saves from known parts, and growth of memory that is there."""

import mmap

import pytest


def test_the_share_is_that_of_its_parts(script, tiny):
    savings_cost, workbench = script("savings_cost"), script("workbench")
    from mfd_cli.config.load import load_recipe

    found = savings_cost.cost(*workbench.trainer_of(load_recipe(tiny, ["log.checkpoint_every=10"]), "cpu"), rounds=2)
    whole = 10 * found["update_seconds"] + found["save_seconds"]
    assert found["share"] == pytest.approx(found["save_seconds"] / whole) and found["interval"] == 10
    assert found["save_seconds_worst"] >= found["save_seconds"] > 0 and found["bytes"] > 1000


def test_growth_is_seen_and_a_warm_up_is_none(script):
    growth = script("savings_cost").growth
    warm = [(n, 100.0 + (50 if n > 10 else n)) for n in range(100)]
    assert growth(warm) == 0
    leaking = [(n, 100.0 + 0.1 * n) for n in range(100)]
    assert growth(leaking) == pytest.approx(5.0)
    assert growth([(n, 100.0 + (20 if n == 30 else 0)) for n in range(100)]) < 0, "a peak that went away"


def test_memory_that_is_held_is_counted(script):
    resident = script("savings_cost").resident
    before = resident()
    with mmap.mmap(-1, 50_000_000) as held:  # pages of its own, whatever the process has freed before
        held.write(b"x" * 50_000_000)
        assert resident() - before > 40_000_000


def test_a_smoke_run(script, tiny, monkeypatch, tmp_path):
    import teachers.gmm

    savings_cost = script("savings_cost")
    monkeypatch.setattr(teachers.gmm, "_FIT_UPDATES", 5)
    report = savings_cost.main([tiny, "--quick", "--json", str(tmp_path / "x.json")])
    assert report["updates"] == 40 and len(report["memory_mb"]) == 40 and report["limit"] == 0.02
