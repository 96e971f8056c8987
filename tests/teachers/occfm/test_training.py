"""Training from nothing: the compressor's loss and latents, sizes of networks, and the file that comes of it."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from teachers.errors import TeacherError
from teachers.images import ImagesData
from teachers.occfm import architecture, training
from teachers.occfm.compressor import Compressor
from teachers.occfm.driving import DrivingData, DrivingSettings, TinySettings, TinyTeacher
from teachers.occfm.training import (
    CompressorNetwork,
    OccFMNetwork,
    _divergence,
    _pace,
    class_weights,
    compressor_loss,
    compressor_sizes,
    rescaled,
    train_compressor,
    transition_sizes,
)
from teachers.occfm.transition import TransitionNetwork

SMALL = CompressorNetwork(channels=2, encoder_width=8, decoder_width=8, heads=2, updates=2, batch_size=1)
LABELS = torch.randint(0, 18, (3, 16, 16, 16), generator=torch.Generator().manual_seed(0)).byte()


def small():
    torch.manual_seed(0)
    return Compressor(**compressor_sizes(SMALL, 16))


def drawn():
    return torch.Generator().manual_seed(1)


def test_class_weights_are_powers_of_frequencies_that_are_one_on_average():
    labels = torch.tensor([0] * 7 + [3] * 1 + [17] * 40, dtype=torch.uint8).reshape(2, 24)
    counts = [8 if label == 0 else 2 if label == 3 else 41 if label == 17 else 1 for label in range(18)]
    shares = [count / sum(counts) for count in counts]
    mean = sum(share ** (1 + training._RARITY) for share in shares)
    expected = [share**training._RARITY / mean for share in shares]
    assert class_weights(labels).tolist() == pytest.approx(expected, rel=1e-6)
    assert sum(share * weight for share, weight in zip(shares, expected, strict=True)) == pytest.approx(1)
    equal = torch.arange(18, dtype=torch.uint8)
    assert class_weights(equal).tolist() == pytest.approx([1] * 18)


def test_the_loss_is_the_weighted_cross_entropy_and_a_divergence():
    compressor, weights = small().eval(), torch.linspace(0.5, 2, 18)
    with torch.no_grad():
        found = compressor_loss(compressor, LABELS, weights, 0.3, drawn())
        mean, log_variance = (part.double() for part in compressor.moments(LABELS))
        noise = torch.randn(mean.shape, generator=drawn())
        logits = compressor.similarity((mean + (log_variance / 2).exp() * noise).float()).double()
    shares = logits.softmax(dim=2)  # [N, 16, 18, S, S]
    entropy = total = 0.0
    for label in range(18):
        at = (label == LABELS).permute(0, 3, 1, 2)
        entropy -= weights[label].double() * shares[:, :, label][at].log().sum()
        total += weights[label].double() * at.sum()
    variance = log_variance.exp()
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(0.0, 1.0)
    ).sum()
    expected = entropy / total + 0.3 * divergence / LABELS.numel()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_falls_on_one_batch_and_reaches_every_tensor():
    compressor, weights = small().train(), class_weights(LABELS)
    optimizer = torch.optim.Adam([value for value in compressor.parameters() if value.requires_grad], lr=3e-3)
    losses = []
    for _ in range(3):
        loss = compressor_loss(compressor, LABELS[:1], weights, 0.01, drawn())
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]
    still = [name for name, value in compressor.named_parameters() if value.requires_grad and not value.grad.any()]
    assert still == [] and compressor.embedding.height_embedding.grad is None


@pytest.mark.parametrize("deviation", [0.1, 3.0])
def test_latents_get_the_deviation_asked_for_and_decode_to_the_same(deviation):
    before, noise = small().eval(), torch.randn(3, 2, 4, 4, generator=drawn())
    after = rescaled(copy.deepcopy(before), LABELS, deviation)
    with torch.no_grad():
        mean, log_variance = after.moments(LABELS)
        old_mean, old_log_variance = before.moments(LABELS)
        drawn_variance = float(old_mean.var() + old_log_variance.exp().mean())  # of latents as the network sees them
        factor = deviation / math.sqrt(drawn_variance)
        assert float(mean.var() + log_variance.exp().mean()) == pytest.approx(deviation**2, rel=1e-4)
        assert torch.allclose(mean, old_mean * factor, rtol=1e-4, atol=1e-6)
        assert torch.allclose(log_variance, old_log_variance + 2 * math.log(factor), atol=1e-4)
        logits, old_logits = (each.similarity(each.encode(LABELS, noise)) for each in (after, before))
    assert torch.allclose(logits, old_logits, atol=1e-3 * float(old_logits.abs().max()))


def test_a_trained_compressor_is_frozen_scaled_and_the_same_for_a_seed():
    told = []

    def trained(seed):
        return train_compressor(
            small(), lambda index: LABELS[index], 3, SMALL, deviation=0.1, seed=seed,
            report=lambda *counts: told.append(counts),
        )  # fmt: skip

    first, again, other = trained(0), trained(0), trained(1)
    assert told[:2] == [(1, 2), (2, 2)]
    assert not first.training and not any(value.requires_grad for value in first.parameters())
    assert 0.02 < float(first.moments(LABELS)[0].std()) < 0.5
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())


def test_a_loss_that_is_not_finite_ends_training():
    compressor = small()
    with torch.no_grad():
        compressor.decoder.conv_in.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="nan at update 0"):
        train_compressor(compressor, lambda index: LABELS[index], 3, SMALL, deviation=1.0, seed=0, report=print)


def test_the_pace_warms_up_and_falls_to_nothing():
    paces = [_pace(update, 200) for update in range(200)]
    assert paces[:9] == pytest.approx([(update + 1) / 10 for update in range(9)])
    assert paces[100] == pytest.approx(0.5) and 0 < paces[-1] < 1e-3 and max(paces) <= 1
    assert all(later <= earlier for earlier, later in pairwise(paces[10:]))
    assert _pace(0, 1) == 1.0


def test_a_large_divergence_comes_in_slowly():
    weights = [_divergence(1.0, update, 1000) for update in range(1000)]
    assert weights[0] == pytest.approx(0.01) and weights[300] == pytest.approx(0.1)
    assert weights[600:] == pytest.approx([1.0] * 400)
    assert all(later >= earlier for earlier, later in pairwise(weights))
    assert {_divergence(0.003, update, 1000) for update in range(1000)} == {0.003}


def test_sizes_are_those_that_the_tensors_tell():
    network = OccFMNetwork(base=8, levels=[2, 3, 4], kernel=5, head_width=4, heads=2, compressor=SMALL)
    given = compressor_sizes(network.compressor, 16)
    compressor = Compressor(**given)
    assert architecture.compressor_sizes(compressor.state_dict()) == given
    sizes = transition_sizes(network, (2, 4, 4), 12)
    assert architecture.transition_sizes(TransitionNetwork(**sizes).state_dict()) == sizes
    # depths that differ between levels, so that neither end is taken for the other
    given = compressor_sizes(SMALL.model_copy(update={"depths": [1, 2]}), 16)
    assert (given["encoder_depths"], given["decoder_depths"]) == ([1, 2], [2, 1])
    assert architecture.compressor_sizes(Compressor(**given).state_dict()) == given


def test_what_was_trained_is_a_file_that_loads(tmp_path):
    data = DrivingData.load(DrivingSettings(type="driving", scenes=1, held_out=1, frames=12, size=16), None)
    network = OccFMNetwork(base=8, heads=2, head_width=8, compressor=SMALL)
    teacher = TinyTeacher.untrained(TinySettings(type="occfm-tiny", rescale=4.0), network, data)
    told = []
    teacher.pretrain(data, 0, lambda *counts: told.append(counts))
    assert told[-1] == (2, 2) and teacher.clips is not None
    item = torch.tensor([0])
    assert data.states(item).shape == (1, *teacher.sample_shape) == (1, 6, 2, 4, 4)
    trained = teacher.build_network().eval()
    tensors = teacher.weights(trained)
    assert {value.dtype for value in tensors.values()} == {torch.float16, torch.int64}
    path = tmp_path / "made.safetensors"
    save_file(tensors, path)
    loaded = TinyTeacher.load(TinySettings(type="occfm-tiny", rescale=4.0, weights=str(path)))
    assert loaded.architecture == teacher.architecture
    x, t, condition = data.states(item), torch.tensor([0.5]), data.condition(item)
    with torch.no_grad():
        found, expected = (
            each.velocity(net, x, t, condition) for each, net in ((loaded, loaded.network), (teacher, trained))
        )
    assert torch.allclose(found, expected, atol=0.01 * float(expected.abs().max())), "but for half precision"
    assert (loaded.decode(x) == teacher.decode(x)).float().mean() > 0.9


def test_other_data_or_sizes_train_no_such_teacher():
    chosen = TinySettings(type="occfm-tiny")
    with pytest.raises(TeacherError, match="only the made-up world") as caught:
        TinyTeacher.untrained(chosen, OccFMNetwork(), ImagesData(LABELS[:, None, 0], torch.zeros(3).long(), 17))
    assert caught.value.allowed == "data.type: driving"
    data = DrivingData.load(DrivingSettings(type="driving", size=20), None)
    with pytest.raises(TeacherError, match="no compressor of OccFM has these sizes"):
        TinyTeacher.untrained(chosen, OccFMNetwork(), data)
    odd = OccFMNetwork(base=10, levels=[1, 2], heads=4)
    with pytest.raises(TeacherError, match="no transition network of OccFM has these sizes"):
        TinyTeacher.untrained(chosen, odd, DrivingData.load(DrivingSettings(type="driving"), None))
