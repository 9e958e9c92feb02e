"""Swin transformers: attention in windows that shift by half their side from block to block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Added to the score of a pair of positions that may not see each other.
FORBIDDEN = -100.0


class WindowAttention(nn.Module):
    """Multi-head self-attention inside square windows, with a learnt bias for each relative position.

    A shifted block rolls the image by `shift` first, so that its windows straddle those of the block before. A
    window at the border then holds positions from both ends of the image; those don't see each other.

    Args:
        side: positions along an edge of the image.
        window: positions along an edge of a window; divides `side`.
        shift: how far the windows are shifted; 0 for none.

    Reference:
        Liu et al., Swin Transformer, ICCV 2021, section 3.2.
    """

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.side, self.window, self.shift = heads, side, window, shift
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", relative_positions(window), persistent=False)
        self.attn_mask: Tensor
        self.register_buffer("attn_mask", shift_mask(side, window, shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, side, side, width) -> the same shape."""
        count, inner = self.side // self.window, self.window * self.window
        width = x.shape[-1]
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.reshape(-1, count, self.window, count, self.window, width).transpose(2, 3)
        parts = self.qkv(x.reshape(-1, count * count, inner, width)).chunk(3, dim=-1)
        q, k, v = (
            part.reshape(-1, count * count, inner, self.heads, width // self.heads).transpose(2, 3)
            for part in parts
        )
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        scores = q * (width // self.heads) ** -0.5 @ k.transpose(-2, -1)
        scores = scores + bias.reshape(inner, inner, self.heads).permute(2, 0, 1)
        if self.shift:
            scores = scores + self.attn_mask
        mixed = (scores.softmax(-1) @ v).transpose(2, 3)
        x = self.proj(mixed.reshape(-1, count * count, inner, width))
        x = x.reshape(-1, count, count, self.window, self.window, width).transpose(2, 3)
        x = x.reshape(-1, self.side, self.side, width)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


def relative_positions(window: int) -> Tensor:
    """Which row of the bias table each pair of positions in a window reads, (window^2, window^2) int64."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()])
    apart = places[:, :, None] - places[:, None, :] + window - 1
    return apart[0] * (2 * window - 1) + apart[1]


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """What is added to the scores in each window of the rolled image, (windows, 1, window^2, window^2).

    Zero for pairs that are neighbours in the image, `FORBIDDEN` for pairs that only the roll brought together.
    """
    count = side // window
    place = torch.arange(side)
    # Three strips along an edge: full windows, and the two parts that meet in the last window after the roll.
    strip = (
        (place >= side - window).long() + (place >= side - shift).long() if shift else torch.zeros_like(place)
    )
    region = strip[:, None] * 3 + strip[None, :]
    region = region.reshape(count, window, count, window).transpose(1, 2).reshape(count * count, -1)
    apart = region[:, :, None] != region[:, None, :]
    return torch.where(apart, FORBIDDEN, 0.0)[:, None]


class SwinBlock(nn.Module):
    """Window attention, then an MLP; each reads a normalised copy of the stream and adds to it."""

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, side, window, shift)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, side, side, width) -> the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PatchMerging(nn.Module):
    """Four neighbours become one position with twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, side, side, width) -> (batch, side / 2, side / 2, 2 width)."""
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class SwinTransformer(nn.Module):
    """Patches of `patch`, stages of shifted-window blocks with merging between them, mean pool, one linear layer.

    `swin` builds it and checks what it is given.

    Reference:
        Liu et al., Swin Transformer, ICCV 2021, sections 3.1 to 3.3.
        Differs: no stochastic depth; the side of the images is fixed when the model is built.
    """

    def __init__(
        self,
        n_classes: int,
        side: int,
        patch: int,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.patch_norm = nn.LayerNorm(width)
        places = side // patch
        stages: list[nn.Module] = []
        for stage, (depth, n_heads) in enumerate(zip(depths, heads, strict=True)):
            if stage:
                stages.append(PatchMerging(width))
                width, places = 2 * width, places // 2
            inner = min(window, places)
            shifts = [inner // 2 if block % 2 and inner < places else 0 for block in range(depth)]
            stages += [SwinBlock(width, n_heads, places, inner, shift, mlp_ratio) for shift in shifts]
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, 3, side, side)."""
        x = self.patch_norm(self.patch_embed(x).permute(0, 2, 3, 1))
        return self.head(self.norm(self.stages(x)).mean((1, 2)))


def swin(
    n_classes: int,
    side: int,
    patch: int,
    width: int,
    depths: Sequence[int],
    heads: Sequence[int],
    window: int,
    mlp_ratio: float = 4.0,
) -> SwinTransformer:
    """A Swin transformer of any size. A stage with fewer positions than a window is one window, not shifted.

    Args:
        side: pixels along an edge of the square images.
        patch: pixels along an edge of a patch.
        width: features of a token in the first stage; doubles from stage to stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: positions along an edge of a window.
        mlp_ratio: hidden units of an MLP, over the width.

    Raises:
        ValueError: a number is not positive, depths and heads differ in length, windows don't fill a stage, or
            heads don't divide a width.
    """
    sizes = {"n_classes": n_classes, "side": side, "patch": patch, "width": width, "window": window}
    problems = [f"{name} is {value}: give at least 1" for name, value in sizes.items() if value < 1]
    for name, row in (("depths", depths), ("heads", heads)):
        if not row or min(row) < 1:
            problems.append(f"{name} is {list(row)}: give a positive number for each stage")
    if len(depths) != len(heads):
        problems.append(f"depths has {len(depths)} stages and heads has {len(heads)}: give the same number")
    if not problems and int(width * mlp_ratio) < 1:
        problems.append(f"mlp_ratio is {mlp_ratio}: give at least {1 / width:.3g}, for one hidden unit")
    if not problems and side % (patch * 2 ** (len(depths) - 1)):
        problems.append(
            f"side is {side}: give a multiple of {patch * 2 ** (len(depths) - 1)}, for whole patches"
        )
    if not problems:
        for stage, n_heads in enumerate(heads):
            places, features = side // patch // 2**stage, width * 2**stage
            if places > window and places % window:
                problems.append(
                    f"stage {stage} has {places} positions an edge: give a window that divides them"
                )
            if features % n_heads:
                problems.append(
                    f"stage {stage} has width {features}: give a divisor of it, not {n_heads} heads"
                )
    if problems:
        raise ValueError("; ".join(problems))
    return SwinTransformer(n_classes, side, patch, width, depths, heads, window, mlp_ratio)


def swin_t(n_classes: int = 1000) -> SwinTransformer:
    """Swin-T for 224x224 images: 28.3 M parameters with 1000 classes.

    Raises:
        ValueError: fewer than one class.
    """
    return swin(n_classes, 224, 4, 96, (2, 2, 6, 2), (3, 6, 12, 24), 7)


def swin_cifar(
    n_classes: int = 10,
    width: int = 48,
    depths: Sequence[int] = (2, 2, 2),
    heads: Sequence[int] = (3, 6, 12),
    window: int = 4,
) -> SwinTransformer:
    """A small Swin with patches of 2 for 32x32 images; about 1.3 M parameters as it stands.

    Raises:
        ValueError: a number is refused by `swin`.
    """
    return swin(n_classes, 32, 2, width, depths, heads, window)
