"""Adapters on one base: switching, gradients, names, merging, and no leak from one role to another."""

import pytest
import torch
from torch import nn

from mfd_cli.config.load import load_recipe
from mfd_cli.config.schema import Lora, Optimizer
from mfd_cli.errors import MfdError
from mfd_cli.networks.lora import SharedBase, base_state, merged
from mfd_cli.networks.roles import build_roles
from mfd_cli.solvers import integrate
from mfd_cli.store.student import fingerprint
from mfd_cli.training.workshop import build
from teachers.guidance import SideBySide, VelocityField
from teachers.pipelines.sana import SanaSettings, SanaTeacher

NAMES = ["student", "aux"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def share(alpha=2.0, rank=2, targets=("first", "last"), base=None):
    return SharedBase(base or Net(), rank=rank, alpha=alpha, targets=targets, names=NAMES)


def randomise(network, seed):
    generator = torch.Generator().manual_seed(seed)
    for value in network.parameters():
        value.data = torch.randn(value.shape, generator=generator)


def test_every_adapter_starts_as_the_base_bit_for_bit():
    x, expected = torch.randn(5, 4), Net()
    shared = share()
    for network in (shared.base, *shared.networks.values()):
        assert torch.equal(network(x), expected(x))


def test_a_forward_pass_uses_its_own_adapter_and_the_base_stays_itself():
    x, plain, shared = torch.randn(5, 4), Net(), share(targets=("last",), alpha=3.0)
    for seed, network in enumerate(shared.networks.values()):
        randomise(network, seed)
    hidden = torch.tanh(plain.first(x))
    for name, network in shared.networks.items():
        adapter = shared.parameters_of(name)
        change = 1.5 * hidden @ adapter["last.lora_A.weight"].T @ adapter["last.lora_B.weight"].T
        torch.testing.assert_close(network(x), plain(x) + change)
    assert torch.equal(shared.base(x), plain(x))


def test_gradients_reach_the_adapter_that_was_used_whatever_ran_in_between():
    shared, x = share(), torch.randn(5, 4)
    student, auxiliary = shared.networks["student"], shared.networks["aux"]
    for seed, network in enumerate((student, auxiliary)):
        randomise(network, seed)
    loss = student(x).square().mean()
    with torch.no_grad():  # as the loop does between the student's forward and backward pass
        auxiliary(x)
        shared.base(x)
    loss.backward()
    assert all(value.grad is not None and value.grad.any() for value in student.parameters())
    assert all(value.grad is None for value in auxiliary.parameters())
    own = {id(value) for network in (student, auxiliary) for value in network.parameters()}
    assert not any(value.requires_grad for value in shared.base.parameters() if id(value) not in own)


def test_two_adapters_in_one_graph_have_their_own_gradients():
    shared, x = share(), torch.randn(5, 4)
    networks = list(shared.networks.values())
    for seed, network in enumerate(networks):
        randomise(network, seed)
    alone = [torch.autograd.grad(network(x).square().sum(), list(network.parameters())) for network in networks]
    (networks[0](x).square().sum() + networks[1](x).square().sum()).backward()
    for network, expected in zip(networks, alone, strict=True):
        for value, gradient in zip(network.parameters(), expected, strict=True):
            torch.testing.assert_close(value.grad, gradient)


def test_an_exception_in_a_forward_pass_leaves_the_base_itself():
    shared, x = share(), torch.randn(5, 4)
    randomise(shared.networks["student"], 1)
    with pytest.raises(RuntimeError):
        shared.networks["student"](torch.randn(5, 99))
    assert torch.equal(shared.base(x), Net()(x))


def test_names_are_those_of_peft_files():
    from peft import get_peft_model_state_dict

    shared = share()
    ours = shared.networks["aux"].state_dict()
    theirs = get_peft_model_state_dict(shared.base, adapter_name="aux")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_merged_weights_are_the_adapter_and_the_plain_base_comes_back():
    shared, x, plain = share(alpha=3.0), torch.randn(5, 4), Net()
    network = shared.networks["student"]
    randomise(network, 4)
    state = base_state(shared.base)
    assert state.keys() == plain.state_dict().keys()
    other = Net()
    other.load_state_dict(merged(state, network.state_dict(), 1.5))
    torch.testing.assert_close(other(x), network(x))


def test_targets_that_do_not_exist_are_refused_with_those_that_do():
    with pytest.raises(MfdError) as caught:
        share(targets=("nowhere",))
    assert "nowhere" in caught.value.found and "first, last" in caught.value.allowed


def test_a_bf16_base_keeps_its_type_and_adapters_are_fp32():
    shared = share(base=Net().bfloat16())
    network = shared.networks["student"]
    assert network.dtype == torch.bfloat16
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert network(torch.randn(5, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_small_updates_of_a_bf16_base_are_kept():
    # adapters in bf16 lose updates below half their spacing; here every entry of A has to move
    shared = share(base=Net().bfloat16())
    network = shared.networks["student"]
    randomise(network, 2)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    network(torch.randn(64, 4, dtype=torch.bfloat16)).float().square().mean().backward()
    optimizer.step()
    assert all((value != before[name]).all() for name, value in network.named_parameters())


def sana(folder):
    settings = SanaSettings(type="sana", model=str(folder), dtype="fp32", resolution=64)
    return SanaTeacher.load(settings)


def test_checkpointed_activations_are_computed_under_the_adapter_of_the_forward_pass(tiny_sana):
    gradients = []
    for checkpointing in (False, True):
        teacher = sana(tiny_sana)
        shared = SharedBase(teacher.network, rank=4, alpha=4, targets=teacher.lora_targets, names=NAMES)
        for seed, network in enumerate(shared.networks.values()):
            randomise(network, seed)
        if checkpointing:
            shared.checkpoint_activations()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, *teacher.sample_shape, generator=generator)
        condition = {"text": torch.randn(2, 5, 32, generator=generator), "text_mask": torch.ones(2, 5).long()}
        student = shared.networks["student"]
        loss = teacher.velocity(student, x, torch.tensor([0.2, 0.7]), condition).square().mean()
        with torch.no_grad():
            teacher.velocity(shared.networks["aux"], x, torch.tensor([0.2, 0.7]), condition)
        loss.backward()
        gradients.append([value.grad for value in student.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auxiliary_and_guided_teacher_in_one_call_are_what_they_are_apart(tiny_sana, monkeypatch, dtype):
    teacher = sana(tiny_sana)
    teacher.network.to(dtype)
    shared = SharedBase(teacher.network, rank=4, alpha=6, targets=teacher.lora_targets, names=NAMES)
    for seed, network in enumerate(shared.networks.values()):
        randomise(network, seed)
    calls = []
    teacher.network.register_forward_hook(lambda module, given, output: calls.append(len(given[0])))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, *teacher.sample_shape, generator=generator)
    s, t = torch.tensor([[0.0, 0.9], [0.1, 0.15], [0.5, 0.5], [0.2, 0.6], [0.3, 1.0]]).T
    condition = teacher.encode(["a fox", "a boat on the sea", "x", "", "red"])
    found, counted = [], []
    for together in (True, False):
        fields = [VelocityField(teacher, shared.networks["aux"], condition),
                  VelocityField(teacher, teacher.network, condition, 4.5)]  # fmt: skip
        calls.clear()
        with torch.no_grad():
            if together:
                start = torch.stack([x, x], dim=1)
                average = integrate(SideBySide(*fields), start, s, t, rule="ab2", step_size=0.2).average_velocity
                assert calls == [15, 9, 6, 6, 3]  # three rows for each sample that still moves
            else:
                apart = [integrate(field, x, s, t, rule="ab2", step_size=0.2).average_velocity for field in fields]
                average = torch.stack(apart, dim=1)
                assert len(calls) == 10
        found.append(average)
        counted.append([field.evaluations.rows for field in fields])
    assert counted[0] == counted[1] == [13, 26]
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(*found, atol=tolerance, rtol=tolerance)
    assert float((found[0][:, 0] - found[0][:, 1]).abs().max()) > 0.5  # two fields, not one


def test_one_call_is_for_a_base_and_its_own_adapter_without_gradient(tiny_sana):
    teacher, other = sana(tiny_sana), sana(tiny_sana)
    shared = SharedBase(teacher.network, rank=4, alpha=4, targets=teacher.lora_targets, names=NAMES)
    assert shared.networks["aux"].beside(other.network, 1) is None
    condition, x = teacher.encode(["a fox"]), torch.randn(1, 2, *teacher.sample_shape)
    fields = [VelocityField(teacher, network, condition) for network in (shared.networks["aux"], teacher.network)]
    assert SideBySide(*fields)(x, torch.tensor([0.5])).requires_grad  # apart, so that a gradient may be taken


def test_a_network_without_checkpointing_is_refused():
    shared = SharedBase(nn.Sequential(nn.Linear(2, 2)), rank=1, alpha=1, targets=["0"], names=["student"])
    with pytest.raises(MfdError, match="checkpointing"):
        shared.checkpoint_activations()


def test_roles_are_adapters_of_the_teachers_own_network(tiny_sana):
    teacher = sana(tiny_sana)
    pointers = {value.data_ptr() for value in teacher.network.parameters()}
    roles = build_roles(
        teacher, Optimizer(), Optimizer(), seed=0, updates=10, aux_updates=2, ema=0.9, device=torch.device("cpu"),
        lora=Lora(rank=4),
    )  # fmt: skip
    networks = [roles.student.network, roles.auxiliary.network, roles.average.network]
    assert pointers <= {value.data_ptr() for value in teacher.network.parameters()}
    own = [{value.data_ptr() for value in network.parameters()} for network in networks]
    assert len(set.union(*own)) == sum(len(each) for each in own) and not set.union(*own) & pointers
    assert all(not value.requires_grad for value in roles.average.network.parameters())
    assert {name.split(".")[-2] for name in roles.student.parameter_names()} == {"lora_A", "lora_B"}
    # two layers of self- and cross-attention, three targets each
    assert len(roles.student.parameters) == 2 * 2 * 3 * 2


def test_the_average_follows_weights_that_were_moved(tiny_sana):
    # a job of several processes calls its device cpu:0, and moving a network there copies it
    teacher = sana(tiny_sana)
    roles = build_roles(
        teacher, Optimizer(), Optimizer(), seed=0, updates=10, aux_updates=2, ema=0.5, device=torch.device("cpu"),
        lora=Lora(rank=4),
    )  # fmt: skip
    held = [value.data_ptr() for value in teacher.network.parameters()]
    teacher.to("cpu:0")
    assert held == [value.data_ptr() for value in teacher.network.parameters()]
    teacher.network.to("cpu:0")
    randomise(roles.student.network, 3)
    for update in range(50):
        roles.average.update(update + 1)
    for one, other in zip(roles.average.network.parameters(), roles.student.network.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach(), atol=1e-4, rtol=1e-4)


def test_no_role_leaks_into_another_in_a_hundred_updates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = ["student.weights=lora", 'student.lora={rank: 4, targets: [qkv]}', "method.aux_updates=3",
             "train.batch_size=8", "train.updates=25"]  # fmt: skip
    workshop = build(load_recipe("digits", lines), "cpu")
    teacher, roles = workshop.teacher, workshop.roles
    original = fingerprint(base_state(teacher.network))
    x, t, condition = torch.randn(4, 1, 8, 8), torch.rand(4), teacher.encode([1, 2, 3, 4])
    output = teacher.velocity(teacher.network, x, t, condition)
    trainer = workshop.trainer()
    for step in range(100):
        before = {role.name: fingerprint(role.network.state_dict()) for role in (roles.student, roles.auxiliary)}
        trainer.step()
        moved, other = (roles.student, roles.auxiliary) if step % 4 == 3 else (roles.auxiliary, roles.student)
        assert fingerprint(moved.network.state_dict()) != before[moved.name]
        assert fingerprint(other.network.state_dict()) == before[other.name]
    assert fingerprint(base_state(teacher.network)) == original
    assert torch.equal(teacher.velocity(teacher.network, x, t, condition), output)
    student = teacher.velocity(roles.student.network, x, t, condition)
    assert not torch.allclose(student, output, atol=1e-4)
    assert not torch.allclose(student, teacher.velocity(roles.auxiliary.network, x, t, condition), atol=1e-4)
