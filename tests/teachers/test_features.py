"""Features that a critic judges: one token for each place, with gradient to state and network."""

import pytest
import torch

from mfd_cli.config.schema import Lora
from mfd_cli.networks.roles import share_base
from teachers.digits import DigitsSettings, DigitsTeacher
from teachers.errors import TeacherError
from teachers.gmm import GaussianMixtureSettings, GaussianMixtureTeacher
from teachers.guidance import Evaluations, VelocityField
from teachers.occfm.driving import TinySettings, TinyTeacher
from teachers.pipelines.sana import SanaTeacher


def test_features_are_what_the_read_out_sees():
    teacher = GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm"))
    network = teacher.build_network()
    x, t = torch.randn(3, 2), torch.rand(3)
    found = VelocityField(teacher, network, {}, evaluations=(counter := Evaluations())).features(x, t)
    assert found.shape == (3, 1, 128) and counter.rows == 3
    torch.testing.assert_close(network.layers[-1](found[:, 0]), network(x, t))


def test_tokens_of_images():
    teacher = DigitsTeacher.load(DigitsSettings(type="digits"))
    network = teacher.initial_network(0)
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    condition = {"label": torch.tensor([1, 2])}
    found = VelocityField(teacher, network, condition).features(x, torch.rand(2))
    assert found.shape == (2, 4, teacher.architecture["width"])
    found.square().mean().backward()
    assert float(x.grad.abs().max()) > 0
    assert network.embed.weight.grad is not None and not any(layer._forward_hooks for layer in network.modules())


def test_tokens_of_forecasts_and_of_pipelines(tiny_occfm, tiny_sana):
    driving = TinyTeacher.load(TinySettings(type="occfm-tiny", weights=str(tiny_occfm)))
    condition = {"history": torch.randn(2, *driving.sample_shape), "trajectory": torch.randn(2, 12, 2)}
    found = driving.features(driving.network, torch.randn(2, *driving.sample_shape), torch.rand(2), condition)
    assert found.shape[0] == 2 and found.shape[1] % 12 == 0 and found.dim() == 3
    sana = SanaTeacher.load(SanaTeacher.Settings(type="sana", model=str(tiny_sana)))
    channels, height, width = sana.sample_shape
    tokens = sana.features(
        sana.network, torch.randn(2, channels, height, width), torch.rand(2), sana.encode(["a", "b"])
    )
    assert tokens.shape[0] == 2 and tokens.shape[1] == height * width


def test_a_family_that_names_no_layer_says_so():
    class Silent(GaussianMixtureTeacher):
        def feature_layer(self, network):
            return None

    teacher = Silent.load(GaussianMixtureSettings(type="gmm"))
    with pytest.raises(TeacherError, match="has no features"):
        teacher.features(teacher.build_network(), torch.randn(1, 2), torch.rand(1), {})


def test_an_exact_field_has_no_features():
    teacher = GaussianMixtureTeacher.load(GaussianMixtureSettings(type="gmm"))
    with pytest.raises(TeacherError, match="MixtureField of a teacher of type 'gmm' has no features"):
        teacher.features(teacher.network, torch.randn(1, 2), torch.rand(1), {})


def test_an_adapters_features_are_the_bases_under_it(tiny_sana):
    sana = SanaTeacher.load(SanaTeacher.Settings(type="sana", model=str(tiny_sana)))
    shared = share_base(sana, Lora(rank=2), ["student", "aux"])
    x, t, condition = torch.randn(2, *sana.sample_shape), torch.rand(2), sana.encode(["a", "b"])
    for value in shared.networks["aux"].parameters():
        torch.nn.init.normal_(value)
    with torch.no_grad():
        plain, same, other = (
            sana.features(network, x, t, condition)
            for network in (sana.network, shared.networks["student"], shared.networks["aux"])
        )
    torch.testing.assert_close(plain, same)
    assert not torch.allclose(plain, other, atol=1e-3)
