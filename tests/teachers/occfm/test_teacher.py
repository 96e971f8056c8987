"""The adapter: what it loads and refuses, guidance in one call, conditions, decoding, and what a student carries."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from teachers import conditions
from teachers.base import Teacher
from teachers.conformance import check
from teachers.errors import MfdError
from teachers.guidance import VelocityField
from teachers.occfm import teacher as module
from teachers.occfm.architecture import TRANSITION
from teachers.occfm.driving import TinySettings, TinyTeacher
from teachers.occfm.teacher import OccFMSettings, OccFMTeacher


def load(tensors, folder, **settings):
    path = folder / "weights.safetensors"
    save_file(tensors, path)
    return OccFMTeacher.load(OccFMSettings(type="occfm", weights=str(path), **settings))


def refusal(call, *arguments, **settings):
    with pytest.raises(MfdError) as caught:
        call(*arguments, **settings)
    return caught.value


def batch(teacher, count=2, seed=0):
    """States, times and a condition, all random."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *teacher.sample_shape, generator=generator)
    history = torch.randn(count, *teacher.sample_shape, generator=generator)
    trajectory = torch.randn(count, 12, 2, generator=generator)
    return x, torch.rand(count, generator=generator), {"history": history, "trajectory": trajectory}


def test_the_loaded_teacher_is_frozen_and_as_large_as_its_file_says(teacher, weights):
    assert teacher.sample_shape == (6, *teacher.compressor().latent_shape)
    assert not any(value.requires_grad for value in teacher.network.parameters()) and not teacher.network.training
    state = teacher.network.state_dict()
    assert all(torch.equal(state[name.removeprefix(TRANSITION)], value)
               for name, value in weights.items() if name.startswith(TRANSITION))  # fmt: skip


def test_names_may_keep_what_wrappers_put_before_them(teacher, weights, tmp_path):
    wrapped = load({f"module.{name}": value for name, value in weights.items()}, tmp_path)
    x, t, condition = batch(teacher)
    first, second = (each.velocity(each.network, x, t, condition) for each in (teacher, wrapped))
    assert torch.equal(first, second) and torch.equal(teacher.decode(x), wrapped.decode(x))


@pytest.mark.parametrize("name", ["transition_model.final_conv.1.bias", "decoder.conv_out.bias"])
def test_a_missing_tensor_is_named(weights, tmp_path, name):
    error = refusal(load, {key: value for key, value in weights.items() if key != name}, tmp_path)
    assert f"missing {name.removeprefix(TRANSITION)}" in error.found


def test_a_compressor_alone_is_no_teacher(weights, tmp_path):
    error = refusal(load, {key: value for key, value in weights.items() if not key.startswith(TRANSITION)}, tmp_path)
    assert "transition network" in error.found and "mfd teachers convert occfm" in error.do


def test_tensors_that_belong_to_nothing_are_refused_by_name(weights, tmp_path):
    error = refusal(load, weights | {"discriminator.weight": torch.ones(2)}, tmp_path)
    assert error.found.endswith("no part of OccFM: discriminator.weight") and "transition_model." in error.allowed
    many = {f"other.{number}": torch.ones(1) for number in range(7)}
    assert refusal(load, weights | many, tmp_path).found.endswith("other.4 and 2 more")


def test_another_trajectory_than_trained_with_is_refused_and_the_right_one_said(weights, tmp_path):
    rows = {6: "history", 12: "future"}
    first = weights["transition_model.traj_encoder.0.weight"]
    fits = rows.pop(first.shape[1] // 32)
    (wrong,) = rows.values()
    error = refusal(load, weights, tmp_path, trajectory=wrong)
    assert error.do == f"set teacher.trajectory to {fits}"
    assert load(weights, tmp_path, trajectory=fits).settings.trajectory == fits
    short = weights | {"transition_model.traj_encoder.0.weight": first[:, :96].contiguous()}
    error = refusal(load, short, tmp_path, trajectory=fits)
    assert "takes 3 rows" in error.found and error.do == "use weights of a published kind"


def test_a_published_checkpoint_is_told_how_to_convert(tmp_path):
    path = tmp_path / "occfm.ckpt"
    path.write_bytes(b"PK")
    error = refusal(OccFMTeacher.load, OccFMSettings(type="occfm", weights=str(path)))
    assert "pickle" in error.found and f"mfd teachers convert occfm {path}" in error.do


def test_a_missing_file_is_refused_before_anything_is_loaded(tmp_path):
    missing = str(tmp_path / "none.safetensors")
    for kind, settings in ((OccFMTeacher, OccFMSettings), (TinyTeacher, TinySettings)):
        error = refusal(kind.check, settings(type="any", weights=missing))
        assert missing in error.found and "docs/occfm.md" in error.do


def test_random_weights_have_the_published_sizes():
    teacher = OccFMTeacher.random(OccFMSettings(type="occfm", weights="none", trajectory="future"))
    assert teacher.sample_shape == (6, 16, 50, 50) and teacher.network.trajectory_rows == 12
    # the published network and six further rows of 32 features, each seen by the 128 units of the first layer
    assert sum(value.numel() for value in teacher.network.state_dict().values()) == 11_830_416 + 6 * 32 * 128
    assert teacher.compressor().size == 200 and teacher.identity() == {"weights": "random"}


def test_the_velocity_is_the_network_s(teacher):
    x, t, condition = batch(teacher)
    expected = teacher.network(x, t, condition["history"], condition["trajectory"])
    assert torch.equal(teacher.velocity(teacher.network, x, t, condition), expected)
    assert expected.shape == x.shape


def test_both_branches_in_one_call_are_two_evaluations(teacher):
    x, t, condition = batch(teacher, 3)
    null = teacher.null_condition(condition)
    pair = conditions.stack(null, condition)
    found = teacher.branches(teacher.network, x, t, pair)
    apart = torch.cat([teacher.velocity(teacher.network, x, t, each) for each in (null, condition)])
    assert torch.allclose(found, apart, atol=1e-5) and not torch.allclose(found[:3], found[3:], atol=1e-3)
    assert torch.allclose(Teacher.branches(teacher, teacher.network, x, t, pair), apart, atol=1e-5)


class Wrapper(nn.Module):
    """As adapters wrap a network: its forward pass alone."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, *arguments):
        return self.network(*arguments)


def test_a_guided_field_shares_the_work_of_its_branches_where_it_can(teacher, monkeypatch):
    x, t, condition = batch(teacher)
    calls = []
    original = type(teacher.network).with_and_without_history

    def counted(*arguments):
        calls.append(len(arguments[1]))
        return original(*arguments)

    monkeypatch.setattr(type(teacher.network), "with_and_without_history", counted)
    without, given = (
        teacher.velocity(teacher.network, x, t, each) for each in (teacher.null_condition(condition), condition)
    )
    expected = without + 2 * (given - without)
    field = VelocityField(teacher, teacher.network, condition, 2.0)
    assert torch.allclose(field(x, t), expected, atol=1e-5)
    assert calls == [2] and field.evaluations.rows == 4
    wrapped = VelocityField(teacher, Wrapper(teacher.network), condition, 2.0)
    assert torch.allclose(wrapped(x, t), expected, atol=1e-5)
    assert calls == [2] and wrapped.evaluations.rows == 4


def test_the_null_condition_empties_the_history_and_keeps_the_trajectory(teacher):
    condition = batch(teacher)[2]
    null = teacher.null_condition(condition)
    assert null["history"].shape == condition["history"].shape and not null["history"].any()
    assert torch.equal(null["trajectory"], condition["trajectory"]) and condition["history"].any()


def test_without_data_there_are_no_clips(tiny_teacher, monkeypatch):
    monkeypatch.setattr(tiny_teacher, "clips", None)
    for call in (lambda: tiny_teacher.encode([0]), lambda: tiny_teacher.examples(2)):
        assert "without data" in refusal(call).found


def test_clips_are_the_held_out_ones_by_number(tiny_teacher, drives):
    found = tiny_teacher.encode([3, 0, 3])
    expected = drives.held_out().condition(torch.tensor([3, 0, 3]))
    assert found.keys() == expected.keys() == {"history", "trajectory"}
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not torch.equal(found["history"], drives.condition(torch.tensor([3, 0, 3]))["history"])


@pytest.mark.parametrize("clip", [4, -1, "0", True, 1.0])
def test_a_clip_that_does_not_exist_is_refused(tiny_teacher, drives, clip):
    assert drives.held_out().size == 4
    assert refusal(tiny_teacher.encode, [0, clip]).allowed == "held-out clips from 0 to 3"


@pytest.mark.parametrize(("count", "expected"), [(1, [2]), (2, [1, 3]), (4, [0, 1, 2, 3])])
def test_examples_are_spread_over_the_held_out_clips(tiny_teacher, drives, count, expected):
    assert drives.size == 4 and tiny_teacher.examples(count) == expected


def test_more_examples_than_clips_repeat_them(tiny_teacher, drives):
    assert drives.size == 4 and set(tiny_teacher.examples(9)) == {0, 1, 2, 3} and len(tiny_teacher.examples(9)) == 9


def test_decoding_divides_by_rescale(tiny_teacher):
    compressor = tiny_teacher.compressor()
    x = 10 * torch.randn(2, *tiny_teacher.sample_shape, generator=torch.Generator().manual_seed(1))
    found = tiny_teacher.decode(x)
    assert found.dtype == torch.uint8 and found.shape == (2, 6, 32, 32, 16)
    with torch.no_grad():
        expected = compressor.similarity((x / 10).flatten(0, 1)).argmax(dim=2).permute(0, 2, 3, 1)
    assert (found.flatten(0, 1) == expected).float().mean() > 0.999, "but for ties within rounding"
    assert (tiny_teacher.decode(10 * x) != found).any()


@pytest.mark.parametrize("cells", [1, 3 * 32 * 32, 10**9])
def test_what_is_decoded_at_once_changes_nothing(tiny_teacher, monkeypatch, cells):
    x = torch.randn(2, *tiny_teacher.sample_shape, generator=torch.Generator().manual_seed(1))
    one_by_one = torch.stack([tiny_teacher.decode(clip[None])[0] for clip in x])
    monkeypatch.setattr(module, "CELLS_AT_ONCE", {"cpu": cells, "cuda": cells})
    assert (tiny_teacher.decode(x) == one_by_one).float().mean() > 0.999, "but for ties within rounding"


def test_a_student_decodes_with_what_it_carries(tiny_teacher, tmp_path):
    missing = TinySettings(type="occfm-tiny", weights=str(tmp_path / "none.safetensors"))
    student = TinyTeacher(missing, copy.deepcopy(tiny_teacher.architecture))
    x = torch.randn(1, *tiny_teacher.sample_shape, generator=torch.Generator().manual_seed(2))
    assert "no such file" in refusal(student.decode, x).found
    student.receive(tiny_teacher.carried())
    assert torch.equal(student.decode(x), tiny_teacher.decode(x)) and student.network is None
    lacking = {name: value for name, value in tiny_teacher.carried().items() if name != "decoder.conv_in.weight"}
    assert "missing decoder.conv_in.weight" in refusal(student.receive, lacking).found


def test_the_identity_is_the_file_s(weights, tmp_path):
    first = load(weights, tmp_path).identity()
    assert load(weights, tmp_path).identity() == first and len(first["weights_sha256"]) == 64
    changed = weights | {"decoder.conv_out.bias": weights["decoder.conv_out.bias"] + 1}
    assert load(changed, tmp_path).identity() != first


def test_the_adapter_passes_every_check_that_needs_no_training(tiny_teacher, drives, monkeypatch):
    monkeypatch.setattr(tiny_teacher, "settings", tiny_teacher.settings.model_copy(update={"steps": 1}))
    findings = {finding.name: finding for finding in check(tiny_teacher, drives, samples=6)}
    untrained = {"velocity", "time direction", "sign", "time scale", "velocity scale", "noise end"}
    broken = {name: finding.what for name, finding in findings.items() if not finding.passed}
    assert broken.keys() <= untrained, broken
    assert {"shape", "encode", "rows", "guidance", "gradient", "save and load", "decode"} <= findings.keys()
