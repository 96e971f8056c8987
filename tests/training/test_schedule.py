"""Whose turn it is, against the order written out."""

import pytest

from mfd_cli.training.schedule import Schedule


def written_out(aux_updates: int, warmup: int, updates: int) -> list[tuple[str, int, int, int]]:
    """Role, student updates done, auxiliary updates since, and updates of the role done, step by step."""
    order, auxiliary = [], 0
    for update in range(updates):
        here = aux_updates + (warmup if update == 0 else 0)
        for inside in range(here):
            order.append(("aux", update, inside, auxiliary))
            auxiliary += 1
        order.append(("student", update, here, update))
    return order


@pytest.mark.parametrize("aux_updates", [0, 1, 3])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_steps_come_in_the_order_written_out(aux_updates: int, warmup: int) -> None:
    warmup = warmup if aux_updates else 0
    schedule = Schedule(aux_updates, warmup)
    order = written_out(aux_updates, warmup, 4)
    assert schedule.steps(4) == len(order)
    assert schedule.aux_total(4) == sum(role == "aux" for role, *_ in order)
    for step, (role, update, inside, done) in enumerate(order):
        assert (schedule.update(step), schedule.inside(step), schedule.done(step)) == (update, inside, done)
        assert schedule.is_student(step) is (role == "student")
        last = role == "aux" and order[step + 1][0] == "student"
        assert schedule.is_last_auxiliary(step) is last
    assert (schedule.update(len(order)), schedule.inside(len(order))) == (4, 0)


def test_nothing_is_done_at_the_beginning() -> None:
    assert Schedule(3, 5).steps(0) == 0 and Schedule(3, 5).aux_total(0) == 0


def test_updates_that_share_samples_are_those_of_one_cycle() -> None:
    shared, alone = Schedule(5, 0, reuse=2), Schedule(5, 0)
    assert [shared.drawn(step) for step in range(6)] == [0, 0, 2, 2, 4, 5], "the student's step has its own"
    assert [shared.drawn(step) for step in range(6, 12)] == [6, 6, 8, 8, 10, 11]
    assert [alone.drawn(step) for step in range(6)] == list(range(6))
