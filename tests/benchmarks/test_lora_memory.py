"""Counted bytes of known patterns of tensors, parameters of the published model, and a smoke run."""

import json

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")


@pytest.fixture
def module(script):
    return script("lora_memory")


def test_bytes_of_known_tensors_are_exact(module):
    meter = module.Meter(torch.device("cpu"), [])

    def work():
        first = torch.zeros(1000)  # 4000 bytes
        second = first.double()  # 8000 more
        view = second[:10]  # shares them
        del first, second
        third = torch.ones(250)  # 1000, beside the 8000 that the view holds
        return view, third

    assert meter.peak(work) == (0, 12_000)
    assert meter.peak(lambda: torch.zeros(3, dtype=torch.uint8)) == (0, 3)


def test_what_was_there_before_counts_as_held(module):
    layer = torch.nn.Linear(10, 10, bias=False)
    meter = module.Meter(torch.device("cpu"), [layer])
    x = torch.ones(5, 10)
    # the input is first seen when it is used; the result is as large
    assert meter.peak(lambda: layer(x)) == (400, 400 + 200 + 200)


def test_activations_and_gradients_of_a_backward_pass_are_counted(module):
    weight = torch.ones(1000, requires_grad=True)
    meter = module.Meter(torch.device("cpu"), [])
    meter.peak(lambda: weight.detach())

    def work():
        squared = weight * weight  # kept by exp's backward pass no longer than exp's own result
        value = squared.exp()
        del squared
        value.backward(torch.ones(1000))

    before, peak = meter.peak(work)
    assert before == 4000
    # alive at once at least: weight, result, gradient coming in, gradient of the weight
    assert 5 * 4000 <= peak <= 8 * 4000
    assert weight.grad is not None and meter._memory.held == 2 * 4000  # weight and its gradient


def test_the_published_model_is_counted_without_being_built(module):
    base, adapter = module.counted(module.PUBLISHED, 64)
    assert base == pytest.approx(2 * 1.604e9, rel=1e-3) and adapter == pytest.approx(34.4e6, rel=1e-3)
    assert module.counted(module.PUBLISHED, 8)[1] == adapter // 8


def test_the_ratio_adds_adapters_moments_and_one_gradient(module):
    # 3 adapters and a gradient of 4 bytes, moments of 8 bytes for two: 32 bytes a parameter
    assert module.ratio_of(3200, 10, "adamw", average=True) == pytest.approx(1.1)
    assert module.ratio_of(3200, 10, "adamw8bit", average=False) == pytest.approx(1.05)


@pytest.mark.slow
def test_a_quick_run(module, tmp_path, monkeypatch):
    monkeypatch.setenv("MFD_CACHE", str(tmp_path))
    path, picture = tmp_path / "found.json", tmp_path / "found.png"
    module.main(["--quick", "--json", str(path), "--plot", str(picture)])
    plain, checkpointed = json.loads(path.read_text())["measured"]
    assert plain["base"] == checkpointed["base"] == 2 * 54_344
    assert checkpointed["activations"] < plain["activations"] < plain["cycle"]
    # adapters and moments are there for certain: seven of the eight copies that the arithmetic has
    assert plain["ratio"] > 1 + 7 / 8 * 0.9 * (plain["predicted"] - 1)
    assert picture.read_bytes().startswith(b"\x89PNG")
