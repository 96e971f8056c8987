"""Sampling: shared noise, Euler steps against closed forms, guidance and its cost."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from mfd_cli.errors import MfdError
from mfd_cli.flow import time_grid
from mfd_cli.inference.sampler import Sampler, load_student, load_teacher
from mfd_cli.seeds import Stream
from mfd_cli.store.layout import RunFolder
from mfd_cli.store.student import save_student
from teachers.base import Teacher, TeacherError
from teachers.settings import TeacherSettings

SHAPE = (1, 4, 4)


class Affine(nn.Module):
    """u(x, t, label) = rate x + shift[label] + t; label 3 is the null class."""

    def __init__(self, rate=-0.5):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate))
        self.shift = nn.Parameter(torch.tensor([0.0, 1.0, 2.0, -1.0]))

    def forward(self, x, t, label):
        return self.rate * x + (self.shift[label] + t)[:, None, None, None]


class Labelled(Teacher):
    condition_kind = "label"
    sample_shape = SHAPE

    @classmethod
    def load(cls, settings):
        raise NotImplementedError

    def build_network(self):
        return Affine()

    def null_condition(self, condition):
        return {"label": torch.full_like(condition["label"], 3)}

    def encode(self, asked):
        if any(item not in (0, 1, 2) for item in asked):
            raise TeacherError(f"unknown class in {list(asked)}", allowed="0 to 2")
        return {"label": torch.tensor(list(asked))}

    def examples(self, count):
        return [index % 3 for index in range(count)]

    def identity(self):
        return {}


class Unlabelled(Labelled):
    condition_kind = "none"

    def null_condition(self, condition):
        return None


def sampler(cls=Labelled, name="student", rate=-0.5, **changes):
    settings = TeacherSettings(type="labelled")
    return Sampler(name, cls(settings, {}), Affine(rate), **({"steps": 1} | changes))


def noise(count, seed=0):
    return Stream(seed, 0, 0, count).normal("sample", SHAPE)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_a_sample_does_not_depend_on_the_batch_it_is_computed_in(batch_size):
    whole = sampler().sample(7, steps=3, seed=5)
    assert torch.equal(sampler().sample(7, steps=3, seed=5, batch_size=batch_size), whole)


def test_first_continues_a_longer_sampling():
    whole = sampler().sample(6, seed=1, asked=[0, 1, 2, 0, 1, 2])
    assert torch.equal(sampler().sample(3, seed=1, first=3, asked=[0, 1, 2]), whole[3:])


def test_seeds_differ():
    assert not torch.equal(sampler().sample(3, seed=0), sampler().sample(3, seed=1))


def test_one_step_is_noise_plus_velocity_at_time_zero():
    student = sampler()
    labels = torch.tensor([0, 1, 2, 0])
    z = noise(4, seed=9)
    with torch.no_grad():
        expected = z + student.network(z, torch.zeros(4), labels)
    assert torch.equal(student.sample(4, seed=9, asked=labels.tolist()), expected)


def test_teacher_and_student_start_from_the_same_noise():
    # with a field of zero every sampler returns its noise, whatever its name, steps and guidance
    still = {"rate": 0.0, "guidance": 1.0}
    samples = []
    for name, steps in (("teacher", 1), ("student", 1)):
        one = sampler(name=name, steps=steps, **still)
        one.network.shift.data.zero_()
        samples.append(one.sample(5, seed=3))
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], noise(5, seed=3))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_steps_follow_the_shifted_grid(shift):
    student = sampler(shift=shift)
    x, grid = noise(3, seed=2).double(), time_grid(4, shift).double()
    for start, end in pairwise(grid):
        x = x + (end - start) * (-0.5 * x + torch.tensor([0.0, 1.0, 2.0]).double()[:, None, None, None] + start)
    assert torch.allclose(student.sample(3, steps=4, seed=2).double(), x, atol=1e-5)


@pytest.mark.parametrize("steps", [0, -1])
def test_fewer_than_one_step_is_refused(steps):
    with pytest.raises(MfdError, match="at least 1"):
        sampler().sample(2, steps=steps)


def test_no_samples_and_a_wrong_number_of_conditions_are_refused():
    with pytest.raises(MfdError, match="at least 1"):
        sampler().sample(0)
    with pytest.raises(MfdError, match="3 conditions for 2 samples"):
        sampler().sample(2, asked=[0, 1, 2])


def test_unknown_class_is_the_family_s_own_error():
    with pytest.raises(TeacherError, match="0 to 2"):
        sampler().sample(1, asked=[7])


def test_guidance_1_is_the_conditional_branch_and_0_the_unconditional():
    student = sampler()
    plain = student.sample(3, seed=4)
    assert torch.equal(student.sample(3, seed=4, guidance=1.0), plain)
    unconditional = student.sample(3, seed=4, guidance=0.0)
    assert torch.allclose(plain - unconditional, torch.tensor([1.0, 2.0, 3.0])[:, None, None, None].expand(3, *SHAPE))
    # u_w = u_null + w (u - u_null): linear in w
    assert torch.allclose(student.sample(3, seed=4, guidance=2.5), unconditional + 2.5 * (plain - unconditional))


def test_guidance_of_a_family_without_null_condition_is_refused():
    with pytest.raises(TeacherError, match="guidance"):
        sampler(Unlabelled).sample(2, guidance=2.0)


@pytest.mark.parametrize(("guidance", "cost"), [(1.0, 1), (0.0, 1), (3.0, 2)])
def test_evaluations_count_rows_steps_and_both_branches(guidance, cost):
    student = sampler()
    student.sample(5, steps=4, guidance=guidance, batch_size=2)
    assert student.evaluations.rows == cost * 5 * 4


def test_the_sampler_s_own_guidance_and_steps_hold_unless_asked_otherwise():
    teacher = sampler(name="teacher", steps=6, guidance=2.0)
    assert torch.equal(teacher.sample(2), sampler().sample(2, steps=6, guidance=2.0))
    assert teacher.evaluations.rows == 2 * 2 * 6


def test_loading_gives_the_saved_student_and_its_teacher(tmp_path):
    block = {"type": "gmm", "ring": {"modes": 3}, "steps": 12}
    architecture = {"dim": 2, "width": 8, "depth": 1, "frequencies": 2}
    config = {"teacher": block, "architecture": architecture, "student": {"steps": 2, "shift": 1.5}}
    from teachers.networks.mlp import PointMLP

    torch.manual_seed(0)
    network = PointMLP(**architecture)
    run = RunFolder(tmp_path)
    run.update_record(status="done")
    save_student(run.student, config, network.state_dict())
    student, teacher = load_student(tmp_path), load_teacher(tmp_path)
    assert (student.steps, student.shift, student.guidance) == (2, 1.5, 1.0)
    assert (teacher.name, teacher.steps) == ("teacher", 12)
    z = Stream(0, 0, 0, 4).normal("sample", (2,))
    with torch.no_grad():
        assert torch.equal(student.sample(4, steps=1), z + network(z, torch.zeros(4)))
