"""Networks in shards give what whole ones give; here in a group of one process, two are in training/test_shards.py."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mfd_cli.networks.ema import AveragedNetwork
from mfd_cli.networks.sharding import Sharding, gathered, is_sharded, local, spread, whole


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x))


class Network(nn.Module):
    forward_methods = ("doubled",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(3, 5), nn.Sequential(Block(), Block()), nn.Linear(5, 3)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(self.first(x))) + self.shift

    def doubled(self, x: Tensor) -> Tensor:
        return 2 * self.last(self.first(x))


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(params=[True, False], ids=["let go", "kept"])
def sharding(group: None, request: pytest.FixtureRequest) -> Sharding:
    return Sharding(
        torch.device("cpu"), reshard=request.param, parts=lambda network: lambda module: isinstance(module, Block)
    )


@pytest.fixture
def plain() -> Network:
    torch.manual_seed(0)
    return Network()


X = torch.arange(12.0).reshape(4, 3) / 12


def test_values_and_gradients_are_those_of_the_whole_network(sharding: Sharding, plain: Network) -> None:
    network = sharding.place(copy.deepcopy(plain))
    assert all(map(is_sharded, network.parameters())) and not is_sharded(network.shift)
    with torch.inference_mode():
        torch.testing.assert_close(network(X), plain(X))
    sharding.settle()
    for each in (network, plain):
        each(X).square().mean().backward()
    for name, value in network.named_parameters():
        torch.testing.assert_close(whole(value.grad), plain.get_parameter(name).grad)
    torch.testing.assert_close(network.doubled(X), plain.doubled(X))
    tangent = torch.ones_like(X)
    with torch.no_grad():
        found, expected = (torch.func.jvp(each, (X,), (tangent,))[1] for each in (network, plain))
    torch.testing.assert_close(found, expected)


def test_what_is_gathered_is_the_state_and_can_be_spread_again(sharding: Sharding, plain: Network) -> None:
    network = sharding.place(copy.deepcopy(plain))
    state = gathered(network.state_dict(), keep=True)
    assert not any(map(is_sharded, state.values()))
    torch.testing.assert_close(state, dict(plain.state_dict()), rtol=0, atol=0)
    assert gathered(network.state_dict(), keep=False) == {}
    weight = network.first.weight
    again = spread(2 * state["first.weight"], weight)
    assert is_sharded(again) and torch.equal(local(again), 2 * local(weight.detach()))
    assert spread(torch.zeros(2), weight).shape == (2,), "what does not fit is left for the loader to refuse"
    assert spread(torch.zeros(3), torch.ones(3)) is not None and not is_sharded(spread(torch.zeros(3), torch.ones(3)))


def test_a_step_in_shards_is_a_step(sharding: Sharding, plain: Network) -> None:
    network, average = copy.deepcopy(plain), copy.deepcopy(plain)
    follow = AveragedNetwork(plain, 0.9)
    sharding.place(network)
    shards = AveragedNetwork(network, 0.9, sharding.place(average))
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.1, fused=True) for each in (network, plain)]
    for update in (1, 2, 3):
        shards.network(X)  # a look at the average between two steps, as a preview takes it
        for each, optimizer in zip((network, plain), optimizers, strict=True):
            each(X).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        shards.update(update)
        follow.update(update)
        sharding.settle()
        torch.testing.assert_close(shards.network(X), follow.network(X))
    found = gathered(shards.network.state_dict(), keep=True)
    torch.testing.assert_close(found, dict(follow.network.state_dict()))


def test_nothing_grows_with_the_calls(sharding: Sharding, plain: Network) -> None:
    """FSDP2 notes every call until a backward pass, which a teacher never has."""
    network = sharding.place(plain.requires_grad_(False))
    noted = network._get_fsdp_state()._comm_ctx
    for _ in range(3):
        network(X)
    assert noted.post_forward_order
    sharding.settle()
    assert not noted.post_forward_order
    assert all(map(is_sharded, network.parameters())), "no gathered weights outlive a step"


def test_parameters_apart_stay_whole(sharding: Sharding, plain: Network) -> None:
    apart = plain.blocks[1].layer.weight
    network = sharding.place(plain, apart=[apart])
    assert network.blocks[1].layer.weight is apart and not is_sharded(apart)
    assert is_sharded(network.blocks[1].layer.bias) and is_sharded(network.first.weight)


def test_a_network_without_parameters_is_only_moved(sharding: Sharding) -> None:
    network = nn.Identity()
    assert sharding.place(network) is network and type(network) is nn.Identity


def test_features_taken_from_inside_can_be_differentiated(sharding: Sharding, plain: Network) -> None:
    network = sharding.place(copy.deepcopy(plain))
    expected, found = [], []
    for each, gradients in ((plain, expected), (network, found)):
        seen: list[Tensor] = []
        each.first.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        x = X.clone().requires_grad_()
        each(x)
        sharding.settle()  # so that no weights are left from the call
        if each is network:
            seen[0].register_hook(lambda gradient: sharding.gather_around(network, "first"))
        seen[0].sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(found[0], expected[0])


def test_the_longest_of_one_process_is_its_own(sharding: Sharding) -> None:
    assert sharding.longest(7) == 7
