"""A student's whole sampler as one ONNX graph: from noise and condition to samples, its N steps unrolled.

    noise [B, ...], fresh_noise [B, N - 1, ...] of students that renoise, condition [B, ...]  ->  sample or latents

B is free, and so is the number of a prompt's tokens; every other axis is fixed. The graph computes in float32. Weights
may be stored in half precision; they are widened once, before the first step.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mfd_cli import samplers
from mfd_cli.config.schema import Lora
from mfd_cli.errors import MfdError
from mfd_cli.flow import time_grid
from mfd_cli.inference.exporters import cast_weights
from mfd_cli.inference.sampler import Sampler, precision
from mfd_cli.networks.lora import base_state, merged
from teachers.conditions import Condition
from teachers.guidance import AverageVelocityField, VelocityField
from teachers.pipelines.base import PipelineTeacher

#: version of the operator set that graphs are written in
OPSET = 20
#: names of the inputs that are no condition
NOISE, FRESH_NOISE = "noise", "fresh_noise"

#: larger graphs have their weights in a file of their own beside them; protobuf itself ends at 2 GiB
_INLINE_BYTES = 2**30
#: tensors with fewer numbers stay float32 whatever the weights' type: they weigh nothing
_LEAST_NARROWED = 64


def decodes(student: Sampler) -> bool:
    """Whether the graph ends with decoded samples; a diffusers pipeline's VAE is left out, and it ends with latents."""
    return not isinstance(student.teacher, PipelineTeacher)


def output_name(student: Sampler) -> str:
    """What the graph's output is called."""
    return "sample" if decodes(student) else "latents"


def graph_inputs(student: Sampler, noise: Tensor, fresh: Tensor | None, condition: Condition) -> dict[str, Tensor]:
    """The graph's inputs by name, in its order; what is floating is float32.

    Args:
        student: what is exported.
        noise: X_0 [B, ...].
        fresh: noise of the points between the steps [B, N - 1, ...], of students that renoise.
        condition: B rows.
    """
    inputs = {NOISE: noise} | ({} if fresh is None else {FRESH_NOISE: fresh}) | dict(condition)
    return {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}


def free_axes(student: Sampler, names: Iterable[str]) -> dict[str, dict[int, str]]:
    """Names of the axes of each input that may differ from call to call: the batch, and the tokens of prompts."""
    axes, teacher = {name: {0: "batch"} for name in names}, student.teacher
    if isinstance(teacher, PipelineTeacher) and teacher.filled_to is None:
        for name in teacher.ragged:
            for part in (name, f"{name}_mask"):
                if part in axes:
                    axes[part][1] = "tokens" if len(teacher.ragged) == 1 else f"{name}_tokens"
    return axes


class SamplingGraph(nn.Module):
    """A student's sampler as a module of tensors alone.

    Args:
        student: what is exported.
        network: its network in float32, an adapter merged in.
        names: the inputs, in the order in which they come.
    """

    grid: Tensor

    def __init__(self, student: Sampler, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self._names, self._teacher = list(names), student.teacher
        self._kind, self._first, self._decodes = student.kind, student.first_time, decodes(student)
        self.network = network
        own = (student.teacher.network, student.teacher.weak, student.network)
        decoders = [part for part in vars(student.teacher).values() if isinstance(part, nn.Module) and part not in own]
        self.decoders = nn.ModuleList(decoders if self._decodes else [])
        self.register_buffer("grid", time_grid(student.steps, student.shift), persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Samples or latents at t = 1 [B, ...]."""
        condition = dict(zip(self._names, inputs, strict=True))
        noise, fresh = condition.pop(NOISE), condition.pop(FRESH_NOISE, None)
        states = self._states(noise, fresh, condition)
        return self._teacher.decode(states) if self._decodes else states

    def _states(self, noise: Tensor, fresh: Tensor | None, condition: Condition) -> Tensor:
        if self._kind == "flow-map":
            return samplers.follow_map(AverageVelocityField(self._teacher, self.network, condition), noise, self.grid)
        field = VelocityField(self._teacher, self.network, condition)
        if self._kind == "renoise":
            between = None if fresh is None else lambda point: fresh[:, point - 1]
            return samplers.renoised(field, noise, self.grid, told=self._told(self.grid), fresh=between)
        # Euler's steps are a flow map's whose average velocity is the one at the start
        return samplers.follow_map(lambda x, s, t: field(x, self._told(s)), noise, self.grid)

    def _told(self, times: Tensor) -> Tensor:
        return self._first + (1 - self._first) * times


def plain_network(student: Sampler, dtype: str) -> nn.Module:
    """The student's network with its weights rounded to a type, an adapter merged in; the student's own stays as it is.

    Raises:
        MfdError: the type cannot hold a weight.
    """
    teacher, block = student.teacher, student.config["student"]
    if block.get("weights") == "lora":
        lora = Lora.model_validate(block["lora"])
        assert teacher.network is not None
        base = {name: value.float() for name, value in base_state(teacher.network).items()}
        network = teacher.build_network().float()
        network.load_state_dict(merged(base, student.network.state_dict(), lora.scale_alpha / lora.rank))
    else:
        network = student.network if dtype == "fp32" else _copied(student)
    network = network.eval().requires_grad_(False)
    if dtype != "fp32":
        for name, value in cast_weights(dict(network.named_parameters()), dtype).items():
            network.get_parameter(name).data = value.float()
    return network


def write_graph(
    student: Sampler, example: Mapping[str, Tensor], file: Path, *, dtype: str, notes: Mapping[str, str]
) -> None:
    """Traces the sampler, and writes it as an ONNX file; weights of large ones go into `<file>.data` beside it.

    Args:
        student: a loaded student on the CPU, its network computing in float32.
        example: inputs of two samples, by name.
        file: where to.
        dtype: type that the network's weights are stored in.
        notes: what the file says about itself.

    Raises:
        MfdError: something in the network or the decoder has no counterpart in a graph.
    """
    graph = SamplingGraph(student, plain_network(student, dtype), list(example))
    program = _traced(graph.eval(), example, free_axes(student, example), output_name(student))
    model = program.model
    if dtype != "fp32":
        _narrow_weights(model, dtype)
    _describe(model, notes)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    program.save(file, external_data=size > _INLINE_BYTES)


def _copied(student: Sampler) -> nn.Module:
    network = student.teacher.build_network()
    if student.config["student"].get("flow_map"):
        network = student.teacher.flow_map(network)
    network.load_state_dict(student.network.state_dict())
    return network.float()


def _traced(
    module: nn.Module, example: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]], output: str
) -> Any:
    """The ONNX program of a module.

    Raises:
        MfdError: it cannot be traced, or an operation has no counterpart.
    """
    inputs = tuple(example.values())
    named = ({axis: torch.export.Dim(name) for axis, name in axes[key].items()} for key in example)
    shapes = {"inputs": tuple(named)}
    try:
        with _silent(), torch.no_grad():
            program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
            # not optimized: onnxscript takes terms such as + 1e-15, which keep a division finite, for 0 and drops them
            return torch.onnx.export(
                program, dynamo=True, verbose=False, optimize=False, opset_version=OPSET, dynamic_shapes=shapes,
                input_names=list(example), output_names=[output],
            )  # fmt: skip
    except Exception as error:  # torch raises whatever the model's code meets
        raise MfdError(
            f"--onnx: the sampler cannot be traced: {_reason(error)}",
            allowed="networks and decoders made of tensor operations that ONNX has",
            do="export it in another format, such as --safetensors",
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of the innermost error that says anything, cut to a length that can be read."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _narrow_weights(model: Any, dtype: str) -> None:
    """Stores what a narrower type holds without loss in that type, each tensor widened once at the graph's beginning.

    The network's weights were rounded to it before; what else there is, such as a decoder, stays as it is.
    """
    import onnx_ir as ir

    graph, first = model.graph, model.graph[0]
    for value in list(graph.initializers.values()):
        wide = torch.from_numpy(value.const_value.numpy().copy())
        if wide.dtype != torch.float32 or wide.numel() < _LEAST_NARROWED:
            continue
        narrow = wide.to(precision(dtype))
        if not torch.equal(narrow.float(), wide):
            continue
        tensor = ir.tensor(narrow)
        stored = ir.Value(name=f"{value.name}_{dtype}", const_value=tensor)
        stored.shape, stored.dtype = value.shape, tensor.dtype
        cast = ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT})
        widened = cast.outputs[0]
        widened.name, widened.shape, widened.dtype = f"{value.name}_fp32", value.shape, value.dtype
        graph.initializers.pop(value.name)
        graph.register_initializer(stored)
        graph.insert_before(first, cast)
        ir.convenience.replace_all_uses_with(value, widened)


def _describe(model: Any, notes: Mapping[str, str]) -> None:
    """Leaves only what is meant to be said: the tracer writes source lines with their paths into every node."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.update(notes)
    model.producer_name, model.graph.name = "mfd", "sampler"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps the tracer's progress and its notes on packages that are not needed off the screen."""
    known = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(known)
