"""A small diffusion transformer (DiT) that predicts velocities of class-conditional images.

Source: Peebles & Xie, "Scalable Diffusion Models with Transformers", 2023, arXiv 2212.09748 (blocks of the kind
adaLN-Zero, patch embedding, fixed sine-cosine positions). Written for velocities, with time in [0, 1].
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoids(values: Tensor, dim: int, longest: float) -> Tensor:
    """Sine-cosine features of scalars, in fp32.

    Args:
        values: Scalars, any shape [...].
        dim: Number of features, even.
        longest: Ratio of the longest to the shortest wavelength; the shortest is 2 pi in the unit of `values`.

    Returns:
        Features [..., dim], in [-1, 1].
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=values.device) / max(half - 1, 1)
    angle = values.float()[..., None] * torch.exp(-math.log(longest) * exponent)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class Block(nn.Module):
    """One transformer block: attention and MLP, both shifted, scaled and gated by the condition.

    Source: arXiv 2212.09748, section 3.2, "adaLN-Zero".
    """

    def __init__(self, *, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        """Applies the block.

        Args:
            h: Tokens [B, N, width].
            modulation: Shift, scale and gate of the attention, then of the MLP, [B, 1, 6 width].

        Returns:
            Tokens [B, N, width].
        """
        batch, tokens, width = h.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        y = torch.addcmul(shift1, F.layer_norm(h, (width,)), 1 + scale1)
        q, k, v = self.qkv(y).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        h = torch.addcmul(h, gate1, self.project(y))
        y = torch.addcmul(shift2, F.layer_norm(h, (width,)), 1 + scale2)
        return torch.addcmul(h, gate2, self.contract(F.gelu(self.expand(y), approximate="tanh")))


class DiT(nn.Module):
    """Velocity network for small square images, conditioned on time and class.

    A fresh network predicts zero (the output layer and all gates start at zero).

    Args:
        image_size: Height and width of the images, in pixels; a multiple of `patch_size`.
        channels: Image channels.
        patch_size: Side of one patch, in pixels; a patch is one token.
        width: Size of a token; a multiple of 4 and of `heads`.
        depth: Number of blocks.
        heads: Attention heads.
        num_classes: Number of classes C; labels 0..C-1, and C is the null class (no condition).
        mlp_ratio: Hidden size of a block's MLP over `width`.

    Source: arXiv 2212.09748, figure 3.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        num_classes: int,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if image_size % patch_size or width % heads or width % 4:
            raise ValueError(
                f"image_size {image_size} must be a multiple of patch_size {patch_size}, and width {width} of heads "
                f"{heads} and of 4"
            )
        self.patch_size = patch_size
        self.width = width
        side = image_size // patch_size
        patch_dim = channels * patch_size**2
        self.embed = nn.Linear(patch_dim, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(num_classes + 1, width)
        self.modulate = nn.Linear(width, (6 * depth + 2) * width)
        self.blocks = nn.ModuleList(Block(width=width, heads=heads, mlp_ratio=mlp_ratio) for _ in range(depth))
        self.output = nn.Linear(width, patch_dim)
        axis = sinusoids(torch.arange(side), width // 2, 1e4)
        rows, columns = axis[:, None].expand(side, side, -1), axis[None].expand(side, side, -1)
        self.register_buffer("positions", torch.cat([rows, columns], dim=-1).flatten(0, 1), persistent=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for weight in (self.modulate.weight, self.output.weight):
            nn.init.zeros_(weight)
        nn.init.normal_(self.label.weight, std=0.02)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Predicts the velocity.

        Args:
            x: Noisy images X_t [B, channels, image_size, image_size], data scale [-1, 1].
            t: Times [B] in [0, 1], 0 noise and 1 data, fp32.
            label: Classes [B], integers; `num_classes` is the null class.

        Returns:
            Velocity dX/dt [B, channels, image_size, image_size], in image units per unit of time.
        """
        h = self.embed(F.pixel_unshuffle(x, self.patch_size).flatten(2).transpose(1, 2))
        h = h + self.positions.to(h.dtype)
        condition = self.time(sinusoids(1000 * t, self.width, 1e4).to(h.dtype)) + self.label(label)
        modulation = self.modulate(F.silu(condition))[:, None]
        *blocks, shift, scale = modulation.split([6 * self.width] * len(self.blocks) + [self.width] * 2, dim=-1)
        for block, part in zip(self.blocks, blocks, strict=True):
            h = block(h, part)
        h = self.output(torch.addcmul(shift, F.layer_norm(h, (self.width,)), 1 + scale))
        side = x.shape[-1] // self.patch_size
        return F.pixel_shuffle(h.transpose(1, 2).unflatten(2, (side, side)), self.patch_size)
