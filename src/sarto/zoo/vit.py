"""Vision transformers with fused attention: Ti, S and B for 224x224 images, and a form for 32x32 images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: (width, heads) of the usual sizes, twelve blocks each.
SIZES = {"ti": (192, 3), "s": (384, 6), "b": (768, 12)}


class PatchEmbedding(nn.Module):
    """One convolution that turns each patch into one token."""

    def __init__(self, patch: int, width: int, in_channels: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) -> (batch, patches, width)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention; one linear layer makes queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same shape."""
        batch, tokens, width = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        p = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], dropout_p=p)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two linear layers around a GELU, applied to each token."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same shape."""
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class Block(nn.Module):
    """Attention, then the MLP; each reads a normalised copy of the stream and adds to it."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, attention_dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, a class token, learnt positions, blocks with the norm in front, one linear layer.

    `vit`, `vit_imagenet` and `vit_cifar` build it and check what they are given.

    Reference:
        Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, section 3.1. The sizes Ti and S are those of
        Touvron et al., Training data-efficient image transformers, ICML 2021, table 1.
    """

    def __init__(
        self,
        n_classes: int,
        side: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        dropout: float,
        attention_dropout: float,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(patch, width, in_channels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, (side // patch) ** 2 + 1, width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(dropout)
        hidden = int(width * mlp_ratio)
        blocks = [Block(width, heads, hidden, dropout, attention_dropout) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, n_classes) of images (batch, in_channels, side, side)."""
        patches = self.patch_embed(x)
        first = self.cls_token.expand(patches.shape[0], -1, -1)
        tokens = self.pos_drop(torch.cat([first, patches], dim=1) + self.pos_embed)
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def vit(
    n_classes: int,
    side: int,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    mlp_ratio: float = 4.0,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    in_channels: int = 3,
) -> VisionTransformer:
    """A vision transformer of any size.

    Args:
        side: pixels along an edge of the square images.
        patch: pixels along an edge of a patch.
        width: features of a token.
        depth: number of blocks.
        mlp_ratio: hidden units of an MLP, over the width.
        dropout: share of activations dropped in training, after the positions and in the MLPs.
        attention_dropout: share of attention weights dropped in training.

    Raises:
        ValueError: a number is not positive, a share is not in [0, 1), patches don't fill the image, or heads
            don't divide the width.
    """
    sizes = {
        "n_classes": n_classes,
        "side": side,
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": heads,
        "in_channels": in_channels,
    }
    problems = [f"{name} is {value}: give at least 1" for name, value in sizes.items() if value < 1]
    shares = {"dropout": dropout, "attention_dropout": attention_dropout}
    problems += [f"{name} is {p}: give 0 <= p < 1" for name, p in shares.items() if not 0 <= p < 1]
    if not problems and side % patch:
        problems.append(f"side is {side}: give a multiple of patch, {patch}")
    if not problems and width % heads:
        problems.append(f"width is {width}: give a multiple of heads, {heads}")
    if not problems and int(width * mlp_ratio) < 1:
        problems.append(f"mlp_ratio is {mlp_ratio}: give at least {1 / width:.3g}, for one hidden unit")
    if problems:
        raise ValueError("; ".join(problems))
    return VisionTransformer(
        n_classes, side, patch, width, depth, heads, mlp_ratio, dropout, attention_dropout, in_channels
    )


def vit_imagenet(
    n_classes: int = 1000, size: str = "ti", dropout: float = 0.0, attention_dropout: float = 0.0
) -> VisionTransformer:
    """ViT-Ti, S or B with patches of 16 for 224x224 images: 5.7, 22.1 or 86.6 M parameters.

    Raises:
        ValueError: the size is not `ti`, `s` or `b`, or a number is refused by `vit`.
    """
    if size not in SIZES:
        raise ValueError(f"size is {size!r}: give 'ti', 's' or 'b'")
    width, heads = SIZES[size]
    return vit(n_classes, 224, 16, width, 12, heads, 4.0, dropout, attention_dropout)


def vit_cifar(
    n_classes: int = 10,
    width: int = 192,
    depth: int = 6,
    heads: int = 3,
    mlp_ratio: float = 2.0,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> VisionTransformer:
    """A ViT with patches of 4 for 32x32 images; about 1.8 M parameters as it stands.

    Raises:
        ValueError: a number is refused by `vit`.
    """
    return vit(n_classes, 32, 4, width, depth, heads, mlp_ratio, dropout, attention_dropout)
