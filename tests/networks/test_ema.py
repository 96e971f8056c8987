"""The average against its closed form."""

import torch
from torch import nn

from mfd_cli.networks.ema import AveragedNetwork


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("seen", torch.zeros(1, dtype=torch.long))


def follow(decay, updates):
    network = Counter()
    average = AveragedNetwork(network, decay)
    for update in range(1, updates + 1):
        with torch.no_grad():
            network.weight.fill_(float(update))
            network.seen += 1
        average.update(update)
    return network, average


def test_closed_form_with_warm_up():
    """w_n = sum_k (1 - d_k) k prod_{j>k} d_j with d_k = min(decay, (1 + k) / (10 + k))."""
    for decay in (0.5, 0.9, 0.999):
        expected = 0.0
        for update in range(1, 61):
            kept = min(decay, (1 + update) / (10 + update))
            expected = kept * expected + (1 - kept) * update
        _, average = follow(decay, 60)
        torch.testing.assert_close(average.network.weight, torch.full((3,), expected), rtol=1e-5, atol=0)


def test_the_start_is_forgotten_early():
    network = Counter()
    average = AveragedNetwork(network, 0.9999)
    with torch.no_grad():
        network.weight.fill_(1.0)
    average.update(1)
    torch.testing.assert_close(average.network.weight, torch.full((3,), 9 / 11))


def test_buffers_are_copied_and_the_copy_is_frozen():
    network, average = follow(0.9, 7)
    assert int(average.network.seen) == 7
    assert not average.network.training and not average.network.weight.requires_grad
    assert network.weight.requires_grad and network.training
    assert average.network.weight.data_ptr() != network.weight.data_ptr()


def test_weights_loaded_into_the_average_are_the_ones_that_are_updated():
    """As after a resumed run."""
    _, average = follow(0.5, 3)
    average.network.load_state_dict({"weight": torch.full((3,), 8.0), "seen": torch.zeros(1, dtype=torch.long)})
    average.update(1000)
    torch.testing.assert_close(average.network.weight, torch.full((3,), 0.5 * 8 + 0.5 * 3))
