"""OccFM's tiny networks with stored weights, and the numbers that the published code gives for them.

Everything here is for reading only: tests that change a network or a tensor copy it first.
"""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from teachers.occfm.architecture import COMPRESSOR, TRANSITION, below, compressor_sizes, transition_sizes
from teachers.occfm.compressor import Compressor
from teachers.occfm.driving import DrivingData, DrivingSettings, TinySettings, TinyTeacher
from teachers.occfm.teacher import OccFMSettings, OccFMTeacher
from teachers.occfm.transition import TransitionNetwork
from teachers.weights import load_into

GOLDEN = Path(__file__).parents[2] / "golden" / "occfm"


@pytest.fixture(scope="session")
def stored():
    """`stored(file)`: the tensors of a file in tests/golden/occfm, by name."""
    read = {}

    def tensors(file):
        if file not in read:
            read[file] = load_file(GOLDEN / f"{file}.safetensors")
        return read[file]

    return tensors


@pytest.fixture(scope="session")
def weights(stored):
    """The tiny model's state dict in float32, under the published names."""
    return {name: value.float() if value.is_floating_point() else value for name, value in stored("state_dict").items()}


@pytest.fixture(scope="session")
def network(weights):
    """The tiny transition network, its sizes read off its tensors."""
    state = below(TRANSITION, weights)
    network = TransitionNetwork(**transition_sizes(state))
    load_into(network, state, GOLDEN)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def compressor(weights):
    """The tiny compressor, its sizes read off its tensors."""
    state = {name: value for name, value in weights.items() if name.startswith(COMPRESSOR)}
    compressor = Compressor(**compressor_sizes(state))
    load_into(compressor, state, GOLDEN)
    return compressor.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def averaged(compressor, stored):
    """The tiny compressor with the index buffers that averaging over training leaves."""
    state = compressor.state_dict()
    index = stored("compressor_io")["ema.relative_position_index"]
    state = {name: index if name.endswith("relative_position_index") else value for name, value in state.items()}
    changed = copy.deepcopy(compressor)
    load_into(changed, state, GOLDEN)
    return changed


@pytest.fixture(scope="session")
def teacher(weights, tmp_path_factory):
    """The tiny model as a teacher, loaded from a file."""
    path = tmp_path_factory.mktemp("occfm") / "tiny.safetensors"
    save_file(weights, path)
    return OccFMTeacher.load(OccFMSettings(type="occfm", weights=str(path)))


@pytest.fixture(scope="module")
def tiny_teacher(tiny_occfm):
    """The smallest teacher of the made-up world."""
    return TinyTeacher.load(TinySettings(type="occfm-tiny", weights=str(tiny_occfm)))


@pytest.fixture(scope="module")
def drives(tiny_teacher):
    """Clips of two drives and of two that are held out, two of each, for that teacher."""
    settings = DrivingSettings(type="driving", scenes=2, held_out=2, frames=13)
    return DrivingData.load(settings, tiny_teacher)


@pytest.fixture(scope="session")
def watch():
    """`watch(network, names, run)`: what `run()` returns, and the outputs of the modules of these names."""

    def watched(network, names, run):
        found, hooks = {}, []
        for name in names:

            def keep(module, arguments, output, name=name):
                found[name] = output

            hooks.append(network.get_submodule(name).register_forward_hook(keep))
        try:
            with torch.inference_mode():
                return run(), found
        finally:
            for hook in hooks:
                hook.remove()

    return watched
