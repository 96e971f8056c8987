"""Whether students can be made of the teacher: start, gradients, storage, samples, and layers that methods ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from torch import Tensor

from teachers.conformance.case import CHUNK, FEW, UNSTEADY, Case, Check, Finding, contract

_NEAR = 0.3  # share of the teacher's velocity by which a student's start may differ


def start(case: Case) -> Iterator[Finding]:
    """A student starts as the teacher, in tensors of its own."""
    line = contract("initial_network")
    network = case.start()
    own = {value.data_ptr() for value in case.network.parameters()}
    if any(value.requires_grad and value.data_ptr() in own for value in network.parameters()):
        yield Finding("initial network", False, "trains the teacher's own tensors: it must be a copy", line)
        return
    if not case.steady:
        yield Finding("initial network", None, UNSTEADY, line)
        return
    # along the paths: off them a network that was fitted to the teacher owes nothing
    inputs = (case.path().x[:CHUNK], *case.few(CHUNK)[1:])
    teacher, start = case.velocity(*inputs), case.velocity(*inputs, network=network.eval())
    gap = float((start - teacher).norm() / teacher.norm().clamp(min=1e-12))
    yield Finding("initial network", gap < _NEAR, f"differs from the teacher by {gap:.1%} of its velocity", line)


def gradients(case: Case) -> Iterator[Finding]:
    """A student gets gradients, the teacher none."""
    line = contract("initial_network")
    x, t, condition = case.few()
    x, network = x.clone().requires_grad_(True), case.start().train()
    case.network.zero_grad()
    network.zero_grad()
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    case.teacher.velocity(network, x, t, condition).float().square().mean().backward()
    moved = [n for n, p in trained.items() if p.grad is not None and p.grad.isfinite().all() and p.grad.any()]
    through = x.grad is not None and bool(x.grad.any())
    what = f"{len(moved)} of {len(trained)} trainable tensors have one; the input {'too' if through else 'has none'}"
    yield Finding("gradient", bool(moved) and through, what, line)
    reached = [n for n, p in case.network.named_parameters() if p.requires_grad or p.grad is not None]
    what = f"teacher tensors that could be trained: {', '.join(reached[:3]) or 'none'}"
    yield Finding("frozen teacher", not reached, what, contract("load"))
    network.zero_grad(set_to_none=True)


def reloaded(case: Case) -> Iterator[Finding]:
    """A student is sampled from its stored settings, architecture and weights alone, so that is what is tried."""
    line = contract("build_network")
    teacher, network = case.teacher, case.start()
    adapter = type(teacher)(teacher.settings, json.loads(json.dumps(teacher.architecture)))
    rebuilt = adapter.build_network().to(case.device)
    rebuilt.load_state_dict(network.state_dict(), strict=True)
    if not case.steady:
        yield Finding("save and load", None, UNSTEADY, line)
        return
    inputs = case.few()
    gap = case.differ(case.velocity(*inputs, network=rebuilt.eval()), case.velocity(*inputs, network=network.eval()))
    yield Finding("save and load", gap <= 1, f"the reloaded network is off by {gap:.2g} x rounding", line)


def decoded(case: Case) -> Iterator[Finding]:
    """Samples are what `sample_kind` promises."""
    kind, line = case.teacher.sample_kind, contract("decode")
    with torch.no_grad():
        samples = case.teacher.decode(case.own_samples(FEW, case.teacher.settings.steps))
    axes = {"points": 2, "images": 4, "occupancy": 5}[kind]
    low, high = float(samples.min()), float(samples.max())
    sound = samples.dim() == axes and len(samples) == FEW and bool(samples.isfinite().all())
    if kind != "points":
        sound = sound and low >= 0 and high <= {"images": 1, "occupancy": 255}[kind]
    yield Finding("decode", sound, f"{kind} {list(samples.shape)} from {low:.3g} to {high:.3g}", line)


def identified(case: Case) -> Iterator[Finding]:
    """The identity is text, and the same twice."""
    first, second = case.teacher.identity(), case.teacher.identity()
    texts = bool(first) and all(isinstance(text, str) and text for pair in first.items() for text in pair)
    yield Finding("identity", texts and first == second, f"{first}", contract("identity"))


def features(case: Case) -> Iterator[Finding]:
    """What critics judge: tokens of every row, with a gradient back to the state."""
    line = contract("feature_layer")
    layer = case.teacher.feature_layer(case.network)
    if layer is None:
        yield Finding("features", None, "the adapter names no layer: no critic of features", line)
        return
    x, t, condition = case.few()
    x = x.clone().requires_grad_(True)
    tokens = case.teacher.features(case.network, x, t, condition)
    sound = tokens.dim() == 3 and len(tokens) == len(x) and bool(tokens.isfinite().all())
    through = tokens.requires_grad
    if through:
        tokens.float().square().mean().backward()
        through = x.grad is not None and bool(x.grad.flatten(1).any(dim=1).all())
    what = f"'{layer}' gives {list(tokens.shape)}; {'every row has' if through else 'not every row has'} a gradient"
    yield Finding("features", sound and through, what, line)


@torch.no_grad()
def flow_map(case: Case) -> Iterator[Finding]:
    """A flow map is told the length of each row's step by the layer that embeds the time. Changes `case.start()`."""
    line = contract("time_layer")
    layer = case.teacher.time_layer(case.start())
    if layer is None:
        yield Finding("flow map", None, "the adapter names no layer: no ayf, no meanflow", line)
        return
    if not case.steady:
        yield Finding("flow map", None, UNSTEADY, line)
        return
    inputs = case.few()
    network = case.teacher.flow_map(case.start().eval())

    def over(length: Tensor) -> Tensor:
        with network.over(length):
            return case.velocity(*inputs, network=network)

    short, first_longer = torch.full((2, len(inputs[0])), 0.1, device=case.device)
    first_longer[0] = 0.9
    gap = case.differ(over(short), case.velocity(*inputs, network=network.network))
    network.length.get_submodule("2").get_parameter("weight").fill_(0.1)  # zero in the beginning
    moved = (over(first_longer) - over(short)).flatten(1).abs().amax(dim=1)
    told = bool(moved[0] > 0) and not bool(moved[1:].any())
    starts = "starts as the velocity" if gap <= 1 else f"starts {gap:.2g} x rounding off the velocity"
    what = f"'{layer}': {starts}; a longer step of one row changes {'that row alone' if told else 'not just that row'}"
    yield Finding("flow map", gap <= 1 and told, what, line)


CHECKS: tuple[Check, ...] = (
    Check(start, "initial network", "initial_network"), Check(gradients, "gradient", "initial_network"),
    Check(reloaded, "save and load", "build_network"), Check(decoded, "decode", "decode"),
    Check(identified, "identity", "identity"), Check(features, "features", "feature_layer"),
    Check(flow_map, "flow map", "time_layer"),
)  # fmt: skip
