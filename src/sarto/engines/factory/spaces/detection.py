"""Detection by centres: a map of centres and boxes, its loss, and average precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.errors import ShapeError

#: Weight of the boxes' loss beside that of the centres.
BOX_WEIGHT = 1.0
#: Deviation of the soft target around a centre, as a share of the box's smaller side.
SPREAD = 0.12
#: Boxes of one image that count, and the overlap above which the weaker of two goes.
MOST, OVERLAP = 20, 0.5


def detection_loss(maps: Tensor, wanted: Tensor, side: int) -> Tensor:
    """Loss of each sample (n,): focal loss of the centres, and the boxes' overlap at the centres.

    Args:
        maps: (n, 5, cells, cells): logit of a centre, then left, top, right and bottom as distances from the cell's
            middle, in cells, before a softplus.
        wanted: (n, most, 5): 1 or 0, then left, top, right, bottom in pixels.
        side: of the image, in pixels.

    Raises:
        ShapeError: the maps are none.

    Reference:
        Centres: Zhou et al., Objects as Points, arXiv 1904.07850, equation (1). Boxes: generalised overlap, Rezatofighi
        et al., arXiv 1902.09630.
    """
    if maps.ndim != 4 or maps.shape[1] != 5 or maps.shape[2] != maps.shape[3]:
        raise ShapeError(
            f"maps (n, 5, cells, cells) were expected, found {tuple(maps.shape)}: a logit of a centre and the box's "
            "reach to all four sides, as the zoo's centre_detector gives them"
        )
    cells = maps.shape[-1]
    scale = cells / side
    middle = torch.arange(cells, device=maps.device, dtype=maps.dtype) + 0.5
    there, boxes = wanted[..., 0], wanted[..., 1:] * scale
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    spread = (SPREAD * (boxes[..., 2:] - boxes[..., :2]).amin(-1)).clamp(min=0.5)
    across = (middle - centre[..., :1]).square()[:, :, None, :]
    down = (middle - centre[..., 1:]).square()[:, :, :, None]
    hills = torch.exp(-(across + down) / (2 * spread.square()[..., None, None])) * there[..., None, None]
    column = centre[..., 0].floor().long().clamp(0, cells - 1)
    row = centre[..., 1].floor().long().clamp(0, cells - 1)
    place = row * cells + column
    target = hills.amax(1).flatten(1)
    peaks = torch.zeros_like(target).scatter_reduce(1, place, there, "amax")
    logits = maps[:, 0].flatten(1)
    p = torch.sigmoid(logits)
    positive = -F.logsigmoid(logits) * (1 - p).square() * peaks
    negative = F.softplus(logits) * p.square() * (1 - target).pow(4) * (1 - peaks)
    n = there.sum(1).clamp(min=1)
    centres = (positive + negative).sum(1) / n
    reach = F.softplus(maps[:, 1:]).flatten(2)
    found = reach.gather(2, place[:, None].expand(-1, 4, -1)).transpose(1, 2)
    at = torch.stack([column + 0.5, row + 0.5], -1).to(maps.dtype)
    guessed = torch.cat([at - found[..., :2], at + found[..., 2:]], -1)
    away = (1 - generalised_overlap(guessed, boxes)) * there
    return centres + BOX_WEIGHT * away.sum(1) / n


def generalised_overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union, less the share of the hull that neither covers, of boxes (..., 4)."""
    inside = (
        torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])
    ).clamp(min=0)
    hull = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    both, around = inside.prod(-1), hull.prod(-1).clamp(min=1e-9)
    union = _area(one) + _area(other) - both
    return both / union.clamp(min=1e-9) - (around - union) / around


@torch.no_grad()
def boxes_of(maps: Tensor, side: int) -> list[Tensor]:
    """Boxes of each image (k, 5): score, then left, top, right, bottom in pixels; strongest first, few overlaps."""
    cells = maps.shape[-1]
    scores = torch.sigmoid(maps[:, 0])
    local = scores * (F.max_pool2d(scores[:, None], 3, 1, 1)[:, 0] == scores)
    best, place = local.flatten(1).topk(min(MOST, cells * cells), 1)
    reach = F.softplus(maps[:, 1:]).flatten(2).gather(2, place[:, None].expand(-1, 4, -1)).transpose(1, 2)
    at = torch.stack([place % cells, place // cells], -1) + 0.5
    boxes = torch.cat([at - reach[..., :2], at + reach[..., 2:]], -1) * (side / cells)
    rows = torch.cat([best[..., None], boxes.clamp(0, side)], -1)
    return [thinned(image[image[:, 0] > 0]) for image in rows]


def thinned(boxes: Tensor) -> Tensor:
    """Boxes (k, 5), strongest first, without those that overlap a stronger one by more than `OVERLAP`."""
    kept: list[int] = []
    for place in range(len(boxes)):
        if all(float(plain_overlap(boxes[place, 1:], boxes[k : k + 1, 1:])) <= OVERLAP for k in kept):
            kept.append(place)
    return boxes[kept]


def average_precision(found: list[Tensor], wanted: Tensor, overlap: float = 0.5) -> float:
    """Area under the precision-recall curve of boxes of one kind: each wanted box is found once, at an overlap.

    Args:
        found: boxes (k, 5) of each image, as `boxes_of` gives them.
        wanted: (n, most, 5): 1 or 0, then left, top, right, bottom.

    Reference:
        PASCAL VOC 2010 and later: precision is the largest at the same or a higher recall.
    """
    total = int(wanted[..., 0].sum())
    hits: list[tuple[float, bool]] = []
    for boxes, truth in zip(found, wanted, strict=True):
        left = truth[truth[:, 0] > 0][:, 1:]
        free = torch.ones(len(left), dtype=torch.bool)
        for row in boxes:
            shares = plain_overlap(row[1:], left) * free if len(left) else torch.zeros(0)
            hit = bool(len(shares)) and float(shares.max()) >= overlap
            if hit:
                free[int(shares.argmax())] = False
            hits.append((float(row[0]), hit))
    if not total:
        return 0.0 if hits else 1.0
    hits.sort(key=lambda item: -item[0])
    right = torch.tensor([hit for _, hit in hits], dtype=torch.float64)
    if not len(right):
        return 0.0
    true = right.cumsum(0)
    precision = true / torch.arange(1, len(right) + 1)
    precision = precision.flip(0).cummax(0).values.flip(0)
    return float((precision * right).sum() / total)


def plain_overlap(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of one box (4,) with others (n, 4)."""
    inside = (
        (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp(min=0).prod(-1)
    )
    return inside / (_area(box) + _area(others) - inside).clamp(min=1e-9)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
