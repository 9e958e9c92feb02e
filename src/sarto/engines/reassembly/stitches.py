"""Stitches in closed form: an affine map from what one block gives to what the next one reads, on any two layouts.

Positions are matched by resampling: means over cells where the grid shrinks, bilinear where it grows. The map is fitted
by ridge regression on images x positions; its strength is chosen by leaving out a quarter of the images at a time.

Reference:
    Deep Model Reassembly, NeurIPS 2022, appendix on stitching layers (structure only); Teerapittayanon et al.,
    StitchNet, 2023 (closed form, folding into the receiver).
    Differs: images are left out to choose the ridge; tokens and maps both ways; prefix tokens are regressed too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.engines.reassembly.places import Place
from sarto.engines.reassembly.stitch import Stitch, by_map, prefix_width, resizing
from sarto.errors import RequestError, ShapeError

#: Ridge strengths tried, in units of the mean eigenvalue.
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: Rows (images x positions) that a fit reads at most; more are thinned within each image.
MOST_ROWS = 50_000
FOLDS = 4
#: Side of the patch that a position is predicted from: between CIFAR-10 ResNets chains keep 95 % of their tail's
#: accuracy with 3, 89 % with 1 (`reassembly-zero-gradient`, mean of four chains).
KERNEL = 3
#: A channel is stretched at most so much to the spread that its receiver is used to.
MOST_STRETCH = 3.0
#: Images whose patches are laid out at once.
_CHUNK = 16


@dataclass(frozen=True)
class Fit:
    """How stitches are fitted.

    Attributes:
        lam: ridge strength in units of the mean eigenvalue; None: chosen on images left out.
        rank: of the map; None: full.
        bias: False for a purely linear map, which folds into a padded convolution exactly.
        kernel: side of the patch of positions that each position is predicted from, odd; 1 is a 1 x 1 convolution.
            Between tokens of one grid and between vectors it is 1.
        match: scale each channel to the spread that the receiver is used to; a ridge map shrinks it.
    """

    lam: float | None = None
    rank: int | None = None
    bias: bool = True
    kernel: int = KERNEL
    match: bool = True

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise RequestError(f"the kernel of a stitch is an odd number of positions, got {self.kernel}")

    def side(self, source: Place, target: Place) -> int:
        """The kernel between two places."""
        return self.kernel if by_map(source, target) and target.positions > 1 else 1


def joinable(source: Place, target: Place) -> str | None:
    """Why no stitch leads from one place to another; None where one does."""
    if target.layout != "vector" and source.layout == "vector":
        return "a vector has no positions to give back"
    if source.dtype != target.dtype:
        return f"one computes in {source.dtype}, the other in {target.dtype}"
    return None


def resample(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions (n, rows, columns, channels) on another grid."""
    if tuple(x.shape[1:3]) == grid:
        return x
    maps = x.permute(0, 3, 1, 2)
    if all(have % want == 0 for have, want in zip(x.shape[1:3], grid, strict=True)):
        kernel = (x.shape[1] // grid[0], x.shape[2] // grid[1])
        return F.avg_pool2d(maps, kernel).permute(0, 2, 3, 1)
    if all(have <= want for have, want in zip(x.shape[1:3], grid, strict=True)):
        return F.interpolate(maps, size=grid, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    rows, columns = (resizing(have, want).to(x.dtype) for have, want in zip(x.shape[1:3], grid, strict=True))
    return torch.einsum("nhwc,Hh,Ww->nHWc", x, rows, columns)


def fit_stitch(source: Place, target: Place, given: Tensor, wanted: Tensor, how: Fit | None = None) -> Stitch:
    """The stitch that turns what a block gives into what the next one reads, on the same images.

    Args:
        given: activations at the source, shape (n, ...).
        wanted: activations at the target, shape (n, ...).

    Raises:
        ShapeError: the places can't be joined, or the numbers of images differ.
        RequestError: fewer than four images, or activations that are not finite.
    """
    how = how or Fit()
    why = joinable(source, target)
    if why is not None or given.shape[0] != wanted.shape[0]:
        raise ShapeError(
            f"no stitch from {source.value!r} to {target.value!r}: "
            f"{why or f'{given.shape[0]} and {wanted.shape[0]} images'}",
            where=target.value,
        )
    if given.shape[0] < FOLDS:
        raise RequestError(
            f"a stitch is fitted on at least {FOLDS} probe images, got {given.shape[0]}: give more"
        )
    if not bool(torch.isfinite(given).all()) or not bool(torch.isfinite(wanted).all()):
        raise RequestError(f"activations at {source.value!r} or {target.value!r} hold NaN or infinity")
    kernel = how.side(source, target)
    x = resample(source.spread(given), target.grid)
    y = target.spread(wanted).flatten(1, 2)
    x_mean, y_mean = _means(x, y, kernel, of_each=target.layout == "tokens" and how.bias)
    if not how.bias:
        x_mean, y_mean = torch.zeros_like(x_mean), torch.zeros_like(y_mean)
    sums = _sums(x, y, kernel, x_mean, y_mean)
    weight, lam, r2 = _ridge(sums, how.lam)
    left: Tensor | None = None
    if how.rank is not None and how.rank < min(weight.shape):
        left, weight = _reduced(weight, sums.gram, how.rank)
    if how.match:
        stretch = _stretch(left @ weight if left is not None else weight, sums)
        if left is not None:
            left = left * stretch.unsqueeze(1)
        else:
            weight = weight * stretch.unsqueeze(1)
    bias = (y_mean - x_mean @ (left @ weight if left is not None else weight).T)[0]
    dtype = given.dtype
    found = Stitch(
        source,
        target,
        weight.to(dtype).contiguous(),
        bias.squeeze(0).to(dtype).contiguous(),
        _fit_prefix(source, target, given, wanted, how),
        left.to(dtype).contiguous() if left is not None else None,
        kernel,
        lam,
        r2,
    )
    return found


def random_stitch(source: Place, target: Place, seed: int, wanted: Tensor | None = None) -> Stitch:
    """The control: a random orthogonal map, with the target's mean as bias where its activations are given."""
    generator = torch.Generator().manual_seed(seed)
    most = max(source.channels, target.channels)
    square = torch.randn(most, most, generator=generator, dtype=torch.float64)
    dtype = getattr(torch, target.dtype)
    weight = torch.linalg.qr(square)[0][: target.channels, : source.channels].to(dtype).contiguous()
    bias = torch.zeros(target.channels, dtype=dtype)
    prefix = None
    if target.prefix:
        mean = torch.zeros(target.prefix * target.channels, dtype=dtype)
        if wanted is not None:
            mean = wanted[:, : target.prefix].mean(0).flatten()
        prefix = (torch.zeros(len(mean), prefix_width(source), dtype=dtype), mean)
    if target.layout == "tokens":
        bias = bias.expand(target.positions, -1).contiguous()
    return Stitch(source, target, weight, bias, prefix)


def blank_stitch(source: Place, target: Place, how: Fit | None = None) -> Stitch:
    """A stitch of the right shapes without data (meta tensors), to count what it costs."""
    how = how or Fit()
    dtype = getattr(torch, target.dtype)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    kernel = how.side(source, target)
    width = source.channels * kernel * kernel
    rank = how.rank if how.rank is not None and how.rank < min(width, target.channels) else None
    weight = empty(rank or target.channels, width)
    tokens = target.layout == "tokens"
    bias = empty(target.positions, target.channels) if tokens and how.bias else empty(target.channels)
    prefix = None
    if target.prefix:
        n = target.prefix * target.channels
        prefix = (empty(n, prefix_width(source)), empty(n))
    return Stitch(
        source, target, weight, bias, prefix, empty(target.channels, rank) if rank else None, kernel
    )


@dataclass(frozen=True, eq=False)
class _Sums:
    """Second moments of centred rows, of all images and of each fold: x with x, x with y, and y with itself."""

    grams: Tensor
    crosses: Tensor
    squares: Tensor
    """(folds, channels of y)"""

    @property
    def gram(self) -> Tensor:
        return self.grams.sum(0)


def _patches(x: Tensor, kernel: int) -> Tensor:
    """Patches around each position (n, positions, channels x kernel x kernel) of maps (n, rows, columns, channels)."""
    if kernel == 1:
        return x.flatten(1, 2)
    return F.unfold(x.permute(0, 3, 1, 2), kernel, padding=kernel // 2).transpose(1, 2)


def _means(x: Tensor, y: Tensor, kernel: int, *, of_each: bool) -> tuple[Tensor, Tensor]:
    """Means of patches and targets, shape (1, 1 or positions, width); of each position where asked for."""
    total = torch.zeros(x.shape[1] * x.shape[2], x.shape[3] * kernel * kernel, dtype=torch.float64)
    for start in range(0, len(x), _CHUNK):
        total += _patches(x[start : start + _CHUNK].to(torch.float64), kernel).sum(0)
    x_mean, y_mean = total[None] / len(x), y.to(torch.float64).mean(0, keepdim=True)
    return (x_mean, y_mean) if of_each else (x_mean.mean(1, keepdim=True), y_mean.mean(1, keepdim=True))


def _sums(x: Tensor, y: Tensor, kernel: int, x_mean: Tensor, y_mean: Tensor) -> _Sums:
    """Moments of patches of x (n, rows, columns, channels) and y (n, positions, channels), some images at a time."""
    n, positions = y.shape[:2]
    step = max(1, -(-n * positions // MOST_ROWS))
    width, made = x.shape[3] * kernel * kernel, y.shape[2]
    grams = torch.zeros(FOLDS, width, width, dtype=torch.float64)
    crosses = torch.zeros(FOLDS, width, made, dtype=torch.float64)
    squares = torch.zeros(FOLDS, made, dtype=torch.float64)
    for fold in range(FOLDS):
        chosen = torch.arange(fold, n, FOLDS)
        for part in chosen.split(_CHUNK):
            rows = _patches(x[part].to(torch.float64), kernel) - x_mean
            wanted = y[part].to(torch.float64) - y_mean
            if step > 1:
                # Another offset in every image, so that all positions are seen.
                keep = (torch.arange(positions)[None, :] + part[:, None]) % step == 0
                rows, wanted = rows[keep], wanted[keep]
            rows, wanted = rows.reshape(-1, width), wanted.reshape(-1, made)
            grams[fold] += rows.T @ rows
            crosses[fold] += rows.T @ wanted
            squares[fold] += wanted.square().sum(0)
    return _Sums(grams, crosses, squares)


def _ridge(sums: _Sums, lam: float | None) -> tuple[Tensor, float, float]:
    """Weight (dy, dx), strength, and R2 on images left out."""
    gram, cross = sums.gram, sums.crosses.sum(0)
    strengths = STRENGTHS if lam is None else (lam,)
    errors = torch.zeros(len(strengths), dtype=torch.float64)
    for fold in range(FOLDS):
        solved = _solve(gram - sums.grams[fold], cross - sums.crosses[fold], strengths)
        for i, weight in enumerate(solved):
            fitted = 2 * (weight * sums.crosses[fold]).sum() - (weight * (sums.grams[fold] @ weight)).sum()
            errors[i] += float(sums.squares[fold].sum() - fitted)
    best = int(errors.argmin())
    weight = _solve(gram, cross, (strengths[best],))[0]
    total = float(sums.squares.sum())
    return weight.T, strengths[best], 1.0 - float(errors[best]) / total if total > 0 else 1.0


def _stretch(weight: Tensor, sums: _Sums) -> Tensor:
    """For each channel the target's spread over that of what is fitted, at most `MOST_STRETCH`; never below 1."""
    fitted = ((weight @ sums.gram) * weight).sum(1)
    wanted = sums.squares.sum(0)
    ratio = torch.where(fitted > 0, wanted / fitted.clamp(min=1e-300), 1.0).sqrt()
    return ratio.clamp(1.0, MOST_STRETCH)


def _solve(gram: Tensor, cross: Tensor, strengths: tuple[float, ...]) -> list[Tensor]:
    """Ridge solutions (dx, dy) for several strengths, from one eigendecomposition."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    values = values.clamp(min=0.0)
    floor = float(values[-1]) * gram.shape[0] * torch.finfo(torch.float64).eps * 8
    mean, turned = float(values.mean()), vectors.T @ cross
    found = []
    for lam in strengths:
        inverse = torch.where(values > floor, 1.0 / (values + lam * mean).clamp(min=1e-300), 0.0)
        found.append(vectors @ (inverse.unsqueeze(1) * turned))
    return found


def _reduced(weight: Tensor, gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Reduced-rank regression: the best product (dy, r) @ (r, dx) for the fitted values."""
    _, vectors = torch.linalg.eigh(weight @ gram @ weight.T)
    top = vectors[:, -rank:]
    return top, top.T @ weight


def _prefix_input(source: Place, given: Tensor) -> Tensor:
    if source.prefix:
        return given[:, : source.prefix].flatten(1)
    return source.pooled(given)


def _fit_prefix(
    source: Place, target: Place, given: Tensor, wanted: Tensor, how: Fit
) -> tuple[Tensor, Tensor] | None:
    if not target.prefix:
        return None
    x = _prefix_input(source, given).to(torch.float64)
    y = wanted[:, : target.prefix].flatten(1).to(torch.float64)
    x_mean, y_mean = x.mean(0), y.mean(0)
    sums = _sums(x[:, None, None], y[:, None], 1, x_mean[None, None], y_mean[None, None])
    weight, _, _ = _ridge(sums, how.lam)
    bias = y_mean - weight @ x_mean
    return weight.to(given.dtype).contiguous(), bias.to(given.dtype).contiguous()
