"""FastestDet: a detector of 0.24 M parameters, its boxes, and the suppression of boxes that show the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sarto.zoo._checks import refuse, too_small
from sarto.zoo.shufflenet import DEPTHS, WIDTHS, ShuffleStages, wrong_stages


class Pointwise(nn.Module):
    """1x1 convolution, batch norm, ReLU."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        conv = nn.Conv2d(given, made, 1, bias=False)
        self.conv1x1 = nn.Sequential(conv, nn.BatchNorm2d(made), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h, w)."""
        return self.conv1x1(x)


def _depthwise(width: int) -> list[nn.Module]:
    conv = nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False)
    return [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


class Pyramid(nn.Module):
    """One, two and three depthwise 5x5 convolutions side by side, joined and added to their input."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.Conv1x1 = Pointwise(given, made)
        self.S1 = nn.Sequential(*_depthwise(made))
        self.S2 = nn.Sequential(*_depthwise(made), *_depthwise(made))
        self.S3 = nn.Sequential(*_depthwise(made), *_depthwise(made), *_depthwise(made))
        self.output = nn.Sequential(nn.Conv2d(3 * made, made, 1, bias=False), nn.BatchNorm2d(made))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h, w)."""
        x = self.Conv1x1(x)
        return F.relu(x + self.output(torch.cat([self.S1(x), self.S2(x), self.S3(x)], dim=1)))


class Branch(nn.Module):
    """Depthwise 5x5 convolution, then a 1x1 convolution without activation."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        last = [nn.Conv2d(given, made, 1, bias=False), nn.BatchNorm2d(made)]
        self.conv5x5 = nn.Sequential(*_depthwise(given), *last)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, given, h, w) -> (batch, made, h, w)."""
        return self.conv5x5(x)


class DetectHead(nn.Module):
    """For each cell: is there an object, where is its box, which class has it."""

    def __init__(self, width: int, n_classes: int) -> None:
        super().__init__()
        self.conv1x1 = Pointwise(width, width)
        self.obj_layers = Branch(width, 1)
        self.reg_layers = Branch(width, 4)
        self.cls_layers = Branch(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, h, w) -> (batch, 5 + n_classes, h, w): probability, four box numbers, class shares."""
        x = self.conv1x1(x)
        sure, classes = torch.sigmoid(self.obj_layers(x)), self.cls_layers(x).softmax(1)
        return torch.cat([sure, self.reg_layers(x), classes], dim=1)


class FastestDet(nn.Module):
    """ShuffleNetV2 maps of three sizes, brought to one size, a pyramid and a head; one box a cell of 16x16 pixels.

    `fastestdet` builds it and checks what it is given. Tensors are named as in the published weights. Images are
    blue, green, red (in this order), between 0 and 1, and 352x352 pixels there.

    Reference:
        Xuehao Ma, FastestDet: it is a real time anchor-free target detection algorithm, 2022, published code.
    """

    def __init__(
        self, n_classes: int, widths: Sequence[int], depths: Sequence[int], in_channels: int
    ) -> None:
        super().__init__()
        self.backbone = ShuffleStages(widths, depths, 24, "imagenet", in_channels)
        self.SPP = Pyramid(sum(widths), widths[1])
        self.detect_head = DetectHead(widths[1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Cells (batch, 5 + n_classes, h / 16, w / 16) of images (batch, in_channels, h, w), multiples of 32.

        Channels are the probability of an object, four numbers of its box that `decode` reads, and the share of each
        class.
        """
        large, middle, small = self.backbone(x)
        large = F.avg_pool2d(large, 3, 2, 1)
        small = F.interpolate(small, scale_factor=2.0, mode="nearest")
        return self.detect_head(self.SPP(torch.cat([large, middle, small], dim=1)))


def fastestdet(
    n_classes: int = 80,
    in_channels: int = 3,
    widths: Sequence[int] = WIDTHS["x0_5"][0],
    depths: Sequence[int] = DEPTHS,
) -> FastestDet:
    """A FastestDet detector; 0.24 M parameters as it stands.

    Args:
        widths: channels of the backbone's three stages, even numbers.
        depths: blocks of each stage.

    Raises:
        ValueError: a number is not positive, there are not three stages, or a width is odd.
    """
    sizes: dict[str, int | Sequence[int]] = {
        "n_classes": n_classes,
        "in_channels": in_channels,
        "widths": widths,
        "depths": depths,
    }
    problems = too_small(sizes)
    refuse(problems + wrong_stages(widths, depths))
    return FastestDet(n_classes, widths, depths, in_channels)


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: left, top, right, bottom as shares of the image's sides, shape (n, 4).
        scores: as `decode` gives them, shape (n,).
        labels: class indices, int64, shape (n,).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def decode(cells: Tensor, weighted: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of every cell of a detector's output, row by row.

    Args:
        cells: what `FastestDet` gives, shape (batch, 5 + n_classes, h, w).
        weighted: a score is the probability of an object times the share of its class; if not, that probability.

    Returns:
        Boxes (batch, h * w, 4) as left, top, right, bottom in shares of the image's sides; scores and int64 labels
        (batch, h * w). A box's middle lies at most one cell from its cell's corner.
    """
    h, w = cells.shape[2:]
    sure, place, classes = cells.split([1, 4, cells.shape[1] - 5], dim=1)
    share, labels = classes.max(dim=1)
    columns = torch.arange(w, device=cells.device, dtype=cells.dtype)
    rows = torch.arange(h, device=cells.device, dtype=cells.dtype)[:, None]
    x, y = (place[:, 0].tanh() + columns) / w, (place[:, 1].tanh() + rows) / h
    half_w, half_h = place[:, 2].sigmoid() / 2, place[:, 3].sigmoid() / 2
    boxes = torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1)
    scores = sure[:, 0] * share if weighted else sure[:, 0]
    return boxes.flatten(1, 2), scores.flatten(1), labels.flatten(1)


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Area that two boxes share, over the area that they cover together; 0 where both have none.

    Args:
        boxes: left, top, right, bottom, shape (n, 4).
        others: the same, shape (m, 4).

    Returns:
        Shape (n, m).
    """
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(part[:, 2:] - part[:, :2]).clamp(min=0).prod(-1) for part in (boxes, others)]
    covered = areas[0][:, None] + areas[1][None] - shared
    return torch.where(covered > 0, shared / covered.clamp(min=torch.finfo(boxes.dtype).tiny), shared)


def suppress(boxes: Tensor, scores: Tensor, overlap: float = 0.45) -> Tensor:
    """Indices, best first, of the boxes that overlap no better box that is kept by more than `overlap`.

    Args:
        boxes: left, top, right, bottom, shape (n, 4).
        scores: shape (n,); of equal ones the first wins.

    Returns:
        int64, shape (kept,).
    """
    order = scores.argsort(descending=True, stable=True)
    rivals = overlaps(boxes[order], boxes[order]) > overlap
    kept = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for place in range(len(order)):
        if kept[place]:
            kept[place + 1 :] &= ~rivals[place, place + 1 :]
    return order[kept]


def detect(
    cells: Tensor, score: float = 0.6, overlap: float = 0.45, weighted: bool = True
) -> list[Detections]:
    """What each image of a batch shows: boxes above `score`, class by class without those that show the same thing.

    Args:
        cells: what `FastestDet` gives, shape (batch, 5 + n_classes, h, w).
        overlap: two boxes of one class that overlap more are one thing; the better one stays.
        weighted: what a score is, as in `decode`.
    """
    found = []
    for boxes, scores, labels in zip(*decode(cells, weighted), strict=True):
        sure = scores > score
        boxes, scores, labels = boxes[sure], scores[sure], labels[sure]
        kept = [
            places[suppress(boxes[places], scores[places], overlap)]
            for label in labels.unique()
            for places in [(labels == label).nonzero()[:, 0]]
        ]
        places = torch.cat(kept) if kept else labels
        places = places[scores[places].argsort(descending=True, stable=True)]
        found.append(Detections(boxes[places], scores[places], labels[places]))
    return found
