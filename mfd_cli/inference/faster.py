"""The same networks run faster, if the device agrees: compiled, or with weights laid out channels-last.

Both are checked before anything is timed: the model's samples from one batch of noise have to stay what they were, to
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mfd_cli.errors import MfdError
from mfd_cli.inference.sampler import Sampler
from teachers.base import Data
from teachers.conditions import to as condition_to

#: largest rms difference of states before and after, over their deviation; reordered sums stay far below
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def make_faster(samplers: Sequence[Sampler], data: Data, *, compiled: bool, channels_last: bool) -> None:
    """Changes the networks of samplers in place, each once.

    Args:
        samplers: models, which may share networks.
        data: gives the condition of the check.
        compiled: whether networks go through `torch.compile`; decoders do not.
        channels_last: whether weights of convolutions are laid out channels-last.

    Raises:
        MfdError: a network cannot be compiled here, or its samples are others afterwards.
    """
    changed: set[int] = set()
    for sampler in samplers:
        if id(sampler.network) in changed:
            continue
        changed.add(id(sampler.network))
        before = _states(sampler, data)
        if channels_last:
            _channels_last(sampler.network)
        if compiled:
            sampler.network.compile(dynamic=False)
        flags = " ".join(flag for flag, on in (("--compile", compiled), ("--channels-last", channels_last)) if on)
        try:
            after = _states(sampler, data)
        except Exception as error:  # compilers fail in every way there is
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MfdError(
                f"{flags}: the {sampler.name}'s network does not run ({type(error).__name__}: {reason})",
                do="leave the flag out, or see the traceback with --debug",
            ) from error
        difference = _rms(after - before) / max(_rms(before - before.mean()), 1e-12)
        if not difference <= _TOLERANCE[sampler.dtype]:
            raise MfdError(
                f"{flags}: the {sampler.name}'s samples are others with it (rms difference {difference:.2g} of their "
                "deviation), so its speed would be that of another model",
                do="leave the flag out",
            )


def _states(sampler: Sampler, data: Data) -> Tensor:
    noise, fresh = sampler.noise(2, seed=0), sampler.fresh(2, seed=0)
    items = torch.arange(2) if data.size is None else torch.arange(2) % data.size
    condition = condition_to(data.condition(items), sampler.device)
    return sampler.generate(noise, condition, fresh=fresh).double().cpu()


def _rms(value: Tensor) -> float:
    return float(value.square().mean().sqrt())


def _channels_last(network: nn.Module) -> None:
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() in (4, 5):
            layout = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d
            weight.data = weight.data.contiguous(memory_format=layout)
