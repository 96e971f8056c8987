"""Tensors and optimizer states on disk: exact, checked, no pickle."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from mfd_cli.errors import MfdError
from mfd_cli.store.tensors import (
    load_into,
    optimizer_tensors,
    read_header,
    read_tensors,
    restore_optimizer,
    write_tensors,
)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}, {"name": "Fréchet"})
    return path


def test_round_trip_keeps_values_types_shapes_and_header(tmp_path: Path) -> None:
    tensors = {
        "float": torch.randn(3, 4).t(),  # not contiguous
        "half": torch.randn(5).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 2),
        "shared": torch.zeros(2),
    }
    tensors["same"] = tensors["float"].clone()
    path = tmp_path / "a.safetensors"
    write_tensors(path, tensors, {"steps": [1, 2], "word": "ü"})
    found = read_tensors(path)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)
    assert read_header(path) == {"steps": [1, 2], "word": "ü"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    write_tensors(tmp_path / "a.safetensors", {"fine": torch.zeros(2), "bad": torch.tensor([1.0, value])})
    with pytest.raises(MfdError, match=r"a\.safetensors: NaN or infinite values in bad"):
        read_tensors(tmp_path / "a.safetensors")


def test_damaged_and_foreign_files_are_one_clear_error(stored: Path) -> None:
    content = stored.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header["w"]["data_offsets"] = [0, 8]
    overlapping = json.dumps(header).encode()
    broken = {
        "empty": b"", "short": content[:-1], "long": content + b"\0", "header cut": content[:20],
        "huge header": struct.pack("<Q", 2**62) + content[8:], "pickle": pickle.dumps({"w": [1.0]}),
        "overlap": struct.pack("<Q", len(overlapping)) + overlapping + content[8 + size :], "text": b"hello" * 40,
    }  # fmt: skip
    for what, damaged in broken.items():
        stored.write_bytes(damaged)
        with pytest.raises(MfdError, match="not a readable safetensors file"):
            read_tensors(stored)
        with pytest.raises(MfdError, match="not a readable safetensors file"):
            read_header(stored)
        assert what
    with pytest.raises(MfdError, match="no such file"):
        read_tensors(stored.with_name("missing.safetensors"))


def test_a_foreign_file_has_no_header_of_ours(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(MfdError, match="not one that mfd wrote"):
        read_header(tmp_path / "a.safetensors")


def test_weights_must_match_by_name_and_shape(tmp_path: Path) -> None:
    layer = nn.Linear(2, 3)
    path = tmp_path / "a.safetensors"
    with pytest.raises(MfdError) as caught:
        load_into(layer, {"weight": torch.zeros(3, 1), "biass": torch.zeros(3)}, path)
    assert "missing bias" in caught.value.found and "unexpected biass" in caught.value.found
    assert "weight: shape [3, 1], expected [3, 2]" in caught.value.found


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer, list[str]]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, fused=True)
    advance(network, optimizer, steps)
    return network, optimizer, [name for name, _ in network.named_parameters()]


def advance(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.ones(4, 2)).square().mean().backward()
        optimizer.step()


def test_a_restored_optimizer_goes_on_bit_for_bit(tmp_path: Path) -> None:
    network, optimizer, names = trained(3)
    path = tmp_path / "optim.safetensors"
    write_tensors(path, optimizer_tensors(optimizer, names))
    other, fresh, _ = trained(0)
    other.load_state_dict(network.state_dict())
    restore_optimizer(fresh, names, read_tensors(path), path)
    advance(network, optimizer, 2)
    advance(other, fresh, 2)
    for one, two in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_an_optimizer_without_a_step_has_no_state() -> None:
    _, optimizer, names = trained(0)
    assert optimizer_tensors(optimizer, names) == {}
    restore_optimizer(optimizer, names, {}, Path("optim"))


def test_a_state_that_does_not_fit_is_an_error_and_not_a_fresh_start() -> None:
    _, optimizer, names = trained(2)
    state = optimizer_tensors(optimizer, names)
    one = next(iter(state))
    path = Path("optim.safetensors")
    with pytest.raises(MfdError, match=r"optim\.safetensors: optimizer state for an unknown parameter 9\.weight"):
        restore_optimizer(optimizer, names, {**state, "9.weight/exp_avg": torch.zeros(1)}, path)
    with pytest.raises(MfdError, match="incomplete"):
        restore_optimizer(optimizer, names, {key: value for key, value in state.items() if key != one}, path)
    with pytest.raises(MfdError, match="state of 3 of 4 parameters"):
        first = f"{names[0]}/"
        restore_optimizer(optimizer, names, {k: v for k, v in state.items() if not k.startswith(first)}, path)
    with pytest.raises(MfdError, match="shape"):
        restore_optimizer(optimizer, names, {**state, f"{names[0]}/exp_avg": torch.zeros(7)}, path)


class ByteMoments(torch.optim.Optimizer):
    """Keeps what 8-bit optimizers keep: byte moments, block scales, a table shared by all parameters, a plain count."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.table = torch.linspace(-1, 1, 256)

    def state_dict(self) -> dict[str, object]:
        raise AssertionError("packed into dictionaries by the real ones")

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for value in self.param_groups[0]["params"]:
            state = self.state[value]
            if not state:
                state |= {"step": 0, "state1": torch.zeros(value.shape, dtype=torch.uint8), "qmap1": self.table,
                          "absmax1": torch.zeros(3)}  # fmt: skip
            state["step"] += 1
            state["state1"] += 3


def test_states_of_8_bit_optimizers_come_back_as_they_were(tmp_path: Path) -> None:
    names, parameters = ["a", "b"], [nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(2))]
    first, second = ByteMoments(parameters), ByteMoments([nn.Parameter(value.clone()) for value in parameters])
    first.step()
    first.step()
    path = tmp_path / "optim.safetensors"
    write_tensors(path, optimizer_tensors(first, names))
    restore_optimizer(second, names, read_tensors(path), path)
    for mine, theirs in zip(first.state.values(), second.state.values(), strict=True):
        assert theirs["step"] == 2 and type(theirs["step"]) is int
        assert theirs["state1"].dtype == torch.uint8
        assert all(torch.equal(mine[key], theirs[key]) for key in ("state1", "qmap1", "absmax1"))
