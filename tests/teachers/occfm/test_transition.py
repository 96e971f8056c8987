"""The transition network against every number stored from the published one, in its own layout.

Stored states are [B, F, C, H, W] outside the network and [B, c, F, H, W] or sequences of tokens inside it; mfd's are
[B, F, H, W, c] inside, with tokens [B, S, N, c].
"""

import copy
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mfd_cli.flow import time_grid
from mfd_cli.inference.sampler import Sampler
from mfd_cli.solvers import integrate_grid
from teachers.guidance import VelocityField
from teachers.occfm import transition
from teachers.occfm.blocks import timestep_embedding, trajectory_embedding

FILE = Path(__file__).parents[2] / "golden" / "occfm" / "transition_io.safetensors"
#: what was put in; all the rest came out, and each is a test below
ARGUMENTS = {"net.x", "net.timesteps", "net.timesteps_ends", "net.traj", "vel.cond", "vel.t", "vel.traj", "vel.x_t"}
ARGUMENTS |= {"sample.latents", "sample.noise", "sample.traj"}
with safe_open(FILE, "pt") as _file:
    STORED = set(_file.keys())
PAST, FUTURE = slice(None, 6), slice(6, None)
RESCALE, SHIFT, GUIDANCE = 10, 3.0, 2.0
TOLERANCES = {"grid": 1e-6, "sample": 1e-5, "net": 5e-5, "vel": 5e-5, "step": 5e-5, "probe": 5e-5}


def close(found, expected, tolerance=5e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def channels_last(frames):
    """[B, c, F, H, W] to [B, F, H, W, c]."""
    return frames.permute(0, 2, 3, 4, 1)


def rows_of_frames(frames):
    """[B, c, F, H, W] to [B, HW, F, c]."""
    return channels_last(frames).flatten(2, 3).transpose(1, 2)


def sequences(tokens):
    """[S, N, c] of one clip to [1, S, N, c]."""
    return tokens[None]


#: how a stored output is turned into mfd's layout, by what it is called
LAYOUTS = {
    "init_conv": channels_last,
    "init_temporal_attn": rows_of_frames,
    "downs.0.1__f3": channels_last,
    "downs.0.2__row3": sequences,
    "downs.0.3__row3": sequences,
    "downs.0.5": channels_last,
    "downs.1.3": sequences,
    "mid_block1": channels_last,
    "mid_spatial_attn": lambda frames: channels_last(frames).flatten(2, 3),
    "mid_temporal_attn": rows_of_frames,
    "mid_block2": channels_last,
    "ups.0.3": sequences,
    "ups.0.4__f3": channels_last,
    "ups.1.3": sequences,
    "final_conv": channels_last,
    "t_embedder": lambda row: row,
    "traj_encoder": lambda row: row,
    "time_rel_pos_bias": lambda table: table,
}
KEPT = {"f3": slice(None, None, 3), "row3": slice(None, None, 3)}


@pytest.fixture(scope="module")
def io(stored):
    return stored("transition_io")


@pytest.fixture(scope="module")
def outputs(io, network, teacher, watch):
    """`outputs(group)`: what mfd computes for the stored tensors of a group, by their names; computed once."""

    def net():
        history, future = io["net.x"][:, PAST], io["net.x"][:, FUTURE]
        trajectory, t = io["net.traj"], io["net.timesteps"] / 1000
        return {
            "net.out_traj": network(future, t, history, trajectory),
            "net.out_notraj": network(future, t, history, None),
            "net.out_ends": network(future, io["net.timesteps_ends"] / 1000, history, trajectory),
        }

    def vel():
        without, given = network.with_and_without_history(*velocity_arguments(io))
        return {"vel.v_uncond": without, "vel.v_cond": given, "vel.v_cfg": teacher.guide(without, given, GUIDANCE)}

    def sample():
        found = {f"sample.out{steps}": sampled(teacher, io, steps) for steps in (1, 4, 10)}
        return found | {"sample.out4_b1": sampled(teacher, io, 4, rows=1)}

    def step():
        return recorded(teacher, io)

    def grid():
        return {f"grid.{steps}": time_grid(steps, SHIFT) for steps in (1, 2, 4, 10)}

    def probe():
        return probed(network, io, watch)

    @cache
    def group(name):
        with torch.inference_mode():
            return {"net": net, "vel": vel, "sample": sample, "step": step, "grid": grid, "probe": probe}[name]()

    return group


def velocity_arguments(io):
    """Future, time, history and trajectory of the stored guided evaluation."""
    return io["vel.x_t"], io["vel.t"], io["vel.cond"], io["vel.traj"]


def sampled(teacher, io, steps, rows=2):
    """Latents as they are stored in a cache, from the sampler that mfd's users call."""
    sampler = Sampler("teacher", teacher, teacher.network, steps, shift=SHIFT, guidance=GUIDANCE)
    return sampler.generate(io["sample.noise"][:rows], sampling_condition(io, rows)) / RESCALE


def sampling_condition(io, rows=2):
    return {"history": io["sample.latents"][:rows, PAST] * RESCALE, "trajectory": io["sample.traj"][:rows]}


def recorded(teacher, io):
    """State, times (of both branches) and guided velocity at each of four steps."""
    field, found = VelocityField(teacher, teacher.network, sampling_condition(io), GUIDANCE), {}

    def record(x, t):
        velocity, name = field(x, t), f"step{len(found) // 3}"
        found.update({f"{name}.x_t": x, f"{name}.timesteps": torch.cat([t, t]), f"{name}.v_cfg": velocity})
        return velocity

    integrate_grid(record, io["sample.noise"], time_grid(4, SHIFT))
    return found


@contextmanager
def finished_past():
    """The network goes on with the frames of the past where it would leave them, and gives back all twelve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transition, "HISTORY", 0)
        yield


def probed(network, io, watch):
    """Outputs of modules for the first clip alone, thinned out as the stored ones are."""
    x, trajectory, t = (io[f"net.{name}"][:1] for name in ("x", "traj", "timesteps"))
    t = t / 1000
    names = [name.split("__")[0] for name in LAYOUTS]
    with finished_past():
        velocity, seen = watch(network, names, lambda: network(x[:, FUTURE], t, x[:, PAST], trajectory))
    found = {
        "probe.out": velocity,
        "probe.timestep_sinusoid": timestep_embedding(t, network.width),
        "probe.traj_fourier": trajectory_embedding(trajectory).view(12, 32),
    }
    for name in LAYOUTS:
        module, _, part = name.partition("__")
        found[f"probe.{name}"] = seen[module][:, KEPT[part]] if part else seen[module]
    return found


def in_own_layout(name, value):
    """A stored tensor as mfd has it; frames of the past, which mfd leaves unfinished, are dropped from results."""
    if name.startswith("net.out"):
        return value[:, FUTURE]
    if name.endswith(".timesteps"):
        return value / 1000
    layout = LAYOUTS.get(name.removeprefix("probe."))
    return layout(value) if layout else value


@pytest.mark.parametrize("name", sorted(STORED - ARGUMENTS))
def test_a_stored_result_is_reproduced(name, io, outputs):
    group = name.split(".")[0].rstrip("0123456789")
    tolerance = 1e-6 if name.endswith(".timesteps") else TOLERANCES[group]
    close(outputs(group)[name], in_own_layout(name, io[name]), tolerance)


def test_nothing_is_taken_for_an_argument_that_is_not_stored():
    assert ARGUMENTS < STORED


def test_frames_of_the_past_are_left_unfinished_and_change_nothing(network, io, outputs):
    """They would come out as published (`probe.out`); without them the future is the same."""
    x, trajectory, t = (io[f"net.{name}"][:1] for name in ("x", "traj", "timesteps"))
    with torch.inference_mode():
        future = network(x[:, FUTURE], t / 1000, x[:, PAST], trajectory)
    close(future, outputs("probe")["probe.out"][:, FUTURE], 1e-5)


def test_both_branches_in_one_call_are_those_of_two_calls(network, io):
    x, t, history, trajectory = velocity_arguments(io)
    without = network(x, t, torch.zeros_like(history), trajectory)
    given = network(x, t, history, trajectory)
    close(without, io["vel.v_uncond"])
    close(given, io["vel.v_cond"])
    both = network.with_and_without_history(x, t, history, trajectory)
    for found, expected in zip(both, (without, given), strict=True):
        close(found, expected, 1e-5)


def test_both_branches_in_one_call_also_without_a_trajectory(network, io):
    x, t, history, _ = velocity_arguments(io)
    without, given = network.with_and_without_history(x, t, history, None)
    close(without, network(x, t, torch.zeros_like(history), None), 1e-5)
    close(given, network(x, t, history, None), 1e-5)


@pytest.mark.parametrize(("guidance", "expected"), [(0.0, "v_uncond"), (1.0, "v_cond"), (2.0, "v_cfg")])
def test_the_velocity_field_gives_the_branches_and_the_guided_velocity(guidance, expected, teacher, io):
    x, t, history, trajectory = velocity_arguments(io)
    condition = {"history": history, "trajectory": trajectory}
    with torch.inference_mode():
        close(VelocityField(teacher, teacher.network, condition, guidance)(x, t), io[f"vel.{expected}"])


def test_guidance_through_a_wrapped_network_is_the_same(teacher, io):
    """A wrapper has no call for both branches, so that two rows of one call are made of each."""
    x, t, history, trajectory = velocity_arguments(io)
    wrapped = torch.nn.Sequential(teacher.network)
    wrapped.forward = teacher.network.forward
    field = VelocityField(teacher, wrapped, {"history": history, "trajectory": trajectory}, GUIDANCE)
    with torch.inference_mode():
        close(field(x, t), io["vel.v_cfg"])


def test_one_step_from_noise_is_noise_plus_velocity(teacher, io):
    """x_1 = z + v(z, 0), the parametrisation of a one-step student."""
    noise = io["sample.noise"]
    field = VelocityField(teacher, teacher.network, sampling_condition(io), GUIDANCE)
    with torch.inference_mode():
        close((noise + field(noise, torch.zeros(2))) / RESCALE, io["sample.out1"], 1e-5)


def test_a_batch_gives_what_its_clips_give_alone(network, io):
    x, trajectory, t = (io[f"net.{name}"] for name in ("x", "traj", "timesteps"))
    together = network(x[:, FUTURE], t / 1000, x[:, PAST], trajectory)
    for row in range(2):
        one = slice(row, row + 1)
        alone = network(x[one, FUTURE], t[one] / 1000, x[one, PAST], trajectory[one])
        close(together[one], alone, 1e-5)


def test_rows_of_the_trajectory_beyond_those_used_change_nothing(network, io):
    x, trajectory, t = (io[f"net.{name}"] for name in ("x", "traj", "timesteps"))
    changed = trajectory.clone()
    changed[:, network.trajectory_rows :] += 1
    before, after = (network(x[:, FUTURE], t / 1000, x[:, PAST], each) for each in (trajectory, changed))
    assert torch.equal(before, after)
    changed[:, network.trajectory_rows - 1] += 1
    assert not torch.allclose(before, network(x[:, FUTURE], t / 1000, x[:, PAST], changed), atol=1e-3)


def test_without_a_trajectory_its_term_is_left_out(network, io):
    """As if the encoder of the trajectory gave nothing, which is not what it gives for standing still."""
    silent = copy.deepcopy(network)
    silent.traj_encoder[2].weight.zero_()
    silent.traj_encoder[2].bias.zero_()
    x, trajectory, t = io["net.x"], io["net.traj"], io["net.timesteps"] / 1000
    left_out = network(x[:, FUTURE], t, x[:, PAST], None)
    assert torch.equal(left_out, silent(x[:, FUTURE], t, x[:, PAST], trajectory))
    still = network(x[:, FUTURE], t, x[:, PAST], torch.zeros_like(trajectory))
    assert (left_out - still).abs().max() > 1e-2


def test_gradients_reach_every_weight_that_is_trained(network, io):
    trained = copy.deepcopy(network).train().requires_grad_(True)
    frozen = {"pos_embed", "temp_embed"}
    for name in frozen:
        trained.get_parameter(name).requires_grad_(False)
    x = io["net.x"]
    found = trained(x[:, FUTURE], io["net.timesteps"] / 1000, x[:, PAST], io["net.traj"])
    found.square().mean().backward()
    without = [n for n, p in trained.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert set(without) == frozen


def test_positions_are_not_trained():
    from teachers.occfm.transition import TransitionNetwork

    network = TransitionNetwork(grid=2, width=16, base=8, levels=[2])
    assert {name for name, value in network.named_parameters() if not value.requires_grad} == {
        "pos_embed",
        "temp_embed",
    }
