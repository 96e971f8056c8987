"""Inception-v3 as TensorFlow's graph of 2015-12-05 has it: the network of the Fréchet Inception distance.

Parameters have the names of the published ports (`pt_inception-2015-12-05-6726825d.pth`). What differs from the
Inception-v3 of other libraries: average pooling leaves padding out of the mean, the pool of the last block is a
maximum, batch normalisation adds 0.001, and there is no auxiliary classifier.

Source: Szegedy et al. 2015 (arXiv 1512.00567), figures 5 to 7 and table 1; graph: inception-2015-12-05.tgz.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

#: pixels of a side of the input, and features of a picture
SIZE, FEATURES = 299, 2048

#: kernel sizes that need padding to keep the size of a picture
_Kernel = int | tuple[int, int]


class _Convolution(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, inside: int, outside: int, kernel: _Kernel = 1, *, stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(inside, outside, (height, width), stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _mean_pool(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _largest(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=1, padding=1)


def _halved(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, stride=2)


class _Small(nn.Module):
    """Kernels of 5 and of twice 3, at 35 x 35."""

    def __init__(self, inside: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(inside, 64)
        self.branch5x5_1 = _Convolution(inside, 48)
        self.branch5x5_2 = _Convolution(48, 64, 5)
        self.branch3x3dbl_1 = _Convolution(inside, 64)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3)
        self.branch_pool = _Convolution(inside, pooled)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat(
            [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), twice, self.branch_pool(_mean_pool(x))], 1
        )


class _ToMedium(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.branch3x3 = _Convolution(inside, 384, 3, stride=2, pad=False)
        self.branch3x3dbl_1 = _Convolution(inside, 64)
        self.branch3x3dbl_2 = _Convolution(64, 96, 3)
        self.branch3x3dbl_3 = _Convolution(96, 96, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, _halved(x)], 1)


class _Medium(nn.Module):
    """Kernels of 7 in one direction after the other, at 17 x 17."""

    def __init__(self, inside: int, narrow: int) -> None:
        super().__init__()
        self.branch1x1 = _Convolution(inside, 192)
        self.branch7x7_1 = _Convolution(inside, narrow)
        self.branch7x7_2 = _Convolution(narrow, narrow, (1, 7))
        self.branch7x7_3 = _Convolution(narrow, 192, (7, 1))
        self.branch7x7dbl_1 = _Convolution(inside, narrow)
        self.branch7x7dbl_2 = _Convolution(narrow, narrow, (7, 1))
        self.branch7x7dbl_3 = _Convolution(narrow, narrow, (1, 7))
        self.branch7x7dbl_4 = _Convolution(narrow, narrow, (7, 1))
        self.branch7x7dbl_5 = _Convolution(narrow, 192, (1, 7))
        self.branch_pool = _Convolution(inside, 192)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_mean_pool(x))], 1)


class _ToLarge(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Convolution(inside, 192)
        self.branch3x3_2 = _Convolution(192, 320, 3, stride=2, pad=False)
        self.branch7x7x3_1 = _Convolution(inside, 192)
        self.branch7x7x3_2 = _Convolution(192, 192, (1, 7))
        self.branch7x7x3_3 = _Convolution(192, 192, (7, 1))
        self.branch7x7x3_4 = _Convolution(192, 192, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), long, _halved(x)], 1)


class _Large(nn.Module):
    """Kernels of 3 that part into both directions, at 8 x 8; the last block pools by the maximum."""

    def __init__(self, inside: int, *, last: bool) -> None:
        super().__init__()
        self._pool = _largest if last else _mean_pool
        self.branch1x1 = _Convolution(inside, 320)
        self.branch3x3_1 = _Convolution(inside, 384)
        self.branch3x3_2a = _Convolution(384, 384, (1, 3))
        self.branch3x3_2b = _Convolution(384, 384, (3, 1))
        self.branch3x3dbl_1 = _Convolution(inside, 448)
        self.branch3x3dbl_2 = _Convolution(448, 384, 3)
        self.branch3x3dbl_3a = _Convolution(384, 384, (1, 3))
        self.branch3x3dbl_3b = _Convolution(384, 384, (3, 1))
        self.branch_pool = _Convolution(inside, 192)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(once), self.branch3x3_2b(once)]
        parts += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(self._pool(x))]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """Features [B, 2048] of pictures [B, 3, 299, 299] in [-1, 1): the mean over the last 8 x 8 places."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, stride=2, pad=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, pad=False)
        self.Mixed_5b = _Small(192, 32)
        self.Mixed_5c = _Small(256, 64)
        self.Mixed_5d = _Small(288, 64)
        self.Mixed_6a = _ToMedium(288)
        self.Mixed_6b = _Medium(768, 128)
        self.Mixed_6c = _Medium(768, 160)
        self.Mixed_6d = _Medium(768, 160)
        self.Mixed_6e = _Medium(768, 192)
        self.Mixed_7a = _ToLarge(768)
        self.Mixed_7b = _Large(1280, last=False)
        self.Mixed_7c = _Large(FEATURES, last=True)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, 2048]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halved(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_halved(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))
